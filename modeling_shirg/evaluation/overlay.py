"""The picture of what was looked at: views outlined, kept patches framed, dark where patches were dropped."""

import numpy as np
from PIL import Image, ImageDraw

VIEW_COLORS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#ec4899")
KEPT_COLOR = "#22c55e"
_MIN_SIDE = 896
_LINE = 4


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
    scale = max(1, -(-_MIN_SIDE // max(image.size)))
    canvas = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).convert("RGBA")
    if patch_boxes_N4 is not None and kept is not None:
        size = np.array([canvas.width, canvas.height] * 2)
        corners_N4 = patch_boxes_N4 * size
        corners_N4[:, 2:] += corners_N4[:, :2]
        canvas = Image.alpha_composite(canvas, _patches(canvas.size, corners_N4, set(kept)))
    draw = ImageDraw.Draw(canvas)
    for number, box in enumerate(np.asarray(view_boxes_V4) * scale):
        # Each view a little further in, so that views of the same box stay visible.
        inset = number * _LINE
        left, top, right, bottom = np.clip(box, 0, [canvas.width - 1, canvas.height - 1] * 2).tolist()
        corners = (left + inset, top + inset, right - inset, bottom - inset)
        if corners[0] < corners[2] and corners[1] < corners[3]:
            draw.rectangle(corners, outline=VIEW_COLORS[number % len(VIEW_COLORS)], width=_LINE)
    return canvas.convert("RGB")


def _patches(size: tuple[int, int], corners_N4: np.ndarray, kept: set[int]) -> Image.Image:
    layer = Image.new("RGBA", size)
    draw = ImageDraw.Draw(layer)
    for index, box in enumerate(corners_N4.tolist()):
        if index not in kept:
            draw.rectangle(box, fill=(0, 0, 0, 150))
    for index in sorted(kept):
        draw.rectangle(corners_N4[index].tolist(), fill=(0, 0, 0, 0), outline=KEPT_COLOR)
    return layer
