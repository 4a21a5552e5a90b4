"""The tables of pages and slides as data frames of text, and as Markdown."""

from collections.abc import Sequence

from pandas import DataFrame

from modeling_shirg.evaluation.report.reported import SystemTable
from modeling_shirg.evaluation.results import percent_interval
from modeling_shirg.evaluation.tasks import TASKS

GROUPINGS = {
    "kind": "kind of question",
    "glyph_px": "glyph height in px of the toy geometry",
    "glyph_px_in_fovea": "glyph height inside the centre fovea",
    "glyph_px_outside_fovea": "glyph height outside the centre fovea",
    "eccentricity": "distance from the centre",
    "place": "place on the grid",
}


def metric_name(task: str) -> str:
    """The task with its own metric."""
    return f"{task}, {TASKS[task].metric.replace('_', ' ')}"


def scores(table: SystemTable, systems: Sequence[str], control: str = "none") -> DataFrame:
    """Every task's own metric in percent, with image tokens."""
    rows = [
        {"system": system, "image tokens": table.tokens(system)}
        | {metric_name(task): percent_interval(table.total(system, task, control)) for task in table.tasks}
        for system in systems
    ]
    return DataFrame(rows)


def differences(table: SystemTable) -> DataFrame:
    """Paired differences to the baseline, in points."""
    rows = [
        {"system": system}
        | {metric_name(t): percent_interval(table.total(system, t), "difference", "+.1f") for t in table.tasks}
        for system in table.systems
        if system != table.baseline
    ]
    return DataFrame(rows)


def guard(table: SystemTable) -> DataFrame:
    """The guard's verdicts."""
    rows = []
    for system, verdict in table.results["guard"].items():
        difference = percent_interval(verdict, "difference", "+.1f")
        outcome = "passes" if verdict["passes"] else "does not pass"
        outcome += "" if verdict["enough_rows"] else ", too few rows"
        rows.append({"system": system, f"minus {table.baseline}": difference, "rows": verdict["n"], "guard": outcome})
    return DataFrame(rows)


def grouped(table: SystemTable, task: str, by: str) -> DataFrame:
    """Scores of a task by a key of `GROUPINGS`, the most frequent answer, the number of questions."""
    cells, label = table.scores(task, by), GROUPINGS[by]
    groups = list(dict.fromkeys(group for group, _ in cells))
    rows = [{label: s, **{group: percent_interval(cells[group, s]) for group in groups}} for s in table.systems]
    base = {group: cells[group, table.baseline] for group in groups}
    if all(row["majority"] is not None for row in base.values()):
        shares = {group: f"{100 * row['majority']:.1f}" for group, row in base.items()}
        rows.append({label: "most frequent answer", **shares})
    rows.append({label: "questions", **{group: f"{row['n']:,}" for group, row in base.items()}})
    return DataFrame(rows if groups else [])


def costs(table: SystemTable) -> DataFrame:
    """The cost of an answer, means over tasks of each task's median."""
    columns = {
        "forwards": ("forwards", 1, ".1f"),
        "ms per image": ("seconds", 1e3, ".1f"),
        "prefix cache MB per image": ("prefix_bytes", 1e-6, ".2f"),
        "peak MB of a batch": ("peak_memory_bytes", 1e-6, ".1f"),
    }
    rows = [
        {"system": system, "image tokens": table.tokens(system)}
        | {name: table.cost(key, system, factor, form) for name, (key, factor, form) in columns.items()}
        for system in table.systems
    ]
    return DataFrame(rows)


def summary(table: SystemTable) -> str:
    """Scores, differences, the guard, costs and bad rows as text."""
    told = {f"control {name}: percent": scores(table, table.systems, name) for name in table.controls}
    told = {"percent": scores(table, table.systems), **told, f"points over {table.baseline}": differences(table)}
    told |= {"guard": guard(table), "cost": costs(table)}
    lines = [f"{about}\n{frame.to_string(index=False)}" for about, frame in told.items() if len(frame)]
    for task, counts in table.results["tasks"].items():
        bad = f"{len(counts['bad'])} of {counts['rows']} rows were bad"
        lines += [f"{task}: {bad}, row {first['row']}: {first['reason']}" for first in counts["bad"][:1]]
    return "\n\n".join(lines)


def markdown(frame: DataFrame) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    rule = ["---", *["---:"] * (len(frame.columns) - 1)]
    rows = [list(frame.columns), rule, *frame.astype(str).values.tolist()]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
