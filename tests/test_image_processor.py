"""Image processor: LaViDa's pixels, fixed shapes, and images of every kind."""

import base64
import contextlib
import functools
import gzip
import io
import itertools
import struct
import threading
import warnings
import zlib
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from configuration_shirg import ShirgLavidaConfig, image_reading_shirg
from configuration_shirg.image_processing_shirg_lavida import ShirgLavidaImageProcessor
from fresh_process import run_fresh

FIXTURES = Path(__file__).parent / "fixtures"
LANDSCAPE = FIXTURES / "lavida" / "golden" / "landscape.png"
TOY = {"size": {"height": 56, "width": 56}, "fovea_size": 70}


@pytest.fixture
def toy() -> ShirgLavidaImageProcessor:
    """Base view 56 (4x4 patches), fovea 70 (5x5)."""
    return ShirgLavidaImageProcessor(**TOY)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(width * 7919 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, form: str = "PNG", **kwargs) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **kwargs)
    return buffer.getvalue()


def rgb_of(image, toy, **kwargs) -> np.ndarray:
    """What the processor takes a whole image for, uint8 (H, W, 3)."""
    return np.asarray(toy.process_image(image, **kwargs))


def test_anyres_pixels_are_the_originals_bit_for_bit():
    golden = load_file(FIXTURES / "landscape_pixels.safetensors")
    config = ShirgLavidaConfig.from_preset("lavida-980")
    pixels = ShirgLavidaImageProcessor.from_config(config)(LANDSCAPE, return_tensors="np")["pixel_values"]
    assert pixels.shape == (5, 3, 384, 384)
    np.testing.assert_array_equal(pixels[:, :, ::16, ::16], golden["pixel_values_strided"])
    np.testing.assert_allclose(pixels.mean((1, 2, 3)), golden["pixel_values_mean"], atol=1e-6)


@pytest.mark.parametrize("geometry", ["full", "toy"])
@pytest.mark.parametrize("preset", ["shirg", "lavida-980"])
def test_shapes_follow_from_the_config(preset, geometry):
    config = ShirgLavidaConfig.from_preset(preset, geometry=geometry)
    out = ShirgLavidaImageProcessor.from_config(config)([LANDSCAPE, noise(1, 1), noise(3, 290)], return_tensors="pt")
    base, fovea = config.vision_config.image_size, config.fovea_size
    assert out["pixel_values"].shape == (3 * config.num_base_views, 3, base, base)
    assert ("fovea_pixel_values" in out) == (fovea is not None)
    patches, views = config.num_base_views * config.base_grid**2, config.num_base_views
    if fovea is not None:
        assert out["fovea_pixel_values"].shape == (3, 3, fovea, fovea)
        patches, views = patches + config.fovea_grid**2, views + 1
    assert out["patch_boxes"].shape == (3, patches, 4) and out["view_boxes"].shape == (3, views, 4)
    assert out["image_sizes"].tolist() == [[427, 640], [1, 1], [290, 3]]
    assert {key: value.dtype for key, value in out.items() if value.dtype != torch.float32} == {
        "image_sizes": torch.int64
    }


def test_fovea_is_native_pixels_and_boxes_say_where(toy):
    image = noise(200, 100)
    out = toy(image, return_tensors="np")
    assert out["view_boxes"].tolist() == [[[0, 0, 200, 100], [65, 15, 135, 85]]]
    expected = np.asarray(image)[15:85, 65:135].transpose(2, 0, 1) / 255.0 * 2 - 1
    np.testing.assert_allclose(out["fovea_pixel_values"][0], expected, atol=1e-6)
    np.testing.assert_allclose(out["patch_boxes"][0, 16], [65 / 200, 0.15, 14 / 200, 0.14], rtol=1e-6)


def test_views_that_do_not_fit_are_resized_by_pils_bicubic(toy):
    image = noise(200, 100)
    low = noise(90, 60)
    out = toy([image, low], fovea_boxes=[(10, 20, 110, 60), None], return_tensors="np")
    for key, size, shown in (
        ("pixel_values", (56, 56), [image, low]),
        ("fovea_pixel_values", (70, 70), [image.crop((10, 20, 110, 60)), low]),
    ):
        resized = np.stack([np.asarray(view.resize(size, Image.BICUBIC)) for view in shown])
        np.testing.assert_allclose(out[key], resized.transpose(0, 3, 1, 2) / 127.5 - 1, atol=1e-6, err_msg=key)


def test_a_padded_view_is_grey_around_the_centred_image():
    processor = ShirgLavidaImageProcessor(size={"height": 30, "width": 30}, view_policy="pad")
    out = processor([noise(30, 17), noise(17, 30)], do_rescale=False, do_normalize=False)
    expected = np.full((2, 30, 30, 3), 127, dtype=np.float32)
    expected[0, 6:23], expected[1, :, 6:23] = noise(30, 17), noise(17, 30)
    np.testing.assert_array_equal(out["pixel_values"], expected.transpose(0, 3, 1, 2))
    assert out["view_boxes"].tolist() == [[[0, -6, 30, 24]], [[-6, 0, 24, 30]]]
    assert "fovea_pixel_values" not in out and processor.fovea_size is None


def test_a_square_view_is_the_squashed_image():
    processor = ShirgLavidaImageProcessor(size={"height": 28, "width": 28}, view_policy="square")
    out, foveal = processor(noise(90, 60)), ShirgLavidaImageProcessor(size={"height": 28, "width": 28})(noise(90, 60))
    np.testing.assert_array_equal(out["pixel_values"], foveal["pixel_values"])
    assert out["view_boxes"].tolist() == [[[0, 0, 90, 60]]] and out["patch_boxes"].shape == (1, 4, 4)
    with pytest.raises(ValueError, match="view_policy='square' has no fovea, got fovea_boxes"):
        processor(noise(90, 60), fovea_boxes=[None])


def test_mosaic_windows_come_with_the_mosaic():
    processor = ShirgLavidaImageProcessor(
        size={"height": 28, "width": 28}, view_policy="anyres", image_grid_pinpoints=[[56, 56]], mosaic_grid_size=2
    )
    windows = processor([noise(64, 30), noise(30, 64), noise(50, 50)], return_tensors="np")["mosaic_windows"]
    assert windows.dtype == np.int64
    assert windows.tolist() == [[2, 2, 1, 3, 0, 4], [2, 2, 0, 4, 1, 3], [2, 2, 0, 4, 0, 4]]
    config = ShirgLavidaConfig.from_preset("lavida")
    assert ShirgLavidaImageProcessor.from_config(config).mosaic_grid_size == config.view_grid == 14


def test_salience_is_of_brightness_not_of_one_channel(toy):
    pixels = np.full((200, 400, 3), 128, dtype=np.uint8)
    pixels[20:60, 20:60, 1] = np.asarray(noise(40, 40, "L"))  # green counts most, blue least
    pixels[120:160, 320:360, 0] = np.asarray(noise(40, 40, "L"))
    pixels[20:60, 320:360, 2] = np.asarray(noise(40, 40, "L"))
    left, top, right, bottom = toy(Image.fromarray(pixels), fovea_placement="salient")["view_boxes"][0, 1]
    assert left <= 20 and top <= 20 and right >= 60 and bottom >= 60


def test_fovea_placements(toy):
    pixels = np.zeros((300, 400, 3), dtype=np.uint8)
    pixels[200:260, 310:370] = np.asarray(noise(60, 60))
    image = Image.fromarray(pixels)
    left, top, right, bottom = toy(image, fovea_placement="salient")["view_boxes"][0, 1]
    assert left <= 310 and top <= 200 and right >= 370 and bottom >= 260
    boxes = toy(
        [image] * 3, fovea_placement="box", fovea_boxes=[(0, 0, 4, 4), (100, 50, 300, 150), [390, 290, 400, 300]]
    )["view_boxes"][:, 1]
    assert boxes.tolist() == [[0, 0, 70, 70], [100, 50, 300, 150], [330, 230, 400, 300]]
    mixed = toy([image, image], fovea_boxes=[None, (0, 0, 4, 4)])["view_boxes"][:, 1]
    assert mixed.tolist() == [[165, 115, 235, 185], [0, 0, 70, 70]]


def test_a_missing_or_wrong_fovea_box_is_an_error(toy):
    with pytest.raises(ValueError, match=r"image 0: pass fovea_boxes"):
        toy(noise(99, 99), fovea_placement="box")
    with pytest.raises(ValueError, match=r"image 1: pass fovea_boxes"):
        toy([noise(99, 99)] * 2, fovea_placement="box", fovea_boxes=[(0, 0, 9, 9), None])
    with pytest.raises(ValueError, match="got 2 for 1 images"):
        toy(noise(99, 99), fovea_boxes=[None, None])
    with pytest.raises(ValueError, match=r"fovea_boxes\[0\].*outside the image of 99x99"):
        toy(noise(99, 99), fovea_boxes=[(100, 0, 200, 10)])
    with pytest.raises(ValueError, match=r"fovea_boxes\[0\] must be \(left, top, right, bottom\) or None, got 5"):
        toy(noise(99, 99), fovea_boxes=[5])
    with pytest.raises(ValueError, match="no fovea"):
        ShirgLavidaImageProcessor(view_policy="anyres", image_grid_pinpoints=[[384, 384]])(
            noise(9, 9), fovea_boxes=[None]
        )


def test_an_image_is_the_same_alone_and_in_a_batch(toy):
    images = [noise(1, 1), noise(30, 2000), noise(333, 71), noise(70, 70)]
    batch = toy(images, return_tensors="np", fovea_placement="salient")
    for index, image in enumerate(images):
        alone = toy(image, return_tensors="np", fovea_placement="salient")
        for key, value in alone.items():
            np.testing.assert_array_equal(value[0], batch[key][index], err_msg=key)


def test_anyres_with_several_canvases_fills_boxes_up_with_zero_area():
    processor = ShirgLavidaImageProcessor(
        size={"height": 28, "width": 28}, view_policy="anyres", image_grid_pinpoints=[[28, 56], [56, 56]]
    )
    out = processor([noise(28, 50), noise(60, 60)], return_tensors="np")
    assert out["pixel_values"].shape == (3 + 5, 3, 28, 28)
    assert out["view_boxes"].shape == (2, 5, 4) and out["patch_boxes"].shape == (2, 20, 4)
    assert not out["view_boxes"][0, 3:].any() and out["view_boxes"][1].any(axis=1).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(toy, orientation):
    image = noise(40, 24)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.open(io.BytesIO(encoded(image, exif=exif)))
    stored.load()
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # PIL's Transpose members that set the image upright
    upright = image if orientation == 1 else image.transpose(Image.Transpose(turns[orientation]))
    np.testing.assert_array_equal(rgb_of(stored, toy), np.asarray(upright))
    assert toy(stored)["image_sizes"].tolist() == [[upright.height, upright.width]]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_opaque_modes_are_what_pil_converts_them_to(toy, mode):
    image = noise(31, 17, mode)
    np.testing.assert_array_equal(rgb_of(image, toy), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["LA", "PA", "RGBA", "La", "RGBa"])
def test_alpha_is_composited_on_white(toy, mode):
    gray = noise(8, 8, "L")
    alpha = Image.new("L", (8, 8), 255)
    alpha.paste(0, (0, 0, 4, 8))
    if mode == "PA":
        image = gray.convert("P")
        image.putalpha(alpha)
    else:
        image = Image.merge("LA", (gray, alpha))
        image = (image.convert("RGBA") if mode == "RGBa" else image).convert(mode)
    assert image.mode == mode
    rgb = rgb_of(image, toy)
    assert (rgb[:, :4] == 255).all()
    np.testing.assert_array_equal(rgb[:, 4:], np.asarray(gray.convert("RGB"))[:, 4:])


def test_palette_transparency_is_composited_on_white(toy):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.paste(1, (4, 0, 8, 8))
    stored = Image.open(io.BytesIO(encoded(image, transparency=0)))
    rgb = rgb_of(stored, toy)
    assert (rgb[:, :4] == 255).all() and (rgb[:, 4:] == [40, 50, 60]).all()


def test_deep_pixels_are_scaled_to_eight_bit(toy):
    ramp = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    scaled = [0, 1, 128, 255]
    deep = Image.fromarray(ramp)
    assert deep.mode == "I;16"
    for image in (deep, Image.open(io.BytesIO(encoded(deep))), Image.fromarray(ramp.astype(np.int32)), ramp):
        assert rgb_of(toy.fetch_images(image), toy)[0, :, 0].tolist() == scaled
    floats = Image.fromarray(np.array([[0.0, 1.0, 0.5]], dtype=np.float32))
    assert rgb_of(floats, toy)[0, :, 0].tolist() == [0, 255, 128]
    assert rgb_of(Image.fromarray(np.array([[0.0, 254.6]], dtype=np.float32)), toy)[0, :, 0].tolist() == [0, 255]
    for bad in (-1.0, 70000.0, np.nan):
        with pytest.raises(ValueError, match=r"Image 1 of size 1x1.*scale them first"):
            toy([noise(5, 5), Image.fromarray(np.array([[bad]], dtype=np.float32))])


def test_first_frame_of_an_animation(toy):
    frames = [Image.new("RGB", (20, 10), color) for color in ("red", "blue")]
    stored = Image.open(io.BytesIO(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    assert (rgb_of(stored, toy) == [255, 0, 0]).all()


def test_arrays_and_tensors_in_any_layout(toy):
    image = np.asarray(noise(21, 9))
    expected = toy(Image.fromarray(image), return_tensors="np")["pixel_values"]
    first = image.transpose(2, 0, 1)
    for same in (
        image,
        first,
        torch.from_numpy(image.copy()),
        torch.from_numpy(first.copy()),
        image.astype(np.float32) / 255,
        image.astype(np.int64),
        torch.from_numpy(first.astype(np.float32)),
        image[None],
        [torch.from_numpy(first.copy())[None]],
        np.concatenate([image, np.full((9, 21, 1), 255, np.uint8)], axis=2),
    ):
        np.testing.assert_array_equal(toy(same, return_tensors="np")["pixel_values"], expected)
    gray = np.asarray(noise(21, 9, "L"))
    for same in (gray[..., None], gray[None], torch.from_numpy(gray.copy())):
        np.testing.assert_array_equal(
            toy(same)["pixel_values"], toy(gray)["pixel_values"], err_msg=str(tuple(same.shape))
        )
    assert rgb_of(np.zeros((1, 3, 3), np.uint8), toy).shape == (1, 3, 3)
    assert rgb_of(torch.zeros(3, 5, 3, dtype=torch.uint8), toy).shape == (5, 3, 3)
    assert rgb_of(np.zeros((3, 5, 3), np.uint8), toy, input_data_format="channels_first").shape == (5, 3, 3)
    assert (rgb_of(np.ones((4, 4), np.bool_)[..., None], toy) == 255).all()
    with pytest.raises(ValueError, match=r"Image 0 .*got shape \(5, 6, 7\)"):
        toy(np.zeros((5, 6, 7), np.uint8))


def test_every_way_to_name_a_file(toy):
    data = LANDSCAPE.read_bytes()
    expected = toy(Image.open(LANDSCAPE), return_tensors="np")["pixel_values"]
    text = base64.b64encode(data).decode()
    for source in (LANDSCAPE, str(LANDSCAPE), data, text, f"data:image/png;base64,{text}"):
        np.testing.assert_array_equal(toy(source, return_tensors="np")["pixel_values"], expected)


def test_unreadable_images_are_named(toy, tmp_path):
    data = encoded(noise(60, 50))
    truncated = tmp_path / "truncated.png"
    truncated.write_bytes(data[: len(data) // 2])
    good = noise(5, 5)
    cases = [
        (truncated, r"Image 1 of size 60x50 cannot be read: .*truncated"),
        (Image.open(truncated), r"Image 1 of size 60x50 cannot be read: .*truncated"),
        (encoded(noise(60, 50), "JPEG")[:700], r"Image 1 of size 60x50 cannot be read"),
        (b"", r"Image 1 of unknown size cannot be read: UnidentifiedImageError"),
        (b"no image", r"Image 1 of unknown size"),
        (Image.new("RGB", (0, 4)), r"Image 1 of size 0x4 cannot be read: .*no pixels"),
        (np.zeros((0, 4, 3), np.uint8), r"Image 1 of size 0x4x3 cannot be read: .*no pixels"),
        (np.zeros((0, 4), np.uint8), r"Image 1 of size 0x4 cannot be read: .*no pixels"),
        (tmp_path / "missing.png", r"Image 1 .*there is no file .*missing\.png"),
        (str(tmp_path / "missing.png"), r"Image 1 .*missing\.png' is no file that exists"),
    ]
    for bad, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            toy([good, bad])
        assert caught.value.__suppress_context__
    with pytest.raises(ValueError, match="0 images"):
        toy([])
    with pytest.raises(TypeError, match="Image 1 is a int"):
        toy([good, 7])


def unreadable_file(kind: str, folder: Path) -> Path:
    """A path that names no readable image, for the reason `kind`."""
    path = folder / f"{kind}.png"
    if kind == "directory":
        path.mkdir()
    elif kind == "bomb":
        size = struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0)
        chunks = ((b"IHDR", size), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + b"".join(
                struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
                for name, data in chunks
            )
        )
    else:
        data = encoded(noise(60, 50))
        path.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "text": b"a note, not an image\n"}[kind])
    return path


@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", r"of size 60x50 cannot be read: .*truncated"),
        ("empty", r"cannot identify image file '.*empty\.png', which is empty, no image, or in .*: pass a PNG"),
        ("text", r"cannot identify image file '.*text\.png', which is empty, no image, or in .*: pass a PNG"),
        ("directory", r"directory\.png is a directory: pass the path of one image file"),
        ("bomb", r"1600000000 pixels.* raise PIL\.Image\.MAX_IMAGE_PIXELS"),
    ],
)
def test_unreadable_files_are_named_with_the_cause_or_the_remedy(tmp_path, kind, message, as_text):
    path = unreadable_file(kind, tmp_path)
    source = str(path) if as_text else path
    with pytest.raises(ValueError, match=f"Image 0 .*{message}"):
        ShirgLavidaImageProcessor()(source)
    with pytest.raises(ValueError, match=f"Image 1 .*{message}"):
        ShirgLavidaImageProcessor()([LANDSCAPE, source])


def test_decompression_bombs_are_refused(toy, monkeypatch):
    data = encoded(noise(60, 50))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for bomb in (data, noise(60, 50), np.asarray(noise(60, 50))):
        with pytest.raises(ValueError, match=r"Image 0 .*exceed.*raise PIL\.Image\.MAX_IMAGE_PIXELS"):
            toy(bomb)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert toy(data)["image_sizes"].tolist() == [[50, 60]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": {"height": 56, "width": 70}}, "square"),
        ({"size": {"shortest_edge": 56}}, "square"),
        ({"patch_size": 1000}, "patch_size=1000"),
        ({"fovea_size": 7}, "fovea_size >= patch_size=14, got 7"),
        ({"view_policy": "anyres"}, "image_grid_pinpoints"),
        ({"view_policy": "anyres", "image_grid_pinpoints": [[400, 768]]}, "multiples of the base view 384"),
        ({"view_policy": "spiral"}, "spiral"),
        ({"fovea_placement": "left"}, "left"),
        ({"do_resize": False}, "do_resize must be True, got False"),
        ({"do_center_crop": True, "crop_size": 3}, "do_center_crop must be False"),
        ({"do_pad": True, "pad_size": {"height": 3, "width": 3}}, "do_pad must be False"),
        ({"do_convert_rgb": False}, "do_convert_rgb must be True, got False"),
        ({"patch_size": 0}, "patch_size=0 must be between 1 and"),
        ({"view_policy": "anyres", "image_grid_pinpoints": [[768, 400]]}, "multiples of the base view 384"),
        ({"fovea_boxes": [(0, 0, 9, 9)]}, "fovea_boxes belong to a call"),
        ({"mosaic_grid_size": 14}, "A mosaic needs view_policy='anyres', got 'foveal' with mosaic_grid_size=14"),
    ],
)
def test_wrong_geometry_fails_at_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        ShirgLavidaImageProcessor(**arguments)


def test_views_of_a_single_patch():
    processor = ShirgLavidaImageProcessor(size={"height": 14, "width": 14}, fovea_size=14)
    out = processor(noise(28, 28))
    assert out["patch_boxes"].tolist() == [[[0, 0, 1, 1], [0.25, 0.25, 0.5, 0.5]]]


def test_from_config_takes_every_size_and_lets_arguments_win():
    config = ShirgLavidaConfig.from_preset("shirg", geometry="toy", vision_config={"patch_size": 16})
    processor = ShirgLavidaImageProcessor.from_config(config, fovea_placement="salient", fovea_size=240)
    assert (processor.patch_size, processor.fovea_placement, processor.fovea_size) == (16, "salient", 240)
    assert processor(noise(300, 300))["patch_boxes"].shape == (1, 12**2 + 15**2, 4)
    tiles = ShirgLavidaImageProcessor(view_policy="anyres", image_grid_pinpoints=[[384, 384]])
    assert tiles.fovea_size is None


@pytest.mark.parametrize("preset", ["shirg", "lavida-980"])
def test_save_and_load_keep_everything(tmp_path, preset):
    config = ShirgLavidaConfig.from_preset(preset, geometry="toy", fovea_placement="salient")
    processor = ShirgLavidaImageProcessor.from_config(config)
    processor.save_pretrained(tmp_path)
    loaded = ShirgLavidaImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert (loaded.view_policy, loaded.fovea_size) == (config.view_policy, config.fovea_size)
    np.testing.assert_array_equal(loaded(LANDSCAPE)["pixel_values"], processor(LANDSCAPE)["pixel_values"])


def test_return_types(toy):
    optional = ["mosaic_windows", "selection_budget", "fovea_size"]
    assert sorted(toy.model_input_names) == sorted([*toy(noise(9, 9)), *optional])
    assert isinstance(toy(noise(9, 9), return_tensors="pt")["pixel_values"], torch.Tensor)
    assert isinstance(toy(noise(9, 9), return_tensors="np")["pixel_values"], np.ndarray)
    assert isinstance(toy(noise(9, 9))["pixel_values"], np.ndarray)
    unscaled = toy(noise(56, 56), do_normalize=False, do_rescale=False)["pixel_values"]
    assert unscaled.dtype == np.float32
    np.testing.assert_array_equal(unscaled[0], np.asarray(noise(56, 56)).transpose(2, 0, 1))
    scaled = toy(noise(56, 56), do_normalize=False)["pixel_values"]
    np.testing.assert_allclose(scaled, unscaled / 255, atol=1e-7)


def test_a_saved_folder_reads_images_where_the_package_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(ShirgLavidaImageProcessor, "_auto_class", "AutoImageProcessor")
    processor = ShirgLavidaImageProcessor(**TOY)
    processor.save_pretrained(tmp_path)
    shipped = {path.name for path in tmp_path.glob("*.py")}
    siblings = {"geometry_shirg.py", "image_reading_shirg.py", "presets_shirg.py"}
    assert shipped == {"image_processing_shirg_lavida.py", *siblings}
    code = f"""
from transformers import AutoImageProcessor

processor = AutoImageProcessor.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)
print(processor({str(LANDSCAPE)!r})["pixel_values"].sum())
"""
    assert run_fresh(code).strip() == str(processor(LANDSCAPE)["pixel_values"].sum())


class Answers(SimpleHTTPRequestHandler):
    """A folder's files by their names, and further answers about its image.png by the names of `answers`."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        image = Path(self.directory, "image.png").read_bytes()
        packed = gzip.compress(bytes(10**6))
        answers = {
            "/chunked": (200, {}, [image[:9000], image[9000:]]),
            "/endless": (200, {}, itertools.repeat(image)),
            "/packed": (200, {"Content-Encoding": "gzip", "Content-Length": len(packed)}, [packed]),
            "/announced": (200, {"Content-Length": 10**12}, []),
            "/moved": (302, {"Location": "/image.png", "Content-Length": 0}, []),
            "/loop": (302, {"Location": "/loop", "Content-Length": 0}, []),
            "/unmoved": (304, {}, []),
        }
        if self.path not in answers:
            return super().do_GET()
        status, headers, parts = answers[self.path]
        chunked = status == 200 and "Content-Length" not in headers
        self.send_response(status)
        for name, value in {**headers, **({"Transfer-Encoding": "chunked"} if chunked else {})}.items():
            self.send_header(name, str(value))
        self.send_header("Connection", "close")
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the client stops reading
            for part in parts:
                self.wfile.write(b"%X\r\n%b\r\n" % (len(part), part) if chunked else part)
            self.wfile.write(b"0\r\n\r\n" if chunked else b"")

    def log_message(self, *args):
        pass


@pytest.fixture
def web(tmp_path):
    """A web server on 127.0.0.1 that gives `Answers` about one image of 90x80."""
    (tmp_path / "image.png").write_bytes(encoded(noise(90, 80)))
    handler = functools.partial(Answers, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("name", ["image.png", "chunked", "moved"])
def test_an_image_at_a_url_is_the_image(toy, web, monkeypatch, name):
    monkeypatch.setattr(image_reading_shirg, "_URL_MAX_BYTES", len(encoded(noise(90, 80))))
    fetched, given = toy(f"{web}/{name}"), toy(noise(90, 80))
    assert np.array_equal(fetched["pixel_values"], given["pixel_values"])


@pytest.mark.parametrize("name", ["image.png", "chunked", "endless", "packed", "announced", "moved"])
def test_an_answer_beyond_the_limit_is_refused_with_the_remedy(toy, web, monkeypatch, name):
    limit = len(encoded(noise(90, 80))) - 1
    monkeypatch.setattr(image_reading_shirg, "_URL_MAX_BYTES", limit)
    message = rf"Image 1 .*{web}/{name} exceeds the limit of {limit} bytes: download it and pass the file's path"
    with pytest.raises(ValueError, match=message):
        toy([noise(90, 80), f"{web}/{name}"])


@pytest.mark.parametrize(
    ("name", "message"),
    [("nothing.png", "404"), ("loop", "redirects"), ("unmoved", "304"), ("", "which is empty, no image")],
)
def test_a_url_that_fails_names_the_image_and_the_cause(toy, web, name, message):
    with pytest.raises(ValueError, match=f"Image 0 .*cannot be read: .*{message}"):
        toy(f"{web}/{name}")


def test_a_url_that_nobody_serves_names_the_image(toy):
    with pytest.raises(ValueError, match="Image 1 .*cannot be read"):
        toy([noise(90, 80), "http://127.0.0.1:1/image.png"])


def several_frames(kind: str, folder: Path) -> Path:
    """A file that PIL reads on demand: several frames, or pixels as they are in memory."""
    path = folder / f"frames.{kind}"
    first, second = noise(40, 24, "P" if kind == "gif" else "RGB"), noise(40, 24)
    if kind == "bmp":
        noise(40, 24, "L").save(path)
    elif kind == "gif":
        first.save(path, save_all=True, append_images=[second.convert("P")], transparency=first.getpixel((0, 0)))
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        first.save(path, save_all=True, append_images=[second], exif=exif)
    return path


def is_open(path: Path) -> bool:
    return str(path) in {file.path for file in psutil.Process().open_files()}


@pytest.mark.parametrize("kind", ["gif", "tiff", "png", "mpo", "bmp"])
def test_no_file_stays_open_and_the_first_frame_is_as_pil_opens_it(toy, tmp_path, kind):
    path = several_frames(kind, tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fetched = toy.fetch_images([str(path), path])
    assert not is_open(path) and not [warning for warning in caught if warning.category is ResourceWarning]
    expected = rgb_of(Image.open(path), toy)
    assert expected.shape == ((40, 24, 3) if kind in ("tiff", "png", "mpo") else (24, 40, 3))
    for image in fetched:
        np.testing.assert_array_equal(rgb_of(image, toy), expected)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="Image 0 .*cannot be read"):
        toy(path)
    assert not is_open(path)


# Images at the limits: 10,000 x 10,000, sides 100:1 apart with and without room for the fovea, one pixel.


def extreme_sizes(fovea: int) -> list[tuple[int, int]]:
    long = 100 * fovea
    return [(10_000, 10_000), (long, fovea), (fovea, long), (10_000, 100), (100, 10_000), (1, 1)]


@functools.cache
def extreme_image(width: int, height: int) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """A black image with noise in one box away from the middle, and this box."""
    left, top = width * 7 // 10, height * 4 // 10
    detail = noise(min(60, width - left), min(60, height - top))
    image = Image.new("RGB", (width, height))
    image.paste(detail, (left, top))
    return image, (left, top, left + detail.width, top + detail.height)


@pytest.fixture(scope="module", autouse=True)
def forget_extreme_images():
    yield
    extreme_image.cache_clear()


@pytest.mark.parametrize("placement", ["center", "salient", "box"])
@pytest.mark.parametrize("geometry", ["toy", "full"])
def test_extreme_images_in_foveal_views(geometry, placement):
    config = ShirgLavidaConfig.from_preset("shirg", geometry=geometry, fovea_placement=placement)
    base, fovea, patches = config.vision_config.image_size, config.fovea_size, config.base_grid**2
    images, details = zip(*(extreme_image(*size) for size in extreme_sizes(fovea)), strict=True)
    processor = ShirgLavidaImageProcessor.from_config(config)
    out = processor(list(images), fovea_boxes=list(details) if placement == "box" else None, return_tensors="np")
    assert out["pixel_values"].shape == (6, 3, base, base) and out["fovea_pixel_values"].shape == (6, 3, fovea, fovea)
    assert out["patch_boxes"].shape == (6, patches + config.fovea_grid**2, 4) and out["view_boxes"].shape == (6, 2, 4)
    assert out["image_sizes"].tolist() == [[image.height, image.width] for image in images]
    x, y, w, h = np.moveaxis(out["patch_boxes"], -1, 0)
    assert min(x.min(), y.min()) >= 0 and max((x + w).max(), (y + h).max()) <= 1 + 1e-6 and min(w.min(), h.min()) > 0
    for index, (image, detail) in enumerate(zip(images, details, strict=True)):
        whole, box = (0, 0, image.width, image.height), tuple(map(int, out["view_boxes"][index, 1]))
        assert tuple(out["view_boxes"][index, 0]) == whole
        if placement != "box" and min(image.size) < fovea:
            assert box == whole
            continue
        assert 0 <= box[0] and 0 <= box[1] and box[2] <= image.width and box[3] <= image.height
        assert (box[2] - box[0], box[3] - box[1]) == (min(fovea, image.width), min(fovea, image.height))
        if placement == "center":
            assert abs(box[0] + box[2] - image.width) <= 1 and abs(box[1] + box[3] - image.height) <= 1
        else:
            assert box[0] <= detail[0] and box[1] <= detail[1] and box[2] >= detail[2] and box[3] >= detail[3]
        if min(image.size) >= fovea:
            native = np.asarray(image.crop(box), dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1
            np.testing.assert_allclose(out["fovea_pixel_values"][index], native, atol=1e-6)


@pytest.mark.parametrize("geometry", ["toy", "full"])
def test_extreme_images_in_tiles(geometry):
    config = ShirgLavidaConfig.from_preset("lavida-980", geometry=geometry)
    base, patches = config.vision_config.image_size, config.base_grid**2
    images = [extreme_image(*size)[0] for size in extreme_sizes(224)]
    out = ShirgLavidaImageProcessor.from_config(config)(images, return_tensors="np")
    assert out["pixel_values"].shape == (6 * 5, 3, base, base) and "fovea_pixel_values" not in out
    assert out["patch_boxes"].shape == (6, 5 * patches, 4) and out["view_boxes"].shape == (6, 5, 4)
    assert (out["patch_boxes"][..., 2:] > 0).all()
    in_whole = out["patch_boxes"][:, :patches]
    assert in_whole[..., :2].min() >= 0 and (in_whole[..., :2] + in_whole[..., 2:]).max() <= 1 + 1e-6
    for image, boxes, size in zip(images, out["view_boxes"], out["image_sizes"].tolist(), strict=True):
        assert size == [image.height, image.width] and tuple(boxes[0]) == (0, 0, image.width, image.height)
        # The tiles share the image out among them, and reach beyond it on all sides by what pads the canvas.
        inside = np.clip(boxes[1:].astype(np.float64), 0, [image.width, image.height] * 2)
        areas = (inside[:, 2] - inside[:, 0]) * (inside[:, 3] - inside[:, 1])
        np.testing.assert_allclose(areas, [image.width * image.height / 4] * 4, rtol=1e-3)
        assert boxes[1:, :2].max() < max(image.size) and boxes[1:, 2:].min() > 0
