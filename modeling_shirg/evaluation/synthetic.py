"""Rendered scenes with known answers: what the bundled checkpoint is trained on and, from other seeds, measured on.

Every scene is a pure function of (split, family, index). Training draws from split `train`, figures come from split
`test`; the two seed spaces cannot overlap. Fonts are matplotlib's DejaVu family, so no asset is needed, but
matplotlib is: it comes with the extra `eval`.
"""

from dataclasses import dataclass, field
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from modeling_shirg.evaluation.scenes.drawing import CHARACTERS, COLORS, SHAPES, draw_shape, load_font

FAMILIES = ("grid", "guard")
_SPLITS = {"train": 0, "validation": 1, "test": 2}
_FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono.ttf", "DejaVuSerif.ttf")


@dataclass(frozen=True)
class Mark:
    """One thing drawn on a scene: a character or a shape, its colour name and its box in pixels."""

    label: str
    color: str
    box: tuple[float, float, float, float]


@dataclass
class Scene:
    """An image, what is on it, questions with their answers, and the mark (its index) that each question is about."""

    image: Image.Image
    marks: list[Mark]
    questions: list[tuple[str, str]] = field(default_factory=list)
    asked_marks: list[int] = field(default_factory=list)


def scene(family: str, split: str, index: int) -> Scene:
    """Scene number `index` of `family` ("page", "grid" or "guard") in `split` ("train", "validation" or "test")."""
    makers = {"page": _page, "grid": _grid, "guard": _guard}
    rng = np.random.default_rng([_SPLITS[split], sorted(makers).index(family), index])
    return makers[family](rng)


def _page(rng: np.random.Generator) -> Scene:
    """A page densely covered with characters and shapes; no questions. For per-patch pre-training."""
    side = int(rng.integers(192, 321))
    image = _canvas(rng, side)
    cell = int(rng.integers(18, 49))
    marks = []
    for top in range(0, side - cell + 1, cell):
        for left in range(0, side - cell + 1, cell):
            kind = rng.random()
            if kind < 0.15:
                continue
            size = cell * rng.uniform(0.6, 0.95)
            center = (left + cell / 2 + rng.uniform(-0.1, 0.1) * cell, top + cell / 2 + rng.uniform(-0.1, 0.1) * cell)
            label = _pick(rng, SHAPES if kind < 0.27 else CHARACTERS)
            marks.append(_draw_mark(image, rng, label, center, size))
    return Scene(image, marks)


def _grid(rng: np.random.Generator) -> Scene:
    """A 3x3 grid with one character per cell; asks what is in a cell."""
    side = int(rng.choice([224, 256, 288], p=[0.6, 0.2, 0.2]))
    image = _canvas(rng, side)
    draw = ImageDraw.Draw(image)
    margin = side * 0.06
    cell = (side - 2 * margin) / 3
    for line in range(4):
        at = margin + line * cell
        draw.line([(at, margin), (at, side - margin)], fill=(150, 150, 150), width=2)
        draw.line([(margin, at), (side - margin, at)], fill=(150, 150, 150), width=2)
    labels = rng.choice(list(CHARACTERS), size=9, replace=False)
    marks, questions = [], []
    for position, label in enumerate(labels):
        row, column = divmod(position, 3)
        size = rng.uniform(18, 44)
        free = (cell - size) / 2 * 0.6
        center = (
            margin + (column + 0.5) * cell + rng.uniform(-free, free),
            margin + (row + 0.5) * cell + rng.uniform(-free, free),
        )
        marks.append(_draw_mark(image, rng, str(label), center, size))
        questions.append((f"What is in cell {position + 1}?", str(label)))
    return Scene(image, marks, questions, asked_marks=list(range(len(marks))))


def _guard(rng: np.random.Generator) -> Scene:
    """One large shape; asks for its colour and for the shape."""
    side = int(rng.choice([224, 256, 288], p=[0.6, 0.2, 0.2]))
    image = _canvas(rng, side)
    size = side * rng.uniform(0.3, 0.6)
    center = (side / 2 + rng.uniform(-0.15, 0.15) * side, side / 2 + rng.uniform(-0.15, 0.15) * side)
    mark = _draw_mark(image, rng, _pick(rng, SHAPES), center, size)
    questions = [("What color is the shape?", mark.color), ("What shape is it?", mark.label)]
    return Scene(image, [mark], questions, asked_marks=[0, 0])


def _pick(rng: np.random.Generator, options: tuple[str, ...] | str) -> str:
    return options[int(rng.integers(len(options)))]


def _canvas(rng: np.random.Generator, side: int) -> Image.Image:
    return Image.new("RGB", (side, side), tuple(int(value) for value in rng.integers(222, 256, size=3)))


def _draw_mark(
    image: Image.Image, rng: np.random.Generator, label: str, center: tuple[float, float], size: float
) -> Mark:
    """Draw a character (font size `size` pixels) or a shape (`size` pixels wide) around `center`."""
    color = _pick(rng, tuple(COLORS))
    jitter = rng.integers(-12, 13, size=3).tolist()
    rgb = tuple(min(255, max(0, value + change)) for value, change in zip(COLORS[color], jitter, strict=True))
    x, y = center
    if label in SHAPES:
        box = (x - size / 2, y - size / 2, x + size / 2, y + size / 2)
        draw_shape(ImageDraw.Draw(image), label, box, rgb)
        return Mark(label, color, box)
    ink = _glyph(_pick(rng, _FONTS), max(8, round(size)), label)
    left, top = round(x - ink.width / 2), round(y - ink.height / 2)
    image.paste(rgb, (left, top), ink)
    return Mark(label, color, (left, top, left + ink.width, top + ink.height))


@cache
def _glyph(font_name: str, size: int, character: str) -> Image.Image:
    """The ink of one character as a mask, cropped to its box."""
    font = load_font(font_name, size)
    left, top, right, bottom = font.getbbox(character)
    mask = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(mask).text((-left, -top), character, font=font, fill=255)
    return mask
