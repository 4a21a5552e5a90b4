"""The images of a request: type, bytes and pixels are checked before anything is decoded."""

import base64
import binascii
import time
from io import BytesIO

from PIL import Image, UnidentifiedImageError

from .fetching import fetch
from .limits import Limits

# Media types that are taken, and the only PIL reader that may open each.
FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP", "image/gif": "GIF", "image/bmp": "BMP"}
_DATA = "data:"
_URL_SCHEMES = ("http://", "https://")


def read_images(urls: list[str], limits: Limits, allow_urls: bool = False) -> list[Image.Image]:
    """The images of one request's `image_url`s, opened but not decoded.

    Args:
        urls: `data:` URLs in base64; with `allow_urls` also http or https ones.
        limits: how large they may be, each and together.
        allow_urls: fetch them from public addresses.

    Raises:
        ValueError: what is given is not that, is of another type than it says, or is too large.
    """
    deadline = time.monotonic() + limits.fetch_seconds
    images, fetched = [], 0
    for url in urls:
        most = min(limits.max_image_bytes, limits.max_request_bytes - fetched)
        image, size = _read_image(url, most, limits, allow_urls, deadline)
        images.append(image)
        fetched += size
    pixels = sum(image.width * image.height for image in images)
    if pixels > limits.max_request_pixels:
        sizes = ", ".join(f"{image.width}x{image.height}" for image in images)
        raise ValueError(
            f"The images of a request may have {limits.max_request_pixels} pixels together, got {pixels} ({sizes}): "
            "send fewer or smaller ones."
        )
    return images


def _read_image(
    url: str, max_bytes: int, limits: Limits, allow_urls: bool, deadline: float
) -> tuple[Image.Image, int]:
    """One of them, and its size in bytes.

    Raises:
        ValueError: what is given is not that, is of another type than it says, or is too large.
    """
    if url[: len(_DATA)].lower() == _DATA:
        kind, content = _decoded(url, max_bytes)
    elif url.lower().startswith(_URL_SCHEMES):
        if not allow_urls:
            raise ValueError(
                "This server fetches no URLs (`shirg serve --allow_urls` does): send the image itself, as "
                "data:image/png;base64,..."
            )
        kind, content = fetch(url, max_bytes, deadline)
    else:
        raise ValueError(f"An image is data:image/png;base64,... or a URL, got {_shown(url)}.")
    return open_checked(content, limits.max_image_pixels, kind), len(content)


def _decoded(url: str, max_bytes: int) -> tuple[str, bytes]:
    """Media type and bytes of a `data:` URL."""
    head, comma, payload = url.partition(",")
    kind, *parameters = head[len(_DATA) :].split(";")
    if not comma or "base64" not in (parameter.strip().lower() for parameter in parameters):
        raise ValueError(f"A data: URL is data:image/png;base64,..., got {_shown(url)}.")
    # Base64 writes 3 bytes as 4 characters: the size is known before it is decoded.
    if len(payload) * 3 // 4 > max_bytes + 2:
        raise ValueError(f"The image is larger than {max_bytes} bytes.")
    try:
        content = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"The image is no base64: {error}.") from None
    if len(content) > max_bytes:
        raise ValueError(f"The image is larger than {max_bytes} bytes.")
    return kind, content


def open_checked(content: bytes, max_pixels: int, kind: str | None = None) -> Image.Image:
    """The image of a file, with its header read but nothing decoded.

    Args:
        content: the file.
        max_pixels: width x height.
        kind: the media type that it is said to have, whose reader alone may open it; `None` tries all that are taken.

    Raises:
        ValueError: it is of another type, broken or too large.
    """
    kind = None if kind is None else kind.split(";")[0].strip().lower()
    if kind is not None and kind not in FORMATS:
        raise ValueError(f"An image is one of {', '.join(FORMATS)}, got {kind or 'no type'!r}.")
    try:
        image = Image.open(BytesIO(content), formats=list(FORMATS.values()) if kind is None else [FORMATS[kind]])
    except Image.DecompressionBombError:
        raise ValueError(f"The image has too many pixels; {max_pixels} in all are allowed.") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        taken = ", ".join(FORMATS.values())
        raise ValueError(f"This is no {kind or 'image'} file that can be read; taken are {taken}.") from None
    if image.width * image.height > max_pixels:
        raise ValueError(f"The image has {image.width}x{image.height} pixels; {max_pixels} in all are allowed.")
    return image


def _shown(url: str) -> str:
    return repr(url if len(url) <= 60 else f"{url[:60]}...")
