"""Pure view geometry: which pixels of an image a view looks at, and where each of its patches lies.

Boxes are (left, top, right, bottom) in pixels of the upright original image unless a docstring says otherwise. No
model, no tensor library but numpy.

Shape suffixes: H rows, W columns, S rows of a strip, P patches of one view, T tiles.
"""

import math
from collections.abc import Sequence

import numpy as np

Box = tuple[int, int, int, int]

# Rows of window positions that `salient_box` looks at together; bounds its memory, changes no result.
_STRIP_ROWS = 64


def grid_side(size: int, patch_size: int) -> int:
    """Patches per side of a square view; a remainder of pixels at the right and the bottom is not looked at."""
    return size // patch_size


def fovea_box(width: int, height: int, fovea_size: int) -> Box:
    """Box that the fovea looks at in an image of `width` x `height` pixels.

    If both sides are >= `fovea_size`: the native `fovea_size` x `fovea_size` crop at the centre. Else the whole image,
    which is then resized.
    """
    if min(width, height) < fovea_size:
        return (0, 0, width, height)
    return _window(width, height, fovea_size, (width / 2, height / 2))


def fovea_box_around(width: int, height: int, fovea_size: int, box: Sequence[float]) -> Box:
    """Box that the fovea looks at when the caller asks for `box`.

    The part of `box` inside the image counts, rounded outwards to whole pixels. If it is larger than the fovea on
    either side, it is the view itself, which is then resized; else the native `fovea_size` x `fovea_size` crop around
    its centre, moved as little as needed to lie inside the image, or cut where the image is smaller.

    Raises:
        ValueError: `box` is not four finite numbers with left < right and top < bottom, or does not touch the image.
    """
    if len(box) != 4 or not all(math.isfinite(edge) for edge in box) or box[0] >= box[2] or box[1] >= box[3]:
        raise ValueError(f"A fovea box is (left, top, right, bottom) with left < right and top < bottom, got {box}.")
    left, top = max(math.floor(box[0]), 0), max(math.floor(box[1]), 0)
    right, bottom = min(math.ceil(box[2]), width), min(math.ceil(box[3]), height)
    if left >= right or top >= bottom:
        raise ValueError(f"The fovea box {tuple(box)} lies outside the image of {width}x{height} pixels.")
    if max(right - left, bottom - top) > fovea_size:
        return (left, top, right, bottom)
    return _window(width, height, fovea_size, ((left + right) / 2, (top + bottom) / 2))


def _window(width: int, height: int, size: int, center: tuple[float, float]) -> Box:
    """The square window of `size` around `center` (x, y), moved into the image and cut where the image is smaller."""
    left = min(max(math.floor(center[0] - size / 2), 0), max(width - size, 0))
    top = min(max(math.floor(center[1] - size / 2), 0), max(height - size, 0))
    return (left, top, min(left + size, width), min(top + size, height))


def salient_box(gray_HW: np.ndarray, fovea_size: int) -> Box:
    """Native `fovea_size` window with the most Sobel energy; the first one in raster order where several tie.

    Energy is gx^2 + gy^2 per pixel in integers, with the image's border pixels repeated outside it, so the result is
    exact for every image size. If a side is < `fovea_size`: the whole image, as `fovea_box`.

    Args:
        gray_HW: uint8, shape (H, W).
        fovea_size: side of the window in pixels.
    """
    height, width = gray_HW.shape
    if min(width, height) < fovea_size:
        return (0, 0, width, height)
    best_energy, best_left, best_top = -1, 0, 0
    columns_W = _sobel_energy(gray_HW, 0, fovea_size).sum(axis=0)
    for start in range(0, height - fovea_size + 1, _STRIP_ROWS):
        stop = min(start + _STRIP_ROWS, height - fovea_size + 1)
        # One row of column sums per window top: each next top gains the row below the window and loses the row above.
        gained_SW = _sobel_energy(gray_HW, start + fovea_size, stop - 1 + fovea_size)
        lost_SW = _sobel_energy(gray_HW, start, stop - 1)
        sums_SW = np.cumsum(np.concatenate([columns_W[None], gained_SW - lost_SW]), axis=0)
        integral_SW = np.cumsum(np.pad(sums_SW, ((0, 0), (1, 0))), axis=1)
        windows_SW = integral_SW[:, fovea_size:] - integral_SW[:, :-fovea_size]
        row, column = divmod(int(windows_SW.argmax()), windows_SW.shape[1])
        if windows_SW[row, column] > best_energy:
            best_energy, best_left, best_top = int(windows_SW[row, column]), column, start + row
        if stop <= height - fovea_size:
            enter_W = _sobel_energy(gray_HW, stop - 1 + fovea_size, stop + fovea_size)[0]
            columns_W = sums_SW[-1] + enter_W - _sobel_energy(gray_HW, stop - 1, stop)[0]
    return (best_left, best_top, best_left + fovea_size, best_top + fovea_size)


def _sobel_energy(gray_HW: np.ndarray, start: int, stop: int) -> np.ndarray:
    """int64 gx^2 + gy^2 of rows start..stop-1, shape (stop - start, W)."""
    rows = np.clip(np.arange(start - 1, stop + 1), 0, gray_HW.shape[0] - 1)
    padded = np.pad(gray_HW[rows].astype(np.int32), ((0, 0), (1, 1)), mode="edge")
    smooth_down = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    smooth_across = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    gx = smooth_down[:, 2:] - smooth_down[:, :-2]
    gy = smooth_across[2:] - smooth_across[:-2]
    return (gx * gx + gy * gy).astype(np.int64)


def patch_boxes(
    view_box: Sequence[float], image_width: int, image_height: int, view_size: int, patch_size: int
) -> np.ndarray:
    """Where each patch of a view lies in the original image.

    Args:
        view_box: what the view shows, in pixels of the original.
        image_width: width of the original in pixels.
        image_height: height of the original in pixels.
        view_size: side of the square view in pixels, to which `view_box` was resized.
        patch_size: side of a patch in pixels of the view.

    Returns:
        float32, shape (P, 4), raster order: (x, y, width, height) as fractions of the original image. They lie in
        0..1, but for tiles of a padded canvas, whose patches on the padding reach outside.
    """
    left, top, right, bottom = view_box
    step_x = patch_size / view_size * (right - left) / image_width
    step_y = patch_size / view_size * (bottom - top) / image_height
    row, column = np.divmod(
        np.arange(grid_side(view_size, patch_size) ** 2, dtype=np.float64), grid_side(view_size, patch_size)
    )
    x, y = left / image_width + column * step_x, top / image_height + row * step_y
    return np.stack([x, y, np.full_like(x, step_x), np.full_like(y, step_y)], axis=1).astype(np.float32)


def check_pinpoints(pinpoints: Sequence[Sequence[int]] | None, base: int) -> None:
    """Raises a `ValueError` unless `pinpoints` are (width, height) pairs made of whole base views of `base` pixels."""
    if not pinpoints or any(
        len(point) != 2 or min(point) < base or point[0] % base or point[1] % base for point in pinpoints
    ):
        raise ValueError(
            "view_policy='anyres' needs image_grid_pinpoints, a list of (width, height) that are multiples of the "
            f"base view {base}, got {pinpoints}."
        )


def select_best_resolution(width: int, height: int, pinpoints: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Canvas (width, height) among `pinpoints` that LaViDa's `anyres` picks for an image of `width` x `height` pixels.

    The canvas that keeps most of the image's pixels, among equals the one with the least waste, then the first in the
    list.
    """
    best, best_rank = None, None
    for canvas_width, canvas_height in pinpoints:
        scale = min(canvas_width / width, canvas_height / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        rank = (effective, effective - canvas_width * canvas_height)
        if best_rank is None or rank > best_rank:
            best, best_rank = (int(canvas_width), int(canvas_height)), rank
    if best is None:
        raise ValueError("anyres needs at least one (width, height) in image_grid_pinpoints, got none.")
    return best


def fit_to_canvas(width: int, height: int, canvas: tuple[int, int]) -> tuple[int, int, int, int]:
    """Size of the image after it was resized to fit `canvas` (width, height), and where it is pasted to be centred.

    Returns:
        (fitted_width, fitted_height, paste_x, paste_y) in pixels of the canvas. The side that does not touch the
        canvas is rounded up, the paste offset down.
    """
    canvas_width, canvas_height = canvas
    scale_x, scale_y = canvas_width / width, canvas_height / height
    if scale_x < scale_y:
        fitted_width, fitted_height = canvas_width, min(math.ceil(height * scale_x), canvas_height)
    else:
        fitted_width, fitted_height = min(math.ceil(width * scale_y), canvas_width), canvas_height
    return (fitted_width, fitted_height, (canvas_width - fitted_width) // 2, (canvas_height - fitted_height) // 2)


def canvas_tiles(canvas: tuple[int, int], tile_size: int) -> list[Box]:
    """Boxes of the tiles of `canvas` (width, height) in pixels of the canvas, row-major."""
    canvas_width, canvas_height = canvas
    return [
        (x, y, x + tile_size, y + tile_size)
        for y in range(0, canvas_height - tile_size + 1, tile_size)
        for x in range(0, canvas_width - tile_size + 1, tile_size)
    ]


def tile_boxes(width: int, height: int, canvas: tuple[int, int], tile_size: int) -> np.ndarray:
    """Boxes of the tiles of `canvas` in pixels of the original image of `width` x `height` pixels, row-major.

    Returns:
        float64, shape (T, 4). Tiles show padding where their box reaches outside the image.
    """
    fitted_width, fitted_height, paste_x, paste_y = fit_to_canvas(width, height, canvas)
    tiles_T4 = np.array(canvas_tiles(canvas, tile_size), dtype=np.float64)
    offset = np.array([paste_x, paste_y, paste_x, paste_y])
    scale = np.array([width / fitted_width, height / fitted_height] * 2)
    return (tiles_T4 - offset) * scale


def mosaic_window(
    width: int, height: int, canvas: tuple[int, int], base: int, view_grid: int
) -> tuple[int, int, int, int, int, int]:
    """The part of the mosaic of tile tokens that shows the image, as LaViDa unpads it.

    Args:
        width: width of the image in pixels.
        height: height of the image in pixels.
        canvas: (width, height) in pixels that `select_best_resolution` picked.
        base: side of a tile in pixels.
        view_grid: side of a tile's token grid.

    Returns:
        (tile rows, tile columns, top, bottom, left, right): how many tiles the canvas has, then the window in tokens
        of the mosaic. Not always exactly what the canvas shows of the image: the rounding is the original's.
    """
    tile_columns, tile_rows = canvas[0] // base, canvas[1] // base
    mosaic_width, mosaic_height = tile_columns * view_grid, tile_rows * view_grid
    if width / height > mosaic_width / mosaic_height:
        padding = (mosaic_height - int(height * (mosaic_width / width))) // 2
        return (tile_rows, tile_columns, padding, mosaic_height - padding, 0, mosaic_width)
    padding = (mosaic_width - int(width * (mosaic_height / height))) // 2
    return (tile_rows, tile_columns, 0, mosaic_height, padding, mosaic_width - padding)


def mosaic_length(window: Sequence[int], view_grid: int) -> int:
    """Image tokens of one image with a mosaic: the whole image's grid, then the window's rows and a newline each."""
    _, _, top, bottom, left, right = window
    return view_grid**2 + (bottom - top) * (right - left + 1)
