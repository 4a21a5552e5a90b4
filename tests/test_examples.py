"""The examples of scripts/examples/ run on the bundled checkpoint, and do what they say."""

import json
import re
import runpy
import shutil
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from modeling_shirg.published_selections_shirg import METHODS
from modeling_shirg.running.ask import ask, conversation
from modeling_shirg.running.load import load
from modeling_shirg.selection_shirg import ViewTokens

EXAMPLES = Path(__file__).parents[1] / "scripts" / "examples"
IMAGES = Path(str(files("shirg_hub_card") / "examples"))
QUESTION = "What color is the shape?"


def _run(name: str, *arguments: str) -> dict:
    """The names of an example that ran as a program."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def _records(out: Path) -> dict[str, dict]:
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len({line["image"] for line in lines}) == len(lines)
    return {line["image"]: line for line in lines}


@pytest.fixture
def folder(tmp_path) -> Path:
    """The examples, one of them in a folder below, and a file that is no image."""
    images = shutil.copytree(IMAGES, tmp_path / "images")
    (images / "below").mkdir()
    (images / "shapes.png").rename(images / "below" / "shapes.png")
    (images / "broken.png").write_text("no image")
    return images


@pytest.mark.parametrize(
    "content", [b'{"a": 1}', b"[1]\n", b"\x89PNG\r\n\x1a\n", b'{"image": "a"}\n', b"\xff\n", b"notes"]
)
def test_a_file_that_holds_no_answers_is_left_alone(folder, tmp_path, content):
    out = tmp_path / "out.jsonl"
    out.write_bytes(content)
    with pytest.raises(SystemExit, match="no answer"):
        _run("ask_folder.py", str(folder), str(out), QUESTION)
    assert out.read_bytes() == content


def test_a_folder_is_asked_in_batches_and_a_killed_run_goes_on_where_it_stopped(folder, tmp_path):
    out, loaded = tmp_path / "out.jsonl", load()
    _run("ask_folder.py", str(folder), str(out), QUESTION, "--batch_size", "3")
    records = _records(out)
    assert set(records) == {"chart.png", "document.png", "grid.png", "below/shapes.png", "broken.png"}
    assert "cannot be read" in records["broken.png"]["error"]
    for name in set(records) - {"broken.png"}:
        assert [records[name]["answer"]] == ask(loaded, [conversation(str(folder / name), QUESTION)]).texts
    first, second, *others = out.read_text().splitlines(keepends=True)
    begun = first + second.replace("}", ', "kept": true}')
    for cut in (1, 20, len(others[0]) - 1):
        out.write_text(begun + others[0][:cut])
        _run("ask_folder.py", str(folder), str(out), QUESTION, "--batch_size", "2")
        assert out.read_text().startswith(begun) and sorted(_records(out)) == sorted(records)
    _run("ask_folder.py", str(folder), str(out), "Another one?")
    assert len(out.read_text().splitlines()) == 2 * len(records), "another question is asked of all images"


def test_a_method_is_tried_and_leaves_no_trace(capsys):
    before = METHODS["uniform"]
    example = _run("selection_method.py", "--questions", "2")
    assert METHODS["uniform"] is before
    lines = capsys.readouterr().out.strip().splitlines()
    assert [re.match(r"(\w+): [0-2] of 2", line)[1] for line in lines] == ["shirg", "uniform", "most_edges"]
    edges = torch.tensor([0.0, 3.0, 1.0, 2.0])
    kept = example["most_edges"](ViewTokens(torch.zeros(4, 2), edges=edges), 2, None)
    assert kept.indices.tolist() == [1, 3]
