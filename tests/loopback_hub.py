"""A Hugging Face Hub on 127.0.0.1, so that a push and a pull in the tests are real HTTP and never leave the machine.

    with LoopbackHub() as hub:
        run_fresh("from huggingface_hub import HfApi; HfApi().create_repo('tester/toy')", env=hub.env)
        hub.files("tester/toy")

It answers what `huggingface_hub` and `transformers` ask to create, fill, list and download repositories of models:
regular files in the commit itself, large ones through LFS (Xet is switched off in `hub.env`). Everything lives in
memory. Writing, and reading a private repository, needs `hub.token`. Every other route is a 404.
"""

import base64
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

USER = "tester"
LFS_BYTES = 1_000_000
API = "/api/models/{user}/{name}"


@contextmanager
def serving(app) -> Iterator[str]:
    """The address of an ASGI app on a free port of 127.0.0.1."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)


@dataclass(frozen=True)
class Blob:
    """A stored file. Its `etag` is what the Hub uses: the git object id, or the sha256 of a large file."""

    data: bytes
    lfs: bool = False

    @property
    def etag(self) -> str:
        if self.lfs:
            return hashlib.sha256(self.data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()


Tree = dict[str, Blob]


class HubError(Exception):
    """An answer with an error status; `code` travels as `X-Error-Code`, by which the client chooses its exception."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        super().__init__(message)
        headers |= {"X-Error-Message": message, "X-Error-Code": code}
        self.response = JSONResponse({"error": message}, status, headers)


@dataclass
class Repo:
    """Commits by id, each a whole tree, and the branches that name them."""

    id: str
    private: bool = False
    commits: dict[str, Tree] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, tree: Tree) -> str:
        seed = f"{self.id} {len(self.commits)} {sorted((path, blob.etag) for path, blob in tree.items())}"
        oid = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[oid] = tree
        self.branches[branch] = oid
        return oid

    def resolve(self, revision: str) -> str:
        oid = self.branches.get(revision, revision)
        if oid not in self.commits:
            raise HubError(404, f"revision {revision!r} of {self.id} not found", "RevisionNotFound")
        return oid


class LoopbackHub:
    """The server and what it stores.

    `requests` lists every `METHOD path`, in order of arrival. Requests that match the expression of `broken` get an
    error and change nothing, from the match of its number on; the first is 1. A request that matches `held` waits
    until that is `None` again, and then gets an error.
    """

    def __init__(self) -> None:
        self.token = "hf_loopback"
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.broken: tuple[str, int] | None = None
        self.held: str | None = None
        self._lock = threading.Lock()
        self._stack = ExitStack()

    def __enter__(self) -> "LoopbackHub":
        routes = [Route(path, self._endpoint(handler), methods=[method]) for method, path, handler in ROUTES]
        self.endpoint = self._stack.enter_context(serving(_as_models(Starlette(routes=routes))))
        return self

    def __exit__(self, *_: object) -> None:
        self.held = None
        self._stack.close()

    @property
    def env(self) -> dict[str, str]:
        """Environment variables with which a new process talks to this Hub and to nothing else."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": self.token,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def files(self, repo_id: str, *, revision: str = "main") -> dict[str, bytes]:
        """Path to content of every file at a revision, to look at from a test."""
        repo = self.repos[repo_id]
        return {path: blob.data for path, blob in repo.commits[repo.resolve(revision)].items()}

    def _endpoint(self, handler: Callable) -> Callable:
        """A route's endpoint: requests may fail or wait as a test wants, and change the store one at a time."""

        def answer(request: Request, body: bytes) -> Response:
            try:
                self._fail_if_wanted(f"{request.method} {request.url.path}")
                with self._lock:
                    self._check_token(request)
                    found = handler(self, request, body)
                    return found if isinstance(found, Response) else JSONResponse(found)
            except HubError as error:
                return error.response

        async def endpoint(request: Request) -> Response:
            self.requests.append(f"{request.method} {request.url.path}")
            return await run_in_threadpool(answer, request, await request.body())

        return endpoint

    def _fail_if_wanted(self, request: str) -> None:
        while self.held and re.search(self.held, request):
            time.sleep(0.01)
            if not self.held:
                raise HubError(503, "whoever asked is gone")
        if self.broken and re.search(self.broken[0], request):
            self.broken = (self.broken[0], self.broken[1] - 1)
            if self.broken[1] <= 0:
                raise HubError(403, "this part of the Hub is broken")

    def _check_token(self, request: Request) -> None:
        """A private repository is not there for who has no token."""
        repo = self.repos.get("{user}/{name}".format(**{"user": "", "name": "", **request.path_params}))
        hidden = repo is not None and repo.private
        known = request.headers.get("authorization") == f"Bearer {self.token}"
        writes = request.method == "POST" and request.url.path != "/api/validate-yaml"
        if not known and (hidden or writes):
            raise HubError(401, "Invalid credentials in Authorization header", "RepoNotFound" if hidden else "")


def _as_models(app: Starlette) -> Callable:
    """The application, with data sets in the same namespace as models."""

    async def served(scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] == "http":
            path = scope["path"].replace("/api/datasets/", "/api/models/").removeprefix("/datasets")
            scope = {**scope, "path": path}
        await app(scope, receive, send)

    return served


def repo_of(hub: LoopbackHub, request: Request) -> Repo:
    repo_id = "{user}/{name}".format(**request.path_params)
    if repo_id not in hub.repos:
        raise HubError(404, f"no model called {repo_id}", "RepoNotFound")
    return hub.repos[repo_id]


def tree_of(hub: LoopbackHub, request: Request) -> Tree:
    repo = repo_of(hub, request)
    return repo.commits[repo.resolve(request.path_params["rev"])]


def card_data(card: str) -> dict:
    from huggingface_hub import ModelCard  # reads the environment, which conftest.py changes first

    return ModelCard(card, ignore_metadata_errors=False).data.to_dict()


def whoami(hub: LoopbackHub, request: Request, body: bytes) -> dict:
    access = {"displayName": "tests", "role": "write"}
    return {"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": access}}


def create_repo(hub: LoopbackHub, request: Request, body: bytes) -> dict | Response:
    wanted = json.loads(body)
    repo = Repo(f"{wanted.get('organization') or USER}/{wanted['name']}", wanted.get("visibility") == "private")
    url = f"{hub.endpoint}/{repo.id}"
    if repo.id in hub.repos:
        return JSONResponse({"error": "You already created this repo", "url": url}, 409)
    repo.commit("main", {".gitattributes": Blob(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")})
    hub.repos[repo.id] = repo
    return {"url": url, "name": repo.id, "id": repo.id}


def validate_yaml(hub: LoopbackHub, request: Request, body: bytes) -> dict | Response:
    try:
        data = card_data(json.loads(body)["content"])
        if data.get("license") == "other" and "license_name" not in data:
            raise ValueError('"license" other needs "license_name"')
    except ValueError as error:
        return JSONResponse({"errors": [{"message": str(error)}], "warnings": []}, 400)
    return {"errors": [], "warnings": []}


def preupload(hub: LoopbackHub, request: Request, body: bytes) -> dict:
    tree = tree_of(hub, request)

    def mode(file: dict) -> dict:
        large = file["size"] >= LFS_BYTES or b"\0" in base64.b64decode(file["sample"])
        known = {"oid": tree[file["path"]].etag} if file["path"] in tree else {}
        return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, **known}

    return {"files": [mode(file) for file in json.loads(body)["files"]]}


def lfs_batch(hub: LoopbackHub, request: Request, body: bytes) -> dict:
    items = json.loads(body)["objects"]
    for item in items:
        if item["oid"] not in hub.objects:
            item["actions"] = {"upload": {"href": f"{hub.endpoint}/lfs/{item['oid']}"}}
    return {"transfer": "basic", "objects": items}


def lfs_put(hub: LoopbackHub, request: Request, body: bytes) -> Response:
    """Store one object, whose name is its checksum; an upload to the Hub's storage carries no token either."""
    oid = request.path_params["oid"]
    if hashlib.sha256(body).hexdigest() != oid:
        raise HubError(400, f"the sha256 of the object is not {oid}")
    hub.objects[oid] = body
    return Response()


def commit(hub: LoopbackHub, request: Request, body: bytes) -> dict:
    repo, branch = repo_of(hub, request), request.path_params["rev"]
    if branch not in repo.branches:
        raise HubError(404, f"branch {branch!r} of {repo.id} not found", "RevisionNotFound")
    head = repo.branches[branch]
    tree = dict(repo.commits[head])
    for line in map(json.loads, body.splitlines()):
        value = line["value"]
        match line["key"]:
            case "header":
                if value.get("parentCommit") not in (None, "", head):
                    raise HubError(412, f"the parent {value['parentCommit']} is not the head {head}")
            case "file":
                tree[value["path"]] = Blob(base64.b64decode(value["content"]))
            case "lfsFile" if value["oid"] in hub.objects:
                tree[value["path"]] = Blob(hub.objects[value["oid"]], lfs=True)
            case "deletedFile" if value["path"] in tree:
                del tree[value["path"]]
            case key:
                raise HubError(400, f"a commit cannot {key} {value}")
    oid = repo.commit(branch, tree)
    return {"success": True, "commitOid": oid, "commitUrl": f"{hub.endpoint}/{repo.id}/commit/{oid}"}


def create_branch(hub: LoopbackHub, request: Request, body: bytes) -> dict:
    repo, branch = repo_of(hub, request), request.path_params["rev"]
    if branch in repo.branches:
        raise HubError(409, f"branch {branch!r} of {repo.id} exists")
    repo.branches[branch] = repo.resolve(json.loads(body or b"{}").get("startingPoint", "main"))
    return {}


def entries(tree: Tree) -> list[dict]:
    """Every file and folder of a tree, as the Hub lists them."""
    folders = {"/".join(path.split("/")[:depth]) for path in tree for depth in range(1, path.count("/") + 1)}
    found = [{"type": "directory", "path": path, "size": 0, "oid": path} for path in folders]
    for path, blob in tree.items():
        size = len(blob.data)
        large = {"lfs": {"oid": blob.etag, "size": size, "pointerSize": 130}} if blob.lfs else {}
        found.append({"type": "file", "path": path, "size": size, "oid": blob.etag, **large})
    return sorted(found, key=lambda entry: entry["path"])


def list_tree(hub: LoopbackHub, request: Request, body: bytes) -> list[dict]:
    folder = request.path_params.get("path", "")
    inside = [
        entry for entry in entries(tree_of(hub, request)) if not folder or entry["path"].startswith(folder + "/")
    ]
    if folder and not inside:
        raise HubError(404, f"there is no {folder}", "EntryNotFound")
    if request.query_params.get("recursive", "").lower() in ("true", "1"):
        return inside
    depth = folder.count("/") + 1 if folder else 0
    return [entry for entry in inside if entry["path"].count("/") == depth]


def paths_info(hub: LoopbackHub, request: Request, body: bytes) -> list[dict]:
    wanted = parse_qs(body.decode()).get("paths", [])
    return [entry for entry in entries(tree_of(hub, request)) if entry["path"] in wanted]


def resolve(hub: LoopbackHub, request: Request, body: bytes) -> Response:
    """One file at a revision. A missing file still names the commit, so that the client can cache its absence."""
    path, oid = request.path_params["path"], repo_of(hub, request).resolve(request.path_params["rev"])
    headers = {"X-Repo-Commit": oid}
    blob = tree_of(hub, request).get(path)
    if blob is None:
        raise HubError(404, f"{path} is not in commit {oid}", "EntryNotFound", **headers)
    if blob.lfs:
        headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.data))}
    return Response(blob.data, headers={**headers, "ETag": f'"{blob.etag}"'})


def repo_info(hub: LoopbackHub, request: Request, body: bytes) -> dict:
    repo = repo_of(hub, request)
    oid = repo.resolve(request.path_params.get("rev", "main"))
    readme = repo.commits[oid].get("README.md")
    return {
        "id": repo.id,
        "sha": oid,
        "private": repo.private,
        "cardData": card_data(readme.data.decode()) if readme else {},
        "siblings": [{"rfilename": path} for path in sorted(repo.commits[oid])],
    }


def nothing(hub: LoopbackHub, request: Request, body: bytes) -> Response:
    raise HubError(404, f"this Hub has no {request.method} {request.url.path}", "RepoNotFound")


# The first that matches wins.
ROUTES = [
    ("GET", "/api/whoami-v2", whoami),
    ("POST", "/api/repos/create", create_repo),
    ("POST", "/api/validate-yaml", validate_yaml),
    ("POST", API + "/preupload/{rev}", preupload),
    ("POST", "/{user}/{name}.git/info/lfs/objects/batch", lfs_batch),
    ("PUT", "/lfs/{oid}", lfs_put),
    ("POST", API + "/commit/{rev}", commit),
    ("POST", API + "/branch/{rev}", create_branch),
    ("GET", API + "/tree/{rev}", list_tree),
    ("GET", API + "/tree/{rev}/{path:path}", list_tree),
    ("POST", API + "/paths-info/{rev}", paths_info),
    ("GET", "/{user}/{name}/resolve/{rev}/{path:path}", resolve),
    ("GET", API + "/revision/{rev}", repo_info),
    ("GET", API, repo_info),
    *((method, "/{path:path}", nothing) for method in ("GET", "POST", "PUT")),
]
