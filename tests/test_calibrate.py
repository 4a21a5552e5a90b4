"""`shirg calibrate`: figures by brute force, rules on made-up signals, and the command."""

import json
import shutil
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from fresh_process import run_fresh
from modeling_shirg.evaluation.calibrated_folder import calibration_table, with_calibration_section, write_calibration
from modeling_shirg.evaluation.calibration import (
    Seen,
    auc,
    calibration_of,
    look,
    patches_inside,
)
from modeling_shirg.evaluation.labelled_boxes import LabelledBox, read_boxes
from shirg_scripts.cli import main
from tiny_model import QUESTIONS, noise_image, tiny_config, tiny_model, tiny_processor

BUNDLED = Path(str(files("shirg_hub_card"))) / "shirg-lavida-tiny"
FIGURE = {"mean": 0.6, "low": 0.55, "high": 0.65, "images": 50}
FACTS = {
    "verdict": "undecided",
    "decided": FIGURE,
    "held_out": FIGURE,
    "held_out_corrected": FIGURE,
    "data": "boxes.jsonl",
    "prune_method": "shirg",
}


def relevance_entry(sign: int) -> dict:
    return {"sign": sign, **FACTS}


def attention_entry(mean: list[float] | None, view_policy: str = "foveal", grid: int = 16, source: str = "map"):
    return {"view_policy": view_policy, "grid": grid, "source": source, "mean": mean, **FACTS}


def calibration(sign: int = 1, *entries: dict) -> dict:
    return {"relevance": {"lm": relevance_entry(sign)}, "attention": list(entries)}


@pytest.mark.parametrize("levels", [None, 3, 1])
@pytest.mark.parametrize("num_inside", [1, 7, 29])
def test_auc_is_the_share_of_pairs_that_are_in_order(levels, num_inside):
    draw = torch.Generator().manual_seed(num_inside)
    scores = torch.rand(30, generator=draw)
    scores = scores if levels is None else (scores * levels).floor()
    inside = torch.zeros(30, dtype=torch.bool).index_fill(0, torch.randperm(30, generator=draw)[:num_inside], True)
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[inside].tolist() for b in scores[~inside].tolist()]
    assert auc(scores, inside) == pytest.approx(sum(pairs) / len(pairs))
    assert auc(-scores, inside) == pytest.approx(1 - auc(scores, inside))


def test_a_patch_is_inside_if_it_holds_half_as_much_of_the_box_as_any():
    places = torch.arange(16)
    boxes = torch.stack([places % 4 / 4, places // 4 / 4, *torch.full((2, 16), 0.25)], dim=1)

    def inside(*box: float) -> list[int]:
        return patches_inside(boxes, box).nonzero()[:, 0].tolist()

    assert inside(0.25, 0.25, 0.75, 0.75) == [5, 6, 9, 10]
    # The third column is more than half covered, the third row less.
    assert inside(0.0, 0.0, 0.65, 0.6) == [0, 1, 2, 4, 5, 6]
    # Smaller than a patch: within one, and over four.
    assert inside(0.3, 0.3, 0.4, 0.4) == [5]
    assert inside(0.45, 0.45, 0.55, 0.55) == [5, 6, 9, 10]
    # A view beside the box has nothing of it.
    assert patches_inside(boxes + torch.tensor([1.0, 0, 0, 0]), (0.1, 0.1, 0.5, 0.5)).any().item() is False


def seen_of(relevance: list[torch.Tensor], attention: list[torch.Tensor], inside: list[torch.Tensor]) -> list[Seen]:
    return [
        Seen(f"image {number:03}", box[None], torch.ones_like(box)[None], a[None], {"lm": s[None]})
        for number, (s, a, box) in enumerate(zip(relevance, attention, inside, strict=True))
    ]


def made_up(num_images: int = 60, bias: float = 0.0, signal: float = 0.0, text: float = 0.0) -> list[Seen]:
    """Images of 64 patches with boxes of 8: attention = bias of the position + signal in the box + noise."""
    draw = torch.Generator().manual_seed(3)
    positions = torch.rand(64, generator=draw)
    relevance, attention, inside = [], [], []
    for _ in range(num_images):
        box = torch.zeros(64, dtype=torch.bool)
        box[torch.randperm(64, generator=draw)[:8]] = True
        relevance.append(torch.rand(64, generator=draw) + text * box)
        attention.append(bias * positions + 0.1 * torch.rand(64, generator=draw) + signal * box)
        inside.append(box)
    return seen_of(relevance, attention, inside)


CONFIG = tiny_config("shirg")


@pytest.mark.parametrize(
    ("text", "verdict", "sign"), [(0.5, "follows", 1), (-0.5, "inverted", -1), (0.0, "undecided", 1)]
)
def test_the_sign_turns_only_where_the_interval_is_below_one_half(text, verdict, sign):
    entry = calibration_of(made_up(text=text), CONFIG, "made up")["relevance"]["lm"]
    assert (entry["verdict"], entry["sign"]) == (verdict, sign)
    before, after = entry["held_out"]["mean"], entry["held_out_corrected"]["mean"]
    assert after == pytest.approx(before if sign > 0 else 1 - before, abs=1e-4)
    assert (entry["decided"]["high"] < 0.5) == (sign < 0)
    assert after > 0.8 or verdict == "undecided"


def test_a_bias_of_the_positions_is_taken_out_and_shown_on_images_that_decided_nothing():
    seen = made_up(bias=1.0, signal=0.1)
    (entry,) = calibration_of(seen, CONFIG, "made up")["attention"]
    assert entry["verdict"] == "better" and len(entry["mean"]) == 64
    assert entry["held_out"]["mean"] < 0.65 < 0.85 < entry["held_out_corrected"]["mean"]
    names = {each.name for each in seen}
    assert entry["decided"]["images"] == entry["held_out"]["images"] == len(names) / 2
    assert {name: entry[name] for name in ("view_policy", "grid", "source")} == {
        "view_policy": "foveal",
        "grid": 16,
        "source": "map",
    }
    never = calibration_of(seen, CONFIG, "made up", "never")["attention"][0]
    assert never == {**entry, "mean": None}


def test_all_questions_about_an_image_count_as_one_and_stay_in_one_half():
    seen = made_up(num_images=8, text=0.5, signal=0.3)
    twice = seen + [replace(each, relevance={"lm": -each.relevance["lm"]}) for each in seen]
    once, both = (calibration_of(each, CONFIG, "made up") for each in (seen, twice))
    figures = [both["relevance"]["lm"][name] for name in ("decided", "held_out")]
    assert figures == [{"mean": 0.5, "low": 0.5, "high": 0.5, "images": 4}] * 2
    assert both["attention"] == once["attention"]


def test_looking_takes_the_signals_of_patches_that_show_the_image():
    model = tiny_model(config := tiny_config("shirg-3645"))
    wide = LabelledBox("wide", noise_image(0, 400, 100), QUESTIONS[0], (0, 0, 150, 50))
    (seen,), unseen = look(model, tiny_processor(config), [wide], ("lm",))
    assert unseen == 0 and seen.attention_VN.shape == seen.inside_VN.shape == (5, 169)
    # The whole image is a view; of the 2x2 tiles the image fills the middle, and the box lies in the first tile.
    assert seen.shown_VN[0].all() and not seen.shown_VN[1:].all(-1).any()
    assert seen.telling_views == [0, 1] and not (seen.inside_VN & ~seen.shown_VN).any()


@pytest.fixture
def folder(tmp_path) -> Path:
    """A data folder: four images and a file of boxes about them, two of one image."""
    records = []
    for number in range(4):
        noise_image(number, 240, 230).save(tmp_path / f"{number}.png")
        records.append({"image": f"{number}.png", "question": QUESTIONS[0], "box": [100, 100, 160, 150]})
    records.append({**records[0], "question": "Which?", "box": [0, 0, 40, 40]})
    (tmp_path / "boxes.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n\n")
    return tmp_path


def test_records_are_read_with_paths_from_the_file(folder):
    boxes = read_boxes(folder / "boxes.jsonl")
    assert len(boxes) == 5 and boxes[4].name == boxes[0].name == str(folder / "0.png")
    assert boxes[4].question == "Which?" and boxes[4].box == (0.0, 0.0, 40.0, 40.0)
    assert read_boxes(folder / "boxes.jsonl", 2) == [boxes[0], boxes[1], boxes[4]]


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = main(["calibrate", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


KEPT = """
from transformers import AutoModelForImageTextToText
model = AutoModelForImageTextToText.from_pretrained({folder!r}, trust_remote_code=True)
print(model.config.attention_mean(16) is not None)
"""


def test_a_calibrated_copy_is_another_checkpoint_for_strangers_too(capsys, folder):
    out = folder / "calibrated"
    arguments = ("--data", folder / "boxes.jsonl", "--subtract-mean", "always", "--out", out, "--json")
    status, printed, err = run(capsys, *arguments)
    assert status == 0, err
    report = json.loads(printed.splitlines()[-1])
    assert report["written"] == str(out) and report["left_out"] == 0 and report["prune_method"] == "shirg"
    config, bundled = (json.loads((place / "config.json").read_text()) for place in (out, BUNDLED))
    assert config.pop("calibration") == report["calibration"] and bundled.pop("calibration") is None
    assert config == bundled and report["calibration"]["relevance"]["lm"]["decided"]["images"] == 2
    same = {path.name for path in BUNDLED.iterdir()} - {"config.json", "README.md", "__pycache__"}
    assert {path.name for path in out.iterdir()} == {*same, "config.json", "README.md"}
    assert all((out / name).read_bytes() == (BUNDLED / name).read_bytes() for name in same)
    card = (out / "README.md").read_text()
    assert calibration_table(report["calibration"]) in card and "boxes.jsonl" in card and str(folder) not in card
    assert run_fresh(KEPT.format(folder=str(out))).strip().splitlines()[-1] == "True"


def test_in_place_other_views_join_and_the_section_is_renewed(capsys, folder):
    model = folder / "model"
    shutil.copytree(BUNDLED, model, ignore=shutil.ignore_patterns("__pycache__"))
    card = (model / "README.md").read_text()
    (model / "README.md").write_text(card + "\nMine.\n")
    weights = (model / "model.safetensors").stat().st_mtime_ns
    for preset in ("shirg", "shirg", "shirg-3645"):
        status, printed, err = run(
            capsys, "--model", model, "--data", folder / "boxes.jsonl", "--in_place", "--prune_method", preset
        )
        assert status == 0, err
        assert f"Written to {model}" in printed
    entries = json.loads((model / "config.json").read_text())["calibration"]["attention"]
    assert [(entry["view_policy"], entry["grid"]) for entry in entries] == [("foveal", 16), ("anyres", 13)]
    assert (model / "model.safetensors").stat().st_mtime_ns == weights
    text = (model / "README.md").read_text()
    assert text.count("## Calibration") == 1 and "Mine." in text and text.startswith(card.rstrip("\n"))
    assert "anyres views, grid 13" in text
    assert with_calibration_section(text, None) == card + "\nMine.\n"
    assert not [path.name for path in model.iterdir() if path.name.startswith(".")]
    assert json.loads((model / "config.json").read_text())["prune_method"] == "shirg"


def test_what_would_not_load_is_not_written(tmp_path):
    config = json.dumps({**json.loads((BUNDLED / "config.json").read_text()), "selection_budget": 9999})
    (tmp_path / "config.json").write_text(config)
    for given, named in ((calibration(1, attention_entry([0.1] * 9)), "256 finite"), (calibration(), "9999")):
        with pytest.raises((ValueError, StrictDataclassError), match=named):
            write_calibration(tmp_path, given)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == config


ONE = {"image": "0.png", "question": "Which?", "box": [10, 10, 50, 50]}


@pytest.mark.parametrize(
    ("records", "named"),
    [
        ([], ("boxes.jsonl", "no record")),
        ([ONE, "{"], ("line 2", "JSON")),
        ([7], ("line 1", "image, question, box", "got 7")),
        ([{**ONE, "question": "  "}], ("line 1", "no question")),
        ([{**ONE, "image": "none.png"}], ("line 1", "no image file", "none.png")),
        ([{**ONE, "image": "boxes.jsonl"}], ("boxes.jsonl", "UnidentifiedImageError")),
        ([{**ONE, "box": [1, 2, 3]}], ("left, top, right, bottom", "[1, 2, 3]")),
        ([{**ONE, "box": [10, 10, 241, 50]}], ("0.png", "[10.0, 10.0, 241.0, 50.0]", "240 x 230")),
        ([{**ONE, "box": [50, 10, 10, 50]}], ("[50.0, 10.0, 10.0, 50.0]",)),
        ([ONE], ("at least 4 images", "got 1")),
    ],
)
def test_wrong_data_is_named_by_its_line(capsys, folder, records, named):
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / "boxes.jsonl").write_text("\n".join(lines))
    status, _, err = run(capsys, "--data", folder / "boxes.jsonl")
    assert status == 2 and "Traceback" not in err
    assert all(value in err for value in named), err


def test_what_cannot_be_done_is_said_before_any_work(capsys, folder, monkeypatch):
    def not_yet(*args, **kwargs):
        pytest.fail("the model was loaded")

    data = ("--data", folder / "boxes.jsonl")
    with monkeypatch.context() as patched:
        patched.setattr("modeling_shirg.running.load.load", not_yet)
        for arguments, named in (
            ((*data, "--in_place"), ("--model FOLDER", "None")),
            ((*data, "--out", folder), ("not an empty folder",)),
            (("--images", "0"), ("--images 0",)),
            (("--data", folder / "none.jsonl"), ("none.jsonl", "cannot be read")),
        ):
            status, _, err = run(capsys, *arguments)
            assert status == 2 and all(value in err for value in named), err
    for arguments, named in (
        (("--prune_method", "lavida"), ("'lavida' reads neither", "such as shirg")),
        (("--prune_method", "uniform"), ("'uniform' reads neither",)),
        (("--prune_method", "uniform", "--text_relevance", "lm"), ("scores none",)),
        (("--prune_method", "cdpruner", "--text_relevance", "none"), ("reads relevance alone",)),
        (("--text_relevance", "siglip"), ("relevance_text_config", "--text_tower")),
    ):
        status, _, err = run(capsys, *data, *arguments)
        assert status == 2 and all(value in err for value in named), err
    with pytest.raises(SystemExit):
        main(["calibrate", "--out", "a", "--in_place"])
    with pytest.raises(SystemExit):
        main(["calibrate", "--prune_method", "shrig"])
    assert "Did you mean 'shirg'?" in capsys.readouterr().err
