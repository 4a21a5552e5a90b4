"""Questions about images with the box of each answer: a user's file, or rendered scenes."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from modeling_shirg.scenes import FAMILIES, scene

# Questions of these kinds have no one place.
_OF_SEVERAL_THINGS = ("count", "difference")


@dataclass(frozen=True)
class LabelledBox:
    """One question, with its image (a path, or the image itself), the image's name, and the box in pixels."""

    name: str
    image: Path | Image.Image
    question: str
    box: tuple[float, float, float, float]

    def box_within(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The box as fractions of an image of `width` x `height` pixels; a `ValueError` unless it is inside."""
        left, top, right, bottom = self.box
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise ValueError(
                f"{self.name}: the box {list(self.box)} is not (left, top, right, bottom) within the image's "
                f"{width} x {height} pixels."
            )
        return left / width, top / height, right / width, bottom / height


def rendered_boxes(num_images: int) -> Iterator[LabelledBox]:
    """One question about each of `num_images` validation scenes, all families in turn."""
    for number in range(num_images):
        family, index = list(FAMILIES)[number % len(FAMILIES)], number // len(FAMILIES)
        drawn = scene(family, "validation", index)
        placed = [question for question in drawn.questions if question.kind not in _OF_SEVERAL_THINGS]
        question = placed[index % len(placed)]
        yield LabelledBox(f"{family} {index}", drawn.image, question.text, question.box)


def read_boxes(path: Path, num_images: int | None = None) -> list[LabelledBox]:
    """The questions of a file about its first `num_images` images.

    A line is `{"image": path, "question": str, "box": [left, top, right, bottom]}`: pixels of the upright image, paths
    relative to the file. Another line is a `ValueError` that names it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a text file: {error}") from None
    lines = [(f"{path}, line {number}", line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    boxes = [_labelled(line, where, path.parent) for where, line in lines]
    if not boxes:
        raise ValueError(f'{path} holds no record {{"image": ..., "question": ..., "box": [...]}}.')
    names = set(list(dict.fromkeys(box.name for box in boxes))[:num_images])
    return [box for box in boxes if box.name in names]


def _labelled(line: str, where: str, folder: Path) -> LabelledBox:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is no JSON object ({error}).") from None
    if not isinstance(record, dict) or not {"image", "question", "box"} <= record.keys():
        raise ValueError(f"{where}: needs the fields image, question, box, got {json.dumps(record)[:200]}")
    question, box, image = record["question"], record["box"], folder / str(record["image"])
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"{where}: there is no question, got {question!r}.")
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(edge, (int, float)) for edge in box):
        raise ValueError(f"{where}: the box must be [left, top, right, bottom] in pixels, got {json.dumps(box)}.")
    if not image.is_file():
        raise ValueError(f"{where}: there is no image file {image}.")
    return LabelledBox(str(image), image, question, tuple(float(edge) for edge in box))
