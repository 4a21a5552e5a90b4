"""The figures of an evaluation, drawn from its tables: accuracy by size, by eccentricity, against tokens and time."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from modeling_shirg.evaluation.tasks import TASKS

_GROUPED = {
    "glyph_px": "height of what is asked about, in pixels of the toy geometry's images",
    "eccentricity": "distance from the image's centre, 1 at its border",
}
# So many colours follow each other before the first comes again; then the marker is another.
_COLORS, _MARKERS = 10, "osD^v"
_COSTS = {"image_tokens": "image tokens", "seconds": "seconds per image, median"}


def draw_curves(folder: Path, results: dict[str, Any]) -> list[Path]:
    """Write the pictures that the tables allow, PNG, and say which they are."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for task in results["tasks"]:
        for by, label in _GROUPED.items():
            rows = [row for row in _own_metric(results["groups"], task) if row["by"] == by]
            files += [_grouped(folder / f"{task}_by_{by}.png", rows, label)] if rows else []
        totals = [row for row in _own_metric(results["scores"], task) if row["by"] == ""]
        for cost, label in _COSTS.items():
            costs = {row["system"]: row[cost] for row in results["efficiency"] if row["task"] == task}
            files.append(_against(folder / f"{task}_against_{cost}.png", totals, costs, label))
    return files


def _own_metric(rows: Iterable[dict], task: str) -> list[dict]:
    return [r for r in rows if (r["task"], r["control"], r["metric"]) == (task, "none", TASKS[task].metric)]


def plot_groups(axes: Any, rows: list[dict]) -> None:
    """One line per system over its groups, with intervals."""
    groups = list(dict.fromkeys(row["group"] for row in rows))
    for number, system in enumerate(dict.fromkeys(row["system"] for row in rows)):
        mine = [row for row in rows if row["system"] == system]
        places = [groups.index(row["group"]) + 0.03 * number for row in mine]
        axes.errorbar(places, [row["value"] for row in mine], _reach(mine), label=system, marker="o", capsize=3)
    axes.set_xticks(range(len(groups)), groups)
    _dress(axes, rows[0])


def plot_costs(axes: Any, rows: list[dict], costs: dict[str, float]) -> None:
    """One point per system against what it costs, with its interval."""
    for number, row in enumerate(rows):
        look = {"marker": _MARKERS[number // _COLORS % len(_MARKERS)], "capsize": 3}
        axes.errorbar(costs[row["system"]], row["value"], _reach([row]), label=row["system"], **look)
    _dress(axes, rows[0])


def _grouped(file: Path, rows: list[dict], label: str) -> Path:
    figure, axes = _axes()
    plot_groups(axes, rows)
    return _save(figure, axes, file, label)


def _against(file: Path, rows: list[dict], costs: dict[str, float], label: str) -> Path:
    figure, axes = _axes()
    plot_costs(axes, rows, costs)
    return _save(figure, axes, file, label)


def _axes() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    return figure, figure.add_subplot()


def _dress(axes: Any, row: dict) -> None:
    """Title and scale of a plot of scores such as `row`."""
    axes.set_title(row["task"])
    axes.set_ylabel(f"{row['metric'].replace('_', ' ')}, 95% interval")
    axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.3)


def _reach(rows: list[dict]) -> list[list[float]]:
    """How far the intervals reach below and above."""
    return [[max(0.0, r["value"] - r["low"]) for r in rows], [max(0.0, r["high"] - r["value"]) for r in rows]]


def _save(figure: Any, axes: Any, file: Path, label: str) -> Path:
    axes.set_xlabel(label)
    axes.legend(fontsize="small")
    figure.savefig(file, dpi=120)
    return file
