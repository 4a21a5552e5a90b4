"""A 3x3 grid over four slices, in the style of EntityGrid-QA (HiRes-LLaVA, 2407.08706; its data was not released).

The corner cells lie inside a slice, the edge cells on a border of two slices, the middle cell on all borders.
"""

import numpy as np
from PIL import ImageDraw

from modeling_shirg.scenes.drawing import COLORS, INKS, LETTERS, SHAPES, Question, Scene, canvas, pick, text_width
from modeling_shirg.scenes.placement import Cell

PLACES = {"inside": (0, 2, 6, 8), "border": (1, 3, 5, 7), "corner": (4,)}
ENTITY_SIZES = (15, 21, 29, 40)
MOST_COUNTED = 4
_COUNTING_SHARE = 0.25
# Cells of the other counted shapes, by the place of the first: slices cut none of them more than the first.
_COUNTED_WITH = {"inside": PLACES["inside"], "border": (*PLACES["inside"], *PLACES["border"]), "corner": range(9)}


def draw_entity_grid(
    rng: np.random.Generator,
    width: int,
    height: int,
    scale: float,
    cell: Cell | None = None,
    entities: tuple[int, int] = (4, 9),
    counting: bool | None = None,
) -> Scene:
    """Letters and shapes on a 3x3 grid; the first questions are about the entity in `cell`.

    Args: as `draw_document`; the place of `cell` is a key of `PLACES`, `entities` the least and the most of them. With
    `counting`, `cell` describes the counted shapes: one is at its place, and slices cut the others no more. `None`
    draws whether to count, where `cell` is free.
    """
    grid = Scene(canvas(rng, width, height))
    _draw_lines(grid, width, height)
    if counting is None:
        counting = cell is None and rng.random() < _COUNTING_SHARE
    if counting:
        cell = cell or Cell(float(pick(rng, ENTITY_SIZES)), str(pick(rng, tuple(PLACES))))
        counted, labels = _labels_to_count(rng, cell, entities)
        px = [cell.glyph_px if label == counted else float(pick(rng, ENTITY_SIZES)) for _, label in labels]
        drawn = [(spot, label, scale * size) for (spot, label), size in zip(labels, px, strict=True)]
        _ask(grid, [(spot, _draw_entity(grid, rng, label, spot, size), size) for spot, label, size in drawn], counted)
        return grid
    target = int(pick(rng, PLACES[cell.place])) if cell else int(rng.integers(9))
    others = [int(spot) for spot in rng.permutation(9) if spot != target]
    spots = [target, *others[: int(rng.integers(entities[0], entities[1] + 1)) - 1]]
    characters = [str(label) for label in rng.permutation(list(LETTERS))]
    kind_of_shape = pick(rng, SHAPES)
    placed = []
    for number, spot in enumerate(spots):
        size = scale * (cell.glyph_px if cell and number == 0 else float(pick(rng, ENTITY_SIZES)))
        is_shape = number > 0 and rng.random() < 0.4
        label = (kind_of_shape if rng.random() < 0.6 else pick(rng, SHAPES)) if is_shape else characters[number]
        placed.append((spot, _draw_entity(grid, rng, label, spot, size), size))
    _ask(grid, placed, kind_of_shape)
    return grid


def _labels_to_count(
    rng: np.random.Generator, cell: Cell, entities: tuple[int, int]
) -> tuple[str, list[tuple[int, str]]]:
    """The counted shape, in 1..`MOST_COUNTED` cells, and (cell, label) of all entities."""
    counted = str(pick(rng, SHAPES))
    first = int(pick(rng, PLACES[cell.place]))
    others = [int(spot) for spot in rng.permutation(_COUNTED_WITH[cell.place]) if spot != first]
    copies = [first, *others[: int(rng.integers(0, MOST_COUNTED))]]
    free = [int(spot) for spot in rng.permutation(9) if spot not in copies]
    free = free[: max(0, int(rng.integers(entities[0], entities[1] + 1)) - len(copies))]
    characters = [str(label) for label in rng.permutation(list(LETTERS))]
    shapes = [shape for shape in SHAPES if shape != counted]
    distractors = [pick(rng, shapes) if rng.random() < 0.4 else characters[spot] for spot in free]
    return counted, [*((spot, counted) for spot in copies), *zip(free, distractors, strict=True)]


def _draw_lines(grid: Scene, width: int, height: int) -> None:
    draw = ImageDraw.Draw(grid.image)
    for line in range(4):
        x, y = min(width * line / 3, width - 1), min(height * line / 3, height - 1)
        draw.line([(x, 0), (x, height)], fill=(170, 170, 170), width=1)
        draw.line([(0, y), (width, y)], fill=(170, 170, 170), width=1)


def _draw_entity(grid: Scene, rng, label: str, spot: int, size: float) -> int:
    """Draw one entity: centred on the lines between slices, elsewhere anywhere in the cell."""
    width, height = grid.image.size
    row, column = divmod(spot, 3)
    free = np.array([width / 3 - 1.6 * size, height / 3 - 1.6 * size]).clip(0) / 2
    x, y = (np.array([(column + 0.5) * width / 3, (row + 0.5) * height / 3]) + rng.uniform(-free, free)).tolist()
    x, y = (width / 2 if column == 1 else x), (height / 2 if row == 1 else y)
    if label in SHAPES:
        return grid.draw_shape(label, (x, y), 1.4 * size, pick(rng, tuple(COLORS)))
    return grid.write(label, x - text_width(label, size) / 2, y, size, pick(rng, INKS))[0]


def _ask(grid: Scene, placed: list[tuple[int, int, float]], counted: str) -> None:
    for spot, mark, size in placed:
        label, number, shown = grid.marks[mark].label, str(spot + 1), (grid.marks[mark].box, size, ((mark,),))
        grid.questions.append(Question(f"What is in cell {number}?", label, "identify", *shown, number))
        if label not in SHAPES:
            grid.questions.append(Question(f"Which cell holds {label}?", number, "locate", *shown, label))
    sizes = {mark: size for _, mark, size in placed}
    marks = tuple(mark for mark in sizes if grid.marks[mark].label == counted)
    evidence, text = marks or tuple(sizes), f"How many cells hold a {counted}?"
    shown = (grid.ink_box(evidence), min(sizes[mark] for mark in evidence), (marks,))
    grid.questions.append(Question(text, str(len(marks)), "count", *shown, counted))
