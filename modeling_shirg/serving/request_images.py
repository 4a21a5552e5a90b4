"""The images of a request: type, bytes and pixels are checked before anything is decoded."""

import asyncio
import base64
import binascii
import reprlib
from io import BytesIO

from PIL import Image, UnidentifiedImageError

from .image_fetching import fetch
from .request_limits import Limits

# Media types, and the only PIL reader that may open each.
FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP", "image/gif": "GIF", "image/bmp": "BMP"}


async def read_images(urls: list[str], limits: Limits, allow_urls: bool = False) -> list[Image.Image]:
    """The images of one request's `image_url`s, opened but not decoded.

    `data:` URLs hold base64; with `allow_urls` http and https URLs are fetched, all within one deadline.

    Raises:
        ValueError: a URL cannot be read, or an image is of another type than it says, or is too large.
    """
    images, left = [], limits.max_request_bytes
    try:
        async with asyncio.timeout(limits.fetch_seconds):
            for url in urls:
                most = min(limits.max_image_bytes, left)
                if url[:5].lower() == "data:":
                    kind, content = await asyncio.to_thread(_decoded, url, most)
                elif not url.lower().startswith(("http://", "https://")):
                    raise ValueError(f"An image is data:image/png;base64,... or a URL, got {reprlib.repr(url)}.")
                elif allow_urls:
                    kind, content = await fetch(url, most)
                else:
                    raise ValueError(
                        "This server fetches no URLs (`shirg serve --allow_urls` does): send the image itself, as "
                        "data:image/png;base64,..."
                    )
                images.append(open_checked(content, limits.max_image_pixels, kind))
                left -= len(content)
    except TimeoutError:
        raise ValueError(f"The images of the request did not come in {limits.fetch_seconds} s.") from None
    pixels = sum(image.width * image.height for image in images)
    if pixels > limits.max_request_pixels:
        sizes = ", ".join(f"{image.width}x{image.height}" for image in images)
        raise ValueError(
            f"The images of a request may have {limits.max_request_pixels} pixels together, got {pixels} ({sizes}): "
            "send fewer or smaller ones."
        )
    return images


def _decoded(url: str, max_bytes: int) -> tuple[str, bytes]:
    """Media type and bytes of a `data:` URL."""
    head, comma, payload = url.partition(",")
    kind, *parameters = head[5:].split(";")
    if not comma or "base64" not in (parameter.strip().lower() for parameter in parameters):
        raise ValueError(f"A data: URL is data:image/png;base64,..., got {reprlib.repr(url)}.")
    # Base64 writes 3 bytes as 4 characters: the size is known before the content is decoded.
    if len(payload) // 4 * 3 - payload[-2:].count("=") > max_bytes:
        raise ValueError(f"The image is larger than {max_bytes} bytes.")
    try:
        return kind, base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"The image is no base64: {error}.") from None


def open_checked(content: bytes, max_pixels: int, kind: str | None = None) -> Image.Image:
    """The image of a file, with its header read but nothing decoded.

    Only the reader of the media type `kind` opens the file; `None` tries all of `FORMATS`.

    Raises:
        ValueError: the file is of another type, broken, or has more than `max_pixels`.
    """
    kind = None if kind is None else kind.split(";")[0].strip().lower()
    if kind is not None and kind not in FORMATS:
        raise ValueError(f"An image is one of {', '.join(FORMATS)}, got {kind or 'no type'!r}.")
    readers = list(FORMATS.values()) if kind is None else [FORMATS[kind]]
    try:
        image = Image.open(BytesIO(content), formats=readers)
    except Image.DecompressionBombError:
        raise ValueError(f"The image has too many pixels; {max_pixels} in all are allowed.") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        taken = ", ".join(FORMATS.values())
        raise ValueError(f"This is no {kind or 'image'} file that can be read; taken are {taken}.") from None
    if image.width * image.height > max_pixels:
        raise ValueError(f"The image has {image.width}x{image.height} pixels; {max_pixels} in all are allowed.")
    return image
