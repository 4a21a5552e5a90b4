"""Disk full and folders that cannot be written: what was there before stays, and no part of a file is left.

Disk full is a limit of the operating system on the size of a file (RLIMIT_FSIZE): the write that goes beyond it fails
with an OSError, as it does on a full disk. A folder that cannot be written is a read-only tmpfs for root, whom
permissions do not stop, and else a folder without permission to write.
"""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import SafetensorError

from command_runs import GRID, CommandError, checkpoint, command, contents
from full_disk import full_beyond
from modeling_shirg.conversion import convert_checkpoint
from modeling_shirg.evaluation.answer_log import AnswerLog, Place, read_answers
from modeling_shirg.evaluation.calibrated_folder import write_calibrated_copy, write_calibration
from modeling_shirg.publishing.push import Publication
from modeling_shirg.running.files import save_picture, write_json

REFERENCE = Path(__file__).parent / "fixtures" / "lavida"
CALIBRATION = {"relevance": {}, "attention": []}
PLACE = Place("guard", "shirg", "none")


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing can be written in `folder`, which is empty."""
    if os.geteuid():
        folder.chmod(0o555)
        yield
        folder.chmod(0o755)
        return
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"root may not mount a read-only folder here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def _picture() -> Image.Image:
    return Image.effect_noise((300, 300), 90)


def _card() -> ModelCard:
    return ModelCard("---\nlicense: apache-2.0\n---\n" + "words " * 2000)


# Each writes several kilobytes to a new place in a folder.
WRITERS: dict[str, Callable[[Path], object]] = {
    "convert": lambda folder: convert_checkpoint(
        REFERENCE / "checkpoint", folder / "out", vision_base=REFERENCE / "tiny-siglip-so400m-patch14-384"
    ),
    "calibrate": lambda folder: write_calibrated_copy(checkpoint(), folder / "out", CALIBRATION),
    "push --dry_run": lambda folder: Publication(_card(), {}).write(folder / "out", "me/it", "main"),
    "train, evaluate": lambda folder: write_json(folder / "run.json", {"command": "x" * 9000}),
    "ask --overlay, compare --out": lambda folder: save_picture(_picture(), folder / "kept.png"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_on_a_full_disk_nothing_is_left(tmp_path, name):
    checkpoint()
    with full_beyond(4000), pytest.raises((OSError, SafetensorError)):
        WRITERS[name](tmp_path)
    assert contents(tmp_path) == {}
    WRITERS[name](tmp_path)
    assert contents(tmp_path) != {}


@pytest.mark.parametrize("name", WRITERS)
def test_in_a_read_only_folder_the_error_is_the_systems(tmp_path, name):
    checkpoint()
    with read_only(tmp_path), pytest.raises(OSError, match=f"(Read-only|Permission denied).*{tmp_path.name}"):
        WRITERS[name](tmp_path)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("file", "write"),
    [
        ("run.json", lambda path: write_json(path, {"command": "x" * 9000})),
        ("kept.png", lambda path: save_picture(_picture(), path)),
    ],
)
def test_a_file_that_was_there_is_the_old_one(tmp_path, file, write):
    (tmp_path / file).write_text("the old one")
    before = contents(tmp_path)
    with full_beyond(4000), pytest.raises(OSError, match="too large"):
        write(tmp_path / file)
    assert contents(tmp_path) == before


def test_a_calibration_in_place_keeps_the_config(tmp_path):
    for file in ("config.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((checkpoint() / file).read_bytes())
    (tmp_path / "README.md").write_text("# A card\n")
    before = contents(tmp_path)
    with full_beyond(1000), pytest.raises(OSError, match="too large"):
        write_calibration(tmp_path, CALIBRATION)
    assert contents(tmp_path) == before


def _answer(row: int) -> dict:
    return {"row": row, "scores": {}, "answer": "a" * 500}


def test_answers_go_on_after_the_last_whole_line(tmp_path):
    with AnswerLog(tmp_path, PLACE, 0) as log:
        log.append([_answer(0)])
    with full_beyond(1200), pytest.raises(OSError, match="too large"):
        with AnswerLog(tmp_path, PLACE, 0) as log:
            log.append([_answer(1), _answer(2)])
    assert [record["row"] for record in read_answers(tmp_path, PLACE)] == [0, 1]
    with AnswerLog(tmp_path, PLACE, 0) as log:
        log.append([_answer(2)])
    assert [record["row"] for record in read_answers(tmp_path, PLACE)] == [0, 1, 2]


def test_the_command_says_so_in_one_line_and_the_old_picture_stays(tmp_path):
    (tmp_path / "kept.png").write_text("the old one")
    with full_beyond(4000), pytest.raises(CommandError, match=r"shirg ask: \[Errno 27\] File too large"):
        command("ask", GRID, "Which?", "--overlay", str(tmp_path / "kept.png"))
    assert (tmp_path / "kept.png").read_text() == "the old one" and len(contents(tmp_path)) == 1
