"""From logged answers to tables: scores with intervals, paired differences to a baseline, groups, cost, the guard."""

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import pandas

from modeling_shirg.evaluation.answer_log import MEMORY_FILE, Place, read_answers, read_json
from modeling_shirg.evaluation.intervals import difference_interval, mean_interval
from modeling_shirg.evaluation.metrics.cider_scores import cider
from modeling_shirg.evaluation.tasks import TASKS
from modeling_shirg.running.files import write_json, write_whole
from modeling_shirg.scenes.benchmark import majority_share
from modeling_shirg.scenes.entity_grid import PLACES
from modeling_shirg.scenes.placement import EDGES
from modeling_shirg.training.reading import check_share

RESULTS_FILE, TABLE_FILE, GROUPS_FILE = "results.json", "results.csv", "groups.csv"
# The guard's margin in shares, and the rows below which its interval is wider than the margin.
GUARD_MARGIN, GUARD_ROWS = -0.01, 4000

Records = list[dict]


class Logged(NamedTuple):
    """The evaluation with a system's answers, and the system's name there."""

    root: Path
    system: str


class Plan(NamedTuple):
    """A table: tasks with their number of rows, systems by their names in it, controls, and the baseline."""

    rows: dict[str, int]
    systems: dict[str, Logged]
    controls: list[str]
    baseline: str
    seed: int = 0
    max_bad_share: float = 0.01


def missing(plan: Plan) -> int:
    """Number of unanswered rows."""
    places = product(plan.rows, plan.systems.values(), plan.controls)
    return sum(plan.rows[task] - len(read_answers(at.root, Place(task, at.system, c))) for task, at, c in places)


def tabulate(plan: Plan) -> dict[str, Any]:
    """All tables of complete answers; missing answers and too many bad rows are a `ValueError`.

    - `tasks`: rows, how many were answered, and the bad ones;
    - `scores`: one row per task, system, control and metric, `by` "" for all questions, else "subset" or "kind";
    - `groups`: the same by glyph size, eccentricity and place of the evidence, for rendered tasks;
    - `discrepancy`: entity_grid, inside a slice minus on a border; `guard`; `efficiency`.

    Differences are to the baseline under the same control, question by question. Shares are 0..1, CIDEr 0..10.
    """
    tables: dict[str, Any] = {name: [] for name in ("scores", "groups", "discrepancy", "efficiency")} | {"tasks": {}}
    for task in plan.rows:
        answered = {}
        for (system, logged), control in product(plan.systems.items(), plan.controls):
            place = Place(task, logged.system, control)
            answered[system, control] = read_answers(logged.root, place)
            _check_whole(logged.root, place, plan.rows[task], answered[system, control])
        tables["tasks"][task], answered = _usable(task, plan, answered)
        for row in _score_rows(task, plan, answered):
            tables["scores" if row["by"] in ("", "subset", "kind") else "groups"].append(row)
        tables["discrepancy"] += _discrepancy(task, plan, answered)
        for system, logged in plan.systems.items():
            memory = Place(task, logged.system).folder(logged.root) / MEMORY_FILE
            held = read_json(memory) if memory.exists() else {}
            tables["efficiency"].append({**_efficiency(task, system, answered[system, "none"]), **held})
    return tables | {"guard": guard_verdicts(tables["scores"])}


def guard_verdicts(scores: Iterable[dict]) -> dict[str, dict]:
    """Whether each system but the baseline `passes`: the interval of its difference stays above the margin."""
    wanted = ("guard", "none", TASKS["guard"].metric, "")
    return {
        row["system"]: {
            "passes": row["difference_low"] > GUARD_MARGIN,
            "enough_rows": row["n"] >= GUARD_ROWS,
            **{name: row[name] for name in ("difference", "difference_low", "difference_high", "n")},
        }
        for row in scores
        if (row["task"], row["control"], row["metric"], row["by"]) == wanted and row["difference"] is not None
    }


def write_results(root: Path, results: dict[str, Any]) -> None:
    """results.json, results.csv with the scores, groups.csv."""
    write_json(root / RESULTS_FILE, results)
    for file, table in ((TABLE_FILE, "scores"), (GROUPS_FILE, "groups")):
        write_whole(root / file, pandas.DataFrame(results[table]).to_csv(index=False))


def _check_whole(root: Path, place: Place, rows: int, records: Records) -> None:
    answers = {record["row"] for record in records}
    if answers != set(range(rows)):
        lacking, strange = len(set(range(rows)) - answers), len(answers - set(range(rows)))
        raise ValueError(
            f"{root}: of {rows} answers of {place.system} on {place.task}, control {place.control!r}, {lacking} are "
            f"missing, and {strange} are to other rows. Bring the answers back, or remove that folder and ask again."
        )


def _usable(task: str, plan: Plan, answered: dict[tuple, Records]) -> tuple[dict[str, Any], dict[tuple, Records]]:
    """The numbers of a task's rows; the records of rows that are bad for no system, with CIDEr if the task has it."""
    reasons = {record["row"]: record["bad"] for records in answered.values() for record in records if "bad" in record}
    bad, total = sorted(reasons.items()), plan.rows[task]
    check_share(task, bad, total, plan.max_bad_share)
    if len(bad) == total:
        raise ValueError(f"{task}: none of {total} rows could be asked; the first: {bad[0][1]}.")
    usable = {key: [r for r in records if r["row"] not in reasons] for key, records in answered.items()}
    for records in usable.values() if TASKS[task].has_cider and find_spec("pycocoevalcap") else ():
        found = cider([r["prediction"] for r in records], [r["answers"] for r in records])
        records[:] = [{**r, "scores": {**r["scores"], "cider": s}} for r, s in zip(records, found, strict=True)]
    listed = [{"row": row, "reason": reason} for row, reason in bad]
    return {"rows": total, "answered": total - len(bad), "bad": listed}, usable


# Groupings: the group of a record, or `None`.


def _nominal_size(record: dict, inside: bool | None = None) -> str | None:
    size = record.get("cell_glyph_px")
    return None if size is None or inside not in (None, record["in_fovea"]) else f"{size:g}"


def _eccentricity_bin(record: dict) -> str | None:
    if record.get("cell_glyph_px") is None:
        return None
    number = next(i for i, edge in enumerate(EDGES[1:], start=1) if record["eccentricity"] < edge or edge == EDGES[-1])
    return f"{EDGES[number - 1]:g}-{EDGES[number]:g}"


GROUPINGS: dict[str, Callable[[dict], str | None]] = {
    "": lambda record: "",
    "subset": lambda record: record.get("subset"),
    "kind": lambda record: record.get("kind"),
    "glyph_px": _nominal_size,
    "glyph_px_in_fovea": lambda record: _nominal_size(record, True),
    "glyph_px_outside_fovea": lambda record: _nominal_size(record, False),
    "eccentricity": _eccentricity_bin,
    "place": lambda record: record["cell_place"] if record["task"] == "entity_grid" else None,
}


def _score_rows(task: str, plan: Plan, answered: dict[tuple, Records]) -> list[dict]:
    """One row per grouping, group, system, control and metric."""
    rows = []
    for by, group_of in GROUPINGS.items():
        groups = {group_of(record) for record in answered[plan.baseline, "none"]} - {None}
        for group in sorted(groups, key=_by_number):
            for (system, control), records in answered.items():
                mine = [record for record in records if group_of(record) == group]
                base = [record for record in answered[plan.baseline, control] if group_of(record) == group]
                head = {"task": task, "system": system, "control": control, "by": by, "group": group}
                for metric in mine[0]["scores"]:
                    compared = None if system == plan.baseline else base
                    rows.append({**head, "metric": metric, **_figures(task, metric, mine, compared, plan.seed)})
    return rows


def _by_number(group: str) -> tuple[float, str]:
    first = group.partition("-")[0]
    return (float(first) if first.replace(".", "").isdigit() else 0.0, group)


def _figures(task: str, metric: str, mine: Records, base: Records | None, seed: int) -> dict[str, Any]:
    values = [record["scores"][metric] for record in mine]
    low, high = mean_interval(values, seed)
    figures = {"n": len(values), "value": fmean(values), "low": low, "high": high}
    figures |= dict.fromkeys(("difference", "difference_low", "difference_high"))
    if base is not None:
        differences = [value - other["scores"][metric] for value, other in zip(values, base, strict=True)]
        low, high = mean_interval(differences, seed)
        figures |= {"difference": fmean(differences), "difference_low": low, "difference_high": high}
    has_majority = TASKS[task].golds is None and metric == TASKS[task].metric
    asked = ([record["answers"][0] for record in mine], [record.get("kind") for record in mine])
    return {**figures, "majority": majority_share(*asked) if has_majority else None}


def _discrepancy(task: str, plan: Plan, answered: dict[tuple, Records]) -> list[dict]:
    rows = []
    for (system, control), records in answered.items() if task == "entity_grid" else ():
        for metric in TASKS[task].scores:
            of_place = {place: [r["scores"][metric] for r in records if r["cell_place"] == place] for place in PLACES}
            one, other = of_place["inside"], of_place["border"]
            if one and other:
                low, high = difference_interval(one, other, plan.seed)
                figures = {"n": len(one) + len(other), "value": fmean(one) - fmean(other), "low": low, "high": high}
                rows.append({"task": task, "system": system, "control": control, "metric": metric, **figures})
    return rows


def _efficiency(task: str, system: str, records: Records) -> dict[str, Any]:
    """The cost of an answer; seconds and bytes are medians over images of a batch's over its size."""
    tokens = [record["image_tokens"] for record in records]
    batches = [record["batch"] for record in records]
    held = [batch["prefix_bytes"] / batch["size"] for batch in batches if batch["prefix_bytes"] is not None]
    return {
        "task": task,
        "system": system,
        "image_tokens": fmean(tokens),
        "image_tokens_min": min(tokens),
        "image_tokens_max": max(tokens),
        "forwards": fmean(record["forwards"] for record in records),
        "seconds": median(batch["seconds"] / batch["size"] for batch in batches),
        "prefix_bytes": median(held) if held else None,
        "batch_size": max(batch["size"] for batch in batches),
    }


def percent_interval(row: dict[str, Any], name: str = "", form: str = ".1f") -> str:
    """A score, or the difference called `name`, with its interval in percent or points."""
    names = (name, f"{name}_low", f"{name}_high") if name else ("value", "low", "high")
    value, low, high = (format(100 * row[key], form) for key in names)
    return f"{value} ({low} to {high})"
