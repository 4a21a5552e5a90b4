"""Bad and odd requests to `shirg serve`, handed to the application itself."""

import base64
import json
from functools import cache
from typing import Any

from modeling_shirg.serving import Limits
from modeling_shirg.serving.served_model import ServedLavida
from modeling_shirg.serving.server import build_app
from shirg_scripts.loading import BUNDLED, load

from .case import Case, picture, refused
from .images import png_of_size, written

KIND = "request"
_LIMITS = Limits(max_request_bytes=400_000, max_image_bytes=200_000, max_image_pixels=10**6, max_images=2)


class RequestError(Exception):
    """A request was refused with a status from 400 to 499; the message is the answer's."""


@cache
def client():
    """A client of the application, without a network."""
    from starlette.testclient import TestClient

    loaded = load(model_class=ServedLavida, device="cpu")
    app = build_app(loaded.model, loaded.processor, BUNDLED, _LIMITS)
    return TestClient(app, base_url="http://localhost", raise_server_exceptions=True)


def post(body: Any, kind: str = "application/json") -> str:
    """The text of the answer."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client().post("/v1/chat/completions", content=content, headers={"content-type": kind})
    if 400 <= answer.status_code < 500:
        raise RequestError(f"{answer.status_code}: {answer.json()['error']['message']}")
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def body(url: str | None = None, **fields: Any) -> dict[str, Any]:
    """A request with one image."""
    url = (
        f"data:image/png;base64,{base64.b64encode(written('PNG', picture().resize((90, 80)))).decode()}"
        if url is None
        else url
    )
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Which?"}]
    return {"model": BUNDLED, "messages": [{"role": "user", "content": content}], "max_tokens": 4, **fields}


def _data(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _bad(name: str, says: str, request: Any, **options: Any) -> Case:
    return refused(
        KIND, name, lambda: post(request() if callable(request) else request, **options), RequestError, says
    )


IMAGES = [
    _bad(
        "a path", "400: An image is data:image/png;base64,... or a URL, got '/etc/passwd'", lambda: body("/etc/passwd")
    ),
    _bad("a file URL", "400: An image is data:", lambda: body("file:///etc/passwd")),
    _bad("a URL", "400: This server fetches no URLs", lambda: body("http://127.0.0.1/a.png")),
    _bad("a URL in capitals", "400: This server fetches no URLs", lambda: body("HTTP://127.0.0.1/a.png")),
    _bad("an ftp URL", "400: An image is data:", lambda: body("ftp://localhost/a.png")),
    _bad("an empty URL", "400: An image is data:", lambda: body("")),
    _bad("no base64", "400: The image is no base64", lambda: body("data:image/png;base64,%%%")),
    _bad(
        "a data URL without a comma",
        "400: A data: URL is data:image/png;base64",
        lambda: body("data:image/png;base64"),
    ),
    _bad("text as a PNG", "400: This is no image/png file that can be read", lambda: body(_data(b"hello"))),
    _bad("an SVG", "400: An image is one of image/png", lambda: body(_data(b"<svg/>", "image/svg+xml"))),
    _bad("a TIFF that says PNG", "400: This is no image/png file", lambda: body(_data(written("TIFF")[:9000]))),
    _bad(
        "a PNG of 4 gigapixels",
        "400: The image has too many pixels",
        lambda: body(_data(png_of_size(65_000, 65_000))),
    ),
    _bad(
        "a PNG over the limit",
        "400: The image has 2000x2000 pixels; 1000000",
        lambda: body(_data(png_of_size(2000, 2000))),
    ),
    _bad("a cut PNG", "400: Image 0 .*cannot be read", lambda: body(_data(written("PNG")[:5000]))),
    _bad("too many bytes", "400: The image is larger than 200000 bytes", lambda: body(_data(bytes(250_000)))),
]

BODIES = [
    _bad("no JSON", "4(00|22): ", b"Which?"),
    _bad("an empty body", "4(00|22): ", b""),
    _bad("a list", "4(00|22): The body of a request is one JSON object", b"[]"),
    _bad(
        "another media type", "415: A request is application/json, got 'text/plain'", lambda: body(), kind="text/plain"
    ),
    _bad("too many bytes in all", "413: The request is larger than 400000 bytes", b"[" + b" " * 500_000 + b"]"),
    _bad("deeply nested", "4(00|22): ", b"[" * 100_000),
    _bad(
        "a cache that keeps nothing",
        "400: prefix_kv=1e-300 keeps 0 of the",
        lambda: body(generation_config='{"prefix_kv": 1e-300}'),
    ),
    _bad("another model", "400|404", lambda: body(model="gpt-4o")),
    _bad("no messages", "400: messages must be a list with at least one", lambda: body(messages=[])),
    _bad("messages that are a string", "400: messages must be a list", lambda: body(messages="Which?")),
    _bad(
        "a role that is not known",
        r"400: messages\[0\] must have a role",
        lambda: body(messages=[{"role": "robot", "content": ""}]),
    ),
    _bad(
        "content that is a number",
        r"400: messages\[0\].content must be a string or a list",
        lambda: body(messages=[{"role": "user", "content": 3}]),
    ),
    _bad(
        "a part of another type",
        r"content\[0\] must be .*'type': 'text'",
        lambda: body(messages=[{"role": "user", "content": [{"type": "input_audio"}]}]),
    ),
    _bad(
        "a placeholder in the text",
        "400: .*<image> tokens",
        lambda: body(messages=[{"role": "user", "content": "<image>"}]),
    ),
    _bad("a lone surrogate", "4(00|22): ", lambda: body(messages=[{"role": "user", "content": "a\ud800"}])),
    _bad("too many images", "400: A request may hold 2 images, got 3", lambda: body(messages=body()["messages"] * 3)),
    _bad(
        "a text that is too long",
        "400: A request may hold 100000 characters of text, got 300000",
        lambda: body(messages=[{"role": "user", "content": "a " * 150_000}]),
    ),
    _bad(
        "too many messages",
        "400: A request may hold 1000 messages or parts of messages, got 2000",
        lambda: body(messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 1000),
    ),
    _bad("tools", "400: This server has no use for 'tools'", lambda: body(tools=[{"type": "function"}])),
    _bad("an unknown field", "400: This server has no use for 'temprature'", lambda: body(temprature=1)),
    *[
        _bad(
            f"max_tokens={value!r}",
            f"400: max_new_tokens={value!r} must be an int > 0",
            lambda v=value: body(max_tokens=v),
        )
        for value in (0, -1, "4", 1.5, True)
    ],
    _bad(
        "an answer that is too long",
        "400: max_tokens=100000: this server's answers have at most 256",
        lambda: body(max_tokens=100_000),
    ),
    *[
        _bad(f"temperature={value!r}", "400: temperature=", lambda v=value: body(temperature=v))
        for value in (-1, "hot", True)
    ],
    *[
        _bad(f"seed={value!r}", "400: seed=.* must be an integer", lambda v=value: body(seed=v))
        for value in (-1, 1.5, 2**63)
    ],
    _bad("stream=3", "400: stream=3 must be true or false", lambda: body(stream=3)),
    _bad("a box of three", "400: fovea_boxes=", lambda: body(fovea_boxes=[[1, 2, 3]])),
    *[
        _bad(f"a box edge with {name}", "400: fovea_boxes=", lambda v=value: body(fovea_boxes=[[0, 0, v, 5]]))
        for name, value in (("400 digits", 10**400), ("NaN", float("nan")), ("infinity", float("inf")))
    ],
    _bad("a temperature of 400 digits", "400: temperature=", lambda: body(temperature=10**400)),
    _bad("a seed of 400 digits", "400: seed=.* must be an integer", lambda: body(seed=10**400)),
    _bad("a box upside down", r"400: fovea_boxes\[0\]", lambda: body(fovea_boxes=[[9, 9, 1, 1]])),
    _bad(
        "a generation config that is no JSON",
        "400: generation_config must be a string of JSON",
        lambda: body(generation_config="{"),
    ),
    *[
        _bad(
            f"a generation config of {name}",
            "^400: generation_config must be a string of JSON.{1,400}$",
            lambda v=value: body(generation_config=v),
        )
        for name, value in (
            ("open brackets", "[" * 100_000),
            ("objects in objects", '{"steps":' * 900 + "1" + "}" * 900),
            ("a number of 400 digits", f'{{"shift": 1{"0" * 400}}}'),
            ("infinity", '{"steps": 1e999}'),
        )
    ],
    _bad(
        "a generation argument that is not allowed",
        "400: generation_config must be",
        lambda: body(generation_config='{"output_history": true}'),
    ),
    _bad("steps that do not fit", "400: steps=-1 must be an int > 0", lambda: body(generation_config='{"steps": -1}')),
]

ODD = [
    Case(
        KIND,
        "null is the default",
        lambda folder: lambda: post(body(seed=None, stream=None, fovea_boxes=None, temperature=None)),
        same_as=lambda: post(body()),
    ),
    Case(KIND, "temperature 0", lambda folder: lambda: post(body(temperature=0)), same_as=lambda: post(body())),
    Case(
        KIND,
        "fields that ask for nothing",
        lambda folder: lambda: post(body(n=1, top_p=1, tools=[])),
        same_as=lambda: post(body()),
    ),
    Case(KIND, "after all the bad ones", lambda folder: lambda: post(body(seed=3)), same_as=lambda: post(body())),
]

CASES = [*IMAGES, *BODIES, *ODD]
