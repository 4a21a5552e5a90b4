"""The body of a chat request: what it may say, checked field by field, and what that means to `generate`."""

import json
import math
from typing import Any

from modeling_shirg.generation_config_shirg import ShirgGenerationConfig

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
            raise ValueError(f"This server has no use for {name!r}: leave it out. It takes {', '.join(_FIELDS)}.")
    if not isinstance(body.get("stream"), (bool, type(None))):
        raise ValueError(f"stream={body['stream']!r} must be true or false.")
    seed = body.get("seed")
    if seed is not None and (not _is_number(seed, int) or not 0 <= seed < 2**63):
        raise ValueError(f"seed={seed!r} must be an integer from 0 to 2**63 - 1.")
    if body.get("temperature") is not None and not _is_number(body["temperature"], (int, float)):
        raise ValueError(f"temperature={body['temperature']!r} must be a number.")
    boxes = body.get("fovea_boxes")
    if boxes is not None and not (isinstance(boxes, list) and all(map(_is_box, boxes))):
        raise ValueError(f"fovea_boxes={boxes!r} must be one [left, top, right, bottom] or null per image.")


def _is_box(box: Any) -> bool:
    return box is None or (
        isinstance(box, list) and len(box) == 4 and all(_is_number(edge, (int, float)) for edge in box)
    )


def _is_number(value: Any, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)


def checked_messages(body: dict[str, Any], max_images: int) -> list[dict[str, Any]]:
    """The messages of a request, every one a known role with text and `image_url` parts.

    Raises:
        ValueError: something else is among them, or too many images; the message says where.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages must be a list with at least one message.")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise ValueError(f"messages[{index}] must have a role, one of {', '.join(_ROLES)}.")
        extra = sorted(set(message) - {"role", "content", "name"})
        if extra:
            raise ValueError(f"messages[{index}] may have a role and content, got {', '.join(extra)}.")
        _check_content(message.get("content"), f"messages[{index}].content")
    count = sum(part["type"] == "image_url" for message in messages for part in _parts(message))
    if count > max_images:
        raise ValueError(f"A request may hold {max_images} images, got {count}.")
    return messages


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
    fields = defaults.to_diff_dict() | _asked(body.get("generation_config"))
    for name in ("max_tokens", "max_completion_tokens"):
        if body.get(name) is not None:
            fields["max_new_tokens"] = body[name]
    if body.get("temperature") is not None:
        fields["do_sample"] = body["temperature"] != 0
        fields["temperature"] = body["temperature"] or None
    config = ShirgGenerationConfig(**fields)
    if config.max_new_tokens > max_new_tokens:
        raise ValueError(f"max_tokens={config.max_new_tokens}: this server's answers have at most {max_new_tokens}.")
    return config


def _asked(written: Any) -> dict[str, Any]:
    """The fields of `generation_config`, which transformers' server takes as a string of JSON."""
    if written is None:
        return {}
    try:
        asked = json.loads(written)
    except (TypeError, ValueError):
        asked = None
    if not isinstance(asked, dict) or not set(asked) <= set(_GENERATION):
        raise ValueError(
            f"generation_config must be a string of JSON with fields among {', '.join(_GENERATION)}, got {written!r}."
        )
    return asked
