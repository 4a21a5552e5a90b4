"""View geometry: properties for any image size, and LaViDa's own choices."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from configuration_shirg.geometry_shirg import (
    canvas_tiles,
    check_views,
    fit_to_canvas,
    fovea_box,
    mosaic_length,
    mosaic_window,
    patch_boxes,
    salient_box,
    select_best_resolution,
    tile_boxes,
)

LAVIDA_PINPOINTS = [(384, 768), (768, 384), (768, 768), (1152, 384), (384, 1152)]

# What the original LaViDa chose: image (width, height), canvas (width, height), views.
LAVIDA_CHOICES = [
    ((384, 384), (384, 768), 3),
    ((336, 336), (384, 768), 3),
    ((768, 768), (768, 768), 5),
    ((512, 512), (768, 768), 5),
    ((640, 427), (768, 768), 5),
    ((480, 640), (768, 768), 5),
    ((1000, 400), (1152, 384), 4),
    ((400, 1000), (384, 1152), 4),
    ((300, 900), (384, 1152), 4),
    ((2200, 1700), (768, 768), 5),
    ((1920, 1080), (768, 768), 5),
    ((100, 100), (384, 768), 3),
    ((50, 800), (384, 1152), 4),
    ((800, 50), (1152, 384), 4),
    ((377, 521), (384, 768), 3),
    ((521, 377), (768, 384), 3),
    ((333, 500), (384, 768), 3),
    ((1, 1000), (384, 1152), 4),
]


@st.composite
def image_sizes(draw) -> tuple[int, int]:
    """(width, height) from 1x1 to 10000x10000, sides up to 1:100 apart."""
    long = draw(st.integers(1, 10_000))
    short = draw(st.integers(math.ceil(long / 100), long))
    return (long, short) if draw(st.booleans()) else (short, long)


# A loaded machine may take its time.
settings.register_profile("geometry", deadline=None)
settings.load_profile("geometry")

FOVEA_SIZES = st.sampled_from([224, 448, 512])


@given(image_sizes(), FOVEA_SIZES)
def test_centred_fovea_is_a_native_crop_or_the_whole_image(size, fovea_size):
    width, height = size
    left, top, right, bottom = fovea_box(width, height, fovea_size)
    if min(size) < fovea_size:
        assert (left, top, right, bottom) == (0, 0, width, height)
    else:
        assert 0 <= left and 0 <= top and right <= width and bottom <= height
        assert (right - left, bottom - top) == (fovea_size, fovea_size)
        assert abs(left - (width - right)) <= 1 and abs(top - (height - bottom)) <= 1


@given(image_sizes(), FOVEA_SIZES, st.data())
def test_fovea_around_a_box_lies_inside_the_image_and_shows_the_box(size, fovea_size, data):
    width, height = size
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    box = (left, top, data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height)))
    view = fovea_box(width, height, fovea_size, box)
    assert 0 <= view[0] <= box[0] and 0 <= view[1] <= box[1]
    assert box[2] <= view[2] <= width and box[3] <= view[3] <= height
    if max(box[2] - box[0], box[3] - box[1]) > fovea_size:
        assert view == box


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((600, 500, 640, 520), (396, 286, 844, 734)),
        ((0, 0, 10, 10), (0, 0, 448, 448)),
        ((990, 790, 1000, 800), (552, 352, 1000, 800)),
        ((100, 100, 700, 200), (100, 100, 700, 200)),
        ((100, 300, 548, 400), (100, 126, 548, 574)),
        ((99.5, 99.5, 700.2, 900), (99, 99, 701, 800)),
        ((99.5, 99.5, 300, 600.2), (99, 99, 300, 601)),
        ((-50, -50, 10, 10), (0, 0, 448, 448)),
    ],
)
def test_fovea_around_a_box_by_example(box, expected):
    assert fovea_box(1000, 800, 448, box) == expected


def test_fovea_around_a_box_is_cut_where_the_image_is_smaller():
    assert fovea_box(1000, 100, 448, (700, 40, 760, 100)) == (506, 0, 954, 100)
    assert fovea_box(100, 1000, 448, (40, 980, 100, 1000)) == (0, 552, 100, 1000)
    assert fovea_box(100, 90, 448, (40, 40, 41, 41)) == (0, 0, 100, 90)


@pytest.mark.parametrize(
    "box",
    [(10.5, 10, 10.5, 20), (10, 20.5, 20, 20.5), (10, 10, 5, 20), (10, 10, 20, 5), (0, 0, 5), (0, 0, float("nan"), 5)],
)
def test_four_numbers_that_are_no_box_are_refused(box):
    with pytest.raises(ValueError, match="left < right, top < bottom, got"):
        fovea_box(1000, 800, 448, box)


@pytest.mark.parametrize("box", [(1000, 0, 1010, 10), (0, 800, 10, 810), (-10, 0, 0, 10), (0, -10, 10, 0)])
def test_a_fovea_box_beside_the_image_is_refused(box):
    with pytest.raises(ValueError, match="lies outside the image of 1000x800"):
        fovea_box(1000, 800, 448, box)


def _salient_by_brute_force(gray: np.ndarray, size: int) -> tuple[int, int, int, int]:
    padded = np.pad(gray.astype(np.int64), 1, mode="edge")
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    energy = np.zeros(gray.shape, dtype=np.int64)
    for y, x in np.ndindex(gray.shape):
        patch = padded[y : y + 3, x : x + 3]
        energy[y, x] = (patch * kernel).sum() ** 2 + (patch * kernel.T).sum() ** 2
    sums = {
        (top, left): energy[top : top + size, left : left + size].sum()
        for top in range(gray.shape[0] - size + 1)
        for left in range(gray.shape[1] - size + 1)
    }
    top, left = max(sums, key=sums.get)
    return (left, top, left + size, top + size)


@settings(max_examples=25)
@given(st.integers(8, 20), st.integers(8, 90), st.integers(1, 8), st.integers(0, 2**32 - 1))
@example(8, 257, 8, 5)  # the last strip is one row
def test_salient_window_is_the_first_of_most_energy(width, height, size, seed):
    # Few grey levels make ties.
    gray = (np.random.default_rng(seed).integers(0, 2, (height, width)) * 255).astype(np.uint8)
    assert salient_box(gray, size) == _salient_by_brute_force(gray, size)


def test_salient_window_of_flat_and_of_small_images():
    assert salient_box(np.full((500, 600), 7, dtype=np.uint8), 448) == (0, 0, 448, 448)
    assert salient_box(np.zeros((447, 600), dtype=np.uint8), 448) == (0, 0, 600, 447)
    assert salient_box(np.zeros((448, 600), dtype=np.uint8), 448) == (0, 0, 448, 448)


@given(image_sizes(), st.sampled_from([(384, 27), (448, 32), (512, 36), (672, 48), (192, 13), (224, 16)]), st.data())
def test_patch_boxes_tile_the_view_in_raster_order(size, view, data):
    width, height = size
    view_size, side = view
    box = fovea_box(width, height, view_size) if data.draw(st.booleans()) else (0, 0, width, height)
    patches = patch_boxes(box, width, height, view_size, 14)
    assert patches.shape == (side * side, 4) and patches.dtype == np.float32
    x, y, w, h = patches.astype(np.float64).T
    assert (x >= 0).all() and (y >= 0).all() and (x + w <= 1 + 1e-6).all() and (y + h <= 1 + 1e-6).all()
    grid = patches.reshape(side, side, 4)
    assert (np.diff(grid[:, :, 0], axis=1) > 0).all() and (np.diff(grid[:, :, 1], axis=0) > 0).all()
    assert (grid[:, :, 0] == grid[:1, :, 0]).all() and (grid[:, :, 1] == grid[:, :1, 1]).all()
    np.testing.assert_allclose(x[1] - x[0], w[0], atol=1e-6)


@pytest.mark.parametrize(
    "pinpoints", [None, [], [(384, 400)], [(400, 384)], [(0, 384)], [(384, -384)], [(384,)], [(384, 384), (384, 1, 1)]]
)
def test_pinpoints_are_whole_base_views(pinpoints):
    check_views("anyres", 384, 14, None, [(384, 384), [768, 384]])
    with pytest.raises(ValueError, match="image_grid_pinpoints=.*multiples of 384"):
        check_views("anyres", 384, 14, None, pinpoints)


@pytest.mark.parametrize(("size", "canvas", "views"), LAVIDA_CHOICES)
def test_best_resolution_is_the_original_choice(size, canvas, views):
    assert select_best_resolution(*size, LAVIDA_PINPOINTS) == canvas
    assert 1 + len(canvas_tiles(canvas, 384)) == views


def test_best_resolution_counts_whole_pixels_of_the_fitted_image():
    # A fitted side of 0.96 or 767.3 pixels counts as 0 and 767, as in the original.
    assert select_best_resolution(1, 1200, LAVIDA_PINPOINTS) == (384, 768)
    assert select_best_resolution(575, 1149, LAVIDA_PINPOINTS) == (768, 768)


@given(image_sizes(), st.sampled_from([*LAVIDA_PINPOINTS, (768, 1152)]))
def test_image_fits_the_canvas_and_touches_it(size, canvas):
    fitted_width, fitted_height, x, y = fit_to_canvas(*size, canvas)
    assert 1 <= fitted_width <= canvas[0] and 1 <= fitted_height <= canvas[1]
    assert fitted_width == canvas[0] or fitted_height == canvas[1]
    assert 0 <= canvas[0] - fitted_width - 2 * x <= 1 and 0 <= canvas[1] - fitted_height - 2 * y <= 1


@given(image_sizes(), st.sampled_from([*LAVIDA_PINPOINTS, (768, 1152)]))
def test_tiles_cover_the_image_row_major(size, canvas):
    width, height = size
    columns, rows = canvas[0] // 384, canvas[1] // 384
    boxes = tile_boxes(width, height, canvas, 384)
    assert boxes.shape == (columns * rows, 4)
    assert boxes[0, 0] <= 0 and boxes[0, 1] <= 0
    assert boxes[-1, 2] >= width * (1 - 1e-9) and boxes[-1, 3] >= height * (1 - 1e-9)
    grid = boxes.reshape(rows, columns, 4)
    np.testing.assert_allclose(grid[:, 1:, 0], grid[:, :-1, 2], atol=1e-6 * width)
    np.testing.assert_allclose(grid[1:, :, 1], grid[:-1, :, 3], atol=1e-6 * height)


@pytest.mark.parametrize(
    ("size", "window", "length"),
    [
        # 28 tokens wide, int(18.68) and int(19.25) high: 5 and 4 rows of padding on both sides.
        ((640, 427), (2, 2, 5, 23, 0, 28), 196 + 18 * 29),
        ((640, 440), (2, 2, 4, 24, 0, 28), 196 + 20 * 29),
        ((427, 640), (2, 2, 0, 28, 5, 23), 196 + 28 * 19),
        ((1000, 400), (1, 3, 0, 14, 3, 39), 196 + 14 * 37),
        ((400, 1000), (3, 1, 3, 39, 0, 14), 196 + 36 * 15),
        ((500, 500), (2, 2, 0, 28, 0, 28), 196 + 28 * 29),
    ],
)
def test_mosaic_window_by_example(size, window, length):
    assert mosaic_window(*size, LAVIDA_PINPOINTS, 384, 14) == window
    assert mosaic_length(window, 14) == length
