"""Results as pictures: accuracy by size and eccentricity, against cost, and what an answer costs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from modeling_shirg.evaluation.curves import plot_costs, plot_groups
from modeling_shirg.evaluation.report.source import GroupView
from modeling_shirg.evaluation.report.tables import costs
from modeling_shirg.evaluation.tasks import TASKS

# More lines than these cannot be told apart; the tables have all systems.
_MOST_LINES = 7
_FIRST = ("lavida-980", "lavida-full", "shirg", "shirg-salient", "uniform", "pool", "random", "shirg-fixed")
_PANEL = (4.2, 3.4)
_MEGABYTE = 1e6
BY = {
    "glyph_px": "glyph height, px",
    "glyph_px_in_fovea": "glyph height inside the centre fovea, px",
    "glyph_px_outside_fovea": "glyph height outside the centre fovea, px",
    "eccentricity": "distance from the centre, 1 at the border",
}


def shown(group: GroupView) -> list[str]:
    """The systems that have a line: all if they are few, else the baseline and the best known."""
    if len(group.systems) <= _MOST_LINES:
        return group.systems
    preferred = [group.baseline, *(system for system in _FIRST if system != group.baseline), *group.systems]
    chosen = list(dict.fromkeys(system for system in preferred if system in group.systems))[:_MOST_LINES]
    return [system for system in group.systems if system in chosen]


def grouped_figure(file: Path, group: GroupView, by: str, systems: Sequence[str] | None = None) -> Path | None:
    """One panel per task over sizes or eccentricities; `None` where no task has such groups."""
    wanted = systems or shown(group)
    parts = []
    for task in group.tables["tasks"]:
        rows = group.rows("groups", task=task, by=by, control="none", metric=TASKS[task].metric)
        parts.append([row for row in rows if row["system"] in wanted])
    return _panels(file, [part for part in parts if part], BY[by], lambda axes, part: plot_groups(axes, part))


def pareto_figure(file: Path, group: GroupView, cost: str, label: str) -> Path | None:
    """One panel per task: scores against `cost`, and the line that no system is both better and cheaper than.

    `None` where the cost of none was measured.
    """
    parts = []
    for task in group.tables["tasks"]:
        prices = {row["system"]: row[cost] for row in group.rows("efficiency", task=task) if row[cost] is not None}
        if prices:
            parts.append(([group.total(system, task) for system in prices], prices))

    def draw(axes: Any, part: tuple[list[dict], dict[str, float]]) -> None:
        rows, prices = part
        plot_costs(axes, rows, prices)
        front = pareto_front([(prices[row["system"]], row["value"]) for row in rows])
        axes.step(*zip(*front, strict=True), where="post", color="0.5", linestyle="--", linewidth=1, zorder=0)

    return _panels(file, parts, label, draw)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, value), those that no other is at most as dear and better than, or cheaper and as good as."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front


def latency_figure(file: Path, group: GroupView) -> Path | None:
    """Stacked bars: milliseconds per image by stage; `None` where none was measured."""
    found = {system: costs(group, system)["stage_seconds"] for system in group.systems}
    parts = {system: stages for system, stages in found.items() if stages is not None}
    if not parts:
        return None
    stages = [stage for stage in next(iter(parts.values())) if any(each[stage] > 0 for each in parts.values())]
    stacks = {stage: [1000 * each[stage] for each in parts.values()] for stage in stages}
    return _bars(file, list(parts), stacks, "ms per image, means over tasks of the medians")


def memory_figure(file: Path, group: GroupView) -> Path | None:
    """Stacked bars: weights, and what torch held beside them at most; `None` where it was not measured."""
    parts = {system: costs(group, system) for system in group.systems}
    measured = [system for system in group.systems if parts[system]["peak_memory_bytes"] is not None]
    if not measured:
        return None
    names = {"weight_bytes": "weights", "activation_bytes": "beside them"}
    stacks = {label: [parts[system][name] / _MEGABYTE for system in measured] for name, label in names.items()}
    return _bars(file, measured, stacks, "MB at most, of one batch")


def _panels(file: Path, parts: Sequence[Any], label: str, draw: Callable[[Any, Any], None]) -> Path | None:
    """A row of panels with one legend."""
    from matplotlib.figure import Figure

    if not parts:
        return None
    figure = Figure(figsize=(_PANEL[0] * len(parts), _PANEL[1] + 0.5), layout="constrained")
    panels = figure.subplots(1, len(parts), squeeze=False)[0]
    for axes, part in zip(panels, parts, strict=True):
        draw(axes, part)
        axes.set_xlabel(label)
    handles, labels = panels[0].get_legend_handles_labels()
    columns = min(len(labels), 2 * len(parts))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize="small")
    return _saved(figure, file)


def _bars(file: Path, systems: Sequence[str], stacks: dict[str, list[float]], label: str) -> Path:
    """One horizontal bar per system, of parts."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.4 + 0.34 * len(systems)), layout="constrained")
    axes = figure.add_subplot()
    lefts = [0.0] * len(systems)
    for name, widths in stacks.items():
        axes.barh(systems, widths, left=lefts, label=name)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=8, fontsize="small")
    return _saved(figure, file)


def _saved(figure: Any, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    return file
