"""Pictures of what was looked at: views outlined, patches kept and dropped, and what each patch scored."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

VIEW_COLORS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#ec4899")
KEPT_COLOR = "#22c55e"
# Lowest, middle and highest score.
_SCORE_COLORS = ((68, 1, 84), (33, 145, 140), (253, 231, 37))
_MIN_SIDE = 896
_LINE = 4
# Side of a cell of a sheet, height of its caption, and characters of its last line.
_CELL, _CAPTION, _LINE_LENGTH = 448, 72, 58


def draw_overlay(
    image: Image.Image, view_boxes_V4: np.ndarray, patch_boxes_N4: np.ndarray | None, kept: list[int] | None
) -> Image.Image:
    """`image` (upright RGB), enlarged if small, with its views and its kept and dropped patches.

    Where views overlap, a place is dark only if every view dropped it.

    Args:
        image: the image that was asked about.
        view_boxes_V4: (left, top, right, bottom) of every view in pixels of `image`.
        patch_boxes_N4: (x, y, width, height) of every patch that could be kept, as fractions of `image`; `None` if
            nothing was selected.
        kept: indices of the kept ones; `None` if no patch is kept as such.
    """
    scale = enlargement(image)
    canvas = enlarged(image).convert("RGBA")
    if patch_boxes_N4 is not None and kept is not None:
        canvas = Image.alpha_composite(canvas, _patches(canvas.size, _corners(canvas, patch_boxes_N4), set(kept)))
    draw = ImageDraw.Draw(canvas)
    for number, box in enumerate(np.asarray(view_boxes_V4) * scale):
        # Each view a little further in, so that views of the same box stay visible.
        inset = number * _LINE
        left, top, right, bottom = np.clip(box, 0, [canvas.width - 1, canvas.height - 1] * 2).tolist()
        corners = (left + inset, top + inset, right - inset, bottom - inset)
        if corners[0] < corners[2] and corners[1] < corners[3]:
            draw.rectangle(corners, outline=VIEW_COLORS[number % len(VIEW_COLORS)], width=_LINE)
    return canvas.convert("RGB")


def draw_scores(image: Image.Image, patch_boxes_N4: np.ndarray, scores_N: np.ndarray) -> Image.Image:
    """`image` (upright RGB), enlarged if small, in grey, with each patch coloured by its score: violet lowest, yellow
    highest.

    Args:
        image: the image that was asked about.
        patch_boxes_N4: (x, y, width, height) of every patch, as fractions of `image`.
        scores_N: their scores, of any scale. Where views overlap, the later patch is on top.
    """
    canvas = enlarged(image.convert("L")).convert("RGBA")
    layer = Image.new("RGBA", canvas.size)
    draw = ImageDraw.Draw(layer)
    spread = float(np.ptp(scores_N)) or 1.0
    levels_N = (scores_N - scores_N.min()) / spread
    places = np.linspace(0, 1, len(_SCORE_COLORS))
    colors_N3 = np.stack([np.interp(levels_N, places, channel) for channel in np.transpose(_SCORE_COLORS)], axis=-1)
    for box, color_3 in zip(_corners(canvas, patch_boxes_N4).tolist(), colors_N3.round().astype(int), strict=True):
        draw.rectangle(box, fill=(*color_3.tolist(), 160))
    return Image.alpha_composite(canvas, layer).convert("RGB")


def enlargement(image: Image.Image) -> int:
    """The whole number by which small images are enlarged in all pictures."""
    return max(1, -(-_MIN_SIDE // max(image.size)))


def enlarged(image: Image.Image) -> Image.Image:
    """The image at that size, its pixels visible as squares."""
    scale = enlargement(image)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def _corners(canvas: Image.Image, boxes_N4: np.ndarray) -> np.ndarray:
    """(left, top, right, bottom) in pixels of `canvas`, (N, 4)."""
    corners_N4 = boxes_N4 * np.array([canvas.width, canvas.height] * 2)
    corners_N4[:, 2:] += corners_N4[:, :2]
    return corners_N4


def _patches(size: tuple[int, int], corners_N4: np.ndarray, kept: set[int]) -> Image.Image:
    layer = Image.new("RGBA", size)
    draw = ImageDraw.Draw(layer)
    for index, box in enumerate(corners_N4.tolist()):
        if index not in kept:
            draw.rectangle(box, fill=(0, 0, 0, 150))
    for index in sorted(kept):
        draw.rectangle(corners_N4[index].tolist(), fill=(0, 0, 0, 0), outline=KEPT_COLOR)
    return layer


def captioned(picture: Image.Image, title: str, cost: str, answer: str) -> Image.Image:
    """A cell of a sheet: the picture, as large as fits, under three lines of text."""
    cell = Image.new("RGB", (_CELL, _CELL + _CAPTION), "white")
    picture.thumbnail((_CELL, _CELL))
    cell.paste(picture, ((_CELL - picture.width) // 2, _CAPTION + (_CELL - picture.height) // 2))
    draw = ImageDraw.Draw(cell)
    answer = answer if len(answer) <= _LINE_LENGTH else answer[: _LINE_LENGTH - 3] + "..."
    for top, text, fill, size in ((6, title, "black", 20), (30, cost, "dimgray", 14), (50, answer, "black", 14)):
        draw.text((8, top), text, fill=fill, font=ImageFont.load_default(size))
    return cell


def sheet(cells: list[Image.Image]) -> Image.Image:
    """The cells in reading order, about as wide as high."""
    columns = math.ceil(math.sqrt(len(cells)))
    width, height = cells[0].size
    whole = Image.new("RGB", (columns * width, math.ceil(len(cells) / columns) * height), "white")
    for index, cell in enumerate(cells):
        whole.paste(cell, (index % columns * width, index // columns * height))
    return whole
