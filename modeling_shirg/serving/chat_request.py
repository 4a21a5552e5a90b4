"""The body of a chat request: what it may say, checked field by field, and what that means to `generate`."""

import json
import reprlib
import sys
from typing import Any

from modeling_shirg.generation_config_shirg import ShirgGenerationConfig, overridden_fields

from .limits import Limits

_ROLES = ("system", "user", "assistant")
_FIELDS = (
    "model",
    "messages",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "seed",
    "generation_config",
    "fovea_boxes",
    "user",
    "metadata",
)
# Fields of OpenAI's API that mean nothing here; these values of them ask for nothing either.
_NEUTRAL = {
    "n": 1,
    "top_p": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logprobs": False,
    "store": False,
    "response_format": {"type": "text"},
    "tools": [],
}
# What the field `generation_config` may set; lengths and seeds have fields of their own.
_GENERATION = (
    "block_length",
    "steps",
    "step_ratio",
    "schedule",
    "shift",
    "remasking",
    "prefix_kv",
    "prefix_dtype",
)


def check_fields(body: dict[str, Any]) -> None:
    """Raises a `ValueError` for a field that this server cannot honour."""
    for name, value in body.items():
        if name not in _FIELDS and value is not None and (name not in _NEUTRAL or value != _NEUTRAL[name]):
            raise ValueError(
                f"This server has no use for {reprlib.repr(name)}: leave it out. It takes {', '.join(_FIELDS)}."
            )
    if not isinstance(body.get("stream"), (bool, type(None))):
        raise ValueError(f"stream={reprlib.repr(body['stream'])} must be true or false.")
    seed = body.get("seed")
    if seed is not None and (not _is_number(seed, int) or not 0 <= seed < 2**63):
        raise ValueError(f"seed={reprlib.repr(seed)} must be an integer from 0 to 2**63 - 1.")
    if body.get("temperature") is not None and not _is_number(body["temperature"], (int, float)):
        raise ValueError(f"temperature={reprlib.repr(body['temperature'])} must be a number.")
    boxes = body.get("fovea_boxes")
    if boxes is not None and not (isinstance(boxes, list) and all(map(_is_box, boxes))):
        raise ValueError(
            f"fovea_boxes={reprlib.repr(boxes)} must be one [left, top, right, bottom] or null per image."
        )


def _is_box(box: Any) -> bool:
    return box is None or (
        isinstance(box, list) and len(box) == 4 and all(_is_number(edge, (int, float)) for edge in box)
    )


def _is_number(value: Any, kind: type | tuple[type, ...]) -> bool:
    # An integer of JSON may be too large for a float; NaN is not smaller than anything.
    return isinstance(value, kind) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def checked_messages(body: dict[str, Any], limits: Limits) -> list[dict[str, Any]]:
    """The messages of a request, every one a known role with text and `image_url` parts.

    Raises:
        ValueError: something else is among them, too many images, messages or characters; the message says where.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages must be a list with at least one message.")
    _check_count(len(messages), limits)
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise ValueError(f"messages[{index}] must have a role, one of {', '.join(_ROLES)}.")
        extra = sorted(set(message) - {"role", "content", "name"})
        if extra:
            raise ValueError(f"messages[{index}] may have a role and content, got {reprlib.repr(extra)}.")
        _check_content(message.get("content"), f"messages[{index}].content")
    parts = [part for message in messages for part in _parts(message)]
    _check_count(sum(max(1, len(_parts(message))) for message in messages), limits)
    images = sum(part["type"] == "image_url" for part in parts)
    if images > limits.max_images:
        raise ValueError(f"A request may hold {limits.max_images} images, got {images}.")
    texts = [message["content"] for message in messages if isinstance(message["content"], str)]
    characters = sum(map(len, texts)) + sum(len(part["text"]) for part in parts if part["type"] == "text")
    if characters > limits.max_text_characters:
        raise ValueError(f"A request may hold {limits.max_text_characters} characters of text, got {characters}.")
    return messages


def _check_count(count: int, limits: Limits) -> None:
    if count > limits.max_messages:
        raise ValueError(f"A request may hold {limits.max_messages} messages or parts of messages, got {count}.")


def _check_content(content: Any, where: str) -> None:
    if isinstance(content, str):
        return
    if not isinstance(content, list) or not content:
        raise ValueError(f"{where} must be a string or a list of parts.")
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            continue
        image = part.get("image_url") if kind == "image_url" else None
        if isinstance(image, dict) and isinstance(image.get("url"), str):
            continue
        raise ValueError(
            f"{where}[{index}] must be {{'type': 'text', 'text': ...}} or {{'type': 'image_url', 'image_url': "
            "{'url': ...}}."
        )


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    return message["content"] if isinstance(message["content"], list) else []


def generation_config(
    body: dict[str, Any], defaults: ShirgGenerationConfig, max_new_tokens: int
) -> ShirgGenerationConfig:
    """The generation arguments that a request asks for, on top of the checkpoint's.

    Args:
        body: the request.
        defaults: the checkpoint's.
        max_new_tokens: longest answer that may be asked for.

    Raises:
        ValueError: a value that does not fit, named.
    """
    overrides = _asked(body.get("generation_config"))
    for name in ("max_tokens", "max_completion_tokens"):
        if body.get(name) is not None:
            overrides["max_new_tokens"] = body[name]
    if body.get("temperature") is not None:
        overrides["do_sample"] = body["temperature"] != 0
        overrides["temperature"] = body["temperature"] or None
    config = ShirgGenerationConfig(**overridden_fields(defaults, overrides))
    if config.max_new_tokens > max_new_tokens:
        raise ValueError(f"max_tokens={config.max_new_tokens}: this server's answers have at most {max_new_tokens}.")
    return config


def _asked(written: Any) -> dict[str, Any]:
    """The fields of `generation_config`, which transformers' server takes as a string of JSON."""
    if written is None:
        return {}
    try:
        asked = json.loads(written)
    except (TypeError, ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict) or not set(asked) <= set(_GENERATION) or not all(map(_is_plain, asked.values())):
        raise ValueError(
            f"generation_config must be a string of JSON with numbers, strings or null for {', '.join(_GENERATION)}, "
            f"got {reprlib.repr(written)}."
        )
    return asked


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, bool)) or _is_number(value, (int, float))
