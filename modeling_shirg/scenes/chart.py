"""SynthChart: bar and line charts with a letter as the name of each column, and its value above it.

The value label of the first question has the cell's size and place. Names are large enough for the global view.
"""

from dataclasses import dataclass

import numpy as np
from PIL import ImageDraw

from modeling_shirg.scenes.drawing import COLORS, LETTERS, Box, Question, Scene, canvas, pick, text_ink, text_width
from modeling_shirg.scenes.placement import FOVEA, GLYPH_SIZES, MOST_TRIES, Cell, in_cell

_NAME_PX = 18
_BAR_COLORS = tuple(name for name in COLORS if name != "black")


@dataclass
class _Plan:
    """A chart before it is drawn. `target` is the column of the first question, `most` the value at full height."""

    names: list[str]
    values: list[int]
    sizes: list[float]
    left: float
    top: float
    pitch: float
    plot_height: float
    scale: float
    target: int
    most: int

    def center(self, column: int) -> float:
        return self.left + (column + 0.5) * self.pitch

    def peak(self, column: int) -> float:
        return self.top + self.plot_height * (1 - self.values[column] / self.most)

    def label_box(self, column: int) -> Box:
        half = text_width(str(self.values[column]), self.sizes[column]) / 2
        bottom = self.peak(column) - 4 * self.scale
        return (self.center(column) - half, bottom - self.sizes[column], self.center(column) + half, bottom)

    def name_middle(self, column: int) -> float:
        return self.label_box(column)[1] - 0.8 * _NAME_PX * self.scale

    def label_ink(self, column: int) -> Box:
        left, top, _, bottom = self.label_box(column)
        return text_ink(str(self.values[column]), left, (top + bottom) / 2, self.sizes[column])


def draw_chart(
    rng: np.random.Generator,
    width: int,
    height: int,
    scale: float,
    cell: Cell | None = None,
    columns: tuple[int, int] = (3, 6),
    values: tuple[int, int] = (5, 99),
) -> Scene:
    """A chart of `columns` (least, most) bars or points with `values`; other arguments: `draw_document`."""
    plan = _plan(rng, width, height, scale, cell, columns, values)
    chart = Scene(canvas(rng, width, height))
    is_line = rng.random() < 0.35
    _draw_plot(chart, rng, plan, is_line)
    labels, names = [], []
    for column, (name, value) in enumerate(zip(plan.names, plan.values, strict=True)):
        box, size = plan.label_box(column), _NAME_PX * scale
        labels.append(chart.write(str(value), box[0], (box[1] + box[3]) / 2, plan.sizes[column], "black"))
        left = plan.center(column) - text_width(name, size) / 2
        names.append(chart.write(name, left, plan.name_middle(column), size, "black"))
    _ask(chart, plan, labels, names, "point" if is_line else "bar")
    return chart


def _plan(
    rng, width: int, height: int, scale: float, cell: Cell | None, columns: tuple[int, int], values: tuple[int, int]
) -> _Plan:
    """Draw plans until the target's label is in the cell and all labels fit on the page."""
    for _ in range(MOST_TRIES):
        count = int(rng.integers(columns[0], columns[1] + 1))
        plot_width, plot_height = width * rng.uniform(0.45, 0.95), height * rng.uniform(0.35, 0.75)
        drawn = rng.choice(np.arange(values[0], values[1] + 1), size=count, replace=False)
        sizes = [scale * float(pick(rng, GLYPH_SIZES[:4])) for _ in range(count)]
        target = int(rng.integers(count))
        sizes[target] = scale * (cell.glyph_px if cell else float(pick(rng, GLYPH_SIZES)))
        plan = _Plan(
            names=[str(name) for name in rng.permutation(list(LETTERS))[:count]],
            values=[int(value) for value in drawn],
            sizes=sizes,
            left=rng.uniform(0, width - plot_width),
            top=rng.uniform(0.02, 1) * (0.98 * height - plot_height),
            pitch=plot_width / count,
            plot_height=plot_height,
            scale=scale,
            target=target,
            most=values[1],
        )
        boxes = [plan.label_box(column) for column in range(count)]
        fits = all(box[2] - box[0] < plan.pitch - 2 * scale for box in boxes)
        fits = fits and all(plan.name_middle(column) > 0.6 * _NAME_PX * scale + 2 for column in range(count))
        if fits and (cell is None or in_cell(plan.label_ink(target), width, height, cell.place, FOVEA * scale)):
            return plan
    raise ValueError(f"No chart of {columns} columns on {width}x{height} pixels has its label in {cell}.")


def _draw_plot(chart: Scene, rng: np.random.Generator, plan: _Plan, is_line: bool) -> None:
    draw = ImageDraw.Draw(chart.image)
    floor = plan.top + plan.plot_height
    right = plan.left + plan.pitch * len(plan.names)
    draw.line([(plan.left, floor), (right, floor)], fill=(60, 60, 60), width=2)
    draw.line([(plan.left, plan.top), (plan.left, floor)], fill=(60, 60, 60), width=2)
    points = [(plan.center(column), plan.peak(column)) for column in range(len(plan.names))]
    if is_line:
        draw.line(points, fill=(185, 185, 185), width=2)
        rgb, radius = COLORS[pick(rng, _BAR_COLORS)], 4 * plan.scale
        for x, y in points:
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=rgb)
        return
    half = plan.pitch * rng.uniform(0.25, 0.4)
    for x, y in points:
        draw.rectangle([x - half, y, x + half, floor], fill=COLORS[pick(rng, _BAR_COLORS)])


def _ask(chart: Scene, plan: _Plan, labels: list[list[int]], names: list[list[int]], noun: str) -> None:
    order = [plan.target, *(column for column in range(len(labels)) if column != plan.target)]
    for column in order:
        value, name = str(plan.values[column]), plan.names[column]
        read, box = tuple((mark,) for mark in labels[column]), chart.ink_box(labels[column])
        text = f"What is the value of {noun} {name}?"
        size = plan.sizes[column]
        chart.questions.append(Question(text, value, "read_value", box, size, read, name, tuple(names[column])))
    largest, size = int(np.argmax(plan.values)), _NAME_PX * plan.scale
    text, read = f"Which {noun} is the largest?", tuple((mark,) for mark in names[largest])
    box = chart.ink_box(names[largest])
    chart.questions.append(Question(text, plan.names[largest], "name_maximum", box, size, read))
    one, other = order[:2]
    both, size = (*labels[one], *labels[other]), min(plan.sizes[one], plan.sizes[other])
    text = f"What is the difference between {plan.names[one]} and {plan.names[other]}?"
    answer = str(abs(plan.values[one] - plan.values[other]))
    chart.questions.append(Question(text, answer, "difference", chart.ink_box(both), size, (both,)))
