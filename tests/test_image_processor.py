"""Image processor: LaViDa's pixels, fixed shapes, and images of every kind."""

import base64
import functools
import io
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors.numpy import load_file

from configuration_shirg import ShirgLavidaConfig
from configuration_shirg.image_processing_shirg_lavida import ShirgLavidaImageProcessor
from configuration_shirg.image_reading_shirg import read_image
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


def rgb_of(image) -> np.ndarray:
    """What the processor takes a whole image for, uint8 (H, W, 3)."""
    return np.asarray(read_image(image))


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


def test_an_image_is_the_same_alone_and_in_a_batch(toy):
    images = [noise(1, 1), noise(30, 2000), noise(333, 71), noise(70, 70)]
    batch = toy(images, return_tensors="np", fovea_placement="salient")
    for index, image in enumerate(images):
        alone = toy(image, return_tensors="np", fovea_placement="salient")
        for key, value in alone.items():
            np.testing.assert_array_equal(value[0], batch[key][index], err_msg=key)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(toy, orientation):
    image = noise(40, 24)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.open(io.BytesIO(encoded(image, exif=exif)))
    stored.load()
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # PIL's Transpose members that set the image upright
    upright = image if orientation == 1 else image.transpose(Image.Transpose(turns[orientation]))
    np.testing.assert_array_equal(rgb_of(stored), np.asarray(upright))
    assert toy(stored)["image_sizes"].tolist() == [[upright.height, upright.width]]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_opaque_modes_are_what_pil_converts_them_to(mode):
    image = noise(31, 17, mode)
    np.testing.assert_array_equal(rgb_of(image), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["LA", "PA", "RGBA", "La", "RGBa"])
def test_alpha_is_composited_on_white(mode):
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
    rgb = rgb_of(image)
    assert (rgb[:, :4] == 255).all()
    np.testing.assert_array_equal(rgb[:, 4:], np.asarray(gray.convert("RGB"))[:, 4:])


def test_deep_pixels_are_scaled_to_eight_bit(toy):
    ramp = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    deep = Image.fromarray(ramp)
    assert deep.mode == "I;16"
    for image in (deep, encoded(deep), Image.fromarray(ramp.astype(np.int32)), ramp):
        assert rgb_of(image)[0, :, 0].tolist() == [0, 1, 128, 255]
    assert rgb_of(Image.fromarray(np.array([[0.0, 1.0, 0.5]], dtype=np.float32)))[0, :, 0].tolist() == [0, 255, 128]
    assert rgb_of(Image.fromarray(np.array([[0.0, 254.6]], dtype=np.float32)))[0, :, 0].tolist() == [0, 255]


def test_arrays_and_tensors_in_any_layout(toy):
    image = np.asarray(noise(21, 9))
    expected = toy(Image.fromarray(image), return_tensors="np")["pixel_values"]
    first = image.transpose(2, 0, 1)
    for same in (
        image,
        first,
        torch.from_numpy(first.copy()),
        image.astype(np.float32) / 255,
        image.astype(np.int64),
        image[None],
        [torch.from_numpy(first.copy())[None]],
        np.concatenate([image, np.full((9, 21, 1), 255, np.uint8)], axis=2),
    ):
        np.testing.assert_array_equal(toy(same, return_tensors="np")["pixel_values"], expected)
    gray = np.asarray(noise(21, 9, "L"))
    for same in (gray, gray[..., None], gray[None], torch.from_numpy(gray.copy())):
        np.testing.assert_array_equal(rgb_of(same), np.asarray(noise(21, 9, "L").convert("RGB")))
    thin = np.zeros((3, 5, 3), np.uint8)
    assert toy(thin, input_data_format="channels_first")["image_sizes"].tolist() == [[5, 3]]
    assert toy(thin, input_data_format="channels_last")["image_sizes"].tolist() == [[3, 5]]


@pytest.fixture
def web(tmp_path):
    """A web server on 127.0.0.1 with one image of 90x80."""
    (tmp_path / "image.png").write_bytes(encoded(noise(90, 80)))
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_every_way_to_name_a_file(web):
    data = LANDSCAPE.read_bytes()
    text = base64.encodebytes(data).decode()
    for source in (LANDSCAPE, str(LANDSCAPE), data, text, f"data:image/png;base64,{text}"):
        np.testing.assert_array_equal(rgb_of(source), np.asarray(Image.open(LANDSCAPE)))
    np.testing.assert_array_equal(rgb_of(f"{web}/image.png"), np.asarray(noise(90, 80)))
    with pytest.raises(ValueError, match="Image 0 .*nothing.png.*404"):
        read_image(f"{web}/nothing.png")


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda folder: encoded(noise(60, 50))[:5000], "truncated"),
        (lambda folder: b"no image", "UnidentifiedImageError"),
        (lambda folder: folder / "missing.png", "missing.png"),
        (lambda folder: str(folder / "missing.png"), "missing.png.*no file that exists"),
        (lambda folder: folder, "directory"),
        (lambda folder: Image.new("RGB", (0, 4)), "0x4.*no pixels"),
        (lambda folder: np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (lambda folder: np.full((4, 4), -1.0, np.float32), "-1.0.*scale them first"),
        (lambda folder: np.zeros((5, 6, 7), np.uint8), "channel dimension"),
        (lambda folder: Image.new("1", (10**6, 200)), "MAX_IMAGE_PIXELS"),
    ],
)
def test_unreadable_images_are_named(toy, tmp_path, make, named):
    with pytest.raises(ValueError, match=f"(?s)Image 1 .*{named}"):
        toy([noise(5, 5), make(tmp_path)])


def test_what_is_no_image_is_a_type_error(toy):
    with pytest.raises(TypeError, match="Image 1 is a int"):
        toy([noise(5, 5), 7])
    with pytest.raises(ValueError, match="0 images"):
        toy([])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"size": {"height": 56, "width": 70}}, "square"),
        ({"patch_size": 1000}, "patch_size=1000"),
        ({"patch_size": 0}, "patch_size=0"),
        ({"fovea_size": 7}, "fovea_size from 14 to 6144, got 7"),
        ({"view_policy": "anyres"}, "image_grid_pinpoints=None"),
        ({"view_policy": "anyres", "image_grid_pinpoints": [[400, 768]]}, "400, 768.*multiples of 384"),
        ({"view_policy": "spiral"}, "spiral"),
        ({"fovea_placement": "left"}, "left"),
        ({"do_resize": False}, "do_resize must be True, got False"),
        ({"do_convert_rgb": False}, "do_convert_rgb must be True, got False"),
    ],
)
def test_wrong_geometry_fails_at_construction(arguments, named):
    with pytest.raises((ValueError, StrictDataclassError), match=named):
        ShirgLavidaImageProcessor(**arguments)


@pytest.mark.parametrize(
    ("preset", "arguments", "named"),
    [
        ("shirg", {"fovea_boxes": [None, None]}, "got 2 for 1 images"),
        ("shirg", {"fovea_boxes": [(300, 0, 400, 10)]}, r"fovea_boxes\[0\].*outside the image of 99x99"),
        ("shirg", {"fovea_boxes": [5]}, r"fovea_boxes\[0\].*got 5"),
        ("shirg", {"fovea_placement": "box"}, r"fovea_boxes\[0\].*needs"),
        ("shirg", {"fovea_size": 3}, "got 3"),
        ("shirg", {"selection_budget": 257}, "selection_budget=257.*256"),
        ("saint", {"selection_budget": 244}, "244.*multiple of 5"),
        ("saint", {"fovea_size": 224}, "'anyres' has no fovea, got fovea_size=224"),
        ("lavida-980", {"fovea_boxes": [None]}, "'anyres' has no fovea"),
        ("lavida-980", {"selection_budget": 5}, "selection_budget=5"),
    ],
)
def test_options_of_a_call_that_do_not_fit_are_named(preset, arguments, named):
    config = ShirgLavidaConfig.from_preset(preset, geometry="toy")
    with pytest.raises(ValueError, match=named):
        ShirgLavidaImageProcessor.from_config(config)(noise(99, 99), **arguments)


def test_options_of_a_call_reach_the_model(toy):
    config = ShirgLavidaConfig.from_preset("shirg", geometry="toy")
    processor = ShirgLavidaImageProcessor.from_config(config, fovea_placement="salient")
    out = processor([noise(300, 300)] * 2, selection_budget=100, fovea_size=280)
    assert out["selection_budget"].tolist() == [100, 100] and out["fovea_size"].tolist() == [280, 280]
    assert out["fovea_pixel_values"].shape == (2, 3, 280, 280)
    assert not {"selection_budget", "fovea_size"} & {*processor(noise(9, 9), selection_budget=181)}


@pytest.mark.parametrize("preset", ["shirg", "lavida-980"])
def test_save_and_load_keep_everything(tmp_path, preset):
    config = ShirgLavidaConfig.from_preset(preset, geometry="toy", fovea_placement="salient")
    processor = ShirgLavidaImageProcessor.from_config(config)
    processor.save_pretrained(tmp_path)
    loaded = ShirgLavidaImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    np.testing.assert_array_equal(loaded(LANDSCAPE)["pixel_values"], processor(LANDSCAPE)["pixel_values"])


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


@pytest.mark.parametrize("kind", ["gif", "tiff", "png", "mpo", "bmp"])
def test_no_file_stays_open_and_the_first_frame_is_as_pil_opens_it(tmp_path, kind):
    path = several_frames(kind, tmp_path)
    rgb = rgb_of(path)
    assert str(path) not in {file.path for file in psutil.Process().open_files()}
    assert rgb.shape == ((40, 24, 3) if kind in ("tiff", "png", "mpo") else (24, 40, 3))
    np.testing.assert_array_equal(rgb, rgb_of(Image.open(path)))


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


# 10,000 x 10,000, sides 100:1 apart with and without room for the fovea, one pixel.
EXTREME = [(10_000, 10_000), (22_400, 224), (224, 22_400), (10_000, 100), (100, 10_000), (1, 1)]


@pytest.mark.parametrize("preset", ["shirg", "shirg-salient", "lavida-980"])
@pytest.mark.parametrize("size", EXTREME)
def test_extreme_images(preset, size):
    """Black images with noise in one box away from the middle."""
    left, top = size[0] * 7 // 10, size[1] * 4 // 10
    image, detail = Image.new("RGB", size), noise(min(60, size[0] - left), min(60, size[1] - top))
    image.paste(detail, (left, top))
    config = ShirgLavidaConfig.from_preset(preset, geometry="toy")
    out = ShirgLavidaImageProcessor.from_config(config)(image, return_tensors="np")
    assert out["pixel_values"].shape == (config.num_base_views, 3, 192, 192)
    assert out["image_sizes"].tolist() == [[size[1], size[0]]] and (out["patch_boxes"][..., 2:] > 0).all()
    box = out["view_boxes"][0, -1]
    if preset == "lavida-980":
        inside = np.clip(out["view_boxes"][0, 1:].astype(np.float64), 0, [*size, *size])
        areas = (inside[:, 2] - inside[:, 0]) * (inside[:, 3] - inside[:, 1])
        np.testing.assert_allclose(areas, [size[0] * size[1] / 4] * 4, rtol=1e-3)
    elif min(size) < 224:
        assert box.tolist() == [0, 0, *size]
    else:
        assert (box[2:] - box[:2]).tolist() == [224, 224] and (box[:2] >= 0).all() and (box[2:] <= size).all()
        if preset == "shirg-salient":
            assert (box[:2] <= (left, top)).all() and (box[2:] >= (left + 60, top + 60)).all()
