"""The aims of the study, checked against logged answers: each with its figure, interval, and whether it is met.

"Smallest readable size" of a family: the smallest at which `lavida-full`, the upper bound, reads signs inside the
centre fovea better than the most frequent answer would, by the lower end of its 95% interval. SHIRG has no say in it.
"""

from collections.abc import Callable, Iterable
from statistics import fmean
from typing import Any

from modeling_shirg.evaluation.bootstrap import mean_interval, ratio_interval
from modeling_shirg.evaluation.results import GUARD_MARGIN, GUARD_ROWS, Records
from modeling_shirg.evaluation.tasks import TASKS
from modeling_shirg.scenes.benchmark import majority_share

READING = ("chart", "document", "entity_grid")
BASELINE, BOUND, OURS, SALIENT = "lavida-980", "lavida-full", "shirg", "shirg-salient"
CONTROLS = ("random", "uniform", "pool")
_POINTS_IN_FOVEA, _SHARE_OF_BOUND, _POINTS_OUTSIDE = 0.10, 0.95, 0.10

# Of a system and a task, its answers; `None` where it was not asked.
Reader = Callable[[str, str], Records | None]


def check_aims(read: Reader, seed: int) -> list[dict[str, Any]]:
    """One row per aim.

    - `aim`, `unit` ("points" of a difference or "ratio"), `target`: what is wanted;
    - `status`: "met" if the figure reaches the target, "missed", or "not measured" with the reason under `why`;
    - `value`, `low`, `high`, `n`: the figure, in shares, its interval and the number of questions;
    - `settled`: whether the whole interval is on that side of the target;
    - `where`: which questions.
    """
    sizes = readable_sizes(read, seed)
    inside = _readable_inside(sizes)
    where = "inside the fovea, " + (", ".join(f"{task} {size:g} px" for task, size in sizes.items()) or "no size")
    unread = [task for task in _all(read, BOUND) if task not in sizes]
    where += f" ({BOUND} reads no size of {', '.join(unread)})" if sizes and unread else ""
    rows = [
        _difference(read, seed, f"{OURS} over {BASELINE}", OURS, BASELINE, inside, where, _POINTS_IN_FOVEA),
        _ratio(read, seed, inside, where),
        _guard(read, seed),
        _difference(
            read,
            seed,
            f"{SALIENT} over {OURS}",
            SALIENT,
            OURS,
            lambda record: record.get("in_fovea") is False,
            "outside the centre fovea, all sizes",
            _POINTS_OUTSIDE,
        ),
    ]
    for control in CONTROLS:
        name = f"{OURS} over {control}, the same count"
        rows.append(
            _difference(read, seed, name, OURS, control, lambda record: True, "all of charts, forms, grids", 0)
        )
    if not sizes:
        why = f"{BOUND} was not asked" if not _all(read, BOUND) else f"{BOUND} reads no size better than the majority"
        rows[:2] = [_unmeasured(row, f"no size is known to be readable: {why}") for row in rows[:2]]
    return rows


def readable_sizes(read: Reader, seed: int) -> dict[str, float]:
    """Of each family that has one, the smallest readable size; see the top of this file."""
    found = {}
    for task, records in _all(read, BOUND).items():
        inside = [r for r in records if r.get("in_fovea") and r.get("cell_glyph_px") is not None]
        for size in sorted({record["cell_glyph_px"] for record in inside}):
            mine = [record for record in inside if record["cell_glyph_px"] == size]
            low, _ = mean_interval(_values(task, mine), seed)
            if low > _majority(mine):
                found[task] = size
                break
    return found


def _readable_inside(sizes: dict[str, float]) -> Callable[[dict], bool]:
    return lambda record: (
        bool(record.get("in_fovea")) and record.get("cell_glyph_px") == sizes.get(record["task"], -1.0)
    )


def _difference(
    read: Reader,
    seed: int,
    name: str,
    one: str,
    other: str,
    wanted: Callable[[dict], bool],
    where: str,
    target: float,
) -> dict[str, Any]:
    row = {"aim": f"{name}: {'above 0' if target == 0 else f'+{100 * target:g} or more'}", "unit": "points"}
    row |= {"target": target, "where": where}
    pairs = _pairs(read, one, other, wanted)
    if not pairs:
        return _unmeasured(row, _why(read, one, other))
    differences = [mine - theirs for mine, theirs in pairs]
    low, high = mean_interval(differences, seed)
    return _judged(row, fmean(differences), low, high, len(pairs))


def _ratio(read: Reader, seed: int, wanted: Callable[[dict], bool], where: str) -> dict[str, Any]:
    row = {"aim": f"{OURS} at least {_SHARE_OF_BOUND:.0%} of {BOUND}", "unit": "ratio"}
    row |= {"target": _SHARE_OF_BOUND, "where": where}
    pairs = _pairs(read, OURS, BOUND, wanted)
    if not pairs or not any(bound for _, bound in pairs):
        return _unmeasured(row, _why(read, OURS, BOUND))
    ours, bound = zip(*pairs, strict=True)
    low, high = ratio_interval(ours, bound, seed)
    return _judged(row, sum(ours) / sum(bound), low, high, len(pairs))


def _guard(read: Reader, seed: int) -> dict[str, Any]:
    """Large shapes: the lower end of the interval decides, so that few rows cannot meet the aim by chance."""
    row = {"aim": f"Guard: the interval of {OURS} minus {BASELINE} above {100 * GUARD_MARGIN:g}", "unit": "points"}
    row |= {"target": GUARD_MARGIN, "where": "large shapes"}
    pairs = _pairs(read, OURS, BASELINE, lambda record: True, ("guard",))
    if not pairs:
        return _unmeasured(row, _why(read, OURS, BASELINE, ("guard",)))
    differences = [mine - theirs for mine, theirs in pairs]
    low, high = mean_interval(differences, seed)
    judged = _judged(row, fmean(differences), low, high, len(pairs))
    why = "" if len(pairs) >= GUARD_ROWS else f"{len(pairs):,} rows are too few to rely on it, it takes {GUARD_ROWS:,}"
    return judged | {"status": "met" if low > GUARD_MARGIN else "missed", "settled": not why, "why": why}


def _judged(row: dict[str, Any], value: float, low: float, high: float, n: int) -> dict[str, Any]:
    target = row["target"]
    is_met = value > 0 if target == 0 else value >= target
    return row | {
        "status": "met" if is_met else "missed",
        "value": value,
        "low": low,
        "high": high,
        "n": n,
        "settled": low > target if is_met else high <= target,
        "why": "",
    }


def _unmeasured(row: dict[str, Any], why: str) -> dict[str, Any]:
    nothing = dict.fromkeys(("value", "low", "high", "settled"))
    return row | nothing | {"n": 0, "status": "not measured", "why": why}


def _why(read: Reader, one: str, other: str, tasks: Iterable[str] = READING) -> str:
    lacking = [system for system in (one, other) if not _all(read, system, tasks)]
    return f"not asked: {', '.join(lacking)}" if lacking else "no such question"


def _all(read: Reader, system: str, tasks: Iterable[str] = READING) -> dict[str, Records]:
    """The answers of a system to those of the tasks that it was asked."""
    found = {task: read(system, task) for task in tasks}
    return {task: records for task, records in found.items() if records}


def _pairs(
    read: Reader, one: str, other: str, wanted: Callable[[dict], bool], tasks: Iterable[str] = READING
) -> list[tuple[float, float]]:
    """Scores of two systems on the questions that both answered."""
    pairs = []
    for task in tasks:
        mine, theirs = ({r["row"]: r for r in read(system, task) or []} for system in (one, other))
        for row in sorted(mine.keys() & theirs.keys()):
            if "bad" not in mine[row] and "bad" not in theirs[row] and wanted(mine[row]):
                pairs.append(tuple(_values(task, [mine[row], theirs[row]])))
    return pairs


def _values(task: str, records: Records) -> list[float]:
    return [record["scores"][TASKS[task].metric] for record in records]


def _majority(records: Records) -> float:
    """What the most frequent answer of each kind of question gets right."""
    kinds = [record["kind"] for record in records]
    shares = majority_share([record["answers"][0] for record in records], kinds)
    return fmean(shares[kind] for kind in kinds)
