"""Image processor: LaViDa's pixels, fixed shapes, and images of every kind."""

import base64
import functools
import io
import struct
import threading
import zlib
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from configuration_shirg import ShirgLavidaConfig
from configuration_shirg.image_processing_shirg_lavida import ShirgLavidaImageProcessor
from fresh_process import run_fresh

FIXTURES = Path(__file__).parent / "fixtures"
LANDSCAPE = FIXTURES / "landscape.png"
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
    ],
)
def test_wrong_geometry_fails_at_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        ShirgLavidaImageProcessor(**arguments)


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
    assert isinstance(toy(noise(9, 9), return_tensors="pt")["pixel_values"], torch.Tensor)
    assert isinstance(toy(noise(9, 9), return_tensors="np")["pixel_values"], np.ndarray)
    assert isinstance(toy(noise(9, 9))["pixel_values"], np.ndarray)
    assert toy(noise(9, 9), do_normalize=False)["pixel_values"].min() >= 0


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


@pytest.fixture
def web(tmp_path):
    """A web server on 127.0.0.1 that serves a folder with one image."""
    (tmp_path / "image.png").write_bytes(encoded(noise(90, 80)))
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_image_at_a_url_is_the_image(toy, web):
    fetched, given = toy(f"{web}/image.png"), toy(noise(90, 80))
    assert np.array_equal(fetched["pixel_values"], given["pixel_values"])


def test_a_url_that_fails_names_the_image_and_the_status(toy, web):
    with pytest.raises(ValueError, match="Image 0 .*404"):
        toy(f"{web}/nothing.png")
    with pytest.raises(ValueError, match="Image 1 .*cannot be read"):
        toy([noise(90, 80), "http://127.0.0.1:1/image.png"])
