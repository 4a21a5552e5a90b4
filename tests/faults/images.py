"""Bad and odd images: files, strings, arrays, PIL images, URLs, boxes."""

import base64
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image

from .case import Case, picture, processor, refused

KIND = "image"


def pixels(image: Any, **options: Any) -> dict[str, np.ndarray]:
    """What the image processor makes of it."""
    return dict(processor().image_processor(image, return_tensors="np", **options))


def written(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    """The bytes of a file."""
    file = BytesIO()
    (image or picture()).save(file, kind, **options)
    return file.getvalue()


def reread(content: bytes) -> Image.Image:
    """The first frame of a healthy file as PIL reads it."""
    with Image.open(BytesIO(content)) as opened:
        return opened.convert("RGB")


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header says so, with next to no pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def _file(name: str, content: Callable[[], bytes], says: str) -> list[Case]:
    """A bad file, as its bytes, by its path, and as base64."""

    def by_path(folder: Path):
        (folder / "picture.png").write_bytes(content())
        return lambda: pixels(str(folder / "picture.png"))

    def as_url(folder: Path):
        return lambda: pixels("data:image/png;base64," + base64.b64encode(content()).decode())

    return [
        Case(KIND, f"{name}, bytes", lambda folder: lambda: pixels(content()), ValueError, f"Image 0 .*{says}"),
        Case(KIND, f"{name}, path", by_path, ValueError, f"Image 0 .*{says}"),
        Case(KIND, f"{name}, data URL", as_url, ValueError, f"Image 0 .*{says}"),
    ]


def _bad(name: str, image: Callable[[], Any], says: str, error: type = ValueError, **options: Any) -> Case:
    return refused(KIND, name, lambda: pixels(image(), **options), error, says)


def _same(name: str, image: Callable[[], Any], healthy: Callable[[], Any]) -> Case:
    return Case(KIND, name, lambda folder: lambda: pixels(image()), same_as=lambda: pixels(healthy()))


def _array(**changes: Any) -> np.ndarray:
    array = np.asarray(picture()).copy()
    for name, value in changes.items():
        array = array.astype(name)
        array.flat[5] = value
    return array


_NO_IMAGE = "cannot be read: .*pass a PNG or JPEG file"
FILES = [
    *_file("empty", lambda: b"", _NO_IMAGE),
    *_file("one byte", lambda: b"\x89", _NO_IMAGE),
    *_file("text", lambda: b"What is in cell 5?\n", _NO_IMAGE),
    *_file("html", lambda: b"<!DOCTYPE html><html><body>404</body></html>", _NO_IMAGE),
    *_file("zeros", lambda: bytes(4096), _NO_IMAGE),
    *_file("wrong magic", lambda: b"GIF89a" + written("PNG")[6:], "cannot be read"),
    *_file("PNG without its header", lambda: written("PNG")[8:], _NO_IMAGE),
    *_file("PNG with a broken checksum", lambda: written("PNG").replace(b"IDAT", b"IDAX", 1), "cannot be read"),
    *[
        case
        for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
        for share in (0.02, 0.5, 0.9)
        for case in _file(
            f"{kind} cut at {share:.0%}",
            lambda k=kind, s=share: written(k)[: int(len(written(k)) * s)],
            "cannot be read",
        )[:1]
    ],
    *_file("PNG of 2 gigapixels", lambda: png_of_size(50_000, 40_000), "raise PIL.Image.MAX_IMAGE_PIXELS"),
    *_file("PNG of 2**31 pixels a side", lambda: png_of_size(2**31 - 1, 2**31 - 1), "MAX_IMAGE_PIXELS"),
    *_file("PNG without width", lambda: png_of_size(0, 5), "cannot be read"),
]

STRINGS = [
    _bad("empty string", lambda: "", _NO_IMAGE),
    _bad("missing path", lambda: "/no/such/picture.png", "/no/such/picture.png.*no file that exists"),
    _bad("missing Path", lambda: Path("/no/such/picture.png"), "there is no file /no/such/picture.png"),
    _bad("folder", lambda: "/", "/ is a directory: pass the path of one image file"),
    _bad("file URL", lambda: "file:///etc/passwd", "file:///etc/passwd.*no file that exists, no URL"),
    _bad("ftp URL", lambda: "ftp://localhost/a.png", "ftp://localhost/a.png.*no file that exists, no URL"),
    _bad("javascript URL", lambda: "javascript:alert(1)", "no file that exists, no URL"),
    _bad("http URL without a host", lambda: "http://", "Image 0 .*cannot be read"),
    _bad("http URL with a bad port", lambda: "http://localhost:99999/a.png", "Image 0 .*cannot be read"),
    _bad("http URL that nobody serves", lambda: "http://127.0.0.1:9/a.png", "Image 0 .*cannot be read: Connect"),
    _bad("data URL without data", lambda: "data:image/png;base64,", "Image 0 .*which is empty"),
    _bad("data URL without a comma", lambda: "data:image/png;base64", "no base64 string"),
    _bad("data URL that is no base64", lambda: "data:image/png;base64,%%%", "no base64 string"),
    _bad("data URL of text", lambda: "data:text/plain;base64,aGVsbG8=", _NO_IMAGE),
    _bad("path with a null byte", lambda: "picture\0.png", r"Image 0 .*null byte|picture\\x00.png.*no file"),
    _bad("lone surrogate", lambda: "\ud800.png", r"\\ud800.png.*no file that exists"),
    _bad("path too long for the system", lambda: "a/" * 5000, _NO_IMAGE),
]

ARRAYS = [
    _bad("array with NaN", lambda: _array(float32=np.nan), "Image 0 .*pixel values must lie in .*nan"),
    _bad("array with infinity", lambda: _array(float32=np.inf), "Image 0 .*must lie in .*inf"),
    _bad("array with negative values", lambda: _array(int16=-3), "must lie in .*-3.*scale them first"),
    _bad("array beyond 16 bit", lambda: _array(int64=70_000), "must lie in .*70000.*scale them first"),
    _bad("tensor with NaN", lambda: torch.full((3, 20, 20), torch.nan), "must lie in .*nan"),
    _bad("complex array", lambda: np.ones((9, 9, 3), dtype=complex), "Image 0 .*complex"),
    _bad("array of objects", lambda: np.full((9, 9, 3), None), "Image 0 .*object"),
    _bad("array of strings", lambda: np.full((9, 9, 3), "a"), "Image 0 .*<U1"),
    _bad("array of dates", lambda: np.zeros((9, 9, 3), dtype="datetime64[s]"), "Image 0 .*datetime64"),
    _bad("array of 0 dimensions", lambda: np.array(3.0), r"shape \(\); 2, 3 or 4 dimensions are needed"),
    _bad("array of 1 dimension", lambda: np.zeros(9), r"shape \(9,\); 2, 3 or 4"),
    _bad("array of 5 dimensions", lambda: np.zeros((1, 1, 3, 9, 9)), r"shape \(1, 1, 3, 9, 9\)"),
    _bad("array of 2 channels", lambda: np.zeros((9, 9, 2)), r"C = 1, 3 or 4, got shape \(9, 9, 2\)"),
    _bad("array of 7 channels", lambda: np.zeros((9, 9, 7)), r"C = 1, 3 or 4"),
    _bad("array without height", lambda: np.zeros((0, 9, 3)), "it has no pixels"),
    _bad("tensor without width", lambda: torch.zeros(3, 9, 0), "it has no pixels"),
    _bad("empty batch", lambda: np.zeros((0, 9, 9, 3)), "0 images"),
    _bad("sparse tensor", lambda: torch.eye(9).to_sparse(), "Image 0 .*sparse"),
    _bad("tensor on the meta device", lambda: torch.empty(3, 9, 9, device="meta"), "Image 0 .*meta"),
]

OBJECTS = [
    _bad("None", lambda: None, "Image 0 is a NoneType. Pass a PIL image", TypeError),
    _bad("number", lambda: 3, "Image 0 is a int. Pass", TypeError),
    _bad("dict", lambda: {"path": "a.png"}, "Image 0 is a dict. Pass", TypeError),
    _bad("open file", lambda: BytesIO(written("PNG")), "Image 0 is a BytesIO. Pass", TypeError),
    _bad("second of two is bad", lambda: [picture(), b"no"], "Image 1 .*cannot be read"),
    _bad("no images", lambda: [], "0 images"),
    _bad("image without pixels", lambda: Image.new("RGB", (0, 5)), "Image 0 of size 0x5 .*no pixels"),
    _bad("image beyond the limit", lambda: Image.new("1", (1_000_000, 200)), "raise PIL.Image.MAX_IMAGE_PIXELS"),
]

BOXES = [
    _bad(
        "one box for two images",
        lambda: [picture()] * 2,
        "one entry per image, got 1 for 2",
        fovea_boxes=[(0, 0, 9, 9)],
    ),
    _bad("box of 3 numbers", picture, r"fovea_boxes\[0\]", fovea_boxes=[(0, 0, 9)]),
    _bad("box of words", picture, r"fovea_boxes\[0\]", fovea_boxes=[("a", "b", "c", "d")]),
    _bad("box that is a number", picture, r"fovea_boxes\[0\] must be", fovea_boxes=[3]),
    _bad("box with NaN", picture, r"fovea_boxes\[0\]", fovea_boxes=[(np.nan, 0, 9, 9)]),
    _bad("box upside down", picture, r"fovea_boxes\[0\]", fovea_boxes=[(0, 9, 9, 0)]),
    _bad("box beside the image", picture, r"fovea_boxes\[0\]", fovea_boxes=[(900, 900, 950, 950)]),
    _bad("budget of 0", picture, "selection_budget=0 must be at least 1", selection_budget=0),
    _bad("fovea smaller than a patch", picture, "fovea_size >= patch_size", fovea_size=3),
    _bad(
        "unknown placement",
        picture,
        r"'fovea_placement' .*'center', 'salient', 'box'.*left",
        StrictDataclassError,
        fovea_placement="left",
    ),
    _bad(
        "placement by a box that is not given",
        picture,
        "needs a box for image 0: pass fovea_boxes",
        fovea_placement="box",
    ),
    _bad("views without a resize", picture, "do_resize must be True, got False", do_resize=False),
]


def _exif_turned() -> bytes:
    """The picture stored lying on its side, with the note that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return written("PNG", picture().rotate(90, expand=True), exif=exif)


def _animated(kind: str) -> bytes:
    frames = [picture(), picture().rotate(180)]
    return written(
        kind, frames[0], save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )


def _transparent(mode: str) -> Image.Image:
    """Half of it is see-through."""
    image = picture().convert("RGBA")
    alpha = np.full((image.height, image.width), 255, dtype=np.uint8)
    alpha[:, image.width // 2 :] = 0
    image.putalpha(Image.fromarray(alpha))
    return image.convert(mode)


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


_GREY = np.asarray(Image.effect_noise((90, 80), 90))
ODD = [
    _same("CMYK", lambda: picture().convert("CMYK"), lambda: picture().convert("CMYK").convert("RGB")),
    _same(
        "CMYK JPEG",
        lambda: written("JPEG", picture().convert("CMYK")),
        lambda: reread(written("JPEG", picture().convert("CMYK"))),
    ),
    _same(
        "16-bit grey PNG",
        lambda: written("PNG", Image.fromarray(_GREY.astype(np.uint16) * 257)),
        lambda: Image.fromarray(_GREY),
    ),
    _same(
        "32-bit float TIFF",
        lambda: written("TIFF", Image.fromarray(_GREY.astype(np.float32))),
        lambda: Image.fromarray(_GREY),
    ),
    _same("1-bit", lambda: written("PNG", picture().convert("1")), lambda: picture().convert("1").convert("RGB")),
    _same("palette", lambda: written("PNG", picture().convert("P")), lambda: picture().convert("P").convert("RGB")),
    _same(
        "palette with alpha",
        lambda: written("PNG", _transparent("PA").convert("RGBA").quantize(64)),
        lambda: _on_white(Image.open(BytesIO(written("PNG", _transparent("PA").convert("RGBA").quantize(64))))),
    ),
    _same("alpha", lambda: written("PNG", _transparent("RGBA")), lambda: _on_white(_transparent("RGBA"))),
    _same("grey with alpha", lambda: _transparent("LA"), lambda: _on_white(_transparent("LA"))),
    _same("EXIF says turned", _exif_turned, picture),
    _same("animated GIF", lambda: _animated("GIF"), lambda: reread(_animated("GIF"))),
    _same("animated PNG", lambda: _animated("PNG"), picture),
    _same("animated WebP", lambda: _animated("WEBP"), picture),
    _same("lossless WebP", lambda: written("WEBP", lossless=True), picture),
    _same("path without a suffix, bytes after the end", lambda: written("PNG") + b"more", picture),
    _same("bare base64 with line breaks", lambda: base64.encodebytes(written("PNG")).decode(), picture),
    _same("floats in 0..1", lambda: np.asarray(picture()).astype(np.float64) / 255, picture),
    _same(
        "half precision tensor in 0..1",
        lambda: torch.from_numpy(np.asarray(picture()).copy()).movedim(-1, 0).div(255).half(),
        picture,
    ),
    _same("big-endian 16-bit array", lambda: (np.asarray(picture()).astype(np.uint16) * 257).astype(">u2"), picture),
    _same("array that is not contiguous", lambda: np.asarray(picture())[:, ::-1][:, ::-1], picture),
    _same("read-only array", lambda: np.frombuffer(picture().tobytes(), np.uint8).reshape(240, 300, 3), picture),
    _same("boolean array", lambda: _GREY > 90, lambda: ((_GREY > 90) * 255).astype(np.uint8)),
    _same("channels first", lambda: np.moveaxis(np.asarray(picture()), -1, 0), picture),
    _same("one channel", lambda: _GREY[..., None], lambda: Image.fromarray(_GREY)),
    _same(
        "tensor that wants a gradient",
        lambda: torch.from_numpy(np.asarray(picture()).copy()).movedim(-1, 0).float().requires_grad_(),
        picture,
    ),
    _same("nested lists", lambda: [[picture()], [[picture()]]], lambda: [picture(), picture()]),
    _same("batch array", lambda: np.stack([np.asarray(picture())] * 2), lambda: [picture(), picture()]),
    _same("one pixel", lambda: Image.new("L", (1, 1), 9), lambda: Image.new("RGB", (1, 1), (9, 9, 9))),
    _same(
        "one pixel high",
        lambda: picture().crop((0, 0, 300, 1)).convert("P").convert("RGB"),
        lambda: picture().crop((0, 0, 300, 1)).convert("P"),
    ),
]

CASES = [*FILES, *STRINGS, *ARRAYS, *OBJECTS, *BOXES, *ODD]
