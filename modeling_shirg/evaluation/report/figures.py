"""Results as pictures: accuracy by size and eccentricity, and against cost."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from modeling_shirg.evaluation.report.frames import GROUPINGS
from modeling_shirg.evaluation.report.reported import SystemTable

# More lines than these cannot be told apart; the tables have all systems.
_MOST_LINES = 7
_PANEL = (4.2, 3.4)
# After so many systems the colours repeat, with another marker.
_COLORS, _MARKERS = 10, "osD^v"
COSTS = {"image_tokens": "image tokens", "seconds": "seconds per image"}


def shown(table: SystemTable) -> list[str]:
    """The systems with a line: the baseline and the first others."""
    first = list(dict.fromkeys([table.baseline, *table.systems]))[:_MOST_LINES]
    return [system for system in table.systems if system in first]


def grouped_figure(file: Path, table: SystemTable, by: str) -> bool:
    """Draw a panel per task over sizes or eccentricities; false without such groups."""
    wanted = shown(table)
    parts = [[row for row in table.scores(task, by).values() if row["system"] in wanted] for task in table.tasks]
    return _panels(file, [part for part in parts if part], GROUPINGS[by], _plot_groups)


def pareto_figure(file: Path, table: SystemTable, cost: str) -> bool:
    """Draw a panel per task: scores against `cost`, and the front that no system beats in both."""
    costs = table.results["efficiency"]
    parts = [[{**table.total(c["system"], t), "cost": c[cost]} for c in costs if c["task"] == t] for t in table.tasks]
    return _panels(file, parts, COSTS[cost], _plot_costs)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, value) points that no other point beats in one and equals or beats in the other."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front


def _plot_groups(axes: Any, rows: list[dict]) -> None:
    groups = list(dict.fromkeys(row["group"] for row in rows))
    for number, system in enumerate(dict.fromkeys(row["system"] for row in rows)):
        mine = [row for row in rows if row["system"] == system]
        places = [groups.index(row["group"]) + 0.03 * number for row in mine]
        axes.errorbar(places, [row["value"] for row in mine], _reach(mine), label=system, marker="o", capsize=3)
    axes.set_xticks(range(len(groups)), groups)


def _plot_costs(axes: Any, rows: list[dict]) -> None:
    for number, row in enumerate(rows):
        marker = _MARKERS[number // _COLORS % len(_MARKERS)]
        axes.errorbar(row["cost"], row["value"], _reach([row]), label=row["system"], marker=marker, capsize=3)
    front = pareto_front([(row["cost"], row["value"]) for row in rows])
    axes.step(*zip(*front, strict=True), where="post", color="0.5", linestyle="--", linewidth=1, zorder=0)


def _reach(rows: list[dict]) -> list[list[float]]:
    """How far the intervals reach below and above."""
    return [[max(0.0, r["value"] - r["low"]) for r in rows], [max(0.0, r["high"] - r["value"]) for r in rows]]


def _panels(file: Path, parts: Sequence[list[dict]], label: str, plot: Callable[[Any, list[dict]], None]) -> bool:
    """Draw a row of panels with one legend; without parts, remove the picture of an earlier report."""
    from matplotlib.figure import Figure

    if not parts:
        file.unlink(missing_ok=True)
        return False
    figure = Figure(figsize=(_PANEL[0] * len(parts), _PANEL[1] + 0.5), layout="constrained")
    panels = figure.subplots(1, len(parts), squeeze=False)[0]
    for axes, rows in zip(panels, parts, strict=True):
        plot(axes, rows)
        axes.set(title=rows[0]["task"], xlabel=label, ylim=(-0.02, 1.02))
        axes.set_ylabel(f"{rows[0]['metric'].replace('_', ' ')}, 95% interval")
        axes.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    columns = min(len(labels), 2 * len(parts))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize="small")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    return True
