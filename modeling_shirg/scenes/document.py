"""SynthDoc: forms and receipts, rows of a key and a random code; a question asks for the code of a key.

Keys are single letters and no two rows share one; codes have no language prior.
"""

from collections.abc import Callable

import numpy as np
from PIL import ImageDraw

from modeling_shirg.scenes.drawing import (
    CHARACTERS,
    INKS,
    LETTERS,
    Box,
    Question,
    Scene,
    canvas,
    pick,
    text_ink,
    text_width,
    union,
)
from modeling_shirg.scenes.placement import FOVEA, GLYPH_SIZES, MOST_TRIES, Cell, in_cell

_LINE = 1.5  # distance of two rows over their cap height
_REWRITTEN = ("THE", "TEN")  # codes that VQA metrics drop or turn into a number


def draw_document(
    rng: np.random.Generator,
    width: int,
    height: int,
    scale: float,
    cell: Cell | None = None,
    rows: tuple[int, int] = (6, 20),
    code_length: tuple[int, int] = (2, 4),
    pitch: float = 0.0,
) -> Scene:
    """A form or a receipt; the first question is about the row in `cell`, which is drawn freely by default.

    Args:
        rng, width, height, scale, cell: of every family; all glyph sizes are multiplied by `scale`.
        rows, code_length: least and most rows (fewer without room on the page), and characters of a value.
        pitch: least distance of two rows in pixels at scale 1.
    """
    page = Scene(canvas(rng, width, height))
    is_receipt = rng.random() < 0.4
    count = int(rng.integers(rows[0], rows[1] + 1))
    keys = [str(key) for key in rng.permutation(list(LETTERS))[:count]]
    codes = [_code(rng, code_length) for _ in keys]
    sizes = [scale * float(pick(rng, GLYPH_SIZES[:4])) for _ in keys]
    sizes[0] = scale * (cell.glyph_px if cell else float(pick(rng, GLYPH_SIZES)))
    gap = scale * rng.uniform(24, 52)
    row_width = max(gap + text_width(k + c, s) for k, c, s in zip(keys, codes, sizes, strict=True))

    def first_row_ink(left: float, middle: float) -> Box:
        code_left = left + text_width(keys[0], sizes[0]) + gap
        texts = ((keys[0], left), (codes[0], code_left))
        return union([text_ink(text, at, middle, sizes[0]) for text, at in texts])

    left, middle = _place(rng, (width, height), sizes[0], first_row_ink, row_width, cell, FOVEA * scale)
    lines = [max(size * _LINE * rng.uniform(1.0, 1.3), pitch * scale) for size in sizes]
    spots = _stack(rng, left, middle, lines, row_width, width, height)
    for key, code, size, spot in zip(keys, codes, sizes, spots, strict=False):
        _draw_row(page, rng, (key, code), size, spot, gap, is_receipt)
    return page


def _code(rng: np.random.Generator, length: tuple[int, int]) -> str:
    while True:
        code = "".join(pick(rng, CHARACTERS) for _ in range(int(rng.integers(length[0], length[1] + 1))))
        if code not in _REWRITTEN:
            return code


def _place(
    rng: np.random.Generator,
    page: tuple[int, int],
    row_height: float,
    ink: Callable[[float, float], Box],
    column_width: float,
    cell: Cell | None,
    fovea: float,
) -> tuple[float, float]:
    """Left edge and middle line of the first row: the ink in the cell, the column on the page."""
    width, height = page
    margin = 0.02 * width
    highest, lowest = margin + row_height, height - margin - row_height
    for _ in range(MOST_TRIES if highest <= lowest else 0):
        left = rng.uniform(margin, max(margin + 1, width - margin - column_width))
        middle = rng.uniform(highest, lowest)
        if cell is None or in_cell(ink(left, middle), width, height, cell.place, fovea):
            return left, middle
    raise ValueError(f"No row {row_height} pixels high on {width}x{height} pixels lies in {cell}.")


def _stack(rng, left: float, middle: float, lines, row_width: float, width: int, height: int) -> list[tuple]:
    """(left, middle) of each row: above and below the first row, then in columns beside it; short if room ends."""
    spots = [(left, middle)]
    top, bottom = middle - lines[0] / 2, middle + lines[0] / 2
    room = 0.02 * width
    columns = [left]
    for line in lines[1:]:
        fits_above, fits_below = top - line > room, bottom + line < height - room
        if not (fits_above or fits_below):
            beside = row_width + room
            right, left = max(columns) + beside, min(columns) - beside
            if right + beside > width and left <= room:
                break
            columns.append(right if right + beside <= width else left)
            top = bottom = rng.uniform(0.2, 0.8) * height
            fits_above = fits_below = True
        if fits_above and (not fits_below or rng.random() < 0.5):
            top -= line
            spots.append((columns[-1], top + line / 2))
        else:
            bottom += line
            spots.append((columns[-1], bottom - line / 2))
    return spots


def _draw_row(page: Scene, rng, texts: tuple[str, str], size: float, spot: tuple, gap: float, dotted: bool) -> None:
    """Key and value, and a line of dots (a receipt) or a thin rule (a form) between them."""
    (key, code), (left, middle) = texts, spot
    key_marks = page.write(key, left, middle, size, "black")
    value_left = left + text_width(key, size) + gap
    code_marks = page.write(code, value_left, middle, size, pick(rng, INKS))
    draw, start, baseline = ImageDraw.Draw(page.image), page.marks[key_marks[0]].box[2], middle + size / 2
    if dotted:
        dots = [(x, round(baseline) - 1) for x in range(round(start) + 4, round(value_left) - 3, 5)]
        draw.point(dots, fill=(120, 120, 120))
    else:
        draw.line([(start + 3, baseline), (value_left - 3, baseline)], fill=(190, 190, 190))
    text, box = f"What is the value of {key}?", page.ink_box([*key_marks, *code_marks])
    read = tuple((mark,) for mark in code_marks)
    page.questions.append(Question(text, code, "read_field", box, size, read, key, tuple(key_marks)))
