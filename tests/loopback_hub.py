"""A Hugging Face Hub on 127.0.0.1, so that a push and a pull in the tests are real HTTP and never leave the machine.

    with LoopbackHub() as hub:
        run_fresh("from huggingface_hub import HfApi; HfApi().create_repo('tester/toy')", env=hub.env)
        hub.files("tester/toy")

It speaks what `huggingface_hub` and `transformers` need to create, upload, list and download repositories: regular
files in the commit itself, large ones through LFS (Xet is switched off in `hub.env`). Everything lives in memory.
Reading a public repository needs no token; writing, and reading a private one, needs `hub.token`. What it does not
know it refuses: 404 for a route, 400 for a pull request.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

USER = "tester"
DATE = "2026-01-01T00:00:00.000Z"
REPO = r"(?P<repo>[^/]+(?:/[^/]+)?)"
# Fields of a model card's metadata, and what each value of them must look like.
_METADATA = {
    "license": r"apache-2\.0|mit|other|cc-by-4\.0|cc-by-nc-4\.0|llama3\.1|gemma|openrail|unknown",
    "license_name": r"[a-z0-9._-]+",
    "base_model": r"[\w.-]+/[\w.-]+",
    "base_model_relation": r"adapter|merge|quantized|finetune",
    "datasets": r"[\w.-]+(/[\w.-]+)?",
    "library_name": r"[a-z0-9_-]+",
    "pipeline_tag": r"image-text-to-text",
    "tags": r".+",
}
API = rf"/api/(?P<type>models|datasets|spaces)/{REPO}"
FILE = rf"/(?:(?P<type>datasets|spaces)/)?{REPO}"


@dataclass(frozen=True)
class Blob:
    """A stored file. Its `etag` is what the Hub uses: the git object id, or the sha256 of a large file."""

    data: bytes
    lfs: bool = False

    @property
    def stored(self) -> bytes:
        """What git holds: the file, or the pointer to it."""
        if not self.lfs:
            return self.data
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.etag}\nsize {len(self.data)}\n".encode()

    @property
    def git_oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.stored) + self.stored).hexdigest()

    @property
    def etag(self) -> str:
        return hashlib.sha256(self.data).hexdigest() if self.lfs else self.git_oid


Tree = dict[str, Blob]


@dataclass
class Repo:
    """Commits by id, each a whole tree, and the branches that name them."""

    type: str
    id: str
    private: bool = False
    commits: dict[str, Tree] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, tree: Tree) -> str:
        seed = f"{self.type} {self.id} {len(self.commits)} {sorted((path, blob.etag) for path, blob in tree.items())}"
        oid = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[oid] = tree
        self.branches[branch] = oid
        return oid

    def resolve(self, revision: str) -> str:
        oid = self.branches.get(revision, revision)
        if oid not in self.commits:
            raise HubError(404, f"revision {revision!r} of {self.id} not found", "RevisionNotFound")
        return oid


class HubError(Exception):
    """An answer with an error status; `code` travels as `X-Error-Code`, by which the client chooses its exception."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass
class Request:
    """One request: `args` are the parts of the path, `query` values are lists."""

    method: str
    args: dict[str, str]
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["false"])[0].lower() in ("true", "1")


@dataclass
class Response:
    """An answer; `body` of a HEAD request is counted in `Content-Length` and not sent."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def answer_json(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value).encode(), status, {"Content-Type": "application/json"})


Route = Callable[["LoopbackHub", Request], Response]
ROUTES: list[tuple[str, re.Pattern[str], Route]] = []


def route(method: str, pattern: str) -> Callable[[Route], Route]:
    """Register a handler. The first pattern that matches the whole path wins, so order below matters."""

    def register(handler: Route) -> Route:
        ROUTES.append((method, re.compile(pattern), handler))
        return handler

    return register


class LoopbackHub:
    """The server and what it stores.

    `requests` lists every `METHOD path`, in order of arrival. Requests that match the expression of `broken` get an
    error and change nothing, from the match of its number on; the first is 1. A request that matches `held` waits
    until that is `None` again, and then gets an error.
    """

    def __init__(self, *, lfs_bytes: int = 1_000_000) -> None:
        """Files of at least `lfs_bytes`, and any that hold a zero byte, are asked for through LFS."""
        self.lfs_bytes = lfs_bytes
        self.token = "hf_loopback"
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.broken: tuple[str, int] | None = None
        self.held: str | None = None
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> "LoopbackHub":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

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

    def files(self, repo_id: str, *, revision: str = "main", repo_type: str = "model") -> dict[str, bytes]:
        """Path to content of every file at a revision, to look at from a test."""
        repo = self.repo({"type": f"{repo_type}s", "repo": repo_id})
        return {path: blob.data for path, blob in repo.commits[repo.resolve(revision)].items()}

    def repo(self, args: dict[str, str]) -> Repo:
        key = (args["type"] or "models", args["repo"])
        if key not in self.repos:
            raise HubError(404, f"no {key[0][:-1]} called {key[1]}", "RepoNotFound")
        return self.repos[key]

    def check_token(self, request: Request) -> None:
        if request.headers.get("authorization") != f"Bearer {self.token}":
            raise HubError(401, "Invalid credentials in Authorization header")

    def fail_if_broken(self, request: str) -> None:
        """Requests that match `held` wait; those that match `broken` fail from the match of its number on."""
        while self.held and re.search(self.held, request):
            time.sleep(0.01)
            if not self.held:
                raise HubError(503, "whoever asked is gone")
        if self.broken and re.search(self.broken[0], request):
            self.broken = (self.broken[0], self.broken[1] - 1)
            if self.broken[1] <= 0:
                raise HubError(403, "this part of the Hub is broken")

    def check_readable(self, request: Request) -> None:
        """A private repository is not there for who has no token."""
        if "repo" in request.args and self.repo(request.args).private:
            try:
                self.check_token(request)
            except HubError as error:
                raise HubError(401, str(error), "RepoNotFound") from None

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Response:
        """Find the route for a request and run it; one request at a time sees the stored state."""
        url = urlsplit(target)
        self.requests.append(f"{method} {target}")
        self.fail_if_broken(f"{method} {target}")
        with self.lock:
            for wanted, pattern, handler in ROUTES:
                found = pattern.fullmatch(url.path) if wanted == method else None
                if found:
                    args = {name: unquote(value or "") for name, value in found.groupdict().items()}
                    request = Request(method, args, parse_qs(url.query), headers, body)
                    self.check_readable(request)
                    return handler(self, request)
        raise HubError(404, f"this Hub has no {method} {url.path}")


class _Handler(BaseHTTPRequestHandler):
    """HTTP in, `LoopbackHub.answer`, HTTP out."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def handle_request(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self._read_body()
        try:
            response = self.hub.answer(self.command, self.path, headers, body)
        except HubError as error:
            response = answer_json({"error": str(error)}, error.status)
            response.headers["X-Error-Message"] = str(error)
            if error.code:
                response.headers["X-Error-Code"] = error.code
        self._send(response)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, response: Response) -> None:
        self.send_response(response.status, HTTPStatus(response.status).phrase)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: `LoopbackHub.requests` is the log."""


# Accounts and repositories


@route("GET", "/api/whoami-v2")
def whoami(hub: LoopbackHub, request: Request) -> Response:
    hub.check_token(request)
    access = {"displayName": "tests", "role": "write"}
    return answer_json({"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": access}})


@route("POST", "/api/repos/create")
def create_repo(hub: LoopbackHub, request: Request) -> Response:
    hub.check_token(request)
    wanted = request.json
    name = f"{wanted.get('organization') or USER}/{wanted['name']}"
    repo = Repo(f"{wanted.get('type') or 'model'}s", name, private=wanted.get("visibility") == "private")
    url = f"{hub.endpoint}/{'' if repo.type == 'models' else repo.type + '/'}{repo.id}"
    if (repo.type, repo.id) in hub.repos:
        return answer_json({"error": "You already created this repo", "url": url}, 409)
    repo.commit("main", {".gitattributes": Blob(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")})
    hub.repos[repo.type, repo.id] = repo
    return answer_json({"url": url, "name": repo.id, "id": repo.id})


@route("POST", "/api/validate-yaml")
def validate_yaml(hub: LoopbackHub, request: Request) -> Response:
    """The parts of the Hub's own schema that cards here can get wrong."""
    errors = [{"message": error} for error in metadata_errors(metadata_of(request.json["content"]))]
    return answer_json({"errors": errors, "warnings": []}, 400 if errors else 200)


def metadata_of(card: str) -> Any:
    """What stands between the first two lines of three dashes."""
    found = re.match(r"---\s*\n(.*?)\n---\s*\n", card, flags=re.DOTALL)
    return yaml.safe_load(found[1]) or {} if found else {}


def metadata_errors(metadata: dict) -> list[str]:
    """What the Hub would refuse in a model card's metadata."""
    errors = []
    for name, pattern in _METADATA.items():
        values = metadata.get(name, [])
        for value in values if isinstance(values, list) else [values]:
            if not isinstance(value, str) or not re.fullmatch(pattern, value):
                errors.append(f'"{name}" must match {pattern}, got {value!r}')
    for name, needed in (("license", "license_name"), ("base_model_relation", "base_model")):
        if metadata.get(name) and (name != "license" or metadata[name] == "other") and needed not in metadata:
            errors.append(f'"{name}" needs "{needed}"')
    for index in metadata.get("model-index", []):
        for result in index["results"]:
            numbers = [metric.get("value") for metric in result["metrics"]]
            whole = {"task", "dataset"} <= result.keys() and {"name", "type"} <= result["dataset"].keys()
            if not whole or not index.get("name") or not all(isinstance(n, (int, float, str)) for n in numbers):
                errors.append(f'"model-index" lacks a name, a task, a data set or a value: {result}')
    return errors


# Upload


@route("POST", rf"{API}/preupload/(?P<rev>[^/]+)")
def preupload(hub: LoopbackHub, request: Request) -> Response:
    hub.check_token(request)
    repo = hub.repo(request.args)
    tree = repo.commits[repo.resolve(request.args["rev"])]

    def mode(file: dict[str, Any]) -> dict[str, Any]:
        large = file["size"] >= hub.lfs_bytes or b"\0" in base64.b64decode(file["sample"])
        known = {"oid": tree[file["path"]].etag} if file["path"] in tree else {}
        return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, **known}

    return answer_json({"files": [mode(file) for file in request.json["files"]]})


@route("POST", rf"{FILE}\.git/info/lfs/objects/batch")
def lfs_batch(hub: LoopbackHub, request: Request) -> Response:
    hub.check_token(request)
    hub.repo(request.args)

    def ask_for(item: dict[str, Any]) -> dict[str, Any]:
        if item["oid"] in hub.objects:
            return {"oid": item["oid"], "size": item["size"]}
        return {**item, "actions": {"upload": {"href": f"{hub.endpoint}/lfs/{item['oid']}"}}}

    return answer_json({"transfer": "basic", "objects": [ask_for(item) for item in request.json["objects"]]})


@route("PUT", "/lfs/(?P<oid>[0-9a-f]{64})")
def lfs_put(hub: LoopbackHub, request: Request) -> Response:
    """Store one object, whose name is its checksum; an upload to the Hub's storage carries no token either."""
    if hashlib.sha256(request.body).hexdigest() != request.args["oid"]:
        raise HubError(400, f"the sha256 of the object is not {request.args['oid']}")
    hub.objects[request.args["oid"]] = request.body
    return Response()


@route("POST", rf"{API}/commit/(?P<rev>[^/]+)")
def commit(hub: LoopbackHub, request: Request) -> Response:
    hub.check_token(request)
    if request.flag("create_pr"):
        raise HubError(400, "this Hub has no pull requests: push to a branch")
    repo = hub.repo(request.args)
    branch = request.args["rev"]
    if branch not in repo.branches:
        raise HubError(404, f"branch {branch!r} of {repo.id} not found", "RevisionNotFound")
    tree = dict(repo.commits[repo.branches[branch]])
    for line in request.body.splitlines():
        _apply(hub, repo, branch, tree, json.loads(line))
    oid = repo.commit(branch, tree)
    return answer_json({"success": True, "commitOid": oid, "commitUrl": f"{hub.endpoint}/{repo.id}/commit/{oid}"})


def _apply(hub: LoopbackHub, repo: Repo, branch: str, tree: Tree, operation: dict[str, Any]) -> None:
    """Apply one line of a commit to a tree, in place."""
    key, value = operation["key"], operation["value"]
    if key == "header":
        parent = value.get("parentCommit")
        if parent and parent != repo.branches[branch]:
            raise HubError(412, f"the parent {parent} is not the head {repo.branches[branch]}")
    elif key == "file":
        tree[value["path"]] = Blob(base64.b64decode(value["content"]))
    elif key == "lfsFile":
        if value["oid"] not in hub.objects:
            raise HubError(400, f"{value['path']} names the object {value['oid']}, which was not uploaded")
        tree[value["path"]] = Blob(hub.objects[value["oid"]], lfs=True)
    elif key == "deletedFile" and value["path"] in tree:
        del tree[value["path"]]
    else:
        raise HubError(400, f"a commit cannot {key} {value}")


# Branches


@route("POST", rf"{API}/branch/(?P<name>[^/]+)")
def create_branch(hub: LoopbackHub, request: Request) -> Response:
    hub.check_token(request)
    repo, name = hub.repo(request.args), request.args["name"]
    if name in repo.branches:
        raise HubError(409, f"branch {name!r} of {repo.id} exists")
    repo.branches[name] = repo.resolve(request.json.get("startingPoint", "main"))
    return answer_json({})


# Listing and download


@route("GET", rf"{API}/tree/(?P<rev>[^/]+)(?:/(?P<path>.+))?")
def list_tree(hub: LoopbackHub, request: Request) -> Response:
    repo = hub.repo(request.args)
    tree, folder = repo.commits[repo.resolve(request.args["rev"])], request.args["path"].strip("/")
    inside = [entry for entry in _entries(tree) if not folder or entry["path"].startswith(folder + "/")]
    if folder and not inside:
        raise HubError(404, f"{folder} is not in {repo.id}", "EntryNotFound")
    if not request.flag("recursive"):
        depth = folder.count("/") + 1 if folder else 0
        inside = [entry for entry in inside if entry["path"].count("/") == depth]
    return answer_json(inside)


@route("POST", rf"{API}/paths-info/(?P<rev>[^/]+)")
def paths_info(hub: LoopbackHub, request: Request) -> Response:
    repo = hub.repo(request.args)
    wanted = [path.strip("/") for path in parse_qs(request.body.decode()).get("paths", [])]
    entries = _entries(repo.commits[repo.resolve(request.args["rev"])])
    return answer_json([entry for entry in entries if entry["path"] in wanted])


def _entries(tree: Tree) -> list[dict[str, Any]]:
    """Every file and folder of a tree, as the Hub lists them."""
    folders = {"/".join(path.split("/")[:depth]) for path in tree for depth in range(1, path.count("/") + 1)}
    entries: list[dict[str, Any]] = [{"type": "directory", "path": path, "size": 0, "oid": path} for path in folders]
    for path, blob in tree.items():
        entry = {"type": "file", "path": path, "size": len(blob.data), "oid": blob.git_oid}
        large = {"oid": blob.etag, "size": len(blob.data), "pointerSize": len(blob.stored)}
        entries.append({**entry, "lfs": large} if blob.lfs else entry)
    return sorted(entries, key=lambda entry: entry["path"])


@route("HEAD", rf"{FILE}/resolve/(?P<rev>[^/]+)/(?P<path>.+)")
@route("GET", rf"{FILE}/resolve/(?P<rev>[^/]+)/(?P<path>.+)")
def resolve(hub: LoopbackHub, request: Request) -> Response:
    """One file at a revision. A missing file still names the commit, so that the client can cache its absence."""
    repo = hub.repo(request.args)
    oid = repo.resolve(request.args["rev"])
    headers = {"X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
    blob = repo.commits[oid].get(request.args["path"])
    if blob is None:
        missing = f"{request.args['path']} is not in {repo.id} at {oid}"
        return Response(
            missing.encode(), 404, {**headers, "X-Error-Code": "EntryNotFound", "X-Error-Message": missing}
        )
    headers["ETag"] = f'"{blob.etag}"'
    if blob.lfs:
        headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.data))}
    return _part_of(blob.data, headers, request.headers.get("range"))


def _part_of(data: bytes, headers: dict[str, str], wanted: str | None) -> Response:
    """The whole body, or the one range that was asked for."""
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
    if not asked:
        return Response(data, 200, headers)
    start, stop = int(asked[1]), min(int(asked[2] or len(data) - 1) + 1, len(data))
    return Response(data[start:stop], 206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})


@route("GET", rf"{API}/revision/(?P<rev>[^/]+)")
@route("GET", API)
def repo_info(hub: LoopbackHub, request: Request) -> Response:
    repo = hub.repo(request.args)
    oid = repo.resolve(request.args.get("rev", "main"))
    readme = repo.commits[oid].get("README.md")
    facts = {
        "id": repo.id,
        "sha": oid,
        "createdAt": DATE,
        "lastModified": DATE,
        "private": repo.private,
        "cardData": metadata_of(readme.data.decode()) if readme else {},
        "siblings": [{"rfilename": path} for path in sorted(repo.commits[oid])],
    }
    return answer_json(facts)
