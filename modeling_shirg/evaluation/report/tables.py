"""Results as tables: every cell is a figure of results.json, shares as percentages, differences in points."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from modeling_shirg.evaluation.report.blocks import Table
from modeling_shirg.evaluation.report.source import GroupView
from modeling_shirg.evaluation.tasks import TASKS

NONE = "-"
_MEGABYTE = 1e6


def percent(value: float | None) -> str:
    """A share as a percentage."""
    return NONE if value is None else f"{100 * value:.1f}"


def points(value: float | None) -> str:
    """A difference of shares in points, with its sign."""
    return NONE if value is None else f"{100 * value:+.1f}"


def score(row: dict[str, Any] | None) -> str:
    """A score with its interval."""
    return NONE if row is None else f"{percent(row['value'])} ({percent(row['low'])} to {percent(row['high'])})"


def difference(row: dict[str, Any] | None) -> str:
    """A difference to the baseline with its interval."""
    if row is None or row["difference"] is None:
        return NONE
    low, high = row["difference_low"], row["difference_high"]
    return f"{points(row['difference'])} ({points(low)} to {points(high)})"


def metric_name(task: str) -> str:
    """The task with its own metric."""
    return f"{task}, {TASKS[task].metric.replace('_', ' ')}"


def score_table(group: GroupView, systems: Sequence[str] | None = None) -> Table:
    """Every system's own metric on every task, with image tokens."""
    tasks = list(group.tables["tasks"])
    rows = [
        [system, tokens(group, system), *(score(group.total(system, task)) for task in tasks)]
        for system in systems or group.systems
    ]
    header = ["system", "image tokens", *map(metric_name, tasks)]
    return Table(header, rows, f"{group.title}: percent, with 95% intervals")


def difference_table(group: GroupView, systems: Sequence[str] | None = None) -> Table:
    """Paired differences to the baseline."""
    tasks = list(group.tables["tasks"])
    rows = [
        [system, *(difference(group.total(system, task)) for task in tasks)]
        for system in systems or group.systems
        if system != group.baseline
    ]
    caption = f"{group.title}: paired differences to {group.baseline} in points, with 95% intervals"
    return Table(["system", *map(metric_name, tasks)], rows, caption)


def grouped_table(group: GroupView, task: str, by: str, what: str) -> Table | None:
    """Scores of a task by kind, size, eccentricity or place; `None` where the task has no such groups."""
    wanted = {"task": task, "by": by, "control": "none", "metric": TASKS[task].metric}
    rows = [*group.rows("scores", **wanted), *group.rows("groups", **wanted)]
    names = list(dict.fromkeys(row["group"] for row in rows))
    if not names:
        return None
    cells = {(row["system"], row["group"]): row for row in rows}
    lines = [[system, *(score(cells.get((system, name))) for name in names)] for system in group.systems]
    majority = [percent(cells[group.baseline, name]["majority"]) for name in names]
    counts = [f"{cells[group.baseline, name]['n']:,}" for name in names]
    lines += [["most frequent answer", *majority], ["questions", *counts]]
    return Table([what, *names], lines, f"{metric_name(task)}, {what}")


def guard_table(group: GroupView) -> Table | None:
    """Whether coarse reading gets worse."""
    verdicts = group.tables["guard"]
    rows = [
        [
            system,
            f"{points(each['difference'])}, lower end {points(each['low'])}",
            f"{each['n']:,}",
            ("passes" if each["passes"] else "does not pass") + ("" if each["enough_rows"] else ", too few rows"),
        ]
        for system, each in verdicts.items()
    ]
    return Table(["system", f"minus {group.baseline}", "rows", "guard"], rows, "Guard: large shapes") if rows else None


def efficiency_table(group: GroupView) -> Table:
    """What an answer costs, means over tasks."""
    rows = []
    for system in group.systems:
        cost = costs(group, system)
        rows.append(
            [
                system,
                tokens(group, system),
                f"{cost['forwards']:.1f}",
                NONE if cost["seconds"] is None else f"{1000 * cost['seconds']:.1f}",
                NONE if cost["prefix_bytes"] is None else f"{cost['prefix_bytes'] / _MEGABYTE:.2f}",
                NONE if cost["peak_memory_bytes"] is None else f"{cost['peak_memory_bytes'] / _MEGABYTE:.1f}",
            ]
        )
    header = ["system", "image tokens", "forwards", "ms per image", "prefix cache MB per image", "peak MB of a batch"]
    return Table(header, rows, f"{group.title}: cost, means over tasks of each task's median")


def costs(group: GroupView, system: str) -> dict[str, Any]:
    """Means over tasks of what an answer costs; `None` where it was not measured."""
    rows = group.rows("efficiency", system=system)

    def mean(name: str) -> float | None:
        values = [row[name] for row in rows if row.get(name) is not None]
        return fmean(values) if values else None

    names = ("forwards", "seconds", "prefix_bytes", "weight_bytes", "activation_bytes", "peak_memory_bytes")
    stages = [row["stage_seconds"] for row in rows if row["stage_seconds"] is not None]
    stage_seconds = {stage: fmean(each[stage] for each in stages) for stage in stages[0]} if stages else None
    return {**{name: mean(name) for name in names}, "stage_seconds": stage_seconds}


def tokens(group: GroupView, system: str) -> str:
    """Image tokens, as a range where they differ."""
    rows = group.rows("efficiency", system=system)
    least, most = min(row["image_tokens_min"] for row in rows), max(row["image_tokens_max"] for row in rows)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def aims_table(aims: Sequence[dict[str, Any]], arm: str) -> Table:
    """The aims of the study, met, missed or not measured."""
    return Table(
        ["aim", "where", "figure", "questions", "status"],
        [[row["aim"], row["where"], aim_figure(row), f"{row['n']:,}", aim_status(row)] for row in aims],
        f"Aims, {arm}",
    )


def aim_figure(row: dict[str, Any]) -> str:
    """The figure of an aim with its interval."""
    if row["status"] == "not measured":
        return NONE
    if row["unit"] == "ratio":
        return f"{percent(row['value'])}% ({percent(row['low'])} to {percent(row['high'])})"
    return f"{points(row['value'])} ({points(row['low'])} to {points(row['high'])})"


def aim_status(row: dict[str, Any]) -> str:
    """Met, missed or not measured, and how sure that is."""
    if row["status"] == "not measured":
        return f"not measured: {row['why']}"
    unsure = row["why"] or ("" if row["settled"] else "the interval reaches the target's other side")
    return f"{row['status']}; {unsure}" if unsure else row["status"]


def gate_table(gate: dict[str, Any]) -> Table:
    """What the base reads at the largest size of every family."""
    rows = [
        [
            row["task"],
            row["glyph_px"] or "all",
            score(row),
            percent(row["majority"]),
            percent(row["blank"]),
            "passes" if row["passes"] else "does not pass",
        ]
        for row in gate["families"]
    ]
    header = ["family", "glyph px", "exact match", "most frequent answer", "no image", "gate"]
    return Table(header, rows, f"The base under {gate['system']}, percent")


def gain_table(gains: Sequence[dict[str, Any]]) -> Table:
    """What adaptation brought."""
    tasks = list(dict.fromkeys(row["task"] for row in gains))
    cells = {
        (r["system"], r["task"]): f"{points(r['difference'])} ({points(r['low'])} to {points(r['high'])})"
        for r in gains
    }
    rows = [
        [system, *(cells.get((system, t), NONE) for t in tasks)]
        for system in dict.fromkeys(r["system"] for r in gains)
    ]
    header = ["system", *map(metric_name, tasks)]
    return Table(header, rows, "Adapted minus zero-shot, question by question, in points")


def seed_table(group: GroupView) -> Table:
    """Values of single runs: how far training itself moves."""
    tasks = list(group.tables["tasks"])
    rows = [[r["system"], str(r["seed"]), *(percent(r["tasks"][task]) for task in tasks)] for r in group.seeds]
    return Table(["system", "seed", *map(metric_name, tasks)], rows, f"{group.title}: single runs, percent")


def grid_table(grid: Sequence[dict[str, Any]]) -> Table:
    """Points of the score weights on validation rows, the best first."""
    tasks = list(grid[0]["tasks"])
    rows = [[p["system"], percent(p["mean"]), *(percent(p["tasks"][task]) for task in tasks)] for p in grid]
    return Table(["point", "mean", *map(metric_name, tasks)], rows, "Score weights on validation rows, percent")


def entry_table(entries: Sequence[dict[str, Any]]) -> Table:
    """All entries of a study and how they stand."""
    rows = []
    for entry in entries:
        training = entry.get("training", {})
        samples, seconds = training.get("samples"), entry.get("seconds")
        rows.append(
            [
                entry["title"],
                entry.get("status", "missing"),
                NONE if samples is None else f"{samples:,}",
                NONE if seconds is None else f"{seconds:,.0f}",
            ]
        )
    return Table(["entry", "status", "training samples", "seconds of asking"], rows, "Entries")
