"""Files that a request to the page may name: uploads to it, and no address to fetch."""

import json
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from modeling_shirg.serving.request_bodies import TooLarge, read_body, replayed


class UploadedFilesOnly:
    """ASGI middleware: refuses JSON that names a file outside the uploads' `folder`, and takes URLs out of the rest.

    Gradio takes `{"path": "http://..."}` for any input of any endpoint, and fetches it. Uploads themselves are
    multipart forms, which name nothing. Other bodies have at most `max_bytes`.
    """

    def __init__(self, app: Any, folder: Path, max_bytes: int):
        self.app, self.folder, self.max_bytes = app, folder.resolve(), max_bytes

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        is_form = Headers(scope=scope).get("content-type", "").startswith("multipart/form-data")
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS") and not is_form:
            try:
                body = await read_body(receive, self.max_bytes)
                receive = replayed(body and json.dumps(self._checked(json.loads(body))).encode(), receive)
            except (TooLarge, ValueError, RecursionError) as error:
                status = 413 if isinstance(error, TooLarge) else 400
                await JSONResponse({"detail": str(error)}, status)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _checked(self, content: Any) -> Any:
        """The same content without the URLs of its files; a `ValueError` for a path that is not an upload's."""
        if isinstance(content, list):
            return [self._checked(value) for value in content]
        if not isinstance(content, dict):
            return content
        path = content.get("path")
        usable = isinstance(path, str) and "\0" not in path and "://" not in path
        uploaded = usable and Path(path).resolve().is_relative_to(self.folder)
        if (path is not None or content.get("url") is not None) and not uploaded:
            raise ValueError("A file is one that was uploaded to this page: no other path, and no URL, is read.")
        return {name: self._checked(value) for name, value in content.items() if name != "url"}
