"""`shirg evaluate`: questions, logs, continued runs and tables; tables by hand, and small runs of a tiny model."""

import csv
import json
import os
from multiprocessing import Process
from pathlib import Path

import datasets
import numpy as np
import pytest

from child_process import finish, fork, kill_when
from command_runs import CommandError, checkpoint, command
from modeling_shirg.evaluation.answer_log import AnswerLog, Place, check_settings, read_answers
from modeling_shirg.evaluation.intervals import difference_interval, mean_interval
from modeling_shirg.evaluation.results import Logged, Plan, guard_verdicts, missing, tabulate, write_results
from modeling_shirg.evaluation.tasks import TASKS, TaskRows
from modeling_shirg.scenes.benchmark import build_benchmark, cells_of
from shirg_scripts.cli import main
from tiny_model import noise_image

STRING, INT = datasets.Value("string"), datasets.Value("int64")
STRINGS = datasets.List(STRING)
PEOPLE = datasets.List({"answer": STRING, "answer_confidence": STRING, "answer_id": INT})
SAID = [{"answer": "none", "answer_confidence": "yes", "answer_id": number} for number in range(1, 11)]
WORD = "\nAnswer the question with a single word."
PHRASE = "\nAnswer the question using a single word or phrase."


# Task, split, columns as the Hub has them, one row without its image, suffix, golds, what else is kept, and the scores
# of a prediction that tells the task's metric from the others.
SCHEMAS = {
    "chartqa of HuggingFaceM4": (
        ("chartqa", "test"),
        {"query": STRING, "label": STRINGS, "human_or_machine": INT},
        ("How many?", ["100"], 1),
        ("How many?" + WORD, ["100"], {"subset": "augmented"}, "0"),
        ("104", {"relaxed_accuracy": 1.0, "exact_match": 0.0}),
    ),
    "chartqa of lmms-lab": (
        ("chartqa", "test"),
        {"type": STRING, "question": STRING, "answer": STRING},
        ("human_test", "How many?", "100"),
        ("How many?" + WORD, ["100"], {"subset": "human"}, "0"),
        ("106", {"relaxed_accuracy": 0.0, "exact_match": 0.0}),
    ),
    "docvqa": (
        ("docvqa", "validation"),
        {"questionId": STRING, "question": STRING, "answers": STRINGS, "docId": INT},
        ("77", "Who?", ["smith", "j. smith"], 3),
        ("Who?" + PHRASE, ["smith", "j. smith"], {}, "77"),
        ("smath", {"anls": 0.8, "exact_match": 0.0}),
    ),
    "infographicvqa": (
        ("infographicvqa", "validation"),
        {"questionId": STRING, "question": STRING, "answers": STRINGS, "operation/reasoning": STRINGS},
        ("8", "Who?", ["smith"], []),
        ("Who?" + PHRASE, ["smith"], {}, "8"),
        ("xxxth", {"anls": 0.0, "exact_match": 0.0}),
    ),
    "textvqa": (
        ("textvqa", "validation"),
        {"question_id": INT, "question": STRING, "answers": STRINGS, "ocr_tokens": STRINGS},
        (5, "What brand?", ["none"] * 10, []),
        ("What brand?" + PHRASE, ["none"] * 10, {}, "5"),
        ("none", {"vqa_accuracy": 1.0}),
    ),
    "vqav2": (
        ("vqav2", "validation"),
        {"question_id": INT, "question": STRING, "answers": PEOPLE, "multiple_choice_answer": STRING},
        (6, "How many?", SAID, "none"),
        ("How many?" + PHRASE, ["none"] * 10, {}, "6"),
        ("none", {"vqa_accuracy": 0.0}),
    ),
}


def _parquet(folder: Path, split: str, columns: dict, rows: list[dict], images: list | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    images = images or [noise_image(number, 70, 40) for number in range(len(rows))]
    filled = [{**row, "image": image} for row, image in zip(rows, images, strict=True)]
    features = datasets.Features({**columns, "image": datasets.Image()})
    datasets.Dataset.from_list(filled, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def _charts(folder: Path, count: int = 4, images: list | None = None) -> Path:
    """ChartQA as HuggingFaceM4 has it, human and augmented questions in turn."""
    _, columns, _, _, _ = SCHEMAS["chartqa of HuggingFaceM4"]
    rows = [{"query": f"How many {n}?", "label": [str(n)], "human_or_machine": n % 2} for n in range(count)]
    return _parquet(folder, "test", columns, rows, images)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_row_of_every_schema_is_asked_and_scored_by_its_task(tmp_path, schema):
    (task, split), columns, values, expected, (prediction, scores) = SCHEMAS[schema]
    row = dict(zip(columns, values, strict=True))
    rows = TaskRows(task, str(_parquet(tmp_path / "data", split, columns, [row] * 2)))
    assert len(rows) == 2 and len(TaskRows(task, str(tmp_path / "data"), limit=1)) == 1
    sample = rows.sample(0)
    assert (sample.question, sample.golds, sample.facts, sample.question_id) == expected
    assert sample.image.size == (70, 40) and len(np.unique(sample.image)) > 100
    given = {name: score(prediction, sample.golds) for name, score in TASKS[task].scores.items()}
    assert given == pytest.approx(scores)


@pytest.mark.parametrize("family", ["chart", "guard"])
def test_a_limited_family_is_the_first_rows_of_the_whole(family):
    count = len(cells_of(family)) + 3
    rows, whole = TaskRows(family, limit=count), build_benchmark(family, per_cell=3)
    assert len(rows) == count
    for place in (0, count - 1):
        sample, row = rows.sample(place), whole[place]
        assert (sample.question, sample.golds) == (row["question"], [row["answer"]] * len(sample.golds))
        assert np.array_equal(sample.image, row["image"])
        assert {name: row[name] for name in sample.facts} == sample.facts
    assert len(sample.golds) == (10 if family == "guard" else 1)


def test_controls_take_the_image_or_the_question_away(tmp_path):
    for rows in (TaskRows("guard", limit=6), TaskRows("chartqa", str(_charts(tmp_path / "data")))):
        for number in range(len(rows)):
            own, blank, other = (rows.sample(number, name) for name in ("none", "blank", "shuffled_question"))
            assert np.unique(blank.image).tolist() == [128] and blank.image.size == own.image.size
            assert (blank.question, blank.golds, other.golds) == (own.question, own.golds, own.golds)
            assert other.question != own.question and np.array_equal(other.image, own.image)
    assert other.question == "How many 0?" + WORD  # after the last row comes the first


# The log


def test_half_a_line_is_dropped_and_a_second_writer_refused(tmp_path):
    place = Place("chart", "shirg:steps=2", "none")
    with AnswerLog(tmp_path, place, 0) as log:
        log.append([{"row": 0, "text": "Ä\n", "scores": {}}, {"row": 2, "scores": {}}])
        with pytest.raises(ValueError, match="Another run is writing"), AnswerLog(tmp_path, place, 0):
            pass
    with log.file.open("ab") as opened:
        opened.write(b'{"row": 4, "te')
    assert [record["row"] for record in read_answers(tmp_path, place)] == [0, 2]
    with AnswerLog(tmp_path, place, 0) as log, AnswerLog(tmp_path, place, 1) as other:
        log.append([{"row": 4, "scores": {}}])
        other.append([{"row": 1, "scores": {}}])
    assert [record["row"] for record in read_answers(tmp_path, place)] == [0, 1, 2, 4]
    with AnswerLog(tmp_path, place, 1) as other:
        other.append([{"row": 4, "scores": {}}])
    with pytest.raises(ValueError, match="row 4"):
        read_answers(tmp_path, place)


def test_settings_bind_from_the_first_answer_on(tmp_path):
    file, answers = tmp_path / "settings.json", tmp_path / "answers"
    place = Place("chart", "shirg", "none")
    for split in ("nope", "test"):
        check_settings(file, {"split": split}, answers)
        assert json.loads(file.read_text()) == {"split": split}
        with AnswerLog(tmp_path, place, 0):
            pass  # asked for, and not answered
    with AnswerLog(tmp_path, place, 0) as log:
        log.append([{"row": 0, "bad": "no image"}])
    with pytest.raises(ValueError, match="split was 'test', now 'nope'"):
        check_settings(file, {"split": "nope"}, answers)
    file.write_text("")
    with pytest.raises(ValueError, match="settings.json"):
        check_settings(file, {"split": "test"}, answers)


# The tables


def test_bootstrap_intervals_repeat_and_cover():
    values = np.random.default_rng(0).random(400) < 0.3
    assert mean_interval(values, 1) == mean_interval(values, 1) != mean_interval(values, 2)
    reach = 1.96 * (values.mean() * (1 - values.mean()) / 400) ** 0.5
    assert mean_interval(values, 1) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.006)
    low, high = difference_interval(values, ~values, 0)
    assert low < 2 * values.mean() - 1 < high and high - low == pytest.approx(2**0.5 * 2 * reach, abs=0.01)


def _record(place: Place, row: int, right: float, **facts) -> dict:
    return {
        **place._asdict(),
        "row": row,
        "answers": ["a" if row < 3 else "b"],
        "prediction": "a",
        "scores": {name: right for name in TASKS[place.task].scores},
        "kind": "read_value",
        **facts,
        "image_tokens": 10 + row,
        "forwards": 4,
        "batch": {"size": 2, "seconds": 2.0, "prefix_bytes": 600},
    }


def _log(root: Path, task: str, system: str, rights: list[float], facts: list[dict] | None = None) -> None:
    place, facts = Place(task, system), facts or [{}] * len(rights)
    with AnswerLog(root, place, 0) as log:
        log.append([_record(place, row, right, **facts[row]) for row, right in enumerate(rights)])


def _plan(root: Path, task: str, rows: int, **changes) -> Plan:
    systems = {name: Logged(root, name) for name in ("base", "new")}
    return Plan({task: rows}, systems, ["none"], "base", **{"max_bad_share": 0.0, **changes})


def _cells() -> list[dict]:
    """Two sizes x inside and outside the fovea, and a question that is placed nowhere."""
    cells = [(8.0, 0.1, True), (8.0, 0.9, False), (15.0, 0.25, True), (15.0, 1.0, False)]
    placed = [{"cell_glyph_px": s, "eccentricity": e, "in_fovea": i} for s, e, i in cells]
    return [*placed, {"cell_glyph_px": None, "eccentricity": 0.3, "in_fovea": True, "kind": "difference"}]


def test_differences_and_groups_by_hand(tmp_path):
    _log(tmp_path, "chart", "base", [0, 1, 1, 0, 0], _cells())
    _log(tmp_path, "chart", "new", [1, 1, 0, 1, 1], _cells())
    tables = tabulate(_plan(tmp_path, "chart", 5))
    total = {row["system"]: row for row in tables["scores"] if (row["by"], row["metric"]) == ("", "exact_match")}
    assert (total["base"]["value"], total["base"]["difference"]) == (0.4, None)
    assert total["new"]["value"] == 0.8 and total["new"]["difference"] == pytest.approx(0.4)
    interval = mean_interval([1, 0, -1, 1, 1], 0)
    assert (total["new"]["difference_low"], total["new"]["difference_high"]) == interval
    # "a" is right 3 times of 4 values, "b" the only time of the other kind
    assert total["new"]["majority"] == pytest.approx((3 + 1) / 5)
    values = {
        (row["by"], row["group"]): (row["n"], row["value"], row["difference"])
        for row in tables["groups"]
        if (row["system"], row["metric"]) == ("new", "exact_match")
    }
    assert values == {
        ("glyph_px", "8"): (2, 1.0, 0.5),
        ("glyph_px", "15"): (2, 0.5, 0.0),
        ("glyph_px_in_fovea", "8"): (1, 1.0, 1.0),
        ("glyph_px_in_fovea", "15"): (1, 0.0, -1.0),
        ("glyph_px_outside_fovea", "8"): (1, 1.0, 0.0),
        ("glyph_px_outside_fovea", "15"): (1, 1.0, 1.0),
        ("eccentricity", "0-0.25"): (1, 1.0, 1.0),
        ("eccentricity", "0.25-0.5"): (1, 0.0, -1.0),
        ("eccentricity", "0.75-1"): (2, 1.0, 0.5),
    }
    (cost, _) = tables["efficiency"]
    assert (cost["image_tokens"], cost["image_tokens_max"], cost["seconds"], cost["prefix_bytes"]) == (12, 14, 1, 300)
    write_results(tmp_path, tables)
    written = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert written[0]["value"] == str(tables["scores"][0]["value"]) and len(written) == len(tables["scores"])
    assert len(list(csv.DictReader((tmp_path / "groups.csv").open()))) == len(tables["groups"])


@pytest.mark.parametrize(
    ("worse", "better", "passes"), [(0, 0, True), (25, 0, True), (34, 0, False), (200, 170, False)]
)
def test_the_guard_passes_if_the_interval_stays_above_minus_one_point(tmp_path, worse, better, passes):
    base = [1] * 2000 + [0] * 2000
    new = [0] * worse + [1] * (2000 - worse + better) + [0] * (2000 - better)
    _log(tmp_path, "guard", "base", base)
    _log(tmp_path, "guard", "new", new)
    tables = tabulate(_plan(tmp_path, "guard", 4000))
    (verdict,) = tables["guard"].values()
    assert list(tables["guard"]) == ["new"] and verdict["enough_rows"]
    assert verdict["passes"] is passes and verdict["difference"] == pytest.approx((better - worse) / 4000)
    assert verdict["passes"] is (verdict["difference_low"] > -0.01)
    assert guard_verdicts([{**row, "task": "chart"} for row in tables["scores"]]) == {}


def test_bad_rows_are_counted_listed_and_limited(tmp_path):
    for system in ("base", "new"):
        place = Place("chart", system, "none")
        with AnswerLog(tmp_path, place, 0) as log:
            log.append([_record(place, 0, 1.0), {"row": 1, "bad": "no image"}, _record(place, 2, 0.0)])
    with pytest.raises(ValueError, match=r"1 of 3 rows of chart cannot be used, 33.33%.*\n  row 1: no image"):
        tabulate(_plan(tmp_path, "chart", 3, max_bad_share=0.3))
    tables = tabulate(_plan(tmp_path, "chart", 3, max_bad_share=0.5))
    assert tables["tasks"]["chart"] == {"rows": 3, "answered": 2, "bad": [{"row": 1, "reason": "no image"}]}
    assert tables["scores"][0]["n"] == 2
    assert missing(_plan(tmp_path, "chart", 3)) == 0 and missing(_plan(tmp_path, "chart", 4)) == 2


# Whole runs


COMMON = ["--batch_size", "2", "--max_new_tokens", "4", "--steps", "2", "--device", "cpu"]
RUN = ["--tasks", "guard", "entity_grid", "--limit", "10", "--systems", "lavida-980", "shirg"]


def _words(out: Path, *arguments: str) -> list[str]:
    return ["evaluate", "--model", str(checkpoint()), "--out", str(out), *COMMON, *arguments]


def _start(out: Path, rank: int = 0, world: int = 1) -> Process:
    return fork(_as_rank, _words(out, *RUN), rank, world)


def _as_rank(words: list[str], rank: int, world: int) -> int:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
    return main(words)


def _comparable(out: Path) -> tuple[dict, dict]:
    """Of results and answers what does not depend on the clock."""
    results = json.loads((out / "results.json").read_text())
    names = ("tasks", "systems", "baseline", "scores", "groups", "discrepancy", "guard")
    places = [Place(*folder.relative_to(out / "answers").parts) for folder in sorted(out.glob("answers/*/*/"))]
    answers = {
        place: [(record["question_id"], record["prediction"]) for record in read_answers(out, place)]
        for place in places
    }
    return {name: results[name] for name in names}, answers


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    command(*_words(out, *RUN))
    return out


def test_every_answer_is_logged_with_what_it_cost(whole):
    results = json.loads((whole / "results.json").read_text())
    for task in ("guard", "entity_grid"):
        for system in ("lavida-980", "shirg"):
            records = read_answers(whole, Place(task, system, "none"))
            assert [record["row"] for record in records] == list(range(10))
            assert all(record["image_tokens"] == 245 and record["forwards"] == 2 for record in records)
            assert all(record["batch"]["size"] == 2 and record["batch"]["prefix_bytes"] > 0 for record in records)
            for record in records:
                scores = {n: s(record["prediction"], record["answers"]) for n, s in TASKS[task].scores.items()}
                assert record["scores"] == scores
            cost = next(r for r in results["efficiency"] if (r["task"], r["system"]) == (task, system))
            assert cost["peak_memory_bytes"] == cost["weight_bytes"] + cost["activation_bytes"] > cost["weight_bytes"]
            assert (cost["memory_batch_size"], cost["memory_device"], cost["batch_size"]) == (2, "cpu", 2)
    assert len(set(record["prediction"] for record in records)) > 1


def test_a_killed_run_goes_on_and_asks_nothing_twice(whole, tmp_path):
    file = tmp_path / "answers" / "guard" / "shirg" / "none.0.jsonl"
    kill_when(lambda: file.exists() and file.stat().st_size, _start(tmp_path))
    assert not (tmp_path / "results.json").exists()
    before = file.read_bytes()
    file.write_bytes(before + b'{"task": "gua')
    command(*_words(tmp_path, *RUN))
    assert file.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    assert len(file.read_text().splitlines()) == 10
    assert _comparable(tmp_path) == _comparable(whole)


def test_two_processes_answer_what_one_does(whole, tmp_path):
    assert finish(*(_start(tmp_path, rank, 2) for rank in range(2))) == [0, 0]
    folder = tmp_path / "answers" / "guard" / "shirg"
    rows = [[json.loads(line)["row"] for line in file.open()] for file in sorted(folder.glob("*.jsonl"))]
    assert rows == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]
    assert _comparable(tmp_path) == _comparable(whole)


def test_chartqa_from_a_folder_by_subset_with_controls_and_bad_rows(tmp_path):
    images = [noise_image(0, 70, 40), {"bytes": b"no image", "path": None}, *(noise_image(n) for n in (1, 2))]
    data, out = _charts(tmp_path / "data", 4, images), tmp_path / "out"
    words = ["--tasks", "chartqa", "--systems", "shirg:steps=1", "shirg", "--control", "blank", "shuffled_question"]
    with pytest.raises(CommandError, match="1 of 4 rows of chartqa"):
        command(*_words(out, *words, "--data", f"chartqa={data}"))
    with pytest.raises(CommandError, match="data was"):
        command(*_words(out, *words, "--data", f"chartqa={data},split=test"))
    printed = command(*_words(out, *words, "--data", f"chartqa={data}", "--max_bad_share", "0.3"))
    assert "chartqa: 1 of 4 rows were bad, row 1: unreadable image" in printed
    results = json.loads((out / "results.json").read_text())
    found = {(r["group"], r["control"], r["metric"]): r["n"] for r in results["scores"] if r["system"] == "shirg"}
    groups, controls = {"": 3, "human": 2, "augmented": 1}, ("none", "blank", "shuffled_question")
    metrics = ("relaxed_accuracy", "exact_match", "cider")
    assert found == {(g, c, m): n for g, n in groups.items() for c in controls for m in metrics}
    assert {r["system"]: r["forwards"] for r in results["efficiency"]} == {"shirg:steps=1": 1, "shirg": 2}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "chatqa"], "no task 'chatqa'.*Did you mean 'chartqa'"),
        (["--baseline", "lavida"], "baseline 'lavida' is none of the systems"),
        (["--data", "chartqa"], "write it as TASK=PLACE"),
        (["--data", "docvqa=/tmp"], "names docvqa, which is none of --tasks"),
        (["--data", "guard=/tmp"], "guard is rendered here"),
        (["--limit", "0"], "--limit 0"),
        (["--systems", "shirg:batch=3"], "say --batch_size 3"),
        (["--split", "train"], "training draws scenes of its own"),
        (["--max_bad_share", "1"], "--max_bad_share 1.0"),
    ],
)
def test_a_wrong_argument_is_an_error_that_says_what_to_do(tmp_path, words, message):
    with pytest.raises(CommandError, match=message):
        command(*_words(tmp_path, "--tasks", "guard", *words))
    assert not (tmp_path / "results.json").exists()


def test_other_settings_or_other_weights_in_one_folder_are_errors(whole, tmp_path):
    with pytest.raises(CommandError, match="limit was 10, now 9; prefix_kv was None, now 0.5"):
        command(*_words(whole, *RUN, "--limit", "9", "--prefix_kv", "0.5"))
    (tmp_path / "weights.json").write_text('{"weights": "of another model"}')
    with AnswerLog(tmp_path, Place("guard", "lavida-980"), 0) as log:
        log.append([{"row": 0, "bad": "no image"}])
    with pytest.raises(CommandError, match="weights was 'of another model'"):
        command(*_words(tmp_path, *RUN))
