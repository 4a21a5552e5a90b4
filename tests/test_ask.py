"""`shirg ask` on the bundled checkpoint, as a user calls it."""

import io
import json
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from PIL import Image

from configuration_shirg import PRESETS, ShirgLavidaProcessor
from shirg_scripts.cli import main, with_underscores

BUNDLED = Path(str(files("shirg_hub_card"))) / "shirg-lavida-tiny"
EXAMPLES = Path(str(files("shirg_hub_card"))) / "examples"
GRID = str(EXAMPLES / "grid.png")
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


def _ask(capsys, *arguments: str) -> tuple[int, str, str]:
    status = main(["ask", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def _report(capsys, *arguments: str) -> dict:
    status, out, err = _ask(capsys, *arguments, "--json")
    assert status == 0, err
    return json.loads(out.strip().splitlines()[-1])


def test_the_console_command_prints_an_answer_and_says_which_model():
    run = subprocess.run(
        [sys.executable, "-m", "shirg_scripts.cli", "ask", GRID, QUESTION], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.strip().splitlines()) == 1 and run.stdout.strip()
    assert "shirg-lavida-tiny (bundled)" in run.stderr and "system: shirg" in run.stderr


def test_json_has_what_the_readme_says(capsys):
    report = _report(capsys, GRID, QUESTION)
    assert set(report) == {
        "answer",
        "image_tokens",
        "kept",
        "forwards",
        "tokens_per_forward",
        "prefix_bytes",
        "seconds",
    }
    assert report["image_tokens"] == 245
    whole, fovea = report["kept"]
    assert whole == list(range(169))
    assert len(fovea) == 181 and fovea == sorted(set(fovea)) and fovea[-1] < 256
    assert report["forwards"] == 8 and report["tokens_per_forward"] == 1.0
    assert {"load", "preprocess", "encode", "select", "project", "prefix", "denoise"} <= set(report["seconds"])
    assert all(seconds >= 0 for seconds in report["seconds"].values())


def test_the_answer_is_the_same_again_from_standard_input_and_with_hyphens(capsys, monkeypatch):
    first = _report(capsys, GRID, QUESTION, "--max_new_tokens", "4", "--steps=2")
    buffer = io.TextIOWrapper(io.BytesIO(Path(GRID).read_bytes()))
    monkeypatch.setattr(sys, "stdin", buffer)
    second = _report(capsys, "-", QUESTION, "--max-new-tokens", "4", "--steps", "2")
    assert first["forwards"] == 2
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


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
    white = tmp_path / "white.png"
    Image.new("RGB", (224, 224), "white").save(white)
    overlay = tmp_path / "overlay.png"
    report = _report(capsys, str(white), QUESTION, "--overlay", str(overlay))
    drawn = Image.open(overlay)
    patch = drawn.width / 16
    for index in range(256):
        row, column = divmod(index, 16)
        center = drawn.getpixel((int((column + 0.5) * patch), int((row + 0.5) * patch)))
        assert (center == (255, 255, 255)) == (index in report["kept"][1])


def test_the_fovea_can_be_placed(capsys, tmp_path):
    wide = tmp_path / "wide.png"
    canvas = Image.new("RGB", (900, 300), "white")
    canvas.paste(Image.open(GRID), (640, 20))
    canvas.save(wide)
    left = _report(capsys, str(wide), QUESTION, "--fovea_box", "0", "0", "100", "100")
    right = _report(capsys, str(wide), QUESTION, "--fovea_box", "650", "30", "850", "230")
    assert left["kept"] != right["kept"]


def test_streaming_shows_drafts_and_then_the_answer(capsys):
    status, out, _ = _ask(capsys, GRID, QUESTION, "--stream")
    answer = _report(capsys, GRID, QUESTION)["answer"]
    assert status == 0
    assert out.count("\033[33m") == 8 and out.strip().endswith(answer)


def test_streaming_still_ends_in_one_json_line(capsys):
    status, out, _ = _ask(capsys, GRID, QUESTION, "--stream", "--json")
    assert status == 0 and json.loads(out.splitlines()[-1])["forwards"] == 8


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("no-such-file.png", QUESTION), ("no-such-file.png",)),
        ((__file__, QUESTION), ("Image 0", "PNG")),
        ((GRID, QUESTION, "--steps", "0"), ("steps=0",)),
        ((GRID, QUESTION, "--model", "no/such-model"), ("no/such-model",)),
        ((GRID, QUESTION, "--device", "warp"), ("warp",)),
        ((GRID, QUESTION, "--device", "cuda:7"), ("cuda:7", "cpu")),
        ((GRID, QUESTION, "--prune_method", "lavida-980", "--fovea_box", "0", "0", "9", "9"), ("fovea",)),
        ((GRID, QUESTION, "--fovea_box", "9", "9", "0", "0"), ("9.0",)),
        ((GRID, QUESTION, "--overlay", "no/such/folder/out.png"), ("no/such/folder",)),
    ],
)
def test_errors_name_the_value_in_one_line(capsys, arguments, named):
    status, out, err = _ask(capsys, *arguments)
    assert status == 2
    assert all(value in err for value in named), err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask", GRID, QUESTION, "--prune_method", "lavida980"],
        ["compare", GRID, QUESTION, "--out", "sheet.png", "--systems", "shirg", "lavida980"],
        ["calibrate", "--prune-method=lavida980"],
        ["convert", "somewhere", "elsewhere", "--prune_method", "lavida980"],
    ],
)
def test_every_command_suggests_the_nearest_system(capsys, arguments):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "'lavida980'. Did you mean 'lavida-980'?" in capsys.readouterr().err


def test_a_checkpoint_of_another_kind_is_refused(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    status, _, err = _ask(capsys, GRID, QUESTION, "--model", str(tmp_path))
    assert status == 2 and "'bert'" in err and "shirg_lavida" in err


def test_a_folder_that_is_not_there_is_named(capsys, tmp_path):
    status, _, err = _ask(capsys, GRID, QUESTION, "--model", str(tmp_path / "not" / "there"))
    assert status == 2 and f"There is no folder '{tmp_path}/not/there', and it is no Hub id" in err


def test_a_contradictory_checkpoint_is_refused_without_a_traceback(capsys, tmp_path):
    shutil.copytree(EXAMPLES.parent / "shirg-lavida-tiny", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "selection_budget": 9999}))
    status, _, err = _ask(capsys, GRID, QUESTION, "--model", str(tmp_path / "model"))
    assert status == 2 and "9999" in err and "256" in err and "Traceback" not in err


def test_unknown_commands_and_help(capsys):
    assert main(["aks"]) == 2
    assert "unknown command 'aks'" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert "ask" in capsys.readouterr().out


def test_hyphens_become_underscores_in_flag_names_only():
    given = [
        "--prune-method=shirg-v1",
        "my-file.png",
        "--some-flag",
        "a-b",
        "--what is this-thing",
        "--",
        "--as-it-is",
    ]
    assert with_underscores(given) == [
        "--prune_method=shirg-v1",
        "my-file.png",
        "--some_flag",
        "a-b",
        "--what is this-thing",
        "--",
        "--as-it-is",
    ]


def test_where_no_picture_can_be_written_nothing_is_computed(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_shirg.running.load.load", lambda *args: pytest.fail("the model was loaded"))
    for path, reason in (
        (tmp_path / "none" / "o.png", "none"),
        (tmp_path, "picture file"),
        ("o.xyz", "one of .png, .jpg"),
    ):
        status, _, err = _ask(capsys, GRID, QUESTION, "--overlay", str(path))
        assert status == 2 and reason in err


def test_a_fovea_box_is_looked_at_in_an_image_lower_than_the_fovea(capsys, tmp_path):
    Image.new("RGB", (1000, 100), "white").save(tmp_path / "banner.png")
    inputs = ShirgLavidaProcessor.from_pretrained(BUNDLED).image_processor(
        str(tmp_path / "banner.png"), fovea_boxes=[(900, 0, 1000, 100)], return_tensors="pt"
    )
    assert inputs["view_boxes"][0, 1].tolist() == [776, 0, 1000, 100]
    status, out, err = _ask(capsys, str(tmp_path / "banner.png"), QUESTION, "--fovea_box", "900", "0", "1000", "100")
    assert status == 0, err


def test_cut_weights_are_named(capsys, tmp_path):
    shutil.copytree(BUNDLED, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    status, _, err = _ask(capsys, GRID, QUESTION, "--model", str(tmp_path / "cut"))
    assert status == 2 and "download complete" in err


def test_any_field_of_the_config_is_an_option(capsys):
    report = _report(capsys, GRID, QUESTION, "--option", "selection_budget=100", "--option", "diversity-weight=0")
    assert report["image_tokens"] == 164 and len(report["kept"][1]) == 100
    assert _report(capsys, GRID, QUESTION, "--option", "scaffold=false")["image_tokens"] == 181
    for option, reason in (
        ("selection_budget", "FIELD=VALUE"),
        ("selection_buget=3", "Did you mean 'selection_budget'"),
        ("selection_budget=0", "must be between 1 and the 256 tokens"),
        ("text_relevance=clip", "text_relevance"),
    ):
        status, _, err = _ask(capsys, GRID, QUESTION, "--option", option)
        assert status == 2 and reason in err, err
