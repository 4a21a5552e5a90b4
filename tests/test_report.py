"""`shirg report` and `shirg study`: figures are those of the results, missing parts are named, slides need no file."""

import json
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from command_runs import CommandError, checkpoint, command
from modeling_shirg.evaluation.answer_log import AnswerLog, Place
from modeling_shirg.evaluation.report.examples import pick_examples
from modeling_shirg.evaluation.report.figures import shown
from modeling_shirg.evaluation.report.reported import open_report
from modeling_shirg.evaluation.results import Logged, Plan, tabulate, write_results
from modeling_shirg.evaluation.study_plan import read_study
from modeling_shirg.evaluation.tasks import TASKS, TaskRows

SLIDES = "Motivation,Upper bound,Landscape,Method,Results,Efficiency,Ablations,Failures,Roadmap".split(",")
SYSTEMS = ["lavida-980", "lavida-full", "shirg", "random", "uniform", "pool", "shirg-salient", "saint", "topv"]
CONFIGS = Path(__file__).parents[1] / "scripts" / "configs" / "study"
MACHINE = {"gpu": None, "cpu": "a CPU", "cores": 2, "threads": 1, "load_average": 0.5, "date": "2026-01-01"}
MACHINE |= {"torch": "2", "transformers": "5"}
STUDY = {
    "tasks": ["chart", "guard"],
    "limit": 40,
    "tables": [
        {"name": "systems", "baseline": "lavida-980", "systems": ["lavida-980", "lavida-full", "shirg", "uniform"]},
        {"name": "caches", "baseline": "shirg", "systems": ["shirg", "shirg:prefix_kv=0.6"]},
    ],
    "train": {"max_steps": 1, "effective_batch_size": 2},
    "adapt": [{"system": "lavida-980"}, {"system": "shirg", "seeds": [0, 1]}],
    "aims": [{"system": "shirg", "over": "lavida-980", "at_least": 0.1}],
}


def _answers(root: Path, systems: list[str], rows: int = 40, tasks: tuple[str, ...] = ("chart", "guard")) -> None:
    """Made-up answers to the benchmark's questions."""
    (root / "settings.json").parent.mkdir(parents=True, exist_ok=True)
    settings = {"model": "/nowhere/checkpoint", "dtype": "auto", "revision": None, "split": "test", "steps": 2}
    (root / "settings.json").write_text(json.dumps(settings))
    for task in tasks:
        table = TaskRows(task, limit=rows)
        for number, system in enumerate(systems):
            place, batch = Place(task, system), {"size": 4, "seconds": 0.4 + number, "prefix_bytes": 1000}
            cost = {"image_tokens": 245 + number, "forwards": 8, "batch": batch}
            with AnswerLog(root, place, 0) as log:
                for row in range(rows):
                    sample, right = table.sample(row), (row * 7 + number * 3) % 5 < 3
                    asked = {**place._asdict(), "row": row, "question": sample.question, "answers": sample.golds}
                    given = {"prediction": sample.golds[0] if right else "<b>none"}
                    scores = {"scores": {name: float(right) for name in TASKS[task].scores}}
                    log.append([{**asked, **given, **scores, **sample.facts, **cost}])
        (root / "answers" / task / "rows.json").write_text(json.dumps({"data": None, "rows": rows}))


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    _answers(folder, SYSTEMS)
    systems = {name: Logged(folder, name) for name in SYSTEMS}
    plan = Plan({"chart": 40, "guard": 40}, systems, ["none"], "lavida-980")
    about = {"settings": {"model": None}, "machine": MACHINE, "baseline": "lavida-980", "systems": SYSTEMS}
    write_results(folder, about | tabulate(plan))
    command("report", str(folder), "--no_examples")
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A reported study without `uniform` and without the second seed."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.json").write_text(json.dumps({"base": "a base", "machine": MACHINE, "plan": STUDY}))
    _answers(folder / "zero-shot", ["lavida-980", "lavida-full", "shirg", "shirg:prefix_kv=0.6"])
    for adaptation in read_study(folder / "study.json", folder).adapt[:2]:
        _answers(folder / "adapted" / adaptation.name, [adaptation.system])
    command("report", str(folder))
    return folder


def _tables(text: str) -> dict[str, list[dict[str, str]]]:
    """The tables of a Markdown page by their captions."""
    tables = {}
    for caption, body in re.findall(r"^(\S.*)\n\n((?:\|.*\n?)+)", text, re.MULTILINE):
        header, _, *rows = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in body.splitlines())
        tables[caption] = [dict(zip(header, row, strict=True)) for row in rows]
    return tables


def _check_scores(tables: dict, title: str, baseline: str, scores: list[dict]) -> int:
    """Compare the tables of scores and differences with the results; returns the number of cells."""
    count = 0
    kinds = {
        "value low high": (".1f", "percent, with 95% intervals"),
        "difference difference_low difference_high": (
            "+.1f",
            f"paired differences to {baseline} in points, with 95% intervals",
        ),
    }
    for row in scores:
        for names, (form, caption) in kinds.items():
            values = [row[name] for name in names.split()]
            if (row["by"], row["metric"]) == ("", TASKS[row["task"]].metric) and values[0] is not None:
                value, low, high = (format(100 * each, form) for each in values)
                (line,) = [line for line in tables[f"{title}: {caption}"] if line["system"] == row["system"]]
                assert line[f"{row['task']}, {row['metric'].replace('_', ' ')}"] == f"{value} ({low} to {high})"
                count += 1
    return count


def test_figures_of_an_evaluation_are_those_of_its_results(evaluation):
    results, text = json.loads((evaluation / "results.json").read_text()), (evaluation / "REPORT.md").read_text()
    tables = _tables(text)
    assert _check_scores(tables, "all systems", "lavida-980", results["scores"]) == 2 * (9 + 8)
    costs = {row["system"]: row for row in results["efficiency"] if row["task"] == "chart"}
    for line in tables["all systems: cost, means over tasks of each task's median"]:
        assert line["ms per image"] == f"{1000 * costs[line['system']]['seconds']:.1f}"
        assert line["image tokens"] == str(costs[line["system"]]["image_tokens_max"])
    verdict = next(line for line in tables["all systems: guard, large shapes"] if line["system"] == "shirg")
    assert verdict["guard"].startswith("passes" if results["guard"]["shirg"]["passes"] else "does not pass")
    sizes = tables["chart, exact match, glyph height inside the centre fovea"]
    assert sizes[-1]["8"] == str(next(r["n"] for r in results["groups"] if r["by"] == "glyph_px_in_fovea"))
    linked = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)
    assert len(linked) == 5 and len(shown(open_report(evaluation).main)) == 7
    for name in linked:
        with Image.open(evaluation / name) as picture:
            assert picture.width > 400 and len(picture.convert("RGB").getcolors(1 << 24)) > 20


def test_figures_of_a_study_are_those_of_its_results_and_missing_parts_are_named(study):
    results, text = json.loads((study / "results.json").read_text()), (study / "REPORT.md").read_text()
    tables = _tables(text)
    titles = ["systems, zero-shot", "systems, adapted", "caches, zero-shot"]
    assert [table["title"] for table in results["tables"]] == titles
    for table, baseline in zip(results["tables"], ("lavida-980", "lavida-980, seed 0", "shirg"), strict=True):
        assert _check_scores(tables, table["title"], baseline, table["scores"]) > 0
    assert results["unfinished"] == ["uniform, zero-shot", "shirg, seed 1, adapted"]
    assert "uniform, zero-shot; shirg, seed 1, adapted" in text.splitlines()[2]
    told = [aim["figure"] for aim in results["aims"]["adapted"]]
    caption = f"{titles[1]}: paired differences to lavida-980, seed 0 in points, with 95% intervals"
    adapted = {line["system"]: line for line in tables[caption]}
    assert told == [adapted["shirg, seed 0"][name] for name in ("chart, exact match", "guard, vqa accuracy")]
    assert "No overlays" in text and "/nowhere/checkpoint" in text and "only shirg is right" in text


def test_slides_have_content_and_need_no_other_file(study, evaluation):
    for folder, left_out in ((study, ()), (evaluation, ("Ablations", "Roadmap"))):
        text = (folder / "DECK.html").read_text()
        titles = re.findall(r"<section><h1>([^<]*)</h1>", text)
        names = [name for name in SLIDES if name not in left_out]
        assert [title.startswith(name) for title, name in zip(titles, names, strict=True)] == [True] * len(names)
        sources = re.findall(r'(?:src|href)="([^"]*)"', text)
        assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
        assert "<script" not in text and "<b>none" not in text


def test_examples_are_of_every_kind(evaluation):
    picks = pick_examples(open_report(evaluation).main)
    right = {pick.kind: tuple(given == pick.gold for given in pick.given) for pick in picks}
    assert right == {
        "only shirg is right": (False, True),
        "only lavida-980 is right": (True, False),
        "neither is right": (False, False),
        "both are right": (True, True),
    }


@pytest.mark.parametrize("content", [None, '{"status": '])
def test_a_folder_that_is_none_and_a_cut_file_are_named(tmp_path, content):
    if content is not None:
        (tmp_path / "study.json").write_text(content)
    with pytest.raises(CommandError, match="study.json"):
        command("report", str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tasks": ["chatr"]}, "'chatr'"),
        ({"colour": 1}, "colour"),
        ({"train": {}}, "max_steps"),
        ({"tables": [{"name": "a", "baseline": "lavida", "systems": ["shirg"]}]}, "lavida"),
    ],
)
def test_a_wrong_study_is_named(tmp_path, changes, named):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY | changes))
    with pytest.raises(ValueError, match=named):
        read_study(tmp_path / "study.yaml", tmp_path)


def test_a_study_trains_asks_and_skips_finished_parts(tmp_path, monkeypatch):
    recipe = {"data": ["synthetic:guard,rows=8"], "footprint": "shirg-extra", "use_cpu": True, "warmup_steps": 0}
    recipe |= dict.fromkeys(("max_steps", "save_steps", "logging_steps"), 1)
    recipe |= dict.fromkeys(("effective_batch_size", "per_device_train_batch_size"), 2)
    plan = {"tasks": ["guard"], "limit": 6, "train": recipe, "adapt": [{"system": s} for s in ("lavida-980", "shirg")]}
    plan["tables"] = [{"name": "systems", "baseline": "lavida-980", "systems": ["lavida-980", "shirg"]}]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(plan))
    out = tmp_path / "run"
    words = f"study {tmp_path / 'study.yaml'} --base {checkpoint()} --out {out} --device cpu".split()
    command(*words)
    monkeypatch.setattr("shirg_scripts.train.main", lambda *_: pytest.fail("it trained again"))
    assert "shirg, seed 0: finished before" in command(*words)
    command("report", str(out))
    assert [table.title for table in open_report(out).tables] == ["systems, zero-shot", "systems, adapted"]
    with Image.open(next((out / "examples").glob("*.png"))) as picture:
        colors = [color for _, color in picture.getcolors(1 << 24)]
        assert any(g > r + 60 and g > b + 60 for r, g, b in colors)  # frames of kept patches
