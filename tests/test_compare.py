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
    if preset in WITHOUT_SELECTION:
        return set()
    if preset in WITHOUT_LOSS:
        return {"grid_correlation"}
    missing = {"gini"} if preset in WITHOUT_SCORES else set()
    if tiny_config(preset).view_policy == "anyres":
        missing.add("grid_correlation")
    return {*FIGURES} - missing


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
        assert all(
            0 <= row["quality"][figure] <= 1
            for figure in ("coherence", "block_coverage", "gini")
            if row["quality"][figure] is not None
        )


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
    method, views = METHODS.get(config.selection_method), config.num_selected_views
    pixels = inputs["fovea_pixel_values"] if config.view_policy == "foveal" else inputs["pixel_values"]
    with torch.no_grad():
        output = model(**inputs, logits_to_keep=1, output_selection=True)
        needs = {"relevance", *(method.needs if method else ())}
        images = {name: value for name, value in inputs.items() if name != "attention_mask"}
        seen = model.model.get_view_tokens(needs=needs, **images)
        base = model.model.vision_tower(F.interpolate(pixels, (192, 192), mode="bicubic", antialias=True))[0]
    assert len(seen) == views and all(torch.equal(view.features, seen[0].features) for view in seen[:1])
    if method is None:
        return
    selections = [method.select(view, config.selection_budget // views, config) for view in seen]
    offsets = config.selected_grid**2 * torch.arange(views)
    kept = torch.cat([each.indices + offset for each, offset in zip(selections, offsets, strict=True)])
    answered = output.kept_indices[0]
    assert kept.tolist() == answered[answered >= 0].tolist()
    by_hand = [
        selection_quality(each, view, config.selected_grid, base[index] if "grid_correlation" in figures else None)
        for index, (each, view) in enumerate(zip(selections, seen, strict=True))
    ]
    for name, value in figures.items():
        assert value == pytest.approx(sum(each[name] for each in by_hand) / views), name


def test_the_correlation_is_with_the_same_picture_at_the_base_grid():
    """A tower that only shows its pixels sees the same at both grids; another picture is not the same."""
    config = tiny_config("siglip-672")
    model, processor = tiny_model(config), tiny_processor(config)
    model.model.vision_tower.vision_model.embeddings.position_embedding.weight.data.zero_()
    model.model.vision_tower.foveal_position_embedding.weight.data.zero_()
    for layer in model.model.vision_tower.vision_model.encoder.layers:
        layer.self_attn.out_proj.weight.data.zero_()
        layer.mlp.fc2.weight.data.zero_()
    smooth = noise_image(0, 6, 6).resize((336, 336), Image.Resampling.BICUBIC)
    assert system_quality(model, encode(processor, chat("?", smooth)))["grid_correlation"] > 0.85
    assert system_quality(model, encode(processor, chat("?", noise_image(1, 336, 336))))["grid_correlation"] < 0.7
