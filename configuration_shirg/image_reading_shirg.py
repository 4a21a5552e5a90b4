"""Reading images: a path, URL, base64 string, bytes, array or PIL image becomes an upright 8-bit RGB image.

Pixels are those of PIL's `convert("RGB")`, as in LaViDa, with three exceptions: the EXIF orientation is applied,
transparent pixels are composited on white, and deeper pixels are scaled to 8 bit. Of an animation the first frame is
read.
"""

import base64
import os
import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import torch
from huggingface_hub.utils import httpx
from PIL import Image, ImageOps
from transformers.image_transforms import to_channel_dimension_format
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format

# Errors of PIL and httpx for files that are missing, broken, truncated, closed or too large.
_READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
_READ_ERRORS += (Image.DecompressionBombError, httpx.HTTPError, httpx.InvalidURL)


def read_image(image: Any, index: int = 0, layout: str | None = None) -> Image.Image:
    """The image as upright 8-bit RGB; a `ValueError` that names its `index` if it cannot be read or has no pixels.

    An array or tensor has the shape (H, W), (H, W, C) or (C, H, W) with C = 1, 3 or 4; `layout` is `"channels_first"`
    or `"channels_last"` where both outer axes could be channels.
    """
    try:
        if isinstance(image, (str, bytes, os.PathLike)):
            with Image.open(_file_of(image)) as opened:
                return _upright_rgb(opened)
        if isinstance(image, (np.ndarray, torch.Tensor)):
            return _upright_rgb(_image_of_array(np.asarray(image), layout))
        if isinstance(image, Image.Image):
            return _upright_rgb(image)
    except _READ_ERRORS as error:
        raise ValueError(f"Image {index} ({image!r:.100}) cannot be read: {type(error).__name__}: {error}") from None
    raise TypeError(f"Image {index} is a {type(image).__name__}: pass a PIL image, an array, a path, a URL or bytes.")


def _file_of(source: str | bytes | os.PathLike) -> str | os.PathLike | BytesIO:
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        source = httpx.get(source, timeout=60, follow_redirects=True).raise_for_status().content
    elif isinstance(source, str) and not os.path.exists(source):
        try:
            source = base64.b64decode("".join(source.split(",")[-1].split()), validate=True)
        except ValueError:
            raise ValueError("no file that exists, no URL and no base64 string.") from None
    return BytesIO(source) if isinstance(source, bytes) else source


def _upright_rgb(image: Image.Image) -> Image.Image:
    if 0 in image.size:
        raise ValueError("it has no pixels.")
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > 2 * Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"its pixels exceed twice PIL.Image.MAX_IMAGE_PIXELS={Image.MAX_IMAGE_PIXELS}.")
    image = ImageOps.exif_transpose(image)  # always another image, which outlives an opened file
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_to_uint8(np.asarray(image)))
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")  # PIL cannot convert La to RGBA
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _image_of_array(array: np.ndarray, layout: str | None) -> Image.Image:
    if array.size == 0:
        raise ValueError("it has no pixels.")
    if array.ndim == 3:
        layout = layout or infer_channel_dimension_format(array, num_channels=(1, 3, 4))
        array = to_channel_dimension_format(array, ChannelDimension.LAST, layout)
        array = array[..., 0] if array.shape[-1] == 1 else array
    return Image.fromarray(np.ascontiguousarray(_to_uint8(array)))


def _to_uint8(array: np.ndarray) -> np.ndarray:
    """Pixels scaled to 0..255: floats from 0..1, integers and floats from 0..255, or else from 0..65535."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype.kind not in "iuf":
        raise ValueError(f"pixel values must be booleans, integers or floats, got {array.dtype}.")
    low, high = array.min().item(), array.max().item()
    if not (low >= 0 and high <= 65535):
        raise ValueError(f"pixel values must lie in 0..1, 0..255 or 0..65535, got {low}..{high}: scale them first.")
    scale = 1.0 if high <= 255 and array.dtype != np.uint16 else 1 / 257
    if array.dtype.kind == "f" and high <= 1:
        scale = 255.0
    return np.rint(array.astype(np.float64) * scale).astype(np.uint8)
