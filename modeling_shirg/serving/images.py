"""The images of a request: type, bytes and pixels are checked before anything is decoded."""

import base64
import binascii
from io import BytesIO

from PIL import Image, UnidentifiedImageError

from .fetching import fetch
from .limits import Limits

# Media types that are taken, and the only PIL reader that may open each.
FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP", "image/gif": "GIF", "image/bmp": "BMP"}
_DATA = "data:"
_URL_SCHEMES = ("http://", "https://")


def read_image(url: str, limits: Limits, allow_urls: bool = False) -> Image.Image:
    """The image of an `image_url`, opened but not decoded.

    Args:
        url: a `data:` URL in base64; with `allow_urls` also an http or https one.
        limits: how large it may be.
        allow_urls: fetch it from public addresses.

    Raises:
        ValueError: what is given is not that, is of another type than it says, or is too large.
    """
    if url[: len(_DATA)].lower() == _DATA:
        kind, content = _decoded(url, limits.max_image_bytes)
    elif url.lower().startswith(_URL_SCHEMES):
        if not allow_urls:
            raise ValueError(
                "This server fetches no URLs (`shirg serve --allow_urls` does): send the image itself, as "
                "data:image/png;base64,..."
            )
        kind, content = fetch(url, limits.max_image_bytes, limits.fetch_seconds)
    else:
        raise ValueError(f"An image is data:image/png;base64,... or a URL, got {_shown(url)}.")
    return _opened(content, kind, limits.max_image_pixels)


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


def _opened(content: bytes, kind: str, max_pixels: int) -> Image.Image:
    """The image with its header read by the one reader that its type names."""
    kind = kind.split(";")[0].strip().lower()
    if kind not in FORMATS:
        raise ValueError(f"An image is one of {', '.join(FORMATS)}, got {kind or 'no type'!r}.")
    try:
        image = Image.open(BytesIO(content), formats=[FORMATS[kind]])
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise ValueError(f"The image is no readable {kind} file.") from None
    if image.width * image.height > max_pixels:
        raise ValueError(f"The image has {image.width}x{image.height} pixels; {max_pixels} in all are allowed.")
    return image


def _shown(url: str) -> str:
    return repr(url if len(url) <= 60 else f"{url[:60]}...")
