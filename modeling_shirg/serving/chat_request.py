"""The body of a chat request: a strict pydantic model, and its meaning for `generate`."""

import reprlib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, Json, ValidationError, model_validator

from modeling_shirg.generation_config_shirg import ShirgGenerationConfig, overridden_fields

from .request_limits import Limits

_Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_Box = Annotated[list[FiniteFloat], Field(min_length=4, max_length=4)]
_GenerationField = Literal[
    "block_length", "steps", "step_ratio", "schedule", "shift", "remasking", "prefix_kv", "prefix_dtype"
]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _ImageUrl(_Strict):
    url: str
    detail: Any = None


class _TextPart(_Strict):
    type: Literal["text"]
    text: str


class _ImagePart(_Strict):
    type: Literal["image_url"]
    image_url: _ImageUrl


_Parts = Annotated[
    list[Annotated[_TextPart | _ImagePart, Field(discriminator="type")]], Field(min_length=1, fail_fast=True)
]


class _Message(_Strict):
    role: Literal["system", "user", "assistant"]
    content: str | _Parts
    name: str | None = None

    @property
    def parts(self) -> list[_TextPart | _ImagePart]:
        return [_TextPart(type="text", text=self.content)] if isinstance(self.content, str) else self.content


class ChatRequest(_Strict):
    """A request to `/v1/chat/completions`: OpenAI's fields as far as the model can honour them, and two more.

    `fovea_boxes` has [left, top, right, bottom] in pixels or null per image; `generation_config` is a string of JSON.
    Fields from `n` on are accepted with their neutral value only. A field that is null counts as absent.
    """

    model: str
    messages: Annotated[list[_Message], Field(min_length=1, fail_fast=True)]
    stream: bool = False
    stream_options: dict | None = None
    max_tokens: _Integer | None = None
    max_completion_tokens: _Integer | None = None
    temperature: FiniteFloat | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    generation_config: Json[dict[_GenerationField, str | bool | _Integer | FiniteFloat | None]] | None = None
    fovea_boxes: Annotated[list[_Box | None], Field(fail_fast=True)] | None = None
    user: str | None = None
    metadata: dict | None = None
    n: Annotated[int, Field(ge=1, le=1)] = 1
    top_p: Annotated[float, Field(ge=1, le=1)] = 1
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] = 0
    presence_penalty: Annotated[float, Field(ge=0, le=0)] = 0
    logprobs: Literal[False] = False
    store: Literal[False] = False
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    tools: Annotated[list, Field(max_length=0)] = []

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, body: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in body.items() if value is not None}

    @property
    def image_options(self) -> dict[str, Any]:
        return {} if self.fovea_boxes is None else {"fovea_boxes": self.fovea_boxes}

    @property
    def image_urls(self) -> list[str]:
        return [part.image_url.url for message in self.messages for part in message.parts if part.type == "image_url"]

    def conversation(self, images: list[Any]) -> list[dict[str, Any]]:
        """The messages as the processor takes them, with `images` in the places of `image_urls`."""
        left = iter(images)
        return [
            {"role": message.role, "content": [_content(part, left) for part in message.parts]}
            for message in self.messages
        ]

    def generation(self, defaults: ShirgGenerationConfig, max_new_tokens: int) -> ShirgGenerationConfig:
        """The generation arguments of the request on top of the checkpoint's `defaults`.

        Raises:
            ValueError: a value does not fit, or the answer would be longer than `max_new_tokens`.
        """
        overrides = dict(self.generation_config or {})
        for length in (self.max_tokens, self.max_completion_tokens):
            if length is not None:
                overrides["max_new_tokens"] = length
        if self.temperature is not None:
            overrides["do_sample"] = self.temperature != 0
            overrides["temperature"] = self.temperature or None
        config = ShirgGenerationConfig(**overridden_fields(defaults, overrides))
        if config.max_new_tokens > max_new_tokens:
            raise ValueError(
                f"max_tokens={config.max_new_tokens}: this server's answers have at most {max_new_tokens}."
            )
        return config


def _content(part: _TextPart | _ImagePart, images: Any) -> dict[str, Any]:
    return {"type": "text", "text": part.text} if part.type == "text" else {"type": "image", "image": next(images)}


def parse_request(body: dict[str, Any], limits: Limits) -> ChatRequest:
    """The request of a JSON object.

    Raises:
        ValueError: a field does not fit, or messages, images or characters are more than `limits`; it is named.
    """
    try:
        request = ChatRequest.model_validate(body)
    except ValidationError as error:
        raise ValueError(_said(error)) from None
    parts = [part for message in request.messages for part in message.parts]
    characters = sum(len(part.text) for part in parts if part.type == "text")
    for most, what, count in (
        (limits.max_messages, "messages or parts of messages", len(parts)),
        (limits.max_images, "images", len(request.image_urls)),
        (limits.max_text_characters, "characters of text", characters),
    ):
        if count > most:
            raise ValueError(f"A request may hold {most} {what}, got {count}.")
    return request


def _said(error: ValidationError) -> str:
    """The first errors, by field and value."""
    errors = error.errors(include_url=False, include_context=False)[:3]
    fields = (".".join(str(part)[:60] for part in item["loc"]) for item in errors)
    said = [f"{name}={reprlib.repr(item['input'])}: {item['msg']}" for name, item in zip(fields, errors, strict=True)]
    if errors[0]["type"] == "extra_forbidden":
        said.append(f"This server takes {', '.join(ChatRequest.model_fields)}")
    return "; ".join(said) + "."
