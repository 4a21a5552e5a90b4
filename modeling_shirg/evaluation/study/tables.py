"""All tables of a study, from the entries that are finished; those that are not are named."""

from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from modeling_shirg.evaluation.aims import check_aims
from modeling_shirg.evaluation.answer_log import ROWS_FILE, Place, read_json, write_json
from modeling_shirg.evaluation.bootstrap import mean_interval
from modeling_shirg.evaluation.results import RESULTS_FILE, Logged, Plan, Records, logged_answers, tabulate
from modeling_shirg.evaluation.study.config import Arm, Entry, Group, StudyConfig, Variant
from modeling_shirg.evaluation.tasks import TASKS

STUDY_FILE, BASE_FILE, ENTRY_FILE = "study.json", "base.json", "entry.json"
ENTRIES, ADAPTERS, TIMING = "entries", "adapters", "timing"
SEED, MAX_BAD_SHARE = 0, 0.01


def entry_facts(run: Path, entry: Entry) -> dict[str, Any]:
    """What entry.json says; nothing before it was written."""
    file = run / ENTRIES / entry.name / ENTRY_FILE
    return read_json(file) if file.exists() else {}


def timing(run: Path) -> dict[str, Any]:
    """Results of the run in which all systems were timed; nothing before it is finished."""
    file = run / TIMING / RESULTS_FILE
    return read_json(file) if file.exists() else {}


def is_finished(run: Path, entry: Entry) -> bool:
    return entry_facts(run, entry).get("status") == "finished"


def write_study_results(run: Path, facts: dict[str, Any], config: StudyConfig) -> dict[str, Any]:
    """Make all tables of the entries that are finished, and results.json of them; `facts` are those of study.json."""
    results = {"study": facts, **study_tables(run, config)}
    write_json(run / RESULTS_FILE, results)
    return results


def study_tables(run: Path, config: StudyConfig) -> dict[str, Any]:
    """What results.json of a study holds beside its facts.

    - `groups`: one element per group and arm with its `baseline`, the `systems` of its tables (which are those of
      `tabulate`, `None` without the baseline), what is `missing`, and `seeds`, the value of every run of its own;
    - `gains`: of every adapted variant, adapted minus zero-shot, question by question;
    - `aims`: by arm, what `check_aims` returns;
    - `grid`: the points by their mean over tasks, the best first;
    - `timing`: rows of each task, machine and batch size of the run whose seconds stand in `groups`; `None` before it;
    - `entries`: all facts.
    """
    arms: tuple[Arm, ...] = ("zero-shot", "adapted")
    entries = [*config.zero_shot(), *config.grid_points(), *config.adapted()]
    chosen, timed = chosen_point(run, config), timing(run)
    entries += [] if chosen is None else [chosen]

    def tables_of(group: Group, arm: Arm) -> dict[str, Any]:
        return _group_tables(run, config, group, arm, timed)

    return {
        "groups": [tables_of(group, arm) for group in config.groups for arm in arms if group.of(arm)],
        "gains": _gains(run, config),
        "aims": {arm: check_aims(_reader(run, config, arm), SEED) for arm in arms},
        "grid": grid_points(run, config),
        "timing": _timing_facts(timed),
        "chosen": None if chosen is None else tables_of(chosen_group(config, chosen), "zero-shot"),
        "entries": [{"title": entry.title, **entry_facts(run, entry)} for entry in entries],
    }


def grid_points(run: Path, config: StudyConfig) -> list[dict[str, Any]]:
    """The points of the grid that are finished: validation scores by task and their mean, the best first."""
    points = []
    for entry in config.grid_points():
        if is_finished(run, entry):
            scores = _own_scores(run, entry)
            points.append({"system": entry.variant.system, "tasks": scores, "mean": fmean(scores.values())})
    return sorted(points, key=lambda point: -point["mean"])


def chosen_point(run: Path, config: StudyConfig) -> Entry | None:
    """The best point of the grid as an entry on test rows; `None` before all points are finished."""
    points = grid_points(run, config)
    if not points or len(points) < len(config.grid_points()):
        return None
    return Entry(Variant(points[0]["system"]))


def chosen_group(config: StudyConfig, chosen: Entry) -> Group:
    """The table of the chosen point beside the system whose weights were searched."""
    return Group(
        "weights chosen on validation rows", config.grid.system, (Variant(config.grid.system), chosen.variant)
    )


def logged_variants(run: Path, variants: list[Variant], arm: Arm) -> dict[str, Logged]:
    """Of the variants that have finished entries in an arm, where their answers are, by their names in tables."""
    found = {}
    for variant in variants:
        roots = tuple(run / ENTRIES / each.name for each in _entries(variant, arm) if is_finished(run, each))
        if roots:
            found[_label(variant, arm)] = Logged(roots, variant.system)
    return found


def _entries(variant: Variant, arm: Arm) -> list[Entry]:
    if arm == "zero-shot":
        return [Entry(Variant(variant.system))]
    return [Entry(variant, seed) for seed in variant.adapt]


def _label(variant: Variant, arm: Arm) -> str:
    return variant.label if arm == "adapted" else variant.system


def _group_tables(run: Path, config: StudyConfig, group: Group, arm: Arm, timed: dict[str, Any]) -> dict[str, Any]:
    variants = group.of(arm)
    entries = [entry for variant in variants for entry in _entries(variant, arm)]
    logged = logged_variants(run, variants, arm)
    label = _label(group.baseline_of(arm), arm)
    head = {
        "name": group.name,
        "arm": arm,
        "baseline": label,
        "systems": list(logged),
        "missing": [entry.title for entry in entries if not is_finished(run, entry)],
        "seeds": [
            {"system": _label(e.variant, arm), "seed": e.seed, "tasks": _own_scores(run, e)}
            for e in entries
            if arm == "adapted" and is_finished(run, e)
        ],
    }
    if label not in logged:
        return {**head, "tables": None}
    tables = tabulate(run, _plan(config, logged, label))
    return {**head, "tables": {**tables, "efficiency": _retimed(tables["efficiency"], timed, logged)}}


def _retimed(rows: list[dict[str, Any]], timed: dict[str, Any], logged: dict[str, Logged]) -> list[dict[str, Any]]:
    """Rows of costs with the seconds of one run for all systems: entries are asked at different times, beside others.

    They are those of the base's weights; an adapter that is merged into it costs as much per forward.
    """
    known = {(row["task"], row["system"]): row for row in timed.get("efficiency", [])}
    unknown = dict.fromkeys(("seconds", "stage_seconds"))
    found = [known.get((row["task"], logged[row["system"]].system), unknown) for row in rows]
    return [{**row, **{name: each[name] for name in unknown}} for row, each in zip(rows, found, strict=True)]


def _timing_facts(timed: dict[str, Any]) -> dict[str, Any] | None:
    if not timed:
        return None
    rows = {task: facts["answered"] for task, facts in timed["tasks"].items()}
    return {"machine": timed["machine"], "rows": rows, "batch_size": timed["settings"]["batch_size"]}


def _plan(config: StudyConfig, logged: dict[str, Logged], baseline: str) -> Plan:
    root = logged[baseline].roots[0]
    rows = {task: _rows(root, task) for task in config.tasks}
    return Plan(rows, list(logged), ["none"], baseline, SEED, MAX_BAD_SHARE, logged)


def _rows(root: Path, task: str) -> int:
    return read_json(root / "answers" / task / ROWS_FILE)["rows"]


def _own_scores(run: Path, entry: Entry) -> dict[str, float]:
    """By task, the entry's own metric over all questions."""
    results = read_json(run / ENTRIES / entry.name / RESULTS_FILE)
    return {
        row["task"]: row["value"]
        for row in results["scores"]
        if (row["by"], row["control"], row["metric"]) == ("", "none", TASKS[row["task"]].metric)
    }


def _gains(run: Path, config: StudyConfig) -> list[dict[str, Any]]:
    rows = []
    for variant in config.variants("adapted"):
        arms = (logged_variants(run, [variant], arm) for arm in ("zero-shot", "adapted"))
        before, after = (next(iter(found.values()), None) for found in arms)
        for task in config.tasks if before and after else ():
            rows.append({"system": variant.label, "task": task, **_gain(run, task, before, after)})
    return rows


def _gain(run: Path, task: str, before: Logged, after: Logged) -> dict[str, Any]:
    metric = TASKS[task].metric
    plan = Plan({}, [], [], "", SEED, MAX_BAD_SHARE, {"before": before, "after": after})
    scores = [
        {r["row"]: r["scores"][metric] for r in logged_answers(run, plan, Place(task, name, "none")) if "bad" not in r}
        for name in ("before", "after")
    ]
    differences = [scores[1][row] - scores[0][row] for row in scores[0] if row in scores[1]]
    low, high = mean_interval(differences, SEED)
    return {"metric": metric, "n": len(differences), "difference": fmean(differences), "low": low, "high": high}


def _reader(run: Path, config: StudyConfig, arm: Arm) -> Any:
    """What `check_aims` reads the answers of an arm with."""
    logged = logged_variants(run, config.variants(arm), arm)
    plan = Plan({}, [], [], "", SEED, MAX_BAD_SHARE, logged)

    @cache
    def read(system: str, task: str) -> Records | None:
        return logged_answers(run, plan, Place(task, system, "none")) if system in logged else None

    return read
