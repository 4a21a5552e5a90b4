"""The examples of scripts/examples/ run on the bundled checkpoint, and do what they say."""

import json
import re
import runpy
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from modeling_shirg.published_selections_shirg import METHODS
from modeling_shirg.running.ask import ask, conversation, read_image
from modeling_shirg.running.load import load
from modeling_shirg.selection_shirg import ViewTokens

EXAMPLES = Path(__file__).parents[1] / "scripts" / "examples"
IMAGES = Path(str(files("shirg_hub_card") / "examples"))
QUESTION = "What color is the shape?"


def _run(name: str, *arguments: str) -> dict:
    example = runpy.run_path(str(EXAMPLES / name))
    example["main"](example["parse_args"](list(arguments)))
    return example


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _records(out: Path) -> dict[str, dict]:
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len({line["image"] for line in lines}) == len(lines)
    return {line["image"]: line for line in lines}


@pytest.fixture
def folder(tmp_path) -> Path:
    """The examples, one of them in a folder below, and a file that is no image."""
    (tmp_path / "images" / "below").mkdir(parents=True)
    for path in IMAGES.glob("*.png"):
        (tmp_path / "images" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "images" / "shapes.png").rename(tmp_path / "images" / "below" / "shapes.png")
    (tmp_path / "images" / "broken.png").write_text("no image")
    return tmp_path / "images"


@pytest.mark.parametrize(
    "content",
    [b'{"a": 1}', b'{"a": 1}\n', b"[1]\n", b"\x89PNG\r\n\x1a\n", b'{"image": "a"}\n', b"\xff\n", b"notes"],
)
def test_a_file_that_holds_no_answers_is_left_alone(folder, tmp_path, content):
    out = tmp_path / "out.jsonl"
    out.write_bytes(content)
    with pytest.raises(SystemExit, match="no answer"):
        _run("ask_folder.py", str(folder), str(out), QUESTION)
    assert out.read_bytes() == content


@pytest.mark.parametrize(
    "beginning", ["", "{", '{"question": "Wh', '{"question": "What is in', '{"question": "x", "im']
)
def test_a_line_that_a_killed_run_began_is_cut_off(tmp_path, beginning):
    finished = runpy.run_path(str(EXAMPLES / "ask_folder.py"))["finished"]
    line = '{"question": "What?", "image": "a.png", "answer": "b"}\n'
    out = tmp_path / "out.jsonl"
    out.write_text(line + beginning)
    assert finished(out, "What?") == {"a.png"} and out.read_text() == line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--batch_size", "0"], "--batch_size 0 must be 1 or more"),
        (["--batch_size", "-1"], "--batch_size -1 must be 1 or more"),
    ],
)
def test_a_batch_of_none_is_refused(folder, tmp_path, words, said):
    with pytest.raises(SystemExit, match=said):
        _run("ask_folder.py", str(folder), str(tmp_path / "out.jsonl"), QUESTION, *words)


def test_a_folder_that_is_not_there_is_named(folder, tmp_path):
    with pytest.raises(SystemExit, match="There is no folder .*nowhere"):
        _run("ask_folder.py", str(tmp_path / "nowhere"), str(tmp_path / "out.jsonl"), QUESTION)
    with pytest.raises(SystemExit, match="There is no folder .*nowhere to write out.jsonl in"):
        _run("ask_folder.py", str(folder), str(tmp_path / "nowhere" / "out.jsonl"), QUESTION)
    with pytest.raises(SystemExit, match="is no file to write answers to"):
        _run("ask_folder.py", str(folder), str(folder), QUESTION)


def test_a_folder_is_asked_in_batches_and_a_killed_run_goes_on_where_it_stopped(folder, tmp_path):
    out, loaded = tmp_path / "out.jsonl", load()
    _run("ask_folder.py", str(folder), str(out), QUESTION, "--batch_size", "3")
    records = _records(out)
    assert set(records) == {"chart.png", "document.png", "grid.png", "below/shapes.png", "broken.png"}
    assert "cannot be read" in records["broken.png"]["error"]
    for name in set(records) - {"broken.png"}:
        image = read_image(loaded, str(folder / name))
        assert records[name]["answer"] == ask(loaded, [conversation(image, QUESTION)]).texts[0]
    first, second, *others = out.read_text().splitlines(keepends=True)
    begun = first + second.replace("}", ', "kept": true}')
    out.write_text(begun + others[0][:20])
    _run("ask_folder.py", str(folder), str(out), QUESTION, "--batch_size", "2")
    assert out.read_text().startswith(begun) and sorted(_records(out)) == sorted(records)
    _run("ask_folder.py", str(folder), str(out), "Another one?")
    assert len(out.read_text().splitlines()) == 2 * len(records), "another question is asked of all images"
    with pytest.raises(SystemExit, match="holds no image"):
        _run("ask_folder.py", str(_new(tmp_path / "empty")), str(out), QUESTION)


@pytest.mark.slow
def test_a_run_is_fine_tuned_and_published(tmp_path, capsys):
    _run("fine_tune.py", "--output_dir", str(tmp_path), "--max_steps", "2", "--batch_size", "2")
    printed = capsys.readouterr().out
    row = json.loads((tmp_path / "rows" / "rows.jsonl").read_text().splitlines()[0])
    assert f"{row['question']} {row['answer']}" in printed and str(tmp_path / "run") in printed
    assert json.loads((tmp_path / "run" / "run.json").read_text())["steps"] == 2
    _run("publish.py", str(tmp_path / "run"), "me/example")
    *_, files_line, answer = capsys.readouterr().out.strip().splitlines()
    assert {"README.md", "model.safetensors", "config.json"} <= set(files_line.split())
    loaded = load(str(tmp_path / "run"))
    assert (
        answer
        == ask(loaded, [conversation(read_image(loaded, str(IMAGES / "grid.png")), "What is in cell 5?")]).texts[0]
    )


def test_a_method_is_tried_and_leaves_no_trace(capsys):
    before = METHODS["uniform"]
    example = _run("selection_method.py", "--questions", "2")
    assert METHODS["uniform"] is before
    lines = capsys.readouterr().out.strip().splitlines()
    assert [re.match(r"(\w+): [0-2] of 2", line)[1] for line in lines] == ["shirg", "uniform", "most_edges"]
    edges = torch.tensor([0.0, 3.0, 1.0, 2.0])
    kept = example["most_edges"](ViewTokens(torch.zeros(4, 2), edges=edges), 2, None)
    assert kept.indices.tolist() == [1, 3]
