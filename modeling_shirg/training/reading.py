"""One row of a data set becomes an item: images, chat turns and fovea boxes, or the reason why the row is bad."""

import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from configuration_shirg.geometry_shirg import fovea_box
from configuration_shirg.image_reading_shirg import read_image

PLACEHOLDER = "<image>"
# The columns that are read; where a row has several of a kind, the first counts.
IMAGES = ("image", "file_name")
QUESTIONS = ("question", "query")
ANSWERS = ("multiple_choice_answer", "answer", "answers", "label")
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_TEXTS = {"user": "question", "assistant": "answer", "system": "system prompt"}
_IMAGE = {"type": "image"}


class BadRow(ValueError):
    """A row that cannot be learned from; the message is the reason."""


def check_share(source: str, bad: Sequence[tuple[int, str]], total: int, limit: float) -> None:
    """Raises a `ValueError` if more than the share `limit` of `total` rows is `bad`: their numbers and the reasons."""
    if len(bad) > limit * total:
        listed = "".join(f"\n  row {row}: {reason}" for row, reason in bad[:5])
        raise ValueError(
            f"{len(bad)} of {total} rows of {source} cannot be used, {len(bad) / total:.2%}: more than max_bad_share="
            f"{limit:.2%}. Mend them, or raise --max_bad_share. The first:{listed}"
        )


@dataclass(frozen=True)
class ImageFiles:
    """Image files by name, in the folder or the zip archive `place`."""

    place: Path

    def __post_init__(self):
        if not self.place.is_dir() and not zipfile.is_zipfile(self.place):
            raise ValueError(f"{self.place} is neither a folder nor a complete zip archive: name one that has images.")

    def find(self, name: str) -> str | bytes:
        """The path of a file in the folder, or its bytes in the archive."""
        if name.startswith(("http://", "https://")):
            raise BadRow(f"missing image: {name} is a URL, which training does not fetch; download it")
        if self.place.is_dir():
            path = os.path.join(self.place, name)
            if not os.path.isfile(path):
                raise BadRow(f"missing image: there is no file {path}")
            return path
        try:
            return _archive(self.place, os.getpid()).read(name)
        except KeyError:
            raise BadRow(f"missing image: there is no file {name} in {self.place}") from None
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise BadRow(f"unreadable image: {name} in {self.place}: {error}") from None


@cache
def _archive(file: Path, process: int) -> zipfile.ZipFile:
    """The open archive of one process: forked workers that shared a file would move each other's place in it."""
    return zipfile.ZipFile(file)


def read_row(row: dict[str, Any], suffix: str, files: ImageFiles) -> dict[str, Any]:
    """The item that a row becomes.

    Args:
        row: has one of `IMAGES`, and `conversations` or one of `QUESTIONS` and of `ANSWERS`; perhaps a `fovea_box`.
        suffix: is appended to a question, but not to those of a conversation.
        files: where file names are looked up.

    Returns:
        `images`, upright RGB; `messages`, chat turns with `{"type": "image"}` where an image belongs; `fovea_boxes`,
        (left, top, right, bottom) in pixels, or `None`, of each image.

    Raises:
        BadRow: with the reason.
    """
    given = next((row[name] for name in IMAGES if row.get(name) is not None), None)
    images = [_decoded(image, files) for image in (given if isinstance(given, list) else [given])]
    if not images:
        raise BadRow("missing image: the row has an empty list")
    boxes = row.get("fovea_box")
    boxes = [boxes] if len(images) == 1 else boxes or [None] * len(images)
    if len(boxes) != len(images):
        raise BadRow(f"unreadable fovea_box: {len(boxes)} boxes for {len(images)} images")
    for box, image in zip(boxes, images, strict=True):
        _check_box(box, image)
    return {"images": images, "messages": read_messages(row, suffix, len(images)), "fovea_boxes": boxes}


def _decoded(image: Any, files: ImageFiles) -> Image.Image:
    if isinstance(image, dict):  # an image that datasets has not decoded
        image = image["path"] if image.get("bytes") is None else image["bytes"]
    if not image:
        raise BadRow("missing image: the row names none")
    if isinstance(image, str):
        image = files.find(image)
    try:
        return read_image(image)
    except (ValueError, TypeError, OSError) as error:
        raise BadRow(f"unreadable image: {error}") from None


def _check_box(box: Any, image: Image.Image) -> None:
    try:
        if box is not None:
            fovea_box(image.width, image.height, 1, box)
    except (ValueError, TypeError) as error:
        raise BadRow(f"unreadable fovea_box: {error}") from None


def read_messages(row: dict[str, Any], suffix: str, num_images: int = 1) -> list[dict]:
    """The chat turns of a row, without looking at its images."""
    if row.get("conversations") is not None:
        return _conversation(row["conversations"], num_images)
    question, answer = (
        next((row[name] for name in names if row.get(name) is not None), None) for names in (QUESTIONS, ANSWERS)
    )
    if isinstance(answer, list):
        answers = [each["answer"] if isinstance(each, dict) else each for each in answer]
        answer = Counter(answers).most_common(1)[0][0] if answers else None
    content = [*([_IMAGE] * num_images), _text(text_of(question, "question") + suffix)]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": [_text(text_of(answer, "answer"))]}]


def _conversation(turns: Any, num_images: int) -> list[dict]:
    """LLaVA's `[{"from": "human", "value": "...<image>"}, {"from": "gpt", "value": ...}, ...]`.

    The only image of a turn is moved before its text, as LaViDa's code does; several stay where they are. Images that
    no turn names go before the first question.
    """
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise BadRow("unreadable conversations: not a list of turns")
    messages = [_llava_turn(turn) for turn in turns]
    roles = [message["role"] for message in messages]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise BadRow(f"unreadable conversations: turns of {', '.join(roles) or 'nobody'}, question and answer needed")
    named = sum(block == _IMAGE for message in messages for block in message["content"])
    if not named:
        first = messages[roles.index("user")]
        first["content"] = [*([_IMAGE] * num_images), *first["content"]]
    elif named != num_images:
        raise BadRow(f"missing image: {named} {PLACEHOLDER} in the turns for {num_images} images")
    return messages


def _llava_turn(turn: dict[str, Any]) -> dict:
    role = _ROLES.get(turn.get("from"))
    if role is None:
        raise BadRow(f"unreadable conversations: a turn from {turn.get('from')!r}, not one of {sorted(_ROLES)}")
    parts = [part.strip() for part in text_of(turn.get("value"), _TEXTS[role]).split(PLACEHOLDER)]
    text_of("".join(parts), _TEXTS[role])
    if role != "user":
        return {"role": role, "content": [_text(PLACEHOLDER.join(parts))]}
    if len(parts) == 2:
        parts = ["", "\n".join(part for part in parts if part)]
    content = [block for part in parts for block in (_IMAGE, *([_text(part)] if part else []))]
    return {"role": role, "content": content[1:]}


def text_of(value: Any, what: str) -> str:
    """A question or answer as it is learned: whole numbers in figures, text without surrounding whitespace."""
    if type(value) is int:
        return str(value)
    if value is None or isinstance(value, str) and not value.strip():
        raise BadRow(f"empty {what}")
    if not isinstance(value, str):
        raise BadRow(f"unreadable {what}: {value!r} is not text")
    return value.strip()


def _text(text: str) -> dict:
    return {"type": "text", "text": text}
