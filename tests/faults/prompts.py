"""Bad and odd prompts and conversations."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tiny_model import chat

from .case import Case, model, picture, processor, refused

KIND = "prompt"
_TEXT = {"type": "text", "text": "Which?"}


def read(conversation: Any, **options: Any) -> dict[str, Any]:
    """What the processor makes of a conversation."""
    return dict(
        processor().apply_chat_template(
            conversation,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="np",
            **options,
        )
    )


def _text(name: str, says: str, **arguments: Any) -> Case:
    return refused(KIND, name, lambda: processor()(**arguments), ValueError, says)


def _chat(name: str, conversation: Callable[[], Any], says: str) -> Case:
    return refused(KIND, name, lambda: read(conversation()), ValueError, says)


def _part(part: Any) -> list[dict]:
    return [{"role": "user", "content": [{"type": "image", "image": picture()}, part]}]


def _message(**message: Any) -> list[dict]:
    return [{"role": "user", "content": "first"}, message]


def _same(name: str, act: Callable[[], Any], healthy: Callable[[], Any]) -> Case:
    return Case(KIND, name, lambda folder: act, same_as=healthy)


def _answer(question: str) -> list[list[int]]:
    inputs = processor().apply_chat_template(
        chat(question, picture()), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return model().generate(**inputs, max_new_tokens=4)[:, inputs["input_ids"].shape[1] :].tolist()


PLACEHOLDERS = [
    _text("no placeholder", "0 <image> tokens and 1 images", images=np.ones((9, 9, 3)), text="Which?"),
    _text("two placeholders", "2 <image> tokens and 1 images", images=np.ones((9, 9, 3)), text="<image><image>"),
    _text("a placeholder without an image", "1 <image> tokens .* no images", text="<image>Which?"),
    _text("no text to an image", "0 <image> tokens and 1 images", images=np.ones((9, 9, 3)), text=""),
    _text(
        "the second prompt's image",
        "Found total 3 <image> tokens and 2 images",
        images=[[np.ones((9, 9, 3))]] * 2,
        text=["<image>", "<image><image>"],
    ),
    _text(
        "placeholders of another prompt",
        "Prompt 0 has 2 <image> tokens for 1 images",
        images=[[np.ones((9, 9, 3))]] * 2,
        text=["<image><image>", ""],
    ),
    _text(
        "lists for other prompts",
        "1 lists of images for 2 prompts: pass one list per prompt",
        images=[[np.ones((9, 9, 3))]],
        text=["<image>", "Which?"],
    ),
    _text(
        "cut by truncation",
        "disable truncation or increase `max_length`",
        images=np.ones((9, 9, 3)),
        text="<image>Which?",
        truncation=True,
        max_length=20,
    ),
    _chat("a placeholder in the question", lambda: chat("What is <image>?", picture()), "2 <image> tokens and 1"),
    _chat(
        "an image part without an image",
        lambda: _message(role="user", content=[{"type": "image"}]),
        "1 <image> tokens .* no images",
    ),
    _chat(
        "an image part with None",
        lambda: _message(role="user", content=[{"type": "image", "image": None}]),
        "1 <image> tokens .* no images",
    ),
    _chat(
        "an image part with a missing path",
        lambda: _message(role="user", content=[{"type": "image", "path": "/no/such.png"}]),
        "Image 0 .*/no/such.png",
    ),
]

TEXTS = [
    _text(f"text is {value!r}", r"text must be a string or a list of at least one, got .*", text=value)
    for value in (3, b"Which?", {"text": "Which?"}, [], [None], [3], ["Which?", 3], [["Which?"]])
] + [
    _text("nothing at all", "at least one input"),
    _text(
        "a lone surrogate", r"Text 0 has '\\ud800' at 1, half of a character .*decode the text again", text="a\ud800b"
    ),
    _text("a lone surrogate in the second text", r"Text 1 has '\\udfff' at 0", text=["a", "\udfff"]),
]

CHATS = [
    _chat("no message", list, r"list of at least one .* got \[\]"),
    _chat("None", lambda: None, "list of at least one .* got None"),
    _chat("a string", lambda: "Which?", "list of at least one .* got 'Which"),
    _chat("a message alone", lambda: {"role": "user", "content": "Which?"}, "list of at least one"),
    _chat("a second conversation without messages", lambda: [chat("Which?"), []], "Conversation 1 is no list"),
    _chat("a message that is a number", lambda: [3], r"messages\[0\] must be .* got 3"),
    _chat(
        "no role", lambda: _message(content="Which?"), r"messages\[1\] must have a role, one of system, user.* None"
    ),
    _chat(
        "role robot", lambda: _message(role="robot", content="Which?"), "one of system, user, assistant, got 'robot'"
    ),
    _chat("role 3", lambda: _message(role=3, content="Which?"), "one of system, user, assistant, got 3"),
    _chat("a role that ends its header", lambda: _message(role="user<|end_header_id|>", content=""), "one of system"),
    _chat("no content", lambda: _message(role="user"), r"messages\[1\]\['content'\] must be a text, .* got None"),
    _chat("content 3", lambda: _message(role="user", content=3), "must be a text, .* got 3"),
    _chat("a video", lambda: _part({"type": "video", "video": "a.mp4"}), "must be a text, .* got .*a.mp4.* at 1"),
    _chat("audio", lambda: _part({"type": "audio", "audio": "a.wav"}), "got .*a.wav"),
    _chat("a part of no type", lambda: _part({"text": "Which?"}), "got {'text': 'Which"),
    _chat("a part that is a string", lambda: _part("Which?"), "got 'Which"),
    _chat("a text part without text", lambda: _part({"type": "text"}), "got {'type': 'text'}"),
    _chat("a text part of None", lambda: _part({"type": "text", "text": None}), "'text': None"),
    _chat("a text part of bytes", lambda: _part({"type": "text", "text": b"Which?"}), "b'Which"),
    _chat(
        "in the second conversation",
        lambda: [chat("Which?"), _message(role="user", content=3)],
        r"conversations\[1\]\[1\]\['content'\]",
    ),
    _chat("a lone surrogate in a chat", lambda: chat("a\udc80", picture()), "half of a character"),
]

ODD = [
    _same("content is a string", lambda: read([{"role": "user", "content": "Which?"}]), lambda: read(chat("Which?"))),
    _same("whitespace around the question", lambda: read(chat("  \n Which?\t ")), lambda: read(chat("Which?"))),
    _same(
        "tuples instead of lists",
        lambda: read(({"role": "user", "content": ({"type": "image", "image": picture()}, _TEXT)},)),
        lambda: read(chat("Which?", picture())),
    ),
    _same("a batch of one", lambda: read([chat("Which?", picture())]), lambda: read(chat("Which?", picture()))),
    _same("the image as a file's bytes", lambda: read(_part(_TEXT)), lambda: read(chat("Which?", picture()))),
    _same(
        "turn tokens typed by the user, sanitized",
        lambda: (
            "<|eot_id|>"
            in processor().tokenizer.decode(
                read(chat("<|eot_id|>"), sanitize_control_tokens=True)["input_ids"][0][-60:-40]
            )
        ),
        lambda: False,
    ),
    *[
        _same(f"answers again: {name}", lambda q=question: _answer(q), lambda q=question: _answer(q))
        for name, question in {
            "an empty question": "",
            "mask tokens in the question": "<|mdm_mask|>" * 5,
            "end of turn in the question": "<|eot_id|>",
            "a null byte": "a\0b",
            "emoji and right-to-left": "👩‍👩‍👧 שלום مرحبا",
            "longer than the context": "Which? " * 700,
        }.items()
    ],
]

CASES = [*PLACEHOLDERS, *TEXTS, *CHATS, *ODD]
