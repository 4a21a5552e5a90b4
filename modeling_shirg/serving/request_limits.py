"""Limits of a server, by name. Only the standard library is imported, for `shirg serve --help`."""

import math
from dataclasses import dataclass, fields

_DECODABLE_PIXELS = 178_956_970  # above, PIL raises a DecompressionBombError


@dataclass(frozen=True)
class Limits:
    """Limits of one request, and of all requests together.

    Attributes:
        max_requests: chat requests at work or waiting; the next request is refused with 429.
        max_request_bytes: of a request's body, base64 images included.
        max_image_bytes: of one image file.
        max_image_pixels: width x height of one image, read from its header.
        max_request_pixels: of all images of one request; requests are decoded one at a time.
        max_images: in one request.
        max_messages: in one request; each part of a message with several parts counts as one.
        max_text_characters: of all texts of one request together, counted before the tokenizer runs.
        max_new_tokens: largest length of an answer.
        body_seconds: until the whole body has come.
        fetch_seconds: until all images of a request have come from their URLs.
    """

    max_requests: int = 8
    max_request_bytes: int = 32 * 2**20
    max_image_bytes: int = 20 * 2**20
    max_image_pixels: int = 50_000_000
    max_request_pixels: int = 100_000_000
    max_images: int = 8
    max_messages: int = 1_000
    max_text_characters: int = 100_000
    max_new_tokens: int = 256
    body_seconds: float = 30.0
    fetch_seconds: float = 20.0

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ValueError(f"{field.name}={value!r} must be a finite number > 0.")
        most = min(_DECODABLE_PIXELS, self.max_request_pixels)
        if self.max_image_pixels > most:
            raise ValueError(
                f"max_image_pixels={self.max_image_pixels} must be at most {most}, the request's or PIL's limit."
            )
