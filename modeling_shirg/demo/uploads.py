"""What a request to the page may name as a file: what was uploaded to it, and no address to fetch."""

import json
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from modeling_shirg.serving.limits import TooLarge, read_body, replayed


class UploadedFilesOnly:
    """ASGI middleware: refuses JSON that names a file which was not uploaded, and takes URLs out of the rest.

    Gradio takes `{"path": "http://..."}` for any input of any endpoint, and fetches it. Uploads themselves are
    multipart forms, which name nothing. The page sends the address of an upload along, which nothing here needs. The
    folder of an upload has the hash of its content as name, so that who has not the file cannot name it.

    Args:
        app: gradio's.
        folder: where gradio puts uploads.
        max_bytes: of a request that is no upload.
    """

    def __init__(self, app: Any, folder: Path, max_bytes: int):
        self.app = app
        self.folder = folder.resolve()
        self.max_bytes = max_bytes

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS") or _is_form(scope):
            await self.app(scope, receive, send)
            return
        try:
            body = await read_body(receive, self.max_bytes)
            body = self._checked(body)
        except (TooLarge, ValueError) as error:
            status = 413 if isinstance(error, TooLarge) else 400
            await JSONResponse({"detail": str(error)}, status)(scope, receive, send)
            return
        await self.app(scope, replayed(body, receive), send)

    def _checked(self, body: bytes) -> bytes:
        """The same body without the URLs of its files."""
        if not body:
            return body
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            raise ValueError("The body of a request is JSON.") from None
        pending = [content]
        while pending:
            value = pending.pop()
            if isinstance(value, dict):
                self._without_url(value)
                pending += value.values()
            elif isinstance(value, list):
                pending += value
        return json.dumps(content).encode()

    def _without_url(self, value: dict[str, Any]) -> None:
        """Takes the URL out of a file; a `ValueError` if its path is not that of an upload."""
        path, url = value.get("path"), value.pop("url", None)
        if path is None and url is None:
            return
        if not self._is_upload(path):
            raise ValueError("A file is one that was uploaded to this page: no other path, and no URL, is read.")

    def _is_upload(self, path: Any) -> bool:
        # A null character, which no path has, is a ValueError of `resolve`.
        if not isinstance(path, str) or "\0" in path or "://" in path:
            return False
        return Path(path).resolve().is_relative_to(self.folder)


def _is_form(scope: dict) -> bool:
    return Headers(scope=scope).get("content-type", "").startswith("multipart/form-data")
