"""What a conversation and a prompt have to be, checked before a template or a tokenizer reads them."""

from collections.abc import Mapping
from typing import Any

_ROLES = ("system", "user", "assistant")
_CONTENT = "a text, or a list of {'type': 'text', 'text': ...} and {'type': 'image', ...}"


def check_conversations(conversation: Any) -> None:
    """Raises a `ValueError` unless `conversation` is one, or a list of them, naming the message that is wrong.

    A conversation is a list of at least one message, a message a dict with a role (system, user or assistant) and its
    content: a text, or a list of text and image parts.
    """
    if not isinstance(conversation, (list, tuple)) or not conversation:
        raise ValueError(
            "A conversation is a list of at least one {'role': ..., 'content': ...}, or a list of conversations; got "
            f"{conversation!r:.100}."
        )
    if not isinstance(conversation[0], (list, tuple)):
        _check_conversation(conversation, "messages")
        return
    for index, messages in enumerate(conversation):
        if not isinstance(messages, (list, tuple)) or not messages:
            raise ValueError(f"Conversation {index} is no list of at least one message, got {messages!r:.100}.")
        _check_conversation(messages, f"conversations[{index}]")


def check_texts(text: Any) -> None:
    """Raises a `ValueError` unless `text` is `None`, a string or a list of strings that UTF-8 can write."""
    if text is None:
        return
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(item, str) for item in texts):
        raise ValueError(f"text must be a string or a list of at least one, got {text!r:.100}.")
    for index, item in enumerate(texts):
        try:
            item.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"Text {index} has {item[error.start]!r} at {error.start}, half of a character (a lone surrogate): "
                "decode the text again, or write text.encode('utf-8', 'replace').decode()."
            ) from None


def _check_conversation(messages: list | tuple, name: str) -> None:
    for index, message in enumerate(messages):
        where = f"{name}[{index}]"
        if not isinstance(message, Mapping):
            raise ValueError(f"{where} must be {{'role': ..., 'content': ...}}, got {message!r:.100}.")
        if message.get("role") not in _ROLES:
            raise ValueError(f"{where} must have a role, one of {', '.join(_ROLES)}, got {message.get('role')!r}.")
        content = message.get("content")
        if isinstance(content, str):
            continue
        if not isinstance(content, (list, tuple)):
            raise ValueError(f"{where}['content'] must be {_CONTENT}, got {content!r:.100}.")
        for number, part in enumerate(content):
            if not _is_part(part):
                raise ValueError(f"{where}['content'] must be {_CONTENT}, got {part!r:.100} at {number}.")


def _is_part(part: Any) -> bool:
    if not isinstance(part, Mapping):
        return False
    return part.get("type") == "image" or (part.get("type") == "text" and isinstance(part.get("text"), str))
