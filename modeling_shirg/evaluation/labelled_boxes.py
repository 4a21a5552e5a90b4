"""Questions about images with the box that each is about: a user's file, or rendered scenes.

A file is JSON (a list) or JSONL of `{"image": path, "question": str, "box": [left, top, right, bottom]}`, the box in
pixels of the upright image, relative paths from the file's folder.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from modeling_shirg.scenes import FAMILIES, scene

_FIELDS = ("image", "question", "box")
_OF_SEVERAL_THINGS = ("count", "difference")


@dataclass(frozen=True)
class LabelledBox:
    """One question and where its answer is.

    Args:
        name: of the image, the same for all questions about it.
        image: a path, or the image itself.
        question: in plain words.
        box: (left, top, right, bottom) in pixels of the upright image.
    """

    name: str
    image: Path | Image.Image
    question: str
    box: tuple[float, float, float, float]

    def box_within(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The box as fractions of an image of `width` x `height` pixels.

        Raises:
            ValueError: the box is not inside the image, or holds nothing.
        """
        left, top, right, bottom = self.box
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise ValueError(
                f"{self.name}: the box {list(self.box)} is not (left, top, right, bottom) within the image's "
                f"{width} x {height} pixels."
            )
        return left / width, top / height, right / width, bottom / height


def rendered_boxes(num_images: int) -> Iterator[LabelledBox]:
    """One question about each of `num_images` rendered scenes, all families in turn, none that training saw.

    What counts things, or needs two of them, has no one place and is not asked.
    """
    for number in range(num_images):
        family, index = list(FAMILIES)[number % len(FAMILIES)], number // len(FAMILIES)
        drawn = scene(family, "validation", index)
        placed = [question for question in drawn.questions if question.kind not in _OF_SEVERAL_THINGS]
        question = placed[index % len(placed)]
        yield LabelledBox(f"{family} {index}", drawn.image, question.text, question.box)


def read_boxes(path: Path, num_images: int | None = None) -> list[LabelledBox]:
    """The questions of a file, about its first `num_images` images.

    Raises:
        ValueError: the file cannot be read as described above, an image does not exist, or there is no question; the
            message names the record.
    """
    boxes = [_labelled(record, where, path.parent) for where, record in _records(path)]
    if not boxes:
        raise ValueError(f'{path} holds no record {{"image": ..., "question": ..., "box": [...]}}.')
    names = list(dict.fromkeys(box.name for box in boxes))[:num_images]
    return [box for box in boxes if box.name in set(names)]


def _records(path: Path) -> list[tuple[str, Any]]:
    """The records of a file, each with where it stands."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a text file: {error}") from None
    if text.lstrip().startswith("["):
        return [(f"{path}, record {number}", record) for number, record in enumerate(_parsed(text, str(path)), 1)]
    lines = [(f"{path}, line {number}", line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    return [(where, _parsed(line, where)) for where, line in lines]


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: neither a JSON list nor one JSON object per line ({error}).") from None


def _labelled(record: Any, where: str, folder: Path) -> LabelledBox:
    if not isinstance(record, dict) or any(name not in record for name in _FIELDS):
        raise ValueError(f"{where}: needs the fields {', '.join(_FIELDS)}, got {json.dumps(record)[:200]}")
    question, box = record["question"], record["box"]
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"{where}: there is no question, got {question!r}.")
    numbers = isinstance(box, list) and all(isinstance(edge, (int, float)) for edge in box)
    if not numbers or len(box) != 4:
        raise ValueError(f"{where}: the box must be [left, top, right, bottom] in pixels, got {json.dumps(box)}.")
    image = folder / str(record["image"])
    if not image.is_file():
        raise ValueError(f"{where}: there is no image file {image}.")
    return LabelledBox(str(image), image, question, tuple(float(edge) for edge in box))
