"""What grows in a curve of `shirg bench`, and what its cost is divided by."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modeling_shirg.evaluation.selection_cost import fitted_exponent
from modeling_shirg.running.systems import Bench, Row, parse_row


@dataclass(frozen=True)
class Curve:
    """One axis.

    Args:
        points: of a bench, the values it takes.
        entry: of a bench, a point and all points: what a row of this point differs in.
        size: the fact of a row that is the number of units.
        stages: whose median seconds are the cost.
        unit: what the cost is divided by.
        systems: that are timed if none are named.
    """

    points: Callable[[Bench], list[int]]
    entry: Callable[[Bench, int, list[int]], str]
    size: str
    stages: tuple[str, ...]
    unit: str
    systems: tuple[str, ...] = ("shirg",)


def _response(bench: Bench, length: int, points: list[int]) -> str:
    """Steps in the proportion of the profile's answer."""
    steps = max(1, round(length * bench.generation["steps"] / bench.generation["max_new_tokens"]))
    return f"max_new_tokens={length},steps={steps}"


def _grids(bench: Bench) -> list[int]:
    """Sides of the pooled grids: 5 x 7 x 7 = 245 to 5 x 27 x 27 = 3,645 image tokens at full geometry."""
    base = bench.loaded.model.config.base_grid
    return [round(base * share) for share in (1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)]


CURVES = {
    "batch": Curve(
        points=lambda bench: [1, 2, 4, 8, 16],
        entry=lambda bench, point, points: f"batch={point}",
        size="answers",
        stages=("total",),
        unit="answer",
    ),
    "steps": Curve(
        points=lambda bench: [8, 16, 32, 64],
        entry=lambda bench, point, points: f"max_new_tokens={max(points)},steps={point}",
        size="forwards",
        stages=("denoise",),
        unit="step",
    ),
    "response": Curve(
        points=lambda bench: [16, 32, 64, 128, 256],
        entry=_response,
        size="new_tokens",
        stages=("denoise",),
        unit="response token",
    ),
    "tokens": Curve(
        points=_grids,
        entry=lambda bench, point, points: f"pooled_grid_size={point}",
        size="image_tokens",
        stages=("prefix", "denoise"),
        unit="image token",
        systems=("lavida-full",),
    ),
}


def curve_rows(axis: str, bench: Bench, names: list[str], points: list[int]) -> dict[str, list[Row]]:
    """The rows of each system, one at every point, ascending.

    Raises:
        ValueError: fewer than two points, or one below 1.
    """
    points = sorted(set(points))
    if len(points) < 2 or points[0] < 1:
        raise ValueError(f"--points {points}: a curve needs two different ones, 1 or more each.")
    entry = CURVES[axis].entry
    return {
        name: [parse_row(f"{name}{',' if ':' in name else ':'}{entry(bench, point, points)}") for point in points]
        for name in names
    }


def curve_table(axis: str, rows: dict[str, list[Row]], measured: dict[str, Any]) -> dict[str, Any]:
    """Cost and cost per unit at every point, and the exponent of the cost against the units, 1 where it is linear."""
    curve, systems = CURVES[axis], {}
    for name, points in rows.items():
        labels = [row.label for row in points]
        sizes = [measured["facts"][label][curve.size] for label in labels]
        costs = [sum(measured["systems"][label][stage]["median"] for stage in curve.stages) for label in labels]
        systems[name] = {
            "points": [
                {"row": label, "units": size, "seconds": cost, "seconds_per_unit": cost / size}
                for label, size, cost in zip(labels, sizes, costs, strict=True)
            ],
            "exponent": fitted_exponent(sizes, costs),
        }
    return {"axis": axis, "unit": curve.unit, "stages": list(curve.stages), "systems": systems}
