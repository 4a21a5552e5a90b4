"""`shirg ask` on the bundled checkpoint, as a user calls it, and the one way to ask behind every command."""

import io
import json
import os
import pty
import subprocess
import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

from configuration_shirg import PRESETS
from configuration_shirg.image_reading_shirg import read_image
from modeling_shirg.demo.drafts import Asker
from modeling_shirg.running import ask as asking
from modeling_shirg.running.ask import Answers, ask, conversation
from modeling_shirg.running.load import load
from shirg_scripts.cli import main
from tiny_model import QUESTIONS, noise_image

BUNDLED = Path(str(files("shirg_hub_card"))) / "shirg-lavida-tiny"
GRID = str(BUNDLED.parent / "examples" / "grid.png")
QUESTION = "What is in cell 5?"
TOKENS = {"lavida-full": 845, "lavida": 49 + 14 * 15, "shirg-fixed": 228, "shirg-mixed": 192, "siglip-672": 576}
KEPT = {
    "shirg-784": [169, 196],
    "pool": [169, 256],
    "lavida": [169] * 5,
    "lavida-980": [169] * 5,
    "lavida-full": [169] * 5,
    "shirg-fixed": [192],
    "shirg-mixed": [192],
    "siglip-672": [576],
    **dict.fromkeys(
        ("shirg-3645", "saint", "topv", "visionzip", "vispruner", "divprune", "cdpruner", "holov"), [49] * 5
    ),
}
# Every call-time option of the image processor that a preset leaves open, and a value that changes what is kept.
OPTIONS = {
    "fovea_size": 252,
    "selection_budget": 100,
    "fovea_placement": "salient",
    "fovea_boxes": [[600.0, 20.0, 880.0, 280.0]],
}


def _report(capsys, *arguments: str) -> dict:
    assert main(["ask", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> str:
    """An image that is wider than the fovea, with the grid at its right."""
    canvas = Image.new("RGB", (900, 300), "white")
    canvas.paste(Image.open(GRID), (640, 20))
    path = tmp_path_factory.mktemp("images") / "wide.png"
    canvas.save(path)
    return str(path)


def test_json_has_what_the_docs_say_also_of_standard_input(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(GRID).read_bytes())))
    assert _report(capsys, "-", QUESTION, "--max-new-tokens", "4", "--steps", "2")["forwards"] == 2
    report = _report(capsys, GRID, QUESTION)
    known = ["answer", "image_tokens", "kept", "forwards", "tokens_per_forward", "prefix_bytes", "seconds"]
    assert list(report) == known
    assert report["image_tokens"] == 245
    whole, fovea = report["kept"]
    assert whole == list(range(169))
    assert len(fovea) == 181 and fovea == sorted(set(fovea)) and fovea[-1] < 256
    assert report["forwards"] == 8 and report["tokens_per_forward"] == 1.0
    stages = ["preprocess", "encode", "select", "project", "prefix", "denoise"]
    assert set(report["seconds"]) == {"total", *stages}
    assert 0 < sum(report["seconds"][stage] for stage in stages) <= 1.05 * report["seconds"]["total"]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_system_answers(capsys, tmp_path, preset):
    overlay = tmp_path / "overlay.png"
    report = _report(capsys, GRID, QUESTION, "--prune_method", preset, "--overlay", str(overlay))
    kept = [len(view) for view in report["kept"]]
    if preset == "shirg-adaptive":
        assert report["image_tokens"] == 64 + kept[1] and 91 <= kept[1] <= 181
    else:
        assert report["image_tokens"] == TOKENS.get(preset, 245)
        assert kept == KEPT.get(preset, [169, 181])
    assert isinstance(report["answer"], str)
    assert Image.open(overlay).width >= 896


def test_overlay_darkens_dropped_patches_and_leaves_kept_ones(capsys, tmp_path):
    white, overlay = tmp_path / "white.png", tmp_path / "overlay.png"
    Image.new("RGB", (224, 224), "white").save(white)
    report = _report(capsys, str(white), QUESTION, "--overlay", str(overlay))
    drawn = Image.open(overlay)
    patch = drawn.width / 16
    for index in range(256):
        row, column = divmod(index, 16)
        center = drawn.getpixel((int((column + 0.5) * patch), int((row + 0.5) * patch)))
        assert (center == (255, 255, 255)) == (index in report["kept"][1])


@pytest.fixture
def asked(monkeypatch) -> list[tuple[list, Answers]]:
    """The conversations and answers of every call of `ask` in a test."""
    calls = []

    def spy(loaded, conversations, *args, **kwargs):
        calls.append((conversations, ask(loaded, conversations, *args, **kwargs)))
        return calls[-1][1]

    for module in ("running.ask", "evaluation.asking", "demo.drafts"):
        monkeypatch.setattr(f"modeling_shirg.{module}.ask", spy)
    return calls


def _by_command(option: str, value, wide: str, folder: Path) -> None:
    words = ["--option", f"{option}={value}"]
    if option in ("fovea_boxes", "fovea_size"):
        words = ["--fovea_box", *map(str, value[0])] if option == "fovea_boxes" else ["--fovea_size", str(value)]
    assert main(["ask", wide, QUESTION, *words]) == 0


def _by_comparison(option: str, value, wide: str, folder: Path) -> None:
    words = ["--prune_method", "shirg", "--option", f"{option}={value}", "--out", str(folder / "sheet.png")]
    assert main(["compare", wide, QUESTION, *words]) == 0


def _by_evaluation(option: str, value, wide: str, folder: Path) -> None:
    words = ["--prune_method", f"shirg:{option}={value}", "--tasks", "document", "--limit", "1", "--out", str(folder)]
    assert main(["evaluate", *words]) == 0


def _by_demo(option: str, value, wide: str, folder: Path) -> None:
    names = {"fovea_boxes": "box", "selection_budget": "budget", "fovea_size": "fovea"}
    share = {"fovea_boxes": 1, "selection_budget": 181, "fovea_size": 224}[option]
    given = {names[option]: value[0] if option == "fovea_boxes" else value / share}
    list(Asker(lambda name: load(None, name)).ask("shirg", read_image(wide), QUESTION, **given))


def _by_lmms_eval(option: str, value, wide: str, folder: Path) -> None:
    from modeling_shirg.evaluation.lmms_eval_model import ShirgLmms

    asking.ask(ShirgLmms(prune_method="shirg", **{option: value}).loaded, [conversation(wide, QUESTION)])


WAYS = [
    *((_by_command, option) for option in OPTIONS),
    *((way, option) for way in (_by_comparison, _by_evaluation) for option in OPTIONS if option != "fovea_boxes"),
    *((_by_demo, option) for option in ("fovea_boxes", "selection_budget", "fovea_size")),
    *((_by_lmms_eval, option) for option in OPTIONS if option != "fovea_boxes" and find_spec("lmms_eval")),
]


@pytest.mark.parametrize(("way", "option"), WAYS)
def test_every_image_option_arrives_however_one_asks(way, option, asked, wide, tmp_path):
    """As a field of the config or at call time; the selection is another one than without it."""
    way(option, OPTIONS[option], wide, tmp_path)
    conversations, answers = asked[-1]
    given = {option: OPTIONS[option]}
    if way in (_by_command, _by_demo):
        expected = ask(load(), conversations, given)
    else:
        expected = ask(load(options=given), conversations)
    plain = ask(load(), conversations)
    for name in ("input_ids", "pixel_values", "fovea_pixel_values", "patch_boxes"):
        assert torch.equal(answers.inputs[name], expected.inputs[name])
    assert answers.kept_per_view() == expected.kept_per_view() != plain.kept_per_view()
    assert answers.num_image_tokens == expected.num_image_tokens


def test_rows_of_a_batch_are_what_they_are_alone():
    loaded = load(None, "shirg-adaptive", "cpu")
    chats = [conversation(noise_image(seed, 300 + 200 * seed), QUESTIONS[seed]) for seed in range(3)]
    together = ask(loaded, [*chats, [{"role": "user", "content": "No image: why?"}]])
    for row, chat in enumerate(chats):
        alone = ask(loaded, [chat])
        assert together.texts[row] == alone.texts[0]
        assert together.num_image_tokens[row] == alone.num_image_tokens[0]
        assert together.kept_per_view(row) == alone.kept_per_view()
        assert together.overlay(noise_image(row), row).tobytes() == alone.overlay(noise_image(row)).tobytes()
    assert together.num_image_tokens[3] == 0


def test_streaming_shows_drafts_on_a_terminal():
    terminal, side = pty.openpty()
    command = [sys.executable, "-m", "shirg_scripts.cli", "ask", GRID, QUESTION, "--stream"]
    run = subprocess.run(command, stdout=side, stderr=subprocess.PIPE, timeout=300)
    os.close(side)
    shown = os.read(terminal, 100_000).decode()
    assert run.returncode == 0 and shown.count("\033[33m") == 8
    assert shown.strip().splitlines()[-1].endswith(ask(load(), [conversation(GRID, QUESTION)]).texts[0])
