"""The checkpoint that the package carries: its code is this code, its figures are measured, strangers can use it."""

import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from PIL import Image

from fresh_process import ask_fresh
from modeling_shirg.scenes import FAMILIES

HUB_CARD = Path(str(files("shirg_hub_card"))).resolve()
BUNDLED, BASE, ADAPTER = (HUB_CARD / f"shirg-lavida-tiny{ending}" for ending in ("", "-base", "-lora"))
ROOT = HUB_CARD.parent


@pytest.mark.parametrize("folder", [BUNDLED, BASE, ADAPTER])
def test_its_code_files_are_links_to_the_sources(folder):
    paths = list(folder.glob("*.py"))
    assert {"configuration_shirg_lavida.py", "processing_shirg_lavida.py"} <= {path.name for path in paths}
    for path in paths:
        assert path.is_symlink() and path.exists(), f"{path} must be a link, see training/toy/bundle.py"
        assert path.resolve().parent in (ROOT / "configuration_shirg", ROOT / "modeling_shirg")
        assert path.resolve().name == path.name


@pytest.mark.parametrize("folder", [BUNDLED, BASE, ADAPTER])
def test_it_is_small_and_holds_nothing_but_safe_files(folder):
    assert sum(path.stat().st_size for path in folder.rglob("*")) <= 20_000_000
    assert {path.suffix for path in folder.iterdir()} <= {".py", ".json", ".jinja", ".md", ".safetensors"}


def test_its_figures_beat_both_baselines_in_every_family():
    figures = json.loads((BUNDLED / "figures.json").read_text())
    better = {row["family"] for row in figures if row["low"] > max(row["no_image"], row["majority"])}
    assert better == set(FAMILIES)
    card = (BUNDLED / "README.md").read_text()
    for row in figures:
        assert row["count"] >= 100
        assert f"**{row['accuracy']:.1%}**" in card and row["kind"] in card


def test_a_stranger_gets_the_answer_that_the_command_gives(capsys):
    from shirg_scripts.cli import main

    path = str(HUB_CARD / "examples" / "grid.png")
    assert main(["ask", path, "What is in cell 5?"]) == 0
    assert ask_fresh(BUNDLED, path, "What is in cell 5?")["answer"].strip() == capsys.readouterr().out.strip()


def test_it_is_its_adapter_merged_into_its_base(monkeypatch):
    """But for the last bits: merged weights are stored in bfloat16."""
    from modeling_shirg.running.load import load

    monkeypatch.chdir(ROOT)
    merged, adapted, base = (load(f"hub_card/{each.name}", device="cpu") for each in (BUNDLED, ADAPTER, BASE))
    assert adapted.model.config.prune_method == merged.model.config.prune_method == "shirg"
    image = Image.open(HUB_CARD / "examples" / "grid.png")
    inputs = merged.processor(images=image, text="<image>\nWhat is in cell 5?", return_tensors="pt")
    with torch.no_grad():
        logits, same, other = (loaded.model(**inputs).logits for loaded in (merged, adapted, base))
    assert (logits - same).square().mean() < 0.01 * (logits - other).square().mean()
