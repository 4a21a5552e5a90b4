"""`shirg study`: configs, and by hand the gate, the aims and averaged seeds; a tiny study, whole and killed."""

import json
import re
import shutil
from argparse import Namespace
from importlib.resources import files
from multiprocessing import Process
from pathlib import Path

import pytest
import yaml

from child_process import finish, fork, kill_when
from configuration_shirg import ShirgLavidaConfig
from faults.case import contents
from modeling_shirg.evaluation.aims import check_aims, readable_sizes
from modeling_shirg.evaluation.answer_log import AnswerLog, Place, read_answers
from modeling_shirg.evaluation.bootstrap import mean_interval, ratio_interval
from modeling_shirg.evaluation.results import GUARD_MARGIN, Logged, Plan, tabulate
from modeling_shirg.evaluation.study.config import Gate, config_of, read_content
from modeling_shirg.evaluation.study.cuts import cuts
from modeling_shirg.evaluation.study.gate import gate_verdict
from modeling_shirg.evaluation.study.tables import chosen_point, grid_points, study_tables
from modeling_shirg.evaluation.tasks import TASKS
from modeling_shirg.training.footprints import named_footprint
from shirg_scripts import study
from shirg_scripts.bench_rows import parse_row
from shirg_scripts.cli import main
from study_runs import STUDY, record, write_entry, write_study
from training_run import save_base

CONTENT = yaml.safe_load(STUDY)


def changed(**fields) -> dict:
    return {**CONTENT, **fields}


# What a config asks for


def test_entries_stand_once_the_gates_system_first():
    config = config_of(CONTENT)
    zero_shot = [entry.title for entry in config.zero_shot()]
    assert zero_shot == ["lavida-980", "shirg", "lavida-full", "shirg-salient", "uniform", "shirg:diversity_weight=0"]
    adapted = [entry.title for entry in config.adapted()]
    assert adapted == ["lavida-980, seed 0", "shirg, seed 0", "lavida-980, seed 1", "shirg, seed 1"]
    points = [(entry.title, entry.split) for entry in config.grid_points()]
    assert points[1] == ("shirg:attention_weight=0.5, validation", "validation") and len(points) == 2
    assert config.samples == 8 and config.seeds() == [0, 1]
    names = [entry.name for entry in (*config.zero_shot(), *config.grid_points(), *config.adapted())]
    assert len(set(names)) == len(names) and all("/" not in name and ":" not in name for name in names)


def test_one_adapter_serves_all_ways_to_answer(tmp_path):
    systems = [{"system": "shirg", "train": {"rank": 4}}, "shirg", "shirg:prefix_kv=0.6", "shirg:scaffold=false"]
    groups = [{"name": "a", "baseline": "shirg", "adapt": [3], "systems": systems}]
    config = config_of(changed(groups=groups))
    run = study._Study(Namespace(out=tmp_path, base="base", device="cpu"), config)
    names = [run._adapter(entry).name for entry in config.adapted()]
    assert names == ["shirg,rank=4,seed-3", "shirg,seed-3", "shirg,seed-3", "shirg%3Ascaffold=false,seed-3"]
    words = run._train_words(config.adapted()[3])
    assert words[words.index("--option") + 1] == "scaffold=false" and words[words.index("--seed") + 1] == "3"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"taks": 1}, "there is no 'taks'.*Did you mean 'tasks'"),
        ({"tasks": []}, "needs tasks"),
        ({"timed_rows": None}, "timed_rows None: it must be an integer, 1 or more"),
        ({"batch_size": 0}, "batch_size 0: it must be an integer, 1 or more"),
        ({"tasks": ["chrt"]}, "no task 'chrt'"),
        ({"gate": {"at_least": 0.9}}, "gate: missing 1 required"),
        ({"train": {**CONTENT["train"], "seed": 1}}, "seed=1 is for the study to say"),
        ({"train": {"data": ["x"]}}, "give max_steps and effective_batch_size"),
        ({"groups": [{"name": "a", "baseline": "pool", "systems": ["shirg"]}]}, "baseline pool is none"),
        ({"groups": [{"name": "a", "baseline": "shirg", "systems": ["shirg", "shirg"]}]}, "shirg is there twice"),
        ({"groups": [{"name": "a", "baseline": "shirg"}]}, "it needs systems"),
        (
            {"groups": [{"name": "a", "baseline": "pool", "systems": ["pool", {"system": "shirg", "adapt": [1]}]}]},
            "shirg is adapted and the baseline pool is not",
        ),
        ({"groups": [CONTENT["groups"][0]] * 2}, "Two groups have one name"),
        (
            {"groups": [{"name": "a", "baseline": "x", "systems": [{"system": "x", "train": {"max_steps": 9}}]}]},
            "system x: max_steps=9 is for the study to say",
        ),
    ],
)
def test_a_config_that_does_not_fit_is_an_error_that_says_where(fields, message):
    with pytest.raises(ValueError, match=message):
        config_of(changed(**fields))


def test_what_is_left_out_of_a_plan_is_said():
    plan, same = config_of(CONTENT), config_of(CONTENT)
    assert cuts(plan, same) == []
    group = {"name": "systems", "baseline": "lavida-980", "adapt": [0], "systems": ["lavida-980"]}
    train = {**CONTENT["train"], "max_steps": 1, "learning_rate": 0.1}
    less = config_of({**changed(groups=[group], tasks=["chart"], limit=20, train=train), "grid": None})
    assert cuts(plan, less) == [
        "Rows: the first 20 of each task instead of 80.",
        "Tasks that are not asked: guard.",
        "Systems that are not asked: shirg; lavida-full; shirg-salient; uniform; shirg:diversity_weight=0.",
        "Not adapted: shirg.",
        "Seeds of adaptation that are left out: 1.",
        "Samples of each adaptation: 4 instead of 8.",
        "Recipe of the adaptations: learning_rate 0.1 instead of the default.",
        "No grid over the score weights.",
    ]


@pytest.mark.parametrize("name", ["plan.yaml", "cpu.yaml"])
def test_the_packaged_configs_ask_for_what_there_is(name, tmp_path):
    config = config_of(read_content(Path(str(files("shirg_scripts") / "configs" / "study" / name))))
    base = ShirgLavidaConfig.from_preset("shirg", geometry="toy")
    for entry in (*config.zero_shot(), *config.grid_points()):
        row = parse_row(entry.variant.system)
        assert base.with_preset(row.preset, **row.options).prune_method == row.preset
    for entry in config.adapted():
        recipe = {**config.train, **entry.variant.train}
        footprint = named_footprint(recipe["footprint"], recipe.get("rank"))
        fields = base.with_preset(parse_row(entry.variant.system).preset)
        assert not footprint.coordinates or fields.coordinate_embedding
    run = study._Study(Namespace(out=tmp_path, base="base", device="cpu"), config)
    first = config.adapted()[0]
    _, data, args = run._train_arguments(first)
    assert len(data.data) == 4 and args.early_stopping_patience == 0 and args.use_cpu
    assert args.max_steps * args.effective_batch_size == config.samples
    if name == "cpu.yaml":
        plan = config_of(read_content(Path(str(files("shirg_scripts") / "configs" / "study" / "plan.yaml"))))
        assert len(cuts(plan, config)) >= 5 and cuts(plan, plan) == []


# The gate


def _gate_results(value: float, low: float, majority: float, blank: float) -> dict:
    def row(group: str, control: str, metric: str, value: float) -> dict:
        head = {"task": "chart", "system": "lavida-980", "control": control, "by": "glyph_px", "group": group}
        interval = {"low": low if control == "none" else value, "high": 1.0, "n": 200}
        return {**head, "metric": metric, "value": value, **interval, "majority": majority}

    small = [row("8", control, "exact_match", 0.0) for control in ("none", "blank")]
    large = [row("29", "none", "exact_match", value), row("29", "blank", "exact_match", blank)]
    return {"tasks": {"chart": {}}, "groups": [*small, *large], "scores": []}


@pytest.mark.parametrize(
    ("value", "low", "majority", "blank", "passes"),
    [
        (0.95, 0.92, 0.2, 0.3, True),
        (0.89, 0.86, 0.2, 0.3, False),  # reads too little
        (0.95, 0.92, 0.85, 0.3, False),  # not well above the most frequent answer
        (0.95, 0.92, 0.2, 0.85, False),  # nor above what it says without the image
    ],
)
def test_the_gate_wants_the_largest_size_read_and_not_guessed(value, low, majority, blank, passes):
    verdict = gate_verdict(Gate("lavida-980"), _gate_results(value, low, majority, blank))
    (family,) = verdict["families"]
    assert verdict["passes"] is family["passes"] is passes
    assert (family["glyph_px"], family["value"], family["majority"], family["blank"]) == ("29", value, majority, blank)


def test_the_gate_needs_the_blank_control():
    results = _gate_results(0.9, 0.9, 0.1, 0.1)
    results["groups"] = [row for row in results["groups"] if row["control"] == "none"]
    with pytest.raises(ValueError, match="under the control 'blank', which was not asked"):
        gate_verdict(Gate("lavida-980"), results)


def test_the_gate_needs_the_largest_size():
    results = _gate_results(0.9, 0.9, 0.1, 0.1)
    results["groups"] = [row for row in results["groups"] if row["group"] == "8"]
    with pytest.raises(ValueError, match="chart at 29 px, which is not asked: take a larger limit"):
        gate_verdict(Gate("lavida-980"), results)


# The aims


def _answers(rights: list[float], task: str = "chart", **facts) -> list[dict]:
    names = {"chart": "exact_match", "guard": "vqa_accuracy"}
    return [
        {
            "task": task,
            "row": row,
            "scores": {names[task]: right},
            "in_fovea": True,
            "cell_glyph_px": 8.0,
            "kind": "read_value",
            "answers": [str(row % 10)],
            **facts,
        }
        for row, right in enumerate(rights)
    ]


def _reader(**systems: list[dict]):
    return lambda system, task: systems.get(f"{system.replace('-', '_')}_{task}")


def test_aims_by_hand():
    ours, base, bound = [1.0] * 50 + [0.0] * 50, [0.0] * 60 + [1.0] * 40, [1.0] * 52 + [0.0] * 48
    read = _reader(
        shirg_chart=_answers(ours),
        lavida_980_chart=_answers(base),
        lavida_full_chart=_answers(bound),
        shirg_salient_chart=_answers(ours, in_fovea=False),
        uniform_chart=_answers(ours),
        random_chart=_answers(base),
        shirg_guard=_answers([1.0] * 4000, "guard"),
        lavida_980_guard=_answers([1.0] * 3999 + [0.0], "guard"),
    )
    rows = {row["aim"].partition(":")[0]: row for row in check_aims(read, 0)}
    over = rows["shirg over lavida-980"]
    assert (over["value"], over["n"], over["status"]) == (pytest.approx(0.1), 100, "met")
    assert (over["low"], over["high"]) == mean_interval([a - b for a, b in zip(ours, base, strict=True)], 0)
    assert over["settled"] is False and over["where"] == "inside the fovea, chart 8 px"
    bounded = rows["shirg at least 95% of lavida-full"]
    assert (bounded["value"], bounded["status"]) == (pytest.approx(50 / 52), "met")
    assert (bounded["low"], bounded["high"]) == ratio_interval(ours, bound, 0)
    guard = rows["Guard"]
    assert (guard["status"], guard["settled"], guard["n"]) == ("met", True, 4000) and guard["low"] > GUARD_MARGIN
    salient = rows["shirg-salient over shirg"]
    assert (salient["status"], salient["value"], salient["n"], salient["settled"]) == ("missed", 0.0, 100, True)
    assert rows["shirg over random, the same count"]["status"] == "met"
    uniform = rows["shirg over uniform, the same count"]
    assert (uniform["status"], uniform["value"]) == ("missed", 0.0)
    pool = rows["shirg over pool, the same count"]
    assert (pool["status"], pool["why"], pool["value"]) == ("not measured", "not asked: pool", None)


def test_few_rows_of_the_guard_settle_nothing_and_worse_ones_miss():
    worse = [1.0] * 60 + [0.0] * 40
    read = _reader(shirg_guard=_answers(worse, "guard"), lavida_980_guard=_answers([1.0] * 100, "guard"))
    guard = check_aims(read, 0)[2]
    assert (guard["status"], guard["settled"]) == ("missed", False) and "100 rows are too few" in guard["why"]


def test_what_is_readable_is_what_the_upper_bound_reads_better_than_the_majority():
    small, large = _answers([0.1] * 40), _answers([1.0] * 40, cell_glyph_px=15.0)
    outside = _answers([1.0] * 40, cell_glyph_px=4.0, in_fovea=False)
    records = [{**each, "row": row} for row, each in enumerate([*small, *large, *outside])]
    assert readable_sizes(_reader(lavida_full_chart=records), 0) == {"chart": 15.0}
    assert readable_sizes(_reader(lavida_full_chart=small), 0) == {}
    rows = check_aims(_reader(lavida_full_chart=small, shirg_chart=small, lavida_980_chart=small), 0)
    assert [row["status"] for row in rows[:2]] == ["not measured"] * 2
    assert "reads no size better than the majority" in rows[0]["why"]
    forms = _answers([1.0] * 40, "chart")
    read = _reader(lavida_full_chart=small, lavida_full_document=forms, shirg_chart=small, shirg_document=forms)
    assert check_aims(read, 0)[0]["where"] == "inside the fovea, document 8 px (lavida-full reads no size of chart)"


def test_ratio_intervals_resample_pairs():
    one, other = [1.0, 0.0] * 50, [1.0, 0.0] * 50
    assert ratio_interval(one, other, 0) == (1.0, 1.0)  # the same questions: no luck in the ratio
    low, high = ratio_interval(one, other[::-1], 0)
    assert low < 0.9 and high > 1.1
    assert ratio_interval([1.0], [0.0], 0) == (float("inf"), float("inf"))


# Tables of several runs


def _run(root: Path, system: str, rights: list[float]) -> Path:
    place = Place("chart", system, "none")
    with AnswerLog(root, place, 0) as log:
        log.append([{**record(place, row, 0), "scores": {"exact_match": r}} for row, r in enumerate(rights)])
    return root


def test_scores_of_several_seeds_are_averaged_question_by_question(tmp_path):
    base = _run(tmp_path / "base", "lavida-980", [0, 0, 1, 1])
    seeds = tuple(_run(tmp_path / f"{n}", "shirg", r) for n, r in enumerate([[1, 1, 0, 1], [1, 0, 0, 1]]))
    logged = {"base": Logged((base,), "lavida-980"), "new": Logged(seeds, "shirg")}
    tables = tabulate(tmp_path, Plan({"chart": 4}, ["base", "new"], ["none"], "base", 0, 0.0, logged))
    total = next(row for row in tables["scores"] if (row["system"], row["by"]) == ("new", ""))
    assert (total["n"], total["value"], total["difference"]) == (4, 0.625, 0.125)
    assert (total["difference_low"], total["difference_high"]) == mean_interval([1, 0.5, -1, 0], 0)
    short = _run(tmp_path / "short", "shirg", [1, 1, 0])
    logged["new"] = Logged((*seeds, short), "shirg")
    with pytest.raises(ValueError, match="have different rows"):
        tabulate(tmp_path, Plan({"chart": 4}, ["base", "new"], ["none"], "base", 0, 0.0, logged))


def test_tables_name_what_is_missing_and_take_what_there_is(tmp_path):
    config = write_study(tmp_path, left_out=("shirg, seed 1", "uniform"))
    tables = study_tables(tmp_path, config)
    by = {(group["name"], group["arm"]): group for group in tables["groups"]}
    assert set(by) == {("systems", "zero-shot"), ("systems", "adapted"), ("ablations of shirg", "zero-shot")}
    zero_shot, adapted = by["systems", "zero-shot"], by["systems", "adapted"]
    assert zero_shot["missing"] == ["uniform"] and "uniform" not in zero_shot["systems"]
    assert adapted["missing"] == ["shirg, seed 1"]
    assert [(row["system"], row["seed"]) for row in adapted["seeds"]] == [
        ("lavida-980", 0),
        ("lavida-980", 1),
        ("shirg", 0),
    ]
    own = {row["seed"]: row["tasks"]["chart"] for row in adapted["seeds"] if row["system"] == "lavida-980"}
    total = next(
        r for r in adapted["tables"]["scores"] if (r["task"], r["system"], r["by"]) == ("chart", "lavida-980", "")
    )
    assert own[0] != own[1] and total["value"] == pytest.approx((own[0] + own[1]) / 2)
    gain = next(row for row in tables["gains"] if (row["system"], row["task"]) == ("lavida-980", "chart"))
    before = next(
        r for r in zero_shot["tables"]["scores"] if (r["task"], r["system"], r["by"]) == ("chart", "lavida-980", "")
    )
    assert gain["difference"] == pytest.approx(total["value"] - before["value"])
    assert {row["title"]: row.get("status") for row in tables["entries"]}["uniform"] is None


def _chart_score(tables: dict, arm: str, system: str) -> float:
    """A system's score on charts in the first group of an arm."""
    group = next(group for group in tables["groups"] if group["arm"] == arm)
    rows = group["tables"]["scores"]
    metric = TASKS["chart"].metric
    return next(
        r["value"] for r in rows if (r["task"], r["system"], r["by"], r["metric"]) == ("chart", system, "", metric)
    )


def test_gains_and_aims_take_all_seeds_of_a_system_that_another_group_adapts_with_one(tmp_path):
    group = {"name": "again", "baseline": "lavida-980", "systems": [{"system": "lavida-980", "adapt": [0]}]}
    config = write_study(tmp_path, text=yaml.safe_dump(changed(groups=[*CONTENT["groups"], group])))
    tables = study_tables(tmp_path, config)
    (row,) = (r for r in tables["gains"] if (r["system"], r["task"]) == ("lavida-980", "chart"))
    adapted = next(group for group in tables["groups"] if group["arm"] == "adapted")
    own = [each["tasks"]["chart"] for each in adapted["seeds"] if each["system"] == "lavida-980"]
    before = _chart_score(tables, "zero-shot", "lavida-980")
    assert own[0] != own[1] and row["difference"] == pytest.approx(sum(own) / 2 - before)


def test_the_grid_is_decided_on_validation_rows_when_all_points_are_there(tmp_path):
    config = write_study(tmp_path, left_out=("shirg:attention_weight=0.5, validation",))
    assert len(grid_points(tmp_path, config)) == 1 and chosen_point(tmp_path, config) is None
    write_entry(tmp_path, config, config.grid_points()[1])
    points = grid_points(tmp_path, config)
    assert points[0]["mean"] >= points[1]["mean"]
    assert chosen_point(tmp_path, config).variant.system == points[0]["system"]
    assert chosen_point(tmp_path, config).split == "test"


# A tiny study

TINY = """
tasks: [guard]
limit: 6
batch_size: 2
timed_rows: 3
gate: {system: lavida-980, at_least: AT_LEAST, margin: MARGIN}
train:
  data: ["synthetic:guard,rows=12"]
  validation_rows: 2
  effective_batch_size: 2
  per_device_train_batch_size: 2
  max_steps: 4
  warmup_steps: 1
  rank: 2
  logging_steps: 1
  eval_steps: 2
  save_steps: 2
  dataloader_num_workers: 0
  activation_checkpointing: false
  disable_tqdm: true
  loss_curve: false
groups:
  - name: systems
    baseline: shirg
    systems: [lavida-980, {system: shirg, adapt: [0]}, {system: "shirg:prefix_kv=0.5", adapt: [0]}]
  - {name: zero-shot alone, baseline: shirg, systems: [shirg]}
grid: {system: shirg, tasks: [guard], limit: 4, values: {attention_weight: [0.0, 0.5]}}
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def _words(base: Path, out: Path, opens: bool = True) -> list[str]:
    config = out.with_suffix(".yaml")
    at_least, margin = ("0", "-1") if opens else ("0.9", "0.1")
    config.write_text(TINY.replace("AT_LEAST", at_least).replace("MARGIN", margin))
    return ["study", "--base", str(base), "--out", str(out), "--config", str(config), "--device", "cpu"]


def _start(base: Path, out: Path, opens: bool = True, ignore: bool = False) -> Process:
    words = [*_words(base, out, opens), *(["--ignore-gate"] if ignore else [])]
    return fork(main, words)


def _finish(base: Path, out: Path, opens: bool = True, ignore: bool = False) -> None:
    assert finish(_start(base, out, opens, ignore)) == [0]


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory) -> Path:
    """A study that nothing happened to, whose base does not pass the gate."""
    out = tmp_path_factory.mktemp("whole") / "run"
    _finish(base, out, opens=False, ignore=True)
    return out


def _entries(run: Path) -> dict[str, dict]:
    return {file.parent.name: json.loads(file.read_text()) for file in run.glob("entries/*/entry.json")}


def _answers_of(run: Path) -> dict[str, list[tuple]]:
    return {
        folder.name: [
            (record["row"], record["prediction"])
            for record in read_answers(folder, Place("guard", _entries(run)[folder.name]["system"], "none"))
        ]
        for folder in (run / "entries").iterdir()
    }


ADAPTER, ENTRY = "adapters/shirg,seed-0", "entries/shirg,seed-0"
OTHER_ENTRY = "entries/shirg%3Aprefix_kv=0.5,seed-0"


def _copy_without(whole: Path, run: Path, *lost: str) -> Path:
    shutil.copytree(whole, run)
    for folder in lost:
        shutil.rmtree(run / folder)
    return run


def test_a_study_runs_what_its_config_asks_for(whole, base):
    entries = _entries(whole)
    assert {entry["status"] for entry in entries.values()} == {"finished"}
    adapted = {name for name, entry in entries.items() if entry["arm"] == "adapted"}
    assert adapted == {"shirg,seed-0", "shirg%3Aprefix_kv=0.5,seed-0"}
    assert {entries[name]["adapter"] for name in adapted} == {"adapters/shirg,seed-0"}
    assert all(entries[name]["training"]["samples"] == 8 for name in adapted)
    assert [folder.name for folder in (whole / "adapters").iterdir()] == ["shirg,seed-0"]
    for name, entry in entries.items():
        settings = json.loads((whole / "entries" / name / "settings.json").read_text())
        assert settings["split"] == entry["split"] and settings["limit"] == (6 if entry["split"] == "test" else 4)
        assert settings["model"] == str(base if entry["arm"] == "zero-shot" else whole / entry["adapter"])
        assert len(_answers_of(whole)[name]) == settings["limit"]
    assert sum(entry["split"] == "validation" for entry in entries.values()) == 2
    facts = json.loads((whole / "study.json").read_text())
    assert facts["status"] == "finished" and not facts["gate"]["passes"] and len(facts["cuts"]) > 4
    results = json.loads((whole / "results.json").read_text())
    assert results["chosen"]["systems"] == list(dict.fromkeys(["shirg", results["grid"][0]["system"]]))
    assert [row["system"] for row in results["gains"]] == ["shirg", "shirg:prefix_kv=0.5"]


def test_seconds_are_of_one_run_for_all_systems(whole, base, tmp_path, capsys):
    timing = json.loads((whole / "timing" / "results.json").read_text())
    results = json.loads((whole / "results.json").read_text())
    assert timing["tasks"]["guard"]["rows"] == 3 and timing["settings"]["model"] == str(base)
    assert results["timing"] == {"machine": timing["machine"], "rows": {"guard": 3}, "batch_size": 2}
    seconds = {row["system"]: (row["seconds"], row["stage_seconds"]) for row in timing["efficiency"]}
    groups = [*results["groups"], results["chosen"]]
    told = [(group["arm"], row) for group in groups for row in group["tables"]["efficiency"]]
    assert {row["system"] for _, row in told} == set(seconds) and {arm for arm, _ in told} == {"zero-shot", "adapted"}
    assert all((row["seconds"], row["stage_seconds"]) == seconds[row["system"]] for _, row in told)
    run = _copy_without(whole, tmp_path / "run", "timing")
    words = _words(base, run)
    assert main(["report", str(run), "--no_examples"]) == 0
    assert "Seconds are not measured yet" in (run / "REPORT.md").read_text()
    assert main(words) == 0 and "timing: asking" in capsys.readouterr().out
    config = Path(words[words.index("--config") + 1])
    config.write_text(config.read_text().replace("systems: [shirg]}", "systems: [shirg, random]}"))
    assert main(words) == 0 and "timing: asking" in capsys.readouterr().out
    assert "random" in json.loads((run / "timing" / "results.json").read_text())["systems"]


def test_a_finished_study_does_nothing_again(whole, base, capsys):
    before = {file: file.stat().st_mtime_ns for file in whole.glob("entries/*/answers/*/*/*")}
    assert main(_words(base, whole)) == 0
    printed = capsys.readouterr().out
    assert printed.count("finished before, skipped") == len(_entries(whole)) + 1 and "asking" not in printed
    assert {file: file.stat().st_mtime_ns for file in whole.glob("entries/*/answers/*/*/*")} == before


def _is_written(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0


def _assert_stopped_at_the_gate(out: Path) -> None:
    facts = json.loads((out / "study.json").read_text())
    assert facts["status"] == "stopped at the gate" and not facts["gate"]["passes"]
    assert not (out / "adapters").exists()
    results = json.loads((out / "results.json").read_text())
    adapted = next(group for group in results["groups"] if group["arm"] == "adapted")
    assert adapted["tables"] is None and adapted["missing"] == ["shirg, seed 0", "shirg:prefix_kv=0.5, seed 0"]


@pytest.mark.slow
def test_a_killed_study_goes_on_where_it_stopped_also_at_the_gate(whole, base, tmp_path):
    out = tmp_path / "run"
    answers = out / "entries" / "shirg" / "answers" / "guard" / "shirg" / "none.0.jsonl"
    kill_when(lambda: _is_written(answers), _start(base, out))
    asked = _entries(out)
    assert asked["lavida-980"]["status"] == "finished" and asked["shirg"]["status"] == "running"
    first = (out / "entries" / "lavida-980" / "results.json").stat().st_mtime_ns
    _finish(base, out, opens=False)
    _assert_stopped_at_the_gate(out)
    (out / "results.json").unlink()
    checkpoint = out / "adapters" / "shirg,seed-0" / "checkpoint-2" / "trainer_state.json"
    kill_when(lambda: _is_written(checkpoint), _start(base, out))
    assert not (out / "adapters" / "shirg,seed-0" / "adapter_model.safetensors").exists()
    assert not (out / "results.json").exists()
    _finish(base, out)
    assert (out / "entries" / "lavida-980" / "results.json").stat().st_mtime_ns == first
    assert _answers_of(out) == _answers_of(whole)
    one, other = (json.loads((run / "results.json").read_text()) for run in (out, whole))
    for name in ("gains", "aims", "grid"):
        assert one[name] == other[name]
    tables = [[group["tables"]["scores"] for group in results["groups"]] for results in (one, other)]
    assert tables[0] == tables[1]


def test_an_adapter_that_is_gone_is_trained_again_for_an_entry_that_is_not_finished(whole, base, tmp_path):
    run = _copy_without(whole, tmp_path / "run", ADAPTER)
    assert main(_words(base, run)) == 0 and not (run / ADAPTER).exists()
    shutil.rmtree(run / ENTRY)
    assert main(_words(base, run)) == 0 and (run / ADAPTER / "adapter_model.safetensors").exists()
    assert _answers_of(run) == _answers_of(whole)


@pytest.mark.parametrize("lost", [(), (ADAPTER,), (ENTRY, OTHER_ENTRY), (ENTRY, ADAPTER)])
def test_another_recipe_is_refused_before_anything_is_written(whole, base, tmp_path, capsys, lost):
    run = _copy_without(whole, tmp_path / "run", *lost)
    words, before = _words(base, run), contents(run)
    config = Path(words[words.index("--config") + 1])
    config.write_text(config.read_text().replace("max_steps: 4", "max_steps: 5"))
    assert main(words) == 2
    said = capsys.readouterr().err
    assert re.search("shirg.*seed-0 (was made|holds a run) with max_steps=4,.* asks for (max_steps=)?5", said)
    assert contents(run) == before


def test_how_an_adapter_is_computed_may_change(whole, base, tmp_path):
    run = _copy_without(whole, tmp_path / "run", ENTRY)
    words = _words(base, run)
    config = Path(words[words.index("--config") + 1])
    config.write_text(config.read_text().replace("per_device_train_batch_size: 2", "per_device_train_batch_size: 1"))
    assert main(words) == 0 and (run / ENTRY / "results.json").exists()


def test_entries_of_another_training_are_named(whole, base, tmp_path, capsys):
    run = _copy_without(whole, tmp_path / "run", ADAPTER, ENTRY)
    file = run / OTHER_ENTRY / "entry.json"
    facts = json.loads(file.read_text())
    facts["training"]["metrics"]["eval_loss"] += 0.1
    file.write_text(json.dumps(facts))
    assert main(_words(base, run)) == 2
    said = capsys.readouterr().err
    assert f"{run / ADAPTER} was trained again and did not end as before: {run / OTHER_ENTRY} had another" in said
    shutil.rmtree(run / OTHER_ENTRY)
    assert main(_words(base, run)) == 0


def test_other_bases_other_limits_and_wrong_recipes_are_errors(whole, base, tmp_path, capsys, monkeypatch):
    other = save_base(tmp_path / "other", "lavida-980")
    assert main(_words(other, whole)) == 2
    assert "fingerprint was" in capsys.readouterr().err
    words = _words(base, whole)
    file = Path(words[words.index("--config") + 1])
    file.write_text(file.read_text().replace("limit: 6", "limit: 5"))
    facts = (whole / "study.json").read_text()
    assert main(words) == 2
    assert "was made with limit=6, the config asks for 5" in capsys.readouterr().err
    assert (whole / "study.json").read_text() == facts
    for text, wrong, message in (
        ("rank: 2", "rnak: 2", "there is no argument 'rnak'"),
        ("[lavida-980,", "[lavida-980, shirk,", "Unknown system 'shirk'"),
        ("rank: 2", "footprint: shirg-fxed", "Unknown footprint"),
    ):
        words = _words(base, tmp_path / "wrong")
        config = Path(words[words.index("--config") + 1])
        config.write_text(config.read_text().replace(text, wrong))
        assert main(words) == 2
        assert re.search(message, capsys.readouterr().err)
        assert not (tmp_path / "wrong" / "entries").exists()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(_words(base, tmp_path / "two")) == 2
    assert "runs in one process" in capsys.readouterr().err
