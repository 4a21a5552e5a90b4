"""Results as tables: shares as percentages, differences in points, with 95% intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from modeling_shirg.evaluation.report.reported import SystemTable
from modeling_shirg.evaluation.tasks import TASKS

NONE = "-"
GROUPINGS = {
    "kind": "kind of question",
    "glyph_px": "glyph height in px of the toy geometry",
    "glyph_px_in_fovea": "glyph height inside the centre fovea",
    "glyph_px_outside_fovea": "glyph height outside the centre fovea",
    "eccentricity": "distance from the centre",
    "place": "place on the grid",
}


@dataclass(frozen=True)
class TextTable:
    """Cells as text; all columns but the first are aligned to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    kind: str = "table"

    def turned(self) -> "TextTable":
        """Rows and columns swapped."""
        columns = list(zip(self.header, *self.rows, strict=True))
        return TextTable(columns[0], columns[1:], self.caption)


def percent(value: float) -> str:
    """A share as a percentage."""
    return f"{100 * value:.1f}"


def score(row: dict[str, Any] | None) -> str:
    """A score with its interval."""
    return NONE if row is None else f"{percent(row['value'])} ({percent(row['low'])} to {percent(row['high'])})"


def points(value: float, low: float, high: float) -> str:
    """A difference in points with its interval."""
    return f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def metric_name(task: str) -> str:
    """The task with its own metric."""
    return f"{task}, {TASKS[task].metric.replace('_', ' ')}"


def score_table(table: SystemTable, systems: Sequence[str] | None = None) -> TextTable:
    """Every system's own metric on every task, with image tokens."""
    rows = [
        [system, tokens(table, system), *(score(table.total(system, task)) for task in table.tasks)]
        for system in systems or table.systems
    ]
    header = ["system", "image tokens", *map(metric_name, table.tasks)]
    return TextTable(header, rows, f"{table.title}: percent, with 95% intervals")


def difference_table(table: SystemTable, systems: Sequence[str] | None = None) -> TextTable:
    """Paired differences to the baseline."""
    names = ("difference", "difference_low", "difference_high")
    rows = [
        [system, *(points(*(table.total(system, task)[name] for name in names)) for task in table.tasks)]
        for system in systems or table.systems
        if system != table.baseline
    ]
    caption = f"{table.title}: paired differences to {table.baseline} in points, with 95% intervals"
    return TextTable(["system", *map(metric_name, table.tasks)], rows, caption)


def grouped_table(table: SystemTable, task: str, by: str) -> TextTable | None:
    """Scores of a task by a grouping; `None` without such groups."""
    rows = table.scores(task, by)
    names = list(dict.fromkeys(row["group"] for row in rows))
    if not names:
        return None
    cells = {(row["system"], row["group"]): row for row in rows}
    lines = [[system, *(score(cells.get((system, name))) for name in names)] for system in table.systems]
    base = [cells[table.baseline, name] for name in names]
    if base[0]["majority"] is not None:
        lines.append(["most frequent answer", *(percent(row["majority"]) for row in base)])
    lines.append(["questions", *(f"{row['n']:,}" for row in base)])
    return TextTable([GROUPINGS[by], *names], lines, f"{metric_name(task)}, {GROUPINGS[by]}")


def control_table(table: SystemTable) -> TextTable | None:
    """Scores without the image or the question; `None` where no control was asked."""
    controls = dict.fromkeys(row["control"] for row in table.results["scores"] if row["control"] != "none")
    rows = [
        [control, system, *(score(_of(table.scores(task, control=control), system)) for task in table.tasks)]
        for control in controls
        for system in table.systems
    ]
    header = ["control", "system", *map(metric_name, table.tasks)]
    return TextTable(header, rows, f"{table.title}: controls, percent") if rows else None


def _of(rows: list[dict[str, Any]], system: str) -> dict[str, Any] | None:
    return next((row for row in rows if row["system"] == system), None)


def guard_table(table: SystemTable) -> TextTable | None:
    """Whether coarse reading gets worse; `None` where the guard was not asked."""
    rows = [
        [
            system,
            points(verdict["difference"], verdict["low"], verdict["high"]),
            f"{verdict['n']:,}",
            ("passes" if verdict["passes"] else "does not pass") + ("" if verdict["enough_rows"] else ", too few rows"),
        ]
        for system, verdict in table.results["guard"].items()
    ]
    return TextTable(["system", f"minus {table.baseline}", "rows", "guard"], rows, "Guard: large shapes") if rows else None


def cost_table(table: SystemTable) -> TextTable:
    """The cost of an answer, means over tasks."""
    rows = []
    for system in table.systems:
        cells = [tokens(table, system), f"{mean_cost(table, system, 'forwards'):.1f}"]
        for name, factor, form in (("seconds", 1e3, ".1f"), ("prefix_bytes", 1e-6, ".2f"), ("peak_memory_bytes", 1e-6, ".1f")):
            value = mean_cost(table, system, name)
            cells.append(NONE if value is None else format(factor * value, form))
        rows.append([system, *cells])
    header = ["system", "image tokens", "forwards", "ms per image", "prefix cache MB per image", "peak MB of a batch"]
    return TextTable(header, rows, f"{table.title}: cost, means over tasks of each task's median")


def mean_cost(table: SystemTable, system: str, name: str) -> float | None:
    """Mean over tasks of a cost; `None` where it was not measured."""
    values = [row[name] for row in table.rows("efficiency", system=system) if row.get(name) is not None]
    return fmean(values) if values else None


def tokens(table: SystemTable, system: str) -> str:
    """Image tokens, as a range where they differ."""
    rows = table.rows("efficiency", system=system)
    least, most = min(row["image_tokens_min"] for row in rows), max(row["image_tokens_max"] for row in rows)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def aims_table(aims: Sequence[dict[str, Any]], arm: str) -> TextTable:
    """The outcomes of a study's aims."""
    rows = [[aim["aim"], aim["where"], aim["figure"], f"{aim['n']:,}", aim["status"]] for aim in aims]
    return TextTable(["aim", "where", "figure", "questions", "status"], rows, f"Aims, {arm}")


def gain_table(gains: Sequence[dict[str, Any]], tasks: Sequence[str]) -> TextTable:
    """The effect of adaptation."""
    cells = {(gain["system"], gain["task"]): points(gain["difference"], gain["low"], gain["high"]) for gain in gains}
    systems = dict.fromkeys(gain["system"] for gain in gains)
    rows = [[system, *(cells.get((system, task), NONE) for task in tasks)] for system in systems]
    header = ["system", *map(metric_name, tasks)]
    return TextTable(header, rows, "Adapted minus zero-shot, question by question, in points")


def seed_table(table: SystemTable) -> TextTable:
    """Scores of single adapters."""
    rows = [[r["system"], str(r["seed"]), *(percent(r["tasks"][task]) for task in table.tasks)] for r in table.seeds]
    return TextTable(["system", "seed", *map(metric_name, table.tasks)], rows, f"{table.title}: single runs, percent")
