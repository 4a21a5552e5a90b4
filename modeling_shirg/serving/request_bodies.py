"""Bodies of requests: read within limits before a parser sees them, and counted while they are answered."""

import asyncio
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from .request_limits import Limits


class TooLarge(Exception):
    """A body has more bytes than allowed."""


async def read_body(receive: Any, max_bytes: int) -> bytes:
    """The body of a request; `TooLarge` as soon as more than `max_bytes` have come."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise TooLarge(f"The request is larger than {max_bytes} bytes: send fewer or smaller images.")
        if not message.get("more_body", False):
            return bytes(body)


def replayed(body: bytes, receive: Any) -> Any:
    """A `receive` that gives the body again, then later messages, such as the client's disconnection."""
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
            text = f"The server answers {self.limits.max_requests} requests at a time: try again later."
            await _refusal(429, text, {"retry-after": "1"})(scope, receive, send)
            return
        self._at_work += 1
        try:
            refusal, body = await self._read(Headers(scope=scope), receive)
            await (refusal or self.app)(scope, replayed(body, receive), send)
        finally:
            self._at_work -= 1

    async def _read(self, headers: Headers, receive: Any) -> tuple[JSONResponse | None, bytes]:
        """A refusal or `None`, and the body."""
        limits = self.limits
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        if kind != "application/json":
            return _refusal(415, f"A request is application/json, got {kind or 'no type'!r}."), b""
        try:
            async with asyncio.timeout(limits.body_seconds):
                return None, await read_body(receive, limits.max_request_bytes)
        except TimeoutError:
            return _refusal(408, f"The request was not complete after {limits.body_seconds} s."), b""
        except TooLarge as error:
            return _refusal(413, str(error)), b""


def error_body(message: str, status: int) -> dict:
    """An error as OpenAI's API writes it."""
    kind = "rate_limit_error" if status == 429 else "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


def _refusal(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    # The rest of the body is not read, so the connection cannot be used again.
    return JSONResponse(error_body(message, status), status, {"connection": "close", **(headers or {})})
