"""Reading images: from a path, a URL, bytes, an array or a PIL image of any mode to an upright 8-bit RGB image.

What counts as the image: the first frame of an animation (the current one, if the caller moved on), turned upright by
its EXIF orientation, as 8-bit RGB. Without transparency that is PIL's `convert("RGB")`, as in LaViDa; transparent
pixels are composited on white, where LaViDa shows whatever colour lies under them. Deeper pixels are scaled to 8 bit:
16-bit by 1/257; other integers and floats by 255 if floats within 0..1, by 1 if within 0..255, by 1/257 if within
0..65535, and are else refused.
"""

import base64
import os
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import torch
from huggingface_hub.utils import httpx
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers.image_utils import ChannelDimension

_BOMB_ERRORS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_BOMB_HINT = " If you trust the image, raise PIL.Image.MAX_IMAGE_PIXELS: up to twice that many pixels are accepted."
_NO_IMAGE_HINT = ", which is empty, no image, or in a format that PIL cannot read: pass a PNG or JPEG file."
# What to do about an error, where its message does not say it.
_HINTS = ((_BOMB_ERRORS, _BOMB_HINT), (UnidentifiedImageError, _NO_IMAGE_HINT))
# What PIL raises for a file that is broken, truncated, closed or too large.
_PIL_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, *_BOMB_ERRORS)
_URL_ERRORS = (httpx.HTTPError, httpx.InvalidURL)
_URL_TIMEOUT = 60.0
# Far above any photograph, far below what fills a machine's memory.
_URL_MAX_BYTES = 100 * 2**20
_CHANNELS = (1, 3, 4)


def fetch_image(image: Any, index: int) -> Image.Image | np.ndarray | torch.Tensor | list:
    """Opens what is given as a path, URL, data URL, base64 string or the bytes of a file; `index` is for messages.

    Returns:
        A PIL image, decoded if it was opened here; an array of shape (H, W) as a PIL image, one of 3 dimensions as it
        is, one of shape (B, ...) as the list of its B parts.

    Raises:
        ValueError: it cannot be read, has no pixels or too many. The message names the image and the cause.
        TypeError: it is nothing that could be an image.
    """
    if isinstance(image, (str, bytes, os.PathLike)):
        # Decoded at once, so that its errors appear here. Returned is a copy of the first frame, for the opened image
        # would keep the file of an animation open, and that of a plain bitmap mapped to memory.
        with _read(lambda: Image.open(_file_of(image)), index, None) as opened:
            return _read(lambda: _loaded(opened).copy(), index, opened.size)
    if isinstance(image, Image.Image):
        return image
    if not isinstance(image, (np.ndarray, torch.Tensor)):
        raise TypeError(
            f"Image {index} is a {type(image).__name__}. Pass a PIL image, a numpy array, a torch tensor, a path, a "
            "URL, a base64 string or the bytes of an image file."
        )
    if image.ndim == 2:
        return _read(lambda: _image_of_array(image, None), index, tuple(image.shape))
    if image.ndim == 4:
        return list(image)
    if image.ndim != 3:
        raise ValueError(f"Image {index} is an array of shape {tuple(image.shape)}; 2, 3 or 4 dimensions are needed.")
    return image


def upright_rgb(
    image: Image.Image | np.ndarray | torch.Tensor, index: int, layout: str | ChannelDimension | None = None
) -> Image.Image:
    """The image as upright 8-bit RGB, by the rules in the module's docstring; `index` is for messages.

    An array has the shape (H, W), (H, W, C) or (C, H, W) with C = 1, 3 or 4. Where both outer axes could be the
    channels, a numpy array is read as (H, W, C) and a tensor as (C, H, W); `layout` (`"channels_first"` or
    `"channels_last"`) decides otherwise.

    Raises:
        ValueError: it cannot be read, has no pixels or too many. The message names the image and the cause.
    """
    if isinstance(image, Image.Image):
        return _read(lambda: _to_upright_rgb(image), index, image.size)
    return _read(lambda: _to_upright_rgb(_image_of_array(image, layout)), index, tuple(image.shape))


def _read(read: Callable[[], Any], index: int, size: tuple[int, ...] | None) -> Any:
    """`read()`, with what PIL raises turned into a ValueError that names the image."""
    try:
        return read()
    except (*_PIL_ERRORS, *_URL_ERRORS) as error:
        shape = "of unknown size" if size is None else f"of size {'x'.join(map(str, size))}"
        hint = next((hint for kinds, hint in _HINTS if isinstance(error, kinds)), "")
        raise ValueError(f"Image {index} {shape} cannot be read: {type(error).__name__}: {error}{hint}") from None


def _file_of(source: str | bytes | os.PathLike) -> str | os.PathLike | BytesIO:
    if isinstance(source, bytes):
        return _Bytes(source)
    if os.path.isfile(source):
        return source
    if os.path.isdir(source):
        raise IsADirectoryError(f"{os.fspath(source)} is a directory: pass the path of one image file.")
    if not isinstance(source, str):
        raise FileNotFoundError(f"there is no file {os.fspath(source)}.")
    if source.startswith(("http://", "https://")):
        return _download(source)
    return _Bytes(_decode_base64(source))


class _Bytes(BytesIO):
    """A file in memory, and what PIL's errors call it."""

    def __repr__(self) -> str:
        return f"of {len(self.getbuffer())} bytes"


def _download(url: str) -> BytesIO:
    file = _Bytes()
    with httpx.stream("GET", url, timeout=_URL_TIMEOUT, follow_redirects=True) as response:
        response.raise_for_status()
        # The announced size refuses early; a server may announce none, or pack more bytes than it announces.
        _check_size(int(response.headers.get("content-length", 0)), url)
        for chunk in response.iter_bytes():
            file.write(chunk)
            _check_size(file.tell(), url)
    return file


def _check_size(size: int, url: str) -> None:
    if size > _URL_MAX_BYTES:
        raise ValueError(f"{url} exceeds the limit of {_URL_MAX_BYTES} bytes: download it and pass the file's path.")


def _decode_base64(source: str) -> bytes:
    payload = source.split(",", 1)[-1] if source.startswith("data:") else source
    try:
        return base64.b64decode("".join(payload.split()), validate=True)
    except ValueError:
        shown = source if len(source) <= 100 else f"{source[:100]}..."
        raise ValueError(f"{shown!r} is no file that exists, no URL and no base64 string.") from None


def _to_upright_rgb(image: Image.Image) -> Image.Image:
    _loaded(image)
    if image.getexif().get(0x0112, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_to_uint8(np.asarray(image)))
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _loaded(image: Image.Image) -> Image.Image:
    """The image with its pixels decoded; refuses one without pixels, or beyond the limit that PIL checks for files."""
    if 0 in image.size:
        raise ValueError("it has no pixels.")
    limit, pixels = Image.MAX_IMAGE_PIXELS, image.width * image.height
    if limit is not None and pixels > 2 * limit:
        raise Image.DecompressionBombError(f"{pixels} pixels exceed the limit of {2 * limit}.")
    image.load()
    return image


def _image_of_array(array: np.ndarray | torch.Tensor, layout: str | ChannelDimension | None) -> Image.Image:
    """An array as a PIL image of mode L, RGB or RGBA; shapes and `layout` as `upright_rgb` takes them."""
    if isinstance(array, torch.Tensor):
        if array.layout != torch.strided or array.device.type == "meta":
            kind = "on the meta device" if array.device.type == "meta" else f"of layout {array.layout}"
            raise ValueError(f"its tensor is {kind}: pass a dense one that holds its pixels.")
        prefer_last = False
        array = array.detach().cpu()
        array = (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    else:
        prefer_last = True
    if array.size == 0:
        raise ValueError("it has no pixels.")
    if array.ndim == 3:
        channels_last = _is_channels_last(array.shape, layout, prefer_last)
        array = array if channels_last else np.moveaxis(array, 0, -1)
        if array.shape[-1] not in _CHANNELS:
            raise ValueError(f"an image has 1, 3 or 4 channels, got {array.shape[-1]}.")
        array = array[..., 0] if array.shape[-1] == 1 else array
    return Image.fromarray(np.ascontiguousarray(_to_uint8(array)))


def _is_channels_last(shape: tuple[int, ...], layout: str | ChannelDimension | None, prefer_last: bool) -> bool:
    if layout is not None:
        return ChannelDimension(layout) == ChannelDimension.LAST
    first, last = shape[0] in _CHANNELS, shape[-1] in _CHANNELS
    if not first and not last:
        raise ValueError(f"an array is (H, W), (H, W, C) or (C, H, W) with C = 1, 3 or 4, got shape {shape}.")
    return prefer_last if first and last else last


def _to_uint8(array: np.ndarray) -> np.ndarray:
    """Pixel values scaled to 0..255, by the rule in the module's docstring."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype.kind not in "iuf":
        raise ValueError(f"pixel values must be booleans, integers or floats, got {array.dtype}.")
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    low, high = array.min().item(), array.max().item()
    if not (low >= 0 and high <= 65535):
        raise ValueError(f"pixel values must lie in 0..1, 0..255 or 0..65535, got {low}..{high}: scale them first.")
    if array.dtype.kind == "f" and high <= 1:
        scale = 255.0
    else:
        scale = 1.0 if high <= 255 else 1 / 257
    return np.rint(array.astype(np.float64) * scale).astype(np.uint8)
