"""`shirg compare`: every system on one image, with exact counts and figures, and the sheet."""

import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from configuration_shirg import PRESETS
from modeling_shirg.evaluation.selection_quality import FIGURES, selection_quality, system_quality
from modeling_shirg.published_selections_shirg import METHODS
from shirg_scripts.cli import main
from tiny_model import QUESTIONS, chat, encode, noise_image, tiny_config, tiny_model, tiny_processor

GRID = str(Path(str(files("shirg_hub_card"))) / "examples" / "grid.png")
WITHOUT_SELECTION = ("lavida", "lavida-980", "lavida-full")
WITHOUT_LOSS = ("siglip-672", "pool")
WITHOUT_SCORES = ("random", "uniform", "divprune", "cdpruner")


def _figures_of(preset: str) -> set[str]:
    """The figures that a system has a notion of."""
    if preset in WITHOUT_SELECTION or preset in WITHOUT_LOSS:
        return set() if preset in WITHOUT_SELECTION else {"grid_correlation"}
    missing = {"gini"} if preset in WITHOUT_SCORES else set()
    anyres = tiny_config(preset).view_policy == "anyres"
    return {*FIGURES} - missing - ({"grid_correlation"} if anyres else set())


def test_all_systems_on_one_sheet_with_figures_and_a_smaller_prefix(capsys, tmp_path):
    out = tmp_path / "sheet.png"
    arguments = ["--prefix-kv", "0.5", "--prefix_dtype", "bfloat16", "--steps", "2", "--max_new_tokens", "4"]
    assert main(["compare", GRID, "What is in cell 5?", "--out", str(out), "--json", "--quality", *arguments]) == 0
    heading, *lines, last = capsys.readouterr().out.strip().splitlines()
    report = json.loads(last)
    assert list(report["systems"]) == list(PRESETS)
    counts = {name: row["image_tokens"] for name, row in report["systems"].items()}
    others = {"shirg-fixed": 228, "shirg-mixed": 192, "siglip-672": 576, "lavida": 259, "lavida-full": 845}
    adaptive = counts.pop("shirg-adaptive")
    assert 155 <= adaptive <= 245
    assert counts == {name: others.get(name, 245) for name in counts}
    assert Image.open(out).width == 5 * 448
    assert heading.split()[:4] == ["system", "tokens", "seconds", "gini"]
    for line, (name, row) in zip(lines, report["systems"].items(), strict=True):
        assert list(row["quality"]) == list(FIGURES)
        assert {figure for figure, value in row["quality"].items() if value is not None} == _figures_of(name)
        printed = ["-" if value is None else f"{value:.3f}" for value in row["quality"].values()]
        assert line.split()[0] == name and line.split()[3:8] == printed
        shares = [row["quality"][figure] for figure in ("coherence", "block_coverage", "gini")]
        assert all(0 <= share <= 1 for share in shares if share is not None)


def test_the_prefix_is_whole_unless_asked_and_there_are_no_figures_then(capsys, tmp_path):
    arguments = ["compare", GRID, "?", "--prune_method", "shirg", "--out", str(tmp_path / "s.png"), "--json"]
    assert main(arguments) == 0
    heading, line, last = capsys.readouterr().out.strip().splitlines()
    assert heading.split() == ["system", "tokens", "seconds", "answer"] and line.split()[:2] == ["shirg", "245"]
    whole = json.loads(last)["systems"]["shirg"]
    assert set(whole) == {"answer", "image_tokens", "seconds", "prefix_bytes"}
    half = ("--prefix_kv", "0.5")
    for more, share in ((half, 0.5), ((*half, "--prefix_dtype", "bfloat16"), 0.25)):
        assert main([*arguments, *more]) == 0
        row = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["systems"]["shirg"]
        assert row["prefix_bytes"] == pytest.approx(share * whole["prefix_bytes"], rel=0.02)


@pytest.mark.parametrize("preset", [name for name in PRESETS if _figures_of(name)])
def test_figures_are_those_of_the_selection_that_is_answered_with(preset):
    config = tiny_config(preset)
    model, processor = tiny_model(config), tiny_processor(config)
    inputs = encode(processor, chat(QUESTIONS[0], noise_image(0)))
    figures = system_quality(model, inputs)
    assert set(figures) == _figures_of(preset)
    if (method := METHODS.get(config.selection_method)) is None:
        return
    views, grid = config.num_selected_views, config.selected_grid
    pixels = inputs["fovea_pixel_values" if config.view_policy == "foveal" else "pixel_values"]
    images = {name: value for name, value in inputs.items() if name != "attention_mask"}
    with torch.no_grad():
        answered = model(**inputs, logits_to_keep=1, output_selection=True).kept_indices[0]
        seen = model.model.get_view_tokens(needs={"relevance", *method.needs}, **images)
        bases = model.model.vision_tower(F.interpolate(pixels, (192, 192), mode="bicubic", antialias=True))[0]
    if "grid_correlation" not in figures:
        bases = [None] * views
    selections = [method.select(view, config.selection_budget // views, config) for view in seen]
    kept = torch.cat([each.indices + grid**2 * number for number, each in enumerate(selections)])
    assert kept.tolist() == answered[answered >= 0].tolist()
    by_hand = [selection_quality(*each) for each in zip(selections, seen, [grid] * views, bases, strict=True)]
    for name, value in figures.items():
        assert value == pytest.approx(sum(each[name] for each in by_hand) / views), name
