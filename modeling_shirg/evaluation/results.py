"""From logged answers to tables: scores with intervals, paired differences to a baseline, groups, cost, the guard."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from types import MappingProxyType
from typing import Any, NamedTuple

from modeling_shirg.evaluation.answer_log import MEMORY_FILE, Place, read_answers, read_json, write_json
from modeling_shirg.evaluation.bootstrap import difference_interval, mean_interval
from modeling_shirg.evaluation.metrics.cider_scores import cider
from modeling_shirg.evaluation.tasks import TASKS
from modeling_shirg.running.files import write_whole
from modeling_shirg.running.timing import STAGES
from modeling_shirg.scenes.benchmark import majority_share
from modeling_shirg.scenes.placement import EDGES
from modeling_shirg.training.data.bad_rows import Skipped, check_share

RESULTS_FILE, TABLE_FILE, GROUPS_FILE = "results.json", "results.csv", "groups.csv"
# A system passes the guard if the 95% interval of its paired difference stays above this, in shares.
GUARD_MARGIN = -0.01
# So many rows make that interval narrow enough for the verdict to say something.
GUARD_ROWS = 4000

Records = list[dict]


class Logged(NamedTuple):
    """Where a system's answers are: in which evaluations, and under which name there.

    Scores of several, which are runs of one system with different seeds, are averaged question by question; what else
    is told of an answer (its text, its cost, CIDEr) is the first one's.
    """

    roots: tuple[Path, ...]
    system: str


class Plan(NamedTuple):
    """What is tabled: all systems on all tasks; `rows` is how many rows each task has.

    `logged` says where the answers of systems are; those that it does not name are in the evaluation that is tabled,
    under their own name.
    """

    rows: dict[str, int]
    systems: list[str]
    controls: list[str]
    baseline: str
    seed: int
    max_bad_share: float
    logged: Mapping[str, Logged] = MappingProxyType({})

    def where(self, root: Path, system: str) -> Logged:
        """Where a system's answers are, of the evaluation in `root`."""
        return self.logged.get(system, Logged((root,), system))

    def places(self) -> list[Place]:
        """Every combination, `"none"` first."""
        return [Place(*each) for each in _product(self.rows, self.systems, self.controls)]


def missing(root: Path, plan: Plan) -> dict[Place, int]:
    """How many rows of each place are not answered yet, of those places where any is."""
    left = {place: plan.rows[place.task] - len(read_answers(root, place)) for place in plan.places()}
    return {place: count for place, count in left.items() if count}


def tabulate(root: Path, plan: Plan) -> dict[str, Any]:
    """All tables of the answers in `root`, which are complete.

    - `tasks`: rows, how many were answered and which could not be;
    - `scores`: one row per task, system, control and metric, `by` "" for all questions, else "subset" or "kind";
    - `groups`: the same by glyph size, eccentricity and place of what is asked about, for rendered tasks;
    - `discrepancy`: entity_grid, inside a slice minus on a border;
    - `guard`: whether each system passes;
    - `efficiency`: one row per task and system.

    Differences are to the baseline under the same control, question by question. Shares are 0..1, CIDEr 0..10.

    Raises:
        ValueError: more than `plan.max_bad_share` of a task's rows are bad, or nothing is left to score.
    """
    tables: dict[str, Any] = {name: [] for name in ("scores", "groups", "discrepancy", "efficiency")}
    tables["tasks"], tables["guard"] = {}, {}
    for task in plan.rows:
        answered = {
            (system, control): logged_answers(root, plan, Place(task, system, control))
            for system in plan.systems
            for control in plan.controls
        }
        _check_whole(root, task, plan, answered)
        tables["tasks"][task] = _usable(task, plan, answered)
        answered = {key: _scored(task, records) for key, records in answered.items()}
        rows = _score_rows(task, plan, answered)
        tables["scores"] += [row for row in rows if row["by"] in ("", "subset", "kind")]
        tables["groups"] += [row for row in rows if row["by"] not in ("", "subset", "kind")]
        tables["discrepancy"] += _discrepancy(task, plan, answered)
        tables["efficiency"] += [
            {**_efficiency(task, system, answered[system, "none"]), **_memory(root, plan, Place(task, system, "none"))}
            for system in plan.systems
        ]
    tables["guard"] = guard_verdicts(tables["scores"])
    return tables


def logged_answers(root: Path, plan: Plan, place: Place) -> Records:
    """The records of a place, wherever they are.

    Raises:
        ValueError: the runs did not answer the same rows.
    """
    roots, name = plan.where(root, place.system)
    runs = [read_answers(each, place._replace(system=name)) for each in roots]
    numbers = [[record["row"] for record in records] for records in runs]
    if any(rows != numbers[0] for rows in numbers):
        raise ValueError(f"{place.system}, {place.task}: its runs {', '.join(map(str, roots))} have different rows.")
    if len(runs) == 1:
        return runs[0]
    return [_averaged(records) for records in zip(*runs, strict=True)]


def _averaged(records: Sequence[dict]) -> dict:
    """The same question answered by several runs; bad if one of them could not."""
    first = next((record for record in records if "bad" in record), records[0])
    if "bad" in first:
        return first
    return {**first, "scores": {name: fmean(r["scores"][name] for r in records) for name in first["scores"]}}


def guard_verdicts(scores: Iterable[dict]) -> dict[str, dict]:
    """Of every system but the baseline, whether it `passes`: the interval of its difference stays above the margin."""
    metric = TASKS["guard"].metric
    rows = [r for r in scores if (r["task"], r["control"], r["by"], r["metric"]) == ("guard", "none", "", metric)]
    return {
        row["system"]: {
            "passes": row["difference_low"] > GUARD_MARGIN,
            "margin": GUARD_MARGIN,
            "difference": row["difference"],
            "low": row["difference_low"],
            "high": row["difference_high"],
            "n": row["n"],
            "enough_rows": row["n"] >= GUARD_ROWS,
        }
        for row in rows
        if row["difference"] is not None
    }


def write_results(root: Path, results: dict[str, Any]) -> None:
    """results.json; results.csv, the scores with the cost of the system beside them; groups.csv."""
    write_json(root / RESULTS_FILE, results)
    costs = {(row["task"], row["system"], "none"): _flat(row) for row in results["efficiency"]}
    keys = [tuple(row[name] for name in Place._fields) for row in results["scores"]]
    _write_csv(
        root / TABLE_FILE, [{**row, **costs.get(k, {})} for row, k in zip(results["scores"], keys, strict=True)]
    )
    _write_csv(root / GROUPS_FILE, results["groups"])


def _check_whole(root: Path, task: str, plan: Plan, answered: dict[tuple, Records]) -> None:
    for (system, control), records in answered.items():
        asked, answers = set(range(plan.rows[task])), {record["row"] for record in records}
        if answers != asked:
            roots = " and ".join(map(str, plan.where(root, system).roots))
            raise ValueError(
                f"{roots}: of {len(asked)} answers of {system} on {task}, control {control!r}, {len(asked - answers)} "
                f"are missing, and {len(answers - asked)} are to other rows. Bring back what it was, or remove that "
                "folder and ask again."
            )


def _usable(task: str, plan: Plan, answered: dict[tuple, Records]) -> dict[str, Any]:
    """The numbers of a task's rows, after a look at those that could not be asked."""
    bad = {record["row"]: record["bad"] for records in answered.values() for record in records if "bad" in record}
    listed = [Skipped(task, row, bad[row]) for row in sorted(bad)]
    total = plan.rows[task]
    check_share(task, len(bad), total, plan.max_bad_share, lambda: listed)
    if len(bad) == total:
        raise ValueError(f"{task}: none of {total} rows could be asked; the first: {listed[0].reason}.")
    for key, records in answered.items():
        answered[key] = [record for record in records if record["row"] not in bad]
    return {"rows": total, "answered": total - len(bad), "bad": [{"row": e.row, "reason": e.reason} for e in listed]}


def _scored(task: str, records: Records) -> Records:
    """The records with CIDEr among their scores where the task has it."""
    if not TASKS[task].has_cider:
        return records
    found = cider([r["prediction"] for r in records], [r["answers"] for r in records])
    return [{**r, "scores": {**r["scores"], "cider": s}} for r, s in zip(records, found, strict=True)]


# Groups: the name of each, and what group of it a record is in; `None` is none.


def _nominal_size(record: dict) -> str | None:
    size = record.get("cell_glyph_px")
    return None if size is None else f"{size:g}"


def _eccentricity_bin(record: dict) -> str | None:
    if record.get("cell_glyph_px") is None:
        return None
    number = next(i for i, edge in enumerate(EDGES[1:], start=1) if record["eccentricity"] < edge or edge == EDGES[-1])
    return f"{EDGES[number - 1]:g}-{EDGES[number]:g}"


def _size_where(is_inside: bool) -> Callable[[dict], str | None]:
    return lambda record: _nominal_size(record) if record.get("in_fovea") is is_inside else None


def _grid_place(record: dict) -> str | None:
    return record["cell_place"] if record["task"] == "entity_grid" else None


GROUPINGS: dict[str, Callable[[dict], str | None]] = {
    "": lambda record: "",
    "subset": lambda record: record.get("subset"),
    "kind": lambda record: record.get("kind"),
    "glyph_px": _nominal_size,
    "glyph_px_in_fovea": _size_where(True),
    "glyph_px_outside_fovea": _size_where(False),
    "eccentricity": _eccentricity_bin,
    "place": _grid_place,
}


def _score_rows(task: str, plan: Plan, answered: dict[tuple, Records]) -> list[dict]:
    """One row per grouping, group, system, control and metric."""
    rows = []
    for by, group_of in GROUPINGS.items():
        found = {group_of(record) for record in answered[plan.baseline, "none"]} - {None}
        for group in sorted(found, key=_by_number):
            for (system, control), records in answered.items():
                mine = [record for record in records if group_of(record) == group]
                base = [record for record in answered[plan.baseline, control] if group_of(record) == group]
                head = {"task": task, "system": system, "control": control, "by": by, "group": group}
                for metric in mine[0]["scores"]:
                    compared = None if system == plan.baseline else base
                    rows.append({**head, "metric": metric, **_figures(task, metric, mine, compared, plan.seed)})
    return rows


def _figures(task: str, metric: str, mine: Records, base: Records | None, seed: int) -> dict[str, Any]:
    values = [record["scores"][metric] for record in mine]
    low, high = mean_interval(values, seed)
    figures = {"n": len(values), "value": fmean(values), "low": low, "high": high}
    figures |= dict.fromkeys(("difference", "difference_low", "difference_high"))
    if base is not None:
        differences = [value - other["scores"][metric] for value, other in zip(values, base, strict=True)]
        low, high = mean_interval(differences, seed)
        figures |= {"difference": fmean(differences), "difference_low": low, "difference_high": high}
    return {**figures, "majority": _majority(task, metric, mine)}


def _majority(task: str, metric: str, records: Records) -> float | None:
    """Share that the most frequent answer of each kind of question gets right, for a rendered task's own metric."""
    if TASKS[task].golds is not None or metric != TASKS[task].metric:
        return None
    kinds = [record["kind"] for record in records]
    shares = majority_share([record["answers"][0] for record in records], kinds)
    return fmean(shares[kind] for kind in kinds)


def _discrepancy(task: str, plan: Plan, answered: dict[tuple, Records]) -> list[dict]:
    """How much better entities inside a slice are read than those on a border."""
    rows = []
    for (system, control), records in answered.items() if task == "entity_grid" else ():
        inside, border = ([r for r in records if r["cell_place"] == place] for place in ("inside", "border"))
        for metric in TASKS[task].scores if inside and border else ():
            one, other = ([r["scores"][metric] for r in some] for some in (inside, border))
            low, high = difference_interval(one, other, plan.seed)
            figures = {"n": len(one) + len(other), "value": fmean(one) - fmean(other), "low": low, "high": high}
            rows.append({"task": task, "system": system, "control": control, "metric": metric, **figures})
    return rows


def _efficiency(task: str, system: str, records: Records) -> dict[str, Any]:
    """What an answer costs; seconds are medians over images of a batch's time over its size."""
    tokens = [record["image_tokens"] for record in records]
    stages = {stage: median(r["batch"]["seconds"][stage] / r["batch"]["size"] for r in records) for stage in STAGES}
    totals = [sum(record["batch"]["seconds"].values()) / record["batch"]["size"] for record in records]
    held = [r["batch"]["prefix_bytes"] / r["batch"]["size"] for r in records if r["batch"]["prefix_bytes"] is not None]
    return {
        "task": task,
        "system": system,
        "image_tokens": fmean(tokens),
        "image_tokens_min": min(tokens),
        "image_tokens_max": max(tokens),
        "forwards": fmean(record["forwards"] for record in records),
        "seconds": median(totals),
        "stage_seconds": stages,
        "prefix_bytes": median(held) if held else None,
        "batch_size": max(record["batch"]["size"] for record in records),
    }


def _memory(root: Path, plan: Plan, place: Place) -> dict[str, int]:
    """What `peak_memory` measured on one batch of `memory_batch_size` images; nothing where no batch was measured."""
    roots, name = plan.where(root, place.system)
    file = place._replace(system=name).folder(roots[0]) / MEMORY_FILE
    return read_json(file) if file.exists() else {}


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Nested figures as columns of their own."""
    flat = {}
    for name, value in row.items():
        inner = value if isinstance(value, dict) else None
        flat |= {f"{name}.{key}": each for key, each in inner.items()} if inner is not None else {name: value}
    return flat


def _write_csv(file: Path, rows: Sequence[dict]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows(rows)
    write_whole(file, text.getvalue())


def _by_number(group: str) -> tuple[float, str]:
    first = group.partition("-")[0]
    return (float(first) if first.replace(".", "").isdigit() else 0.0, group)


def _product(tasks: Iterable[str], systems: list[str], controls: list[str]) -> Iterable[tuple[str, str, str]]:
    return ((task, system, control) for control in controls for system in systems for task in tasks)
