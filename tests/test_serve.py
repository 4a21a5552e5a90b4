"""`shirg serve`: the official client on a real server, who may ask what, and that nobody gets another's answer."""

import asyncio
import base64
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from io import BytesIO

import httpcore
import httpx
import openai
import pytest
import torch
from PIL import Image, ImageFile
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from loopback_hub import serving
from modeling_shirg.running.ask import ask, conversation
from modeling_shirg.running.load import BUNDLED, Loaded, load
from modeling_shirg.scenes import scene
from modeling_shirg.serving import Limits
from modeling_shirg.serving.chat_request import parse_request
from modeling_shirg.serving.image_fetching import PublicBackend, fetch, is_public
from modeling_shirg.serving.request_bodies import LimitedRequests
from modeling_shirg.serving.request_images import read_images
from modeling_shirg.serving.served_model import ServedLavida
from modeling_shirg.serving.server import build_app

QUESTION = "What is in cell 5?"
LIMITS = Limits(
    max_requests=16,
    max_request_bytes=400_000,
    max_image_bytes=200_000,
    max_image_pixels=10**6,
    max_request_pixels=1_600_000,
)


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load().as_class(ServedLavida)


@pytest.fixture(scope="module")
def address(loaded) -> Iterator[str]:
    with serving(build_app(loaded.model, loaded.processor, BUNDLED, LIMITS)) as found:
        yield found


@pytest.fixture(scope="module")
def client(address) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120)


def _bytes(image: Image.Image, kind: str = "PNG") -> bytes:
    file = BytesIO()
    image.save(file, kind)
    return file.getvalue()


def _data_url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _messages(*images: str, question: str = QUESTION) -> list[dict]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def _read(*args, **kwargs) -> list[Image.Image]:
    return asyncio.run(read_images(*args, **kwargs))


def _fetch(url: str, max_bytes: int, backend: PublicBackend | None = None) -> tuple[str, bytes]:
    return asyncio.run(fetch(url, max_bytes, backend))


def _ask(client: openai.OpenAI, messages: list[dict], **arguments) -> str:
    arguments = {"model": BUNDLED, **arguments}
    if not arguments.get("stream"):
        return client.chat.completions.create(messages=messages, **arguments).choices[0].message.content
    chunks = client.chat.completions.create(messages=messages, **arguments)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def _grids(count: int) -> list[Image.Image]:
    return [scene("entity_grid", "validation", index).image for index in range(count)]


def _alone(loaded: Loaded, image: Image.Image, **arguments) -> str:
    return ask(loaded, [conversation(image, QUESTION)], **arguments).texts[0]


@pytest.fixture(scope="module")
def plain() -> Loaded:
    """A model that never served."""
    return load()


def test_the_official_client_gets_the_answer_of_shirg_ask(client, plain):
    (image,) = _grids(1)
    completion = client.chat.completions.create(model=BUNDLED, messages=_messages(_data_url(_bytes(image))))
    assert completion.choices[0].message.content == _alone(plain, image)
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage.prompt_tokens > 245 and 0 < completion.usage.completion_tokens < 8
    assert [model.id for model in client.models.list()] == [BUNDLED]


def test_a_stream_brings_the_same_text_in_pieces(client):
    messages = _messages(_data_url(_bytes(_grids(1)[0])))
    drawn = {"temperature": 1.5, "seed": 5, "max_tokens": 24}
    chunks = list(client.chat.completions.create(model=BUNDLED, messages=messages, stream=True, **drawn))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert len(pieces) > 3
    assert "".join(pieces) == _ask(client, messages, **drawn)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length") and chunks[-1].usage.completion_tokens <= 24


def test_several_turns_and_several_images_are_answered(client):
    grid, shape = (_data_url(_bytes(scene(family, "validation", 2).image)) for family in ("entity_grid", "guard"))
    turns = [{"role": "system", "content": "Be brief."}, *_messages(grid, shape)]
    turns += [{"role": "assistant", "content": "A"}, {"role": "user", "content": "And in cell 2?"}]
    assert isinstance(_ask(client, turns), str)


def test_a_seed_a_fovea_and_steps_reach_the_model(client, plain):
    image = _grids(3)[2]
    messages = _messages(_data_url(_bytes(image)))
    draws = [_ask(client, messages, temperature=2.0, seed=seed, max_tokens=16) for seed in (1, 1, 2, 3, 4)]
    assert draws[0] == draws[1] and len(set(draws)) > 1
    boxes = [[0.0, 0.0, 40.0, 40.0]]
    looked = _alone(plain, image, image_options={"fovea_boxes": boxes}, steps=2)
    extra = {"fovea_boxes": boxes, "generation_config": '{"steps": 2}'}
    assert _ask(client, messages, extra_body=extra) == looked


def test_under_load_everybody_gets_the_answer_to_his_own_image(client, plain):
    images = _grids(8)
    alone = [_alone(plain, image) for image in images]
    assert len(set(alone)) >= 4
    urls = [_data_url(_bytes(image)) for image in images]

    def answered(number: int) -> tuple[str, str]:
        index = number % len(images)
        return _ask(client, _messages(urls[index]), stream=number % 3 == 0), alone[index]

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(answered, range(32)))
    assert [got for got, _ in answers] == [expected for _, expected in answers]


# What is refused


def _png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG of that size: enough to know the size, nothing to decode."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    length, check = struct.pack(">I", len(chunk) - 4), struct.pack(">I", zlib.crc32(chunk))
    data = b"IDAT" + zlib.compress(b"0")
    return b"\x89PNG\r\n\x1a\n" + length + chunk + check + struct.pack(">I", len(data) - 4) + data + check


SMALL = _bytes(Image.new("RGB", (8, 8), "red"))
BAD_IMAGES = {
    "of another type than it says": (_data_url(SMALL, "image/jpeg"), "image/jpeg"),
    "of a type that is not taken": (_data_url(b"<svg/>", "image/svg+xml"), "An image is one of"),
    "of too many bytes": (_data_url(b"\0" * 200_001), "200000 bytes"),
    "of too many pixels": (_data_url(_png_header(1001, 1000)), "1001x1000"),
    "a decompression bomb": (_data_url(_png_header(60_000, 60_000)), "1000000"),
    "no base64": ("data:image/png;base64,@@@@", "base64"),
    "not in base64": ("data:image/png,abc", "data:"),
    "a file of the server": ("/etc/passwd", "/etc/passwd"),
    "a file URL": ("file:///etc/passwd", "file:"),
    "a URL": ("http://example.com/cat.png", "URLs"),
    "cut short": (_data_url(_bytes(_grids(1)[0])[:500]), "cannot be read"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_an_image_is_refused_with_a_reason_if_it_is(client, name):
    url, reason = BAD_IMAGES[name]
    with pytest.raises(openai.BadRequestError, match=re.escape(reason)):
        _ask(client, _messages(url))


def test_nothing_is_decoded_before_it_is_checked_and_pixels_are_counted_together(monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    half = _data_url(_png_header(1000, 800))
    assert len(_read([half, half], LIMITS)) == 2
    refused = [BAD_IMAGES[name][0] for name in ("of too many pixels", "of another type than it says")]
    for urls, reason in (
        (refused[:1], "1001x1000"),
        (refused[1:], "image/jpeg"),
        ([half] * 3, "1600000 pixels .*2400000"),
    ):
        with pytest.raises(ValueError, match=reason):
            _read(urls, LIMITS)


@pytest.mark.parametrize(
    ("host", "status"), [("127.0.0.1:8000", 200), ("localhost", 200), ("[::1]:8000", 200), ("evil.example", 400)]
)
def test_only_names_of_this_machine_are_answered(address, host, status):
    assert httpx.get(f"{address}/health", headers={"host": host}).status_code == status


@pytest.mark.parametrize("stream", [False, True])
def test_what_only_the_prompt_shows_is_an_error_of_the_request(client, stream):
    with pytest.raises(openai.BadRequestError, match="prefix_kv=0.001 keeps 1 of"):
        _ask(
            client,
            _messages(_data_url(SMALL)),
            extra_body={"generation_config": '{"prefix_kv": 0.001}'},
            stream=stream,
        )


BAD_FIELDS = [
    *({name: value} for name, value in {"top_p": 0.5, "n": 2, "stop": ["x"], "audio": {}, "stream": "yes"}.items()),
    {"tools": [{"type": "function", "function": {"name": "f"}}]},
    *({"temperature": value} for value in (-1, float("nan"), "hot")),
    *({"seed": value} for value in (-1, 2**70, True)),
    *({"max_tokens": value} for value in (0, 257, "5")),
    {"model": "another/model"},
    *({"fovea_boxes": value} for value in ([[1, 2, 3]], [[0, 0, 9, 9]] * 2, 3)),
    *({"generation_config": value} for value in ('{"steps": 0}', '{"output_history": true}', "{", {"steps": 2})),
    *({"messages": value} for value in ([], "hello", [{"role": "tool", "content": "x"}], [{"role": "user"}])),
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:"}]}]},
    {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "x"}}]}]},
    {"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]},
    {"messages": [{"role": "user", "content": "A long question. " * 400}]},
    {"messages": [{"role": "user", "content": "<image> <image>"}]},
]


@pytest.mark.parametrize("fields", BAD_FIELDS, ids=repr)
def test_a_field_that_cannot_be_honoured_is_an_error_that_says_so(address, fields):
    body = json.dumps({"model": BUNDLED, "messages": _messages(_data_url(SMALL)), **fields})
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{address}/v1/chat/completions", content=body, headers=headers, timeout=60)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error" and len(error["message"]) > 15


def _parts(*texts: str) -> list[dict]:
    return [{"role": "user", "content": [{"type": "text", "text": text} for text in texts]}]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"role": "user", "content": "a"}] * 5, "4 messages or parts of messages, got 5"),
        (_parts("a", "b", "c") + _parts("d", "e"), "4 messages or parts of messages, got 5"),
        ([{"role": "user", "content": "a" * 11}], "10 characters of text, got 11"),
        ([{"role": "user", "content": "a" * 5}, *_parts("b" * 4, "cc")], "10 characters of text, got 11"),
        (_messages("data:", "data:", "data:", question="a"), "may hold 2 images, got 3"),
    ],
    ids=("messages", "parts of several messages", "one text", "texts together", "images"),
)
def test_messages_characters_and_images_are_counted(messages, reason):
    limits = Limits(max_messages=4, max_text_characters=10, max_images=2)
    with pytest.raises(ValueError, match=reason):
        parse_request({"model": BUNDLED, "messages": messages}, limits)
    assert parse_request({"model": BUNDLED, "messages": _parts("a" * 4, "b" * 4, "cc")}, limits)


def test_bodies_are_refused_by_size_type_and_form(address):
    url = f"{address}/v1/chat/completions"
    kind = {"content-type": "application/json"}

    def chunks() -> Iterator[bytes]:
        for _ in range(50):
            yield b" " * 10_000

    assert httpx.post(url, content=b" " * 400_001, headers=kind).status_code == 413
    assert httpx.post(url, content=chunks(), headers=kind).status_code == 413
    assert httpx.post(url, content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    for broken in (b"", b"[]", b"{", b"[" * 100_000, b"\xff"):
        answer = httpx.post(url, content=broken, headers=kind)
        assert answer.status_code == 400 and "error" in answer.json(), broken


def test_only_what_answers_is_reachable(address):
    for path in ("load_model", "reset", "v1/responses", "v1/completions", "v1/audio/transcriptions"):
        assert httpx.post(f"{address}/{path}", json={"model": BUNDLED}).status_code == 404
    assert httpx.get(f"{address}/docs").status_code == 404


def test_more_requests_than_allowed_and_slow_bodies_are_sent_away():
    done = threading.Event()

    def app(request: Request) -> Response:
        done.wait(30)
        return Response()

    limited = LimitedRequests(
        Starlette(routes=[Route("/", app, methods=["POST"])]), Limits(max_requests=2, body_seconds=0.5)
    )

    def drip() -> Iterator[bytes]:
        for _ in range(20):
            time.sleep(0.1)
            yield b" "

    def post(address: str, body: bytes | Iterator[bytes] = b"{}") -> int:
        return httpx.post(address, content=body, headers={"content-type": "application/json"}, timeout=60).status_code

    with serving(limited) as address, ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(post, address) for _ in range(3)]
        assert next(as_completed(asked)).result() == 429
        done.set()
        assert sorted(future.result() for future in asked) == [200, 200, 429]
        assert (post(address), post(address, drip())) == (200, 408)


def test_a_client_that_goes_away_ends_the_generation(loaded):
    class Gone:
        puts = 0

        def put(self, value: torch.Tensor) -> None:
            self.puts += 1
            if self.puts > 3:
                raise InterruptedError

    inputs = loaded.processor.apply_chat_template(
        _messages(), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    streamer = Gone()
    with pytest.raises(InterruptedError):
        loaded.model.generate(**inputs, tokenizer=loaded.processor, streamer=streamer, max_new_tokens=64)
    assert streamer.puts == 4


# URLs


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "2002:7f00:1::",
        "64:ff9b::7f00:1", "::ffff:8.8.8.8", "192.0.0.192", "192.0.0.8", "192.0.0.9", "192.88.99.1", "168.63.129.16",
        "198.18.0.1", "203.0.113.1", "240.0.0.1", "64:ff9b::808:808", "64:ff9b:1::a9fe:a9fe", "::127.0.0.1",
        "::8.8.8.8", "::ffff:0:8.8.8.8", "fec0::1", "100::1", "2001:db8::1", "2001::1", "2001:20::1", "2002:808:808::",
        "3fff::1", "5f00::1", "4000::1", "fe80::1%eth0",
    ],
)  # fmt: skip
def test_addresses_of_this_machine_and_its_networks_are_not_public(address):
    assert not is_public(address)


PUBLIC, OTHER = "93.184.216.34", "8.8.8.8"


class _Rerouted(PublicBackend):
    """Resolves names from a table, connects to a server of the test, and remembers the addresses that passed.

    A name resolves to its lists of addresses, one list per look-up; the last list stays.
    """

    def __init__(self, port: int, names: dict[str, list[list[str]]]):
        super().__init__(lambda host, _: names[host].pop(0) if len(names[host]) > 1 else names[host][0])
        self.port = port
        self.connected: list[str] = []

    async def connect_checked(self, address: str, port: int, *args, **kwargs) -> httpcore.AsyncNetworkStream:
        self.connected.append(address)
        return await super().connect_checked("127.0.0.1", self.port, *args, **kwargs)


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[int]:
    """A server with an image, and with redirects to wherever the path says."""

    def answer(request: Request) -> Response:
        path = request.url.path
        if path.startswith("/to/"):
            return Response(status_code=302, headers={"location": path[4:]})
        chunks = [b"\0" * 60_000] * 4 if path == "/large" else [SMALL]  # their sum is in no header
        return StreamingResponse(iter(chunks), 404 if path == "/missing" else 200, media_type="image/png")

    with serving(Starlette(routes=[Route("/{path:path}", answer)])) as address:
        yield int(address.rsplit(":", 1)[1])


@pytest.fixture
def rerouted(monkeypatch):
    """Has `read_images` fetch through a backend of the test."""

    def through(backend: PublicBackend) -> PublicBackend:
        monkeypatch.setattr("modeling_shirg.serving.request_images.fetch", lambda *args: fetch(*args, backend))
        return backend

    return through


def test_an_image_comes_from_a_public_address_also_behind_a_redirect(elsewhere):
    backend = _Rerouted(elsewhere, {"a.example": [[PUBLIC]], "b.example": [[OTHER, PUBLIC]]})
    assert _fetch("http://a.example/image", 10_000, backend) == ("image/png", SMALL)
    assert _fetch("http://a.example/to/http://b.example/image", 10_000, backend) == ("image/png", SMALL)
    assert backend.connected == [PUBLIC, PUBLIC, OTHER]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://private.example/image", "private.example is not a public address"),
        ("http://half.example/image", "half.example is not a public address"),
        ("http://none.example/image", "none.example is not a public address"),
        ("http://a.example/to/http://private.example/image", "private.example is not a public address"),
        ("http://a.example/to/file:///etc/passwd", "must be http"),
        ("http://rebound.example/to/http://rebound.example:81/image", "rebound.example is not a public address"),
        ("http://user:word@a.example/image", "without a user name"),
        ("http://ü.invalid/", "'http://ü.invalid/' must be ASCII"),
        ("http://a.example/ü", "must be ASCII"),
        ("http://a.example/to/http://ü.invalid/", "must be ASCII"),
        ("http://a.example/large", "larger than 100000 bytes"),
        ("http://a.example/missing", "status 404"),
        ("http://a.example/to//to//to//to//to//image", "redirects"),
    ],
)
def test_a_url_is_refused(elsewhere, url, reason):
    names = {
        "a.example": [[PUBLIC]],
        "private.example": [["10.0.0.1"]],
        "half.example": [[PUBLIC, "127.0.0.1"]],
        "none.example": [[]],
        "rebound.example": [[PUBLIC], ["127.0.0.1"]],
    }
    with pytest.raises(ValueError, match=re.escape(reason)):
        _fetch(url, 100_000, _Rerouted(elsewhere, names))


@pytest.mark.parametrize("drip", [b"a", b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n"], ids=["headers", "body"])
def test_a_server_that_sends_a_byte_now_and_then_is_given_up(drip, rerouted):
    stop = threading.Event()

    def trickle(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.sendall(drip)
            while not stop.wait(0.1):
                try:
                    connection.sendall(b"a")
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as listening:
        rerouted(_Rerouted(listening.getsockname()[1], {"a.example": [[PUBLIC]]}))
        thread = threading.Thread(target=trickle, args=(listening,), daemon=True)
        thread.start()
        start = time.monotonic()
        with pytest.raises(ValueError, match="did not come in 1 s"):
            _read(["http://a.example/"], Limits(fetch_seconds=1), allow_urls=True)
        assert time.monotonic() - start < 5
        stop.set()
        thread.join(10)


def test_all_urls_of_a_request_share_its_bytes(elsewhere, rerouted):
    rerouted(_Rerouted(elsewhere, {"a.example": [[PUBLIC]]}))
    limits = Limits(max_request_bytes=2 * len(SMALL) + 5, max_image_bytes=len(SMALL) + 9)
    assert len(_read(["http://a.example/"] * 2, limits, allow_urls=True)) == 2
    with pytest.raises(ValueError, match="larger than 5 bytes"):
        _read(["http://a.example/"] * 3, limits, allow_urls=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0", "2130706433"])
def test_this_machine_is_not_fetched_from(elsewhere, host):
    with pytest.raises(ValueError, match="not a public address|has no address"):
        _read([f"http://{host}:{elsewhere}/image"], LIMITS, allow_urls=True)


# The command


def test_the_command_serves_on_loopback_and_stops_when_told(tmp_path):
    command = [sys.executable, "-m", "shirg_scripts.cli", "serve", "--port", "0", "--max-requests", "2"]
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"running on (http://127\.0\.0\.1:\d+)", log.read_text())):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        client = openai.OpenAI(base_url=f"{found[1]}/v1", api_key="none")
        assert _ask(client, _messages(_data_url(SMALL)))
        process.send_signal(signal.SIGINT)
        assert process.wait(20) is not None
    finally:
        process.kill()
