"""From a source's row to an item: turns of a chat, its images decoded, or the reason why the row is bad."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from configuration_shirg.image_reading_shirg import read_image
from modeling_shirg.training.data.bad_rows import BadRow
from modeling_shirg.training.data.image_files import ImageFiles

PLACEHOLDER = "<image>"
# Rows of different sources are told apart by the bits above these.
ROW_BITS = 40


@dataclass
class Example:
    """What an adapter makes of a row: chat turns and where their images are, in the order of their placeholders.

    An image is what the source holds: a PIL image, a file name, or datasets' `{"bytes", "path"}`. `fovea_boxes` has a
    box (left, top, right, bottom) in pixels, or `None`, for each image.
    """

    messages: list[dict]
    images: list[Any]
    fovea_boxes: list[Any] = field(default_factory=list)


@dataclass
class RowReader:
    """Reads the rows of one source.

    Args:
        number: the source's place in the mixture, from 0.
        name: what messages and reports call the source.
        place: where it came from, for reports.
        dataset_id: the data set on the Hub that it is, if it is one.
        adapt: makes an `Example` of a row, or raises `BadRow`.
        suffix: what is appended to every question.
        files: where file names are looked up.
    """

    number: int
    name: str
    place: str
    dataset_id: str | None
    adapt: Callable[[dict[str, Any], str], Example]
    suffix: str
    files: ImageFiles

    def item(self, row: dict[str, Any], index: int) -> dict[str, Any]:
        """The item that row number `index` of the source becomes, images decoded.

        Raises:
            BadRow: with the reason.
        """
        example = self.adapt(row, self.suffix)
        images = [self._image(image) for image in example.images]
        if not images:
            raise BadRow("no image")
        return {
            "row": (self.number << ROW_BITS) + index,
            "name": f"{index} of {self.name}",
            "source": self.name,
            "images": images,
            "messages": example.messages,
            "fovea_boxes": [_checked_box(box, image) for box, image in _paired(example.fovea_boxes, images)],
        }

    def _image(self, image: Any) -> Image.Image:
        if isinstance(image, dict):
            image = image["path"] if image.get("bytes") is None else image["bytes"]
        if image is None or image == "":
            raise BadRow("missing image: the row names none")
        if isinstance(image, str):
            image = self.files.find(image)
        try:
            return read_image(image)
        except (ValueError, TypeError, OSError) as error:
            raise BadRow(f"unreadable image: {error}") from None


def _paired(boxes: Sequence[Any], images: list[Image.Image]) -> list[tuple[Any, Image.Image]]:
    boxes = list(boxes) or [None] * len(images)
    if len(boxes) != len(images):
        raise BadRow(f"unreadable fovea_box: {len(boxes)} boxes for {len(images)} images")
    return list(zip(boxes, images, strict=True))


def _checked_box(box: Any, image: Image.Image) -> list[float] | None:
    """The box as floats, if it is one that shares pixels with the image."""
    if box is None:
        return None
    numbers = isinstance(box, (list, tuple)) and all(type(edge) in (int, float) for edge in box)
    if not numbers or len(box) != 4 or not all(map(math.isfinite, box)):
        raise BadRow(f"unreadable fovea_box: {box!r} is not (left, top, right, bottom)")
    left, top, right, bottom = box
    if not (left < right and top < bottom and left < image.width and top < image.height and right > 0 and bottom > 0):
        raise BadRow(f"unreadable fovea_box: {box!r} has no area in an image of {image.width}x{image.height}")
    return [float(edge) for edge in box]


# Turns


def question_answer(image: Any, question: Any, answer: Any, suffix: str, fovea_box: Any = None) -> Example:
    """One question and one answer about an image, or about several."""
    images = list(image) if isinstance(image, (list, tuple)) else [image]
    messages = [
        _turn("user", [*([_IMAGE] * len(images)), _text(text_of(question, "question") + suffix)]),
        _turn("assistant", [_text(text_of(answer, "answer"))]),
    ]
    boxes = [] if fovea_box is None else [fovea_box] if len(images) == 1 else fovea_box
    return Example(messages, images, boxes)


_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_IMAGE = {"type": "image"}


def conversation(image: Any, turns: Any, fovea_box: Any = None) -> Example:
    """LLaVA's `conversations`, `[{"from": "human", "value": "...<image>"}, {"from": "gpt", "value": ...}, ...]`.

    The only image of a turn is moved before its text, as LaViDa's code does; several stay where they are. Images that
    no turn names go before the first question.
    """
    images = [] if image is None else list(image) if isinstance(image, (list, tuple)) else [image]
    if not isinstance(turns, (list, tuple)) or not all(isinstance(turn, dict) for turn in turns):
        raise BadRow("unreadable conversations: not a list of turns")
    messages = [_llava_turn(turn) for turn in turns]
    roles = [message["role"] for message in messages]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise BadRow(f"unreadable conversations: turns of {', '.join(roles) or 'nobody'}, question and answer needed")
    named = sum(block == _IMAGE for message in messages for block in message["content"])
    if not named:
        first = messages[roles.index("user")]
        first["content"] = [*([_IMAGE] * len(images)), *first["content"]]
    elif named != len(images):
        raise BadRow(f"missing image: {named} {PLACEHOLDER} in the turns for {len(images)} images")
    boxes = [] if fovea_box is None else [fovea_box] if len(images) == 1 else fovea_box
    return Example(messages, images, boxes)


def _llava_turn(turn: dict[str, Any]) -> dict:
    role = _ROLES.get(turn.get("from"))
    if role is None:
        raise BadRow(f"unreadable conversations: a turn from {turn.get('from')!r}, not one of {sorted(_ROLES)}")
    text = turn.get("value")
    what = {"user": "question", "assistant": "answer", "system": "system prompt"}[role]
    if role != "user" or not isinstance(text, str):
        return _turn(role, [_text(text_of(text, what))])
    parts = [part.strip() for part in text.split(PLACEHOLDER)]
    if len(parts) == 2:
        parts = ["", "\n".join(part for part in parts if part)]
    text_of("".join(parts), what)
    content = [block for part in parts for block in (_IMAGE, *([_text(part)] if part else []))][1:]
    return _turn(role, content)


def text_of(value: Any, what: str) -> str:
    """A question or answer as it is learned: whole numbers in figures, text without surrounding whitespace."""
    if value is None or value == "" or isinstance(value, str) and not value.strip():
        raise BadRow(f"empty {what}")
    if type(value) is int:
        return str(value)
    if not isinstance(value, str):
        raise BadRow(f"unreadable {what}: {value!r} is not text")
    return value.strip()


def _turn(role: str, content: list[dict]) -> dict:
    return {"role": role, "content": content}


def _text(text: str) -> dict:
    return {"type": "text", "text": text}
