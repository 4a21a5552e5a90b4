"""View geometry: which pixels of an image a view looks at, and where each of its patches lies.

Boxes are (left, top, right, bottom) in pixels of the upright original image unless a docstring says otherwise.

Shape suffixes: H rows, W columns, P patches of one view, T tiles.
"""

import math
from collections.abc import Sequence
from numbers import Real

import numpy as np
from transformers.image_processing_utils import select_best_resolution as llava_best_resolution

Box = tuple[int, int, int, int]
Pinpoints = Sequence[Sequence[int]]

# Rows of an image whose energy `salient_box` computes together, which bounds its memory.
_STRIP_ROWS = 256
# Largest `fovea_size`, in base views. Above it attention would not fit in memory.
_LARGEST_FOVEA = 16


def grid_side(size: int, patch_size: int) -> int:
    """Patches per side of a square view; a remainder of pixels at the right and the bottom is not looked at."""
    return size // patch_size


def check_views(policy: str, base: int, patch_size: int, fovea_size: int | None, pinpoints: Pinpoints | None) -> None:
    """Raises a `ValueError` unless the sides in pixels and the canvases (width, height) fit the view policy."""
    has_fovea, has_tiles, largest = policy in ("foveal", "whole"), policy == "anyres", _LARGEST_FOVEA * base
    if not 1 <= patch_size <= base:
        raise ValueError(f"patch_size={patch_size} must be between 1 and the base view's {base} pixels.")
    if has_fovea and (fovea_size is None or not patch_size <= fovea_size <= largest):
        raise ValueError(f"view_policy={policy!r} needs fovea_size from {patch_size} to {largest}, got {fovea_size}.")
    if not has_fovea and fovea_size is not None:
        raise ValueError(f"view_policy={policy!r} has no fovea, got fovea_size={fovea_size}.")
    if not has_tiles and pinpoints is not None:
        raise ValueError(f"view_policy={policy!r} has no tiles, got image_grid_pinpoints={pinpoints}.")
    if has_tiles and (
        not pinpoints
        or any(len(point) != 2 or min(point) < base or any(n % base for n in point) for point in pinpoints)
    ):
        raise ValueError(f"image_grid_pinpoints={pinpoints} must be (width, height) that are multiples of {base}.")


def check_budget(budget: int | None, views: int, grid: int) -> None:
    """Raises a `ValueError` unless `views` views of `grid` x `grid` patches can share a budget of `budget` tokens."""
    if budget is None or not 1 <= budget <= views * grid**2 or budget % views:
        share = (
            f"view of {grid}x{grid} patches" if views == 1 else f"views of {grid}x{grid}, and a multiple of {views}"
        )
        raise ValueError(
            f"selection_budget={budget} must be between 1 and the {views * grid**2} tokens of {views} {share}."
        )


def num_base_views(base: int, pinpoints: Pinpoints | None) -> int | None:
    """Base-size views of one image: the whole image and its tiles; `None` if the canvas depends on the image."""
    if pinpoints is None or len(pinpoints) > 1:
        return None if pinpoints else 1
    return 1 + len(canvas_tiles(pinpoints[0], base))


def fovea_box(width: int, height: int, fovea_size: int, around: Sequence[float] | None = None) -> Box:
    """Box of the fovea in an image of `width` x `height` pixels, at the centre or around a box.

    At the centre: the native crop of `fovea_size` pixels a side if the image is that large, else the whole image, to
    be resized. Around a box: the box itself, to be resized, if it is longer than the fovea on a side; else the native
    crop around its centre, moved into the image, and cut where the image is smaller.

    Raises:
        ValueError: `around` is no box, or lies outside the image.
    """
    if around is None:
        left, top, right, bottom = 0, 0, width, height
        is_native = min(width, height) >= fovea_size
    else:
        edges = list(around) if isinstance(around, Sequence | np.ndarray) else []
        is_finite = all(isinstance(edge, Real) and math.isfinite(edge) for edge in edges)
        if len(edges) != 4 or not is_finite or edges[0] >= edges[2] or edges[1] >= edges[3]:
            raise ValueError(f"A fovea box is (left, top, right, bottom), left < right, top < bottom, got {around}.")
        left, top = max(math.floor(edges[0]), 0), max(math.floor(edges[1]), 0)
        right, bottom = min(math.ceil(edges[2]), width), min(math.ceil(edges[3]), height)
        if left >= right or top >= bottom:
            raise ValueError(f"The fovea box {tuple(around)} lies outside the image of {width}x{height} pixels.")
        is_native = max(right - left, bottom - top) <= fovea_size
    if not is_native:
        return (left, top, right, bottom)
    left = min(max(math.floor((left + right - fovea_size) / 2), 0), max(width - fovea_size, 0))
    top = min(max(math.floor((top + bottom - fovea_size) / 2), 0), max(height - fovea_size, 0))
    return (left, top, min(left + fovea_size, width), min(top + fovea_size, height))


def salient_box(gray_HW: np.ndarray, fovea_size: int) -> Box:
    """Native `fovea_size` window with the most Sobel energy gx^2 + gy^2; of equal ones the first in raster order.

    The whole image if a side is shorter than `fovea_size`, as `fovea_box`.
    """
    height, width = gray_HW.shape
    if min(width, height) < fovea_size:
        return (0, 0, width, height)
    energy_HW = np.empty(gray_HW.shape, dtype=np.int32)
    for top in range(0, height, _STRIP_ROWS):
        energy_HW[top : top + _STRIP_ROWS] = _sobel_energy(gray_HW, top, min(top + _STRIP_ROWS, height))
    columns_W = energy_HW[:fovea_size].sum(axis=0, dtype=np.int64)
    best = (-1, 0, 0)
    for top in range(height - fovea_size + 1):
        # Windows with this top: differences of the running sum of the column sums.
        sums_W = np.cumsum(columns_W)
        windows = sums_W[fovea_size - 1 :] - np.concatenate([[0], sums_W[:-fovea_size]])
        left = int(windows.argmax())
        best = max(best, (int(windows[left]), -top, -left))
        if top + fovea_size < height:
            columns_W += energy_HW[top + fovea_size] - energy_HW[top]
    left, top = -best[2], -best[1]
    return (left, top, left + fovea_size, top + fovea_size)


def _sobel_energy(gray_HW: np.ndarray, start: int, stop: int) -> np.ndarray:
    """int32 energy of rows start..stop-1, shape (stop - start, W), the border pixels repeated outside the image."""
    rows = np.clip(np.arange(start - 1, stop + 1), 0, gray_HW.shape[0] - 1)
    padded = np.pad(gray_HW[rows].astype(np.int32), ((0, 0), (1, 1)), mode="edge")
    smooth_down = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    smooth_across = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    gx = smooth_down[:, 2:] - smooth_down[:, :-2]
    gy = smooth_across[2:] - smooth_across[:-2]
    return gx * gx + gy * gy


def patch_boxes(
    view_box: Sequence[float], image_width: int, image_height: int, view_size: int, patch_size: int
) -> np.ndarray:
    """float32 (P, 4): (x, y, width, height) of each patch as fractions of the original, in raster order.

    The square view shows `view_box` of the original, resized to `view_size` pixels.
    """
    left, top, right, bottom = view_box
    side = grid_side(view_size, patch_size)
    step_x = patch_size / view_size * (right - left) / image_width
    step_y = patch_size / view_size * (bottom - top) / image_height
    row, column = np.divmod(np.arange(side**2, dtype=np.float64), side)
    x, y = left / image_width + column * step_x, top / image_height + row * step_y
    return np.stack([x, y, np.full_like(x, step_x), np.full_like(y, step_y)], axis=1).astype(np.float32)


def select_best_resolution(width: int, height: int, pinpoints: Pinpoints) -> tuple[int, int]:
    """Canvas (width, height) among `pinpoints` that LaViDa's `anyres` picks for an image of `width` x `height`."""
    best_height, best_width = llava_best_resolution((height, width), [point[::-1] for point in pinpoints])
    return best_width, best_height


def fit_to_canvas(width: int, height: int, canvas: tuple[int, int]) -> tuple[int, int, int, int]:
    """(width, height, x, y) of the image in pixels of `canvas` (width, height), resized to fit and centred."""
    canvas_width, canvas_height = canvas
    scale_x, scale_y = canvas_width / width, canvas_height / height
    if scale_x < scale_y:
        fitted_width, fitted_height = canvas_width, min(math.ceil(height * scale_x), canvas_height)
    else:
        fitted_width, fitted_height = min(math.ceil(width * scale_y), canvas_width), canvas_height
    return (fitted_width, fitted_height, (canvas_width - fitted_width) // 2, (canvas_height - fitted_height) // 2)


def canvas_tiles(canvas: Sequence[int], tile_size: int) -> list[Box]:
    """Boxes of the tiles of `canvas` (width, height) in pixels of the canvas, row-major."""
    columns, rows = range(0, canvas[0], tile_size), range(0, canvas[1], tile_size)
    return [(x, y, x + tile_size, y + tile_size) for y in rows for x in columns]


def tile_boxes(width: int, height: int, canvas: tuple[int, int], tile_size: int) -> np.ndarray:
    """float64 (T, 4): boxes of the tiles of `canvas` in pixels of the original; on padding they reach outside."""
    fitted_width, fitted_height, x, y = fit_to_canvas(width, height, canvas)
    tiles_T4 = np.array(canvas_tiles(canvas, tile_size), dtype=np.float64)
    return (tiles_T4 - [x, y, x, y]) * np.array([width / fitted_width, height / fitted_height] * 2)


def mosaic_window(width: int, height: int, pinpoints: Pinpoints, base: int, view_grid: int) -> tuple[int, ...]:
    """(tile rows, tile columns, top, bottom, left, right): the canvas in tiles of `base` pixels and `view_grid` tokens
    a side, and the tokens of its mosaic that show the image, as LaViDa unpads it, with the original's rounding.
    """
    columns, rows = (side // base for side in select_best_resolution(width, height, pinpoints))
    mosaic_width, mosaic_height = columns * view_grid, rows * view_grid
    if width / height > mosaic_width / mosaic_height:
        padding = (mosaic_height - int(height * (mosaic_width / width))) // 2
        return (rows, columns, padding, mosaic_height - padding, 0, mosaic_width)
    padding = (mosaic_width - int(width * (mosaic_height / height))) // 2
    return (rows, columns, 0, mosaic_height, padding, mosaic_width - padding)


def mosaic_length(window: Sequence[int], view_grid: int) -> int:
    """Image tokens of one image with a mosaic: the whole image's grid, then the window's rows and a newline each."""
    _, _, top, bottom, left, right = window
    return view_grid**2 + (bottom - top) * (right - left + 1)
