"""`shirg report`: figures are those of results.json, what is missing is said, pages and slides need no other file."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from study_runs import SYSTEMS, write_evaluation, write_study

from modeling_shirg.evaluation.report.figures import pareto_front, shown
from modeling_shirg.evaluation.report.picks import pick_examples
from modeling_shirg.evaluation.report.source import open_source
from modeling_shirg.evaluation.tasks import TASKS
from shirg_scripts.cli import main
from tiny_model import tiny_config, tiny_model, tiny_processor

SLIDES = (
    "Motivation",
    "Upper bound",
    "Landscape",
    "Method",
    "Results",
    "Efficiency",
    "Ablations",
    "Failures and limits",
    "Roadmap",
)


SMALL = """
tasks: [chart, guard]
limit: 40
gate: {system: lavida-980, at_least: 0.5}
train: {data: ["synthetic:chart,rows=8"], max_steps: 2, effective_batch_size: 4}
groups: [{name: systems, baseline: lavida-980, adapt: [0], systems: [lavida-980, shirg]}]
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A reported study that lacks two entries."""
    folder = tmp_path_factory.mktemp("study")
    write_study(folder, left_out=("shirg, seed 1", "uniform"))
    assert main(["report", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    write_evaluation(folder, [*SYSTEMS, "saint", "topv"], ["chart", "guard"])
    assert main(["report", str(folder), "--no_examples"]) == 0
    return folder


def _tables(text: str) -> dict[str, list[dict[str, str]]]:
    """The tables of a Markdown page by their captions."""
    tables = {}
    for caption, body in re.findall(r"^(\S.*)\n\n((?:\|.*\n?)+)", text, re.MULTILINE):
        header, _, *rows = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in body.splitlines())
        tables[caption] = [dict(zip(header, row, strict=True)) for row in rows]
    return tables


def _shown(row: dict, names: tuple[str, str, str], form: str) -> str:
    value, low, high = (format(100 * row[name], form) for name in names)
    return f"{value} ({low} to {high})"


def _check_scores(tables: dict, title: str, results: dict) -> int:
    """Compare the table of scores and of differences with the results; returns how many cells there were."""
    count, baseline = 0, None
    for row in results["scores"]:
        if (row["by"], row["control"], row["metric"]) != ("", "none", TASKS[row["task"]].metric):
            continue
        column = f"{row['task']}, {row['metric'].replace('_', ' ')}"
        cells = {line["system"]: line for line in tables[f"{title}: percent, with 95% intervals"]}
        assert cells[row["system"]][column] == _shown(row, ("value", "low", "high"), ".1f")
        count += 1
        if row["difference"] is None:
            baseline = row["system"]
            continue
        caption = f"{title}: paired differences to {baseline} in points, with 95% intervals"
        cells = {line["system"]: line for line in tables[caption]}
        names = ("difference", "difference_low", "difference_high")
        assert cells[row["system"]][column] == _shown(row, names, "+.1f")
        count += 1
    return count


def test_figures_of_an_evaluation_are_those_of_its_results(evaluation):
    results = json.loads((evaluation / "results.json").read_text())
    tables = _tables((evaluation / "REPORT.md").read_text())
    assert _check_scores(tables, "all systems", results) == 2 * (9 + 8)
    groups = [
        r for r in results["groups"] if (r["task"], r["by"], r["metric"]) == ("chart", "glyph_px", "exact_match")
    ]
    what = "glyph height in px of the toy geometry"
    cells = {line[what]: line for line in tables[f"chart, exact match, {what}"]}
    for row in groups:
        assert cells[row["system"]][row["group"]] == _shown(row, ("value", "low", "high"), ".1f")
    assert cells["questions"]["8"] == str(groups[0]["n"]) and len(groups) == 45
    costs = {row["system"]: row for row in results["efficiency"] if row["task"] == "chart"}
    for line in tables["all systems: cost, means over tasks of each task's median"]:
        assert line["ms per image"] == f"{1000 * costs[line['system']]['seconds']:.1f}"
        assert line["image tokens"] == str(costs[line["system"]]["image_tokens_max"])
        assert line["peak MB of a batch"] == f"{costs[line['system']]['peak_memory_bytes'] / 1e6:.1f}"
    verdict = next(line for line in tables["Guard: large shapes"] if line["system"] == "shirg")
    assert verdict["guard"].startswith("passes" if results["guard"]["shirg"]["passes"] else "does not pass")


def test_figures_of_a_study_are_those_of_its_results(study):
    results = json.loads((study / "results.json").read_text())
    tables = _tables((study / "REPORT.md").read_text())
    for group in results["groups"]:
        assert _check_scores(tables, f"{group['name']}, {group['arm']}", group["tables"]) > 0
    for arm, rows in results["aims"].items():
        lines = tables[f"Aims, {arm}"]
        assert [line["aim"] for line in lines] == [row["aim"] for row in rows]
        for line, row in zip(lines, rows, strict=True):
            assert line["status"].startswith(row["status"])
            if row["unit"] == "points" and row["value"] is not None:
                assert line["figure"] == _shown(row, ("value", "low", "high"), "+.1f")
            if row["value"] is None:
                assert line["figure"] == "-" and row["why"] in line["status"]
    gate = {row["task"]: row for row in results["study"]["gate"]["families"]}
    for line in tables["The base under lavida-980, percent"]:
        row = gate[line["family"]]
        assert line["exact match"] == _shown(row, ("value", "low", "high"), ".1f")
        assert line["no image"] == f"{100 * row['blank']:.1f}"
    points = [line["point"] for line in tables["Score weights on validation rows, percent"]]
    assert points == [point["system"] for point in results["grid"]]
    gains = {(row["system"], row["task"]): row for row in results["gains"]}
    for line in tables["Adapted minus zero-shot, question by question, in points"]:
        assert line["chart, exact match"] == _shown(
            gains[line["system"], "chart"], ("difference", "low", "high"), "+.1f"
        )


def test_what_is_missing_or_cut_is_said(study):
    text = (study / "REPORT.md").read_text()
    assert "- Missing from systems, zero-shot: uniform." in text
    assert "- Missing from systems, adapted: shirg, seed 1." in text
    assert "- Tasks that are not asked: entity_grid." in text
    assert {line["entry"]: line["status"] for line in _tables(text)["Entries"]}["uniform"] == "missing"
    deck = (study / "DECK.html").read_text()
    assert "Missing from systems, zero-shot: uniform." in deck and "not asked: random" in deck


def test_a_failing_gate_stands_at_the_top_a_missing_baseline_is_said_and_all_of_it_regenerates(tmp_path, capsys):
    write_study(tmp_path, left_out=("lavida-980, seed 0",), text=SMALL)
    facts = json.loads((tmp_path / "study.json").read_text())
    facts["gate"]["passes"] = facts["gate"]["families"][1]["passes"] = False
    facts["status"] = "stopped at the gate"
    (tmp_path / "study.json").write_text(json.dumps(facts))
    assert main(["report", str(tmp_path)]) == 0
    line = "The base does not pass the gate (guard): it reads too little for comparisons on it to count."
    text, deck = (tmp_path / "REPORT.md").read_text(), (tmp_path / "DECK.html").read_text()
    assert f"{line} Adaptations were not run." in text.splitlines()[2]
    assert line in capsys.readouterr().out and line in deck
    assert "**The baseline lavida-980 is missing, so there is no table.**" in text
    assert "systems, zero-shot: percent" in text and "systems, adapted: percent" not in text
    results = (tmp_path / "results.json").read_bytes()
    for name in ("REPORT.md", "REPORT.html", "DECK.html", "results.json"):
        (tmp_path / name).unlink()
    assert main(["report", str(tmp_path)]) == 0
    assert (tmp_path / "results.json").read_bytes() == results and (tmp_path / "REPORT.md").read_text() == text
    assert _without_pictures((tmp_path / "DECK.html").read_text()) == _without_pictures(deck)
    assert (tmp_path / "REPORT.html").exists()


def _without_pictures(page: str) -> str:
    return re.sub(r'src="[^"]*"', "", page)


@pytest.mark.parametrize("name", ["REPORT.html", "DECK.html"])
def test_pages_need_no_other_file_and_show_answers_as_text(study, name):
    text = (study / name).read_text()
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'(?:src|href)="([^"]*)"', text))
    assert "<script" not in text and "<b>none" not in text
    assert text.count("<img") >= 5


def test_the_deck_has_nine_slides(study, evaluation):
    for folder in (study, evaluation):
        text = (folder / "DECK.html").read_text()
        titles = re.findall(r"<section><h1>([^<]*)</h1>", text)
        assert len(titles) == 9
        assert all(title.startswith(name) for title, name in zip(titles, SLIDES, strict=True))
    assert "Not measured: no group beside the main one has tables." in text
    told = (study / "DECK.html").read_text()
    assert "systems, zero-shot: paired differences to lavida-980" in told  # where the upper bound was asked


def test_pictures_are_linked_and_drawn(evaluation):
    linked = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", (evaluation / "REPORT.md").read_text())
    assert len(linked) == 8
    assert shown(open_source(evaluation).main) == list(SYSTEMS)
    assert "2 systems more are in the tables." in (evaluation / "REPORT.md").read_text()
    for name in linked:
        with Image.open(evaluation / name) as picture:
            assert picture.width > 400 and len(picture.convert("RGB").getcolors(1 << 24)) > 20


def test_the_front_has_what_nothing_beats():
    points = [(245, 0.5), (245, 0.6), (845, 0.7), (300, 0.55), (900, 0.7)]
    assert pareto_front(points) == [(245, 0.6), (845, 0.7)]


def test_examples_are_of_every_kind_and_need_two_systems(evaluation, tmp_path):
    picks = pick_examples(open_source(evaluation).main)
    kinds = [pick.kind for pick in picks]
    assert kinds[:2] == ["only shirg is right"] * 2 and len(set(kinds)) == 4
    assert {pick.task for pick in picks[:2]} == {"chart", "guard"} and {pick.system for pick in picks} == {"shirg"}
    for pick in picks:
        right = [given == pick.golds[0] for given in pick.given]
        assert (
            right
            == {
                "only shirg is right": [False, True],
                "only lavida-980 is right": [True, False],
                "neither is right": [False, False],
                "both are right": [True, True],
            }[pick.kind]
        )
    write_evaluation(tmp_path, ["lavida-980"], ["chart"], rows=10)
    assert pick_examples(open_source(tmp_path).main) == []


def test_examples_without_their_checkpoint_say_why(study):
    text = (study / "REPORT.md").read_text()
    assert "No overlays: the checkpoint /nowhere/checkpoint is not there any more." in text
    assert "chart, row" in text and "(only shirg is right)" in text


def test_a_folder_that_is_none_is_an_error(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "holds neither study.json nor results.json" in capsys.readouterr().err
    (tmp_path / "settings.json").write_text("{}")
    assert main(["report", str(tmp_path)]) == 2
    assert "an evaluation that is not finished" in capsys.readouterr().err


def test_a_file_that_was_cut_is_named(tmp_path, capsys):
    write_study(tmp_path, text=SMALL)
    (answers,) = tmp_path.glob("entries/shirg/answers/chart/shirg/none.*.jsonl")
    whole = answers.read_bytes()
    answers.write_bytes(b"".join(whole.splitlines(keepends=True)[:-3]))
    assert main(["report", str(tmp_path), "--no_examples"]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'entries' / 'shirg'}: of 80 answers of shirg on chart, control 'none', 3 are missing" in said
    answers.write_bytes(whole)
    (tmp_path / "study.json").write_text('{"status": ')
    assert main(["report", str(tmp_path), "--no_examples"]) == 2
    assert f"{tmp_path / 'study.json'} cannot be read" in capsys.readouterr().err


def test_overlays_of_a_real_run_are_drawn_once(tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    tiny_model(config := tiny_config("shirg")).save_pretrained(base)
    tiny_processor(config).save_pretrained(base)
    words = ["--tasks", "guard", "--limit", "3", "--systems", "lavida-980", "shirg", "--batch_size", "3"]
    words += ["--max_new_tokens", "4", "--steps", "2", "--device", "cpu", "--no_curves"]
    assert main(["evaluate", "--model", str(base), "--out", str(out), *words]) == 0
    assert main(["report", str(out)]) == 0
    (picture,) = sorted((out / "examples").glob("*.png"))
    with Image.open(picture) as opened:
        colors = [color for _, color in opened.getcolors(1 << 24)]
        assert opened.width > 2 * 440 and any(g > r + 60 and g > b + 60 for r, g, b in colors)  # kept patches' frames
    assert "![guard, row 0: " in (out / "REPORT.md").read_text()
    drawn = picture.stat().st_mtime_ns
    assert main(["report", str(out)]) == 0
    assert picture.stat().st_mtime_ns == drawn
    moved = out.rename(tmp_path / "moved")
    assert main(["report", str(moved)]) == 0
    assert (moved / "examples" / picture.name).stat().st_mtime_ns == drawn
