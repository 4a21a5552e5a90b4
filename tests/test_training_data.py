"""The data side of training: real files of every layout become rows, bad rows are counted, draws belong to rows."""

import json
from pathlib import Path

import pytest

from modeling_shirg.training.mixture import DataArguments, load_rows
from tiny_model import noise_image, tiny_config, tiny_model, tiny_processor


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(tiny_config())


@pytest.fixture(scope="module")
def model():
    return tiny_model(tiny_config())


def write_rows(folder: Path, count: int = 12, **changes) -> Path:
    """A JSONL file of `count` question-answer rows with an image each; `changes` are {row: {column: value}}."""
    lines = []
    for index in range(count):
        noise_image(index, 60 + index, 50).save(folder / f"{index}.png")
        row = {"image": f"{index}.png", "question": f"What is number {index}?", "answer": f"it is {index}"}
        lines.append(row | changes.get(f"row{index}", {}))
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    return file


def load(*data: str, split: str = "train", seed: int = 0, encoder=None, **fields):
    return load_rows(DataArguments(data=list(data), **fields), split, seed, encoder)


def names(rows, places=None) -> list[str]:
    return [rows[place]["name"] for place in (range(len(rows)) if places is None else places)]


def text(message: dict) -> str:
    return "".join(block.get("text", "<image>") for block in message["content"])
