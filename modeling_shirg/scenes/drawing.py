"""Marks with pixel boxes, text in DejaVu Sans Bold, and questions. Glyph sizes are cap heights in pixels."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Box = tuple[float, float, float, float]

DIGITS = "0123456789"
# No "A" (an article to VQA metrics), no "I" and "O" (they look like 1 and 0).
LETTERS = "BCDEFGHJKLMNPQRSTUVWXYZ"
CHARACTERS = DIGITS + LETTERS
COLORS = {
    "red": (215, 35, 40),
    "green": (30, 150, 60),
    "blue": (40, 80, 215),
    "orange": (245, 140, 20),
    "purple": (140, 50, 180),
    "brown": (115, 70, 35),
    "pink": (240, 110, 170),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
_FONT = "DejaVuSans-Bold.ttf"
INKS = ("black", "black", "blue", "brown", "purple", "green", "red")  # colours of text
_CAP_HEIGHT = 0.729  # of the em


@dataclass(frozen=True)
class Mark:
    """One glyph or shape: a character or the shape's name, the colour's name, the box of the ink."""

    label: str
    color: str
    box: Box


@dataclass(frozen=True)
class Question:
    """A question about a scene.

    Args:
        text, answer, kind: the question, the one right answer, and the kind, `"read_value"` for example.
        box, glyph_px: of the evidence, ink to be read or counted; its cap height, or the side of a shape.
        answer_marks: per character of the answer, the marks to look at; all in one entry for counted answers.
        name: the word of the question that points to the evidence, a row's key for example; `None` without one.
        name_marks: the marks that write this word in the image.
    """

    text: str
    answer: str
    kind: str
    box: Box
    glyph_px: float
    answer_marks: tuple[tuple[int, ...], ...]
    name: str | None = None
    name_marks: tuple[int, ...] = ()


@dataclass
class Scene:
    """An upright RGB image, everything that is drawn on it, and questions about it."""

    image: Image.Image
    marks: list[Mark] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)

    def write(self, text: str, left: float, middle: float, glyph_px: float, color: str) -> list[int]:
        """Write `text` from `left` on, capitals centred on `middle`; returns the index of each character's mark."""
        first = len(self.marks)
        for character, ink, box in _lay_out(text, left, middle, glyph_px):
            self.image.paste(COLORS[color], box[:2], ink)
            self.marks.append(Mark(character, color, box))
        return list(range(first, len(self.marks)))

    def draw_shape(self, shape: str, center: tuple[float, float], size: float, color: str) -> int:
        """Draw a shape of `SHAPES`, `size` pixels wide; returns the index of the mark."""
        box = (center[0] - size / 2, center[1] - size / 2, center[0] + size / 2, center[1] + size / 2)
        _fill_shape(ImageDraw.Draw(self.image), shape, box, COLORS[color])
        self.marks.append(Mark(shape, color, box))
        return len(self.marks) - 1

    def ink_box(self, marks: Sequence[int]) -> Box:
        """The box around these marks."""
        return union([self.marks[i].box for i in marks])


def union(boxes: Sequence[Box]) -> Box:
    """The smallest box around `boxes`."""
    left, top, right, bottom = np.array(boxes).T
    return (float(left.min()), float(top.min()), float(right.max()), float(bottom.max()))


def canvas(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """An empty page, white or nearly so."""
    return Image.new("RGB", (width, height), tuple(int(value) for value in rng.integers(225, 256, size=3)))


def pick(rng: np.random.Generator, options: Sequence):
    """One of `options`."""
    return options[int(rng.integers(len(options)))]


def text_width(text: str, glyph_px: float) -> float:
    """Advance width of `text`."""
    return load_font(_font_size(glyph_px)).getlength(text)


def _font_size(glyph_px: float) -> int:
    return max(1, round(glyph_px / _CAP_HEIGHT))


def text_ink(text: str, left: float, middle: float, glyph_px: float) -> Box:
    """The box of the ink that `Scene.write` would leave."""
    return union([box for _, _, box in _lay_out(text, left, middle, glyph_px)])


@cache
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans Bold, laid out by FreeType alone: Raqm, where installed, places glyphs differently."""
    import matplotlib  # slow to import, and only rendering needs the fonts

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / _FONT
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def _lay_out(
    text: str, left: float, middle: float, glyph_px: float
) -> Iterator[tuple[str, Image.Image, tuple[int, int, int, int]]]:
    """Each character of a line of text, its ink and the box that the ink fills."""
    size, baseline, x = _font_size(glyph_px), round(middle + glyph_px / 2), float(left)
    for character in text:
        ink, dx, dy = _glyph(size, character)
        place = (round(x) + dx, baseline + dy)
        yield character, ink, (*place, place[0] + ink.width, place[1] + ink.height)
        x += load_font(size).getlength(character)


@cache
def _glyph(size: int, character: str) -> tuple[Image.Image, int, int]:
    """The ink of one character as a mask cut to its box, and where it lies from the pen's place on the baseline."""
    face = load_font(size)
    left, top, right, bottom = face.getbbox(character, anchor="ls")
    mask = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(mask).text((-left, -top), character, font=face, fill=255, anchor="ls")
    return mask, left, top


def _fill_shape(draw: ImageDraw.ImageDraw, shape: str, box: Box, rgb: tuple[int, int, int]) -> None:
    left, top, right, bottom = box
    if shape == "circle":
        draw.ellipse(box, fill=rgb)
    elif shape == "square":
        draw.rectangle(box, fill=rgb)
    elif shape == "triangle":
        draw.polygon([((left + right) / 2, top), (right, bottom), (left, bottom)], fill=rgb)
    elif shape == "cross":
        arm = (right - left) / 3
        draw.rectangle((left + arm, top, right - arm, bottom), fill=rgb)
        draw.rectangle((left, top + arm, right, bottom - arm), fill=rgb)
    else:
        x, y, radius = (left + right) / 2, (top + bottom) / 2, (right - left) / 2
        reaches = [radius if step % 2 == 0 else radius * 0.42 for step in range(10)]
        turns = [math.pi * step / 5 - math.pi / 2 for step in range(10)]
        points = [(x + r * math.cos(turn), y + r * math.sin(turn)) for r, turn in zip(reaches, turns, strict=True)]
        draw.polygon(points, fill=rgb)
