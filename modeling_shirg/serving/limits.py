"""How much a server takes: one number per resource, and the check that runs before a request's body is parsed."""

import asyncio
import json
import math
from dataclasses import dataclass, fields
from typing import Any

from PIL import Image

_DECODABLE_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # more is a DecompressionBombError


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them together, may take.

    Attributes:
        max_requests: chat requests at work or waiting; one more is refused with 429.
        max_request_bytes: of a request's body, base64 images included.
        max_image_bytes: of one image file.
        max_image_pixels: width x height of one image, read from its header.
        max_request_pixels: of all images of one request; they are decoded one request at a time.
        max_images: in one request.
        max_messages: in one request; each part of a message that has several counts as one.
        max_text_characters: of all texts of one request together, counted before they are tokenized.
        max_new_tokens: length of an answer that a request may ask for.
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
        if self.max_image_pixels > _DECODABLE_PIXELS:
            raise ValueError(
                f"max_image_pixels={self.max_image_pixels} must be at most {_DECODABLE_PIXELS}, PIL's own limit."
            )
        if self.max_image_pixels > self.max_request_pixels:
            raise ValueError(
                f"max_image_pixels={self.max_image_pixels} of one image must be at most "
                f"max_request_pixels={self.max_request_pixels} of all."
            )


class TooLarge(Exception):
    """A body has more bytes than allowed."""


async def read_body(receive: Any, max_bytes: int) -> bytes:
    """The body of a request.

    Raises:
        TooLarge: as soon as it is.
    """
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise TooLarge(f"The request is larger than {max_bytes} bytes.")
        if not message.get("more_body", False):
            return bytes(body)


def replayed(body: bytes, receive: Any) -> Any:
    """A `receive` that gives the body that was read, then what comes after it: that the client has gone."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> dict:
        return pending.pop() if pending else await receive()

    return replay


class LimitedRequests:
    """ASGI middleware: refuses bodies that are no JSON, too large or too slow, and requests beyond `max_requests`.

    A request counts from its headers until its last byte is sent or its client is gone, streams included.
    """

    def __init__(self, app: Any, limits: Limits):
        self.app = app
        self.limits = limits
        self._at_work = 0

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        if self._at_work >= self.limits.max_requests:
            await _refuse(
                send, 429, f"The server answers {self.limits.max_requests} requests at a time: try again later."
            )
            return
        self._at_work += 1
        try:
            await self._answer(scope, receive, send)
        finally:
            self._at_work -= 1

    async def _answer(self, scope: dict, receive: Any, send: Any) -> None:
        headers = dict(scope["headers"])
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if kind != b"application/json":
            await _refuse(send, 415, f"A request is application/json, got {kind.decode('latin-1') or 'no type'!r}.")
            return
        announced = headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self.limits.max_request_bytes:
            await _refuse(send, 413, self._too_large())
            return
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                body = await read_body(receive, self.limits.max_request_bytes)
        except TimeoutError:
            await _refuse(send, 408, f"The request was not complete after {self.limits.body_seconds} s.")
            return
        except TooLarge:
            await _refuse(send, 413, self._too_large())
            return
        await self.app(scope, replayed(body, receive), send)

    def _too_large(self) -> str:
        return f"The request is larger than {self.limits.max_request_bytes} bytes: send fewer or smaller images."


def error_body(message: str, status: int) -> dict:
    """An error as OpenAI's API writes it."""
    kind = "rate_limit_error" if status == 429 else "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


async def _refuse(send: Any, status: int, message: str) -> None:
    content = json.dumps(error_body(message, status)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    # What is left of the body is not read, so the connection cannot be used again.
    headers += [(b"connection", b"close"), *([(b"retry-after", b"1")] if status == 429 else [])]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
