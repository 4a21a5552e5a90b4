"""Adapters on models: what was saved is what is loaded, under its own system, and what does not fit is said."""

import json
import logging

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from adapter_runs import (
    COORDINATES,
    POSITIONS,
    PROJECTOR,
    WITH_ATTENTION,
    change_report,
    copy_folder,
    prompt_logits,
    save_base,
    save_run,
)
from modeling_shirg import ShirgLavidaForConditionalGeneration
from modeling_shirg.adapters_shirg import system_overrides
from modeling_shirg.publishing import base_fingerprint
from shirg_scripts.cli import main
from tiny_model import noise_image, tiny_config, tiny_model

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory):
    """Runs of different footprints and systems on one base."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        "wide": save_run(folder / "wide", base, WITH_ATTENTION, [POSITIONS]),
        "narrow": save_run(folder / "narrow", base, PROJECTOR, None),
        "whole": save_run(folder / "whole", base, PROJECTOR, [POSITIONS], prune_method="siglip-672"),
        "budget": save_run(folder / "budget", base, PROJECTOR, [POSITIONS], selection_budget=100, diversity_weight=0),
        "fixed": save_run(folder / "fixed", base, PROJECTOR, [POSITIONS, COORDINATES], prune_method="shirg-fixed"),
    }


def load(source, **kwargs):
    return AutoModelForImageTextToText.from_pretrained(source, **kwargs)


def damaged(run, into, change):
    """A copy of a run whose tensors are what `change` makes of them."""
    folder = copy_folder(run.folder, into)
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def without(*parts):
    return lambda tensors: {name: value for name, value in tensors.items() if not any(part in name for part in parts)}


# What is saved is what is loaded


@pytest.mark.parametrize("name", ["wide", "narrow", "whole", "budget", "fixed"])
def test_saved_is_loaded_by_both_classes_under_the_system_of_training(runs, name):
    run = runs[name]
    for loader in (load, ShirgLavidaForConditionalGeneration.from_pretrained):
        model = loader(run.folder)
        assert model.config.prune_method == run.report["prune_method"]
        assert model.config.num_image_tokens == run.report["config"]["num_image_tokens"]
        assert torch.equal(prompt_logits(model), run.logits)
    processor = AutoProcessor.from_pretrained(run.folder)
    assert processor.num_image_tokens == model.config.num_image_tokens


def test_loaded_is_merged_and_the_base_is_untouched(base, runs):
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    plain = prompt_logits(load(base))
    merged = PeftModel.from_pretrained(load(base), runs["wide"].folder).merge_and_unload()
    logits = prompt_logits(merged)
    assert (logits - runs["wide"].logits).abs().max() <= 1e-3 * logits.abs().max()
    assert (plain - logits).abs().max() > 0.1
    model = load(runs["wide"].folder)
    model.disable_adapters()
    assert torch.equal(prompt_logits(model), plain)
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_takes_an_adapter_in_its_own_type(base, runs, dtype):
    model = load(base, dtype=dtype)
    model.load_adapter(str(runs["wide"].folder))
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    assert torch.equal(prompt_logits(load(runs["wide"].folder, dtype=dtype)), prompt_logits(model))


@pytest.mark.parametrize(("first", "second"), [("wide", "narrow"), ("narrow", "wide")])
def test_two_footprints_never_mix(base, runs, first, second):
    model = load(base)
    model.load_adapter(str(runs[first].folder))
    assert torch.equal(prompt_logits(model), runs[first].logits)
    model.load_adapter(str(runs[second].folder), adapter_name="second")
    assert torch.equal(prompt_logits(model), runs[second].logits)
    model.set_adapter("default")
    assert torch.equal(prompt_logits(model), runs[first].logits)
    model.set_adapter("second")
    assert torch.equal(prompt_logits(model), runs[second].logits)
    model.delete_adapter("default")
    assert torch.equal(prompt_logits(model), runs[second].logits)
    model.load_adapter(str(runs[first].folder))
    assert torch.equal(prompt_logits(model), runs[first].logits)


def test_the_command_asks_an_adapter_under_its_system(runs, tmp_path, capsys):
    noise_image(5).save(tmp_path / "image.png")
    words = ["ask", str(tmp_path / "image.png"), "Which?", "--model", str(runs["whole"].folder), "--json"]
    assert main([*words, "--max_new_tokens", "4"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out.splitlines()[-1])["image_tokens"] == 576
    assert "system: siglip-672" in output.err


# The system of an adapter, and another one


def test_overrides_are_exactly_what_makes_the_system_of_a_config():
    stored = tiny_config(selection_temperature=0.3, selection_budget=150)
    wanted = stored.with_preset("shirg-mixed", summaries=False, text_relevance="none", selection_budget=64)
    overrides = system_overrides(wanted, stored)
    assert overrides == {"summaries": False, "text_relevance": "none", "selection_budget": 64}
    assert stored.with_preset("shirg-mixed", **overrides).to_dict() == wanted.to_dict()
    assert system_overrides(stored, stored) == {"selection_budget": 150}


@pytest.fixture
def said(caplog):
    """What the libraries log, as text."""
    logger = logging.getLogger("modeling_shirg")
    logger.addHandler(caplog.handler)
    yield lambda: caplog.text
    logger.removeHandler(caplog.handler)


@pytest.mark.parametrize("loader", [load, ShirgLavidaForConditionalGeneration.from_pretrained])
def test_fields_that_are_chosen_win_and_the_difference_is_said(runs, loader, said):
    model = loader(runs["budget"].folder, selection_budget=64)
    assert (model.config.selection_budget, model.config.diversity_weight) == (64, 0)
    assert "selection_budget=100, here 64" in said() and "num_image_tokens=164, here 128" in said()
    assert "diversity_weight" not in said()


def test_another_preset_of_the_same_grid_is_taken_on_request(runs, said):
    assert load(runs["wide"].folder, prune_method="uniform").config.selection_method == "uniform"
    assert "prune_method='shirg', here 'uniform'" in said()


def test_that_the_base_has_another_system_is_said(runs, said, tmp_path):
    load(copy_folder(runs["fixed"].folder, tmp_path / "run"))  # said once per adapter
    assert "trained under prune_method='shirg-fixed', which is another system than its base's own, 'shirg'" in said()
    assert "selection_budget" in said() and "Take its processor too" in said()


# What does not fit


def test_another_base_is_an_error(runs, tmp_path):
    other = load(save_base(tmp_path / "other", seed=1))
    for run in ("wide", "narrow"):
        with pytest.raises(ValueError, match="trained on other base weights, those of .*base.*fingerprint"):
            other.load_adapter(str(runs[run].folder))
        with pytest.raises(ValueError, match="other base weights"):
            other.check_adapter(str(runs[run].folder))
    moved = change_report(
        runs["wide"], tmp_path / "moved", base_model={**runs["wide"].report["base_model"], "fingerprint": "0" * 64}
    )
    with pytest.raises(ValueError, match="other base weights"):
        load(moved)


def test_a_base_that_is_not_here_is_an_error(runs, tmp_path):
    folder = copy_folder(runs["wide"].folder, tmp_path / "run")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/nowhere/base"}))
    with pytest.raises(ValueError, match=r"trained on the folder /nowhere/base, which is not here.*--base"):
        ShirgLavidaForConditionalGeneration.from_pretrained(folder)


@pytest.mark.parametrize(
    ("system", "name", "match"),
    [
        ({"prune_method": "siglip-672"}, "wide", "fovea_grid=16, here 24"),
        ({}, "whole", "prune_method='siglip-672', here 'shirg'.*fovea_grid=24, here 16"),
        ({"prune_method": "lavida-980"}, "wide", "fovea_size=224, here None"),
        ({"prune_method": "siglip-672"}, "fixed", "coordinate_embedding=True, here False"),
        ({"selection_budget": 181}, "budget", "selection_budget=100, here 181.*num_image_tokens=164, here 245"),
        ({"prune_method": "siglip-672"}, "narrow", "num_image_tokens=245, here 576"),
    ],
)
def test_another_geometry_is_an_error_that_says_which(base, runs, system, name, match):
    model = load(base, **system)
    plain = prompt_logits(model)
    for attempt in (model.load_adapter, model.check_adapter):
        with pytest.raises(ValueError, match=match):
            attempt(str(runs[name].folder))
    assert torch.equal(prompt_logits(model), plain)


@pytest.mark.parametrize(
    ("run", "prune_method", "module"),
    [("wide", "lavida-980", POSITIONS), ("fixed", "siglip-672", COORDINATES)],
)
def test_a_preset_without_what_the_adapter_replaces_is_an_error_even_on_request(runs, run, prune_method, module):
    with pytest.raises(ValueError, match=f"does not fit prune_method='{prune_method}'.*without a place.*{module}"):
        load(runs[run].folder, prune_method=prune_method)


def test_another_grid_is_an_error_even_on_request(runs):
    with pytest.raises(ValueError, match="(?s)size mismatch for .*foveal_position_embedding.*256.*576"):
        load(runs["wide"].folder, prune_method="siglip-672")


@pytest.mark.parametrize(("run", "module"), [("wide", POSITIONS), ("fixed", COORDINATES), ("fixed", POSITIONS)])
def test_a_missing_embedding_is_an_error(runs, tmp_path, run, module):
    folder = damaged(runs[run], tmp_path / "run", without(module))
    with pytest.raises(ValueError, match=f"does not fit.*{module}"):
        load(folder)


def test_missing_lora_tensors_are_an_error_and_leave_no_adapter(base, runs, tmp_path):
    folder = damaged(runs["wide"], tmp_path / "run", without("layers.1.self_attn.q_proj.lora_B"))
    model = load(base)
    plain = prompt_logits(model)
    with pytest.raises(ValueError, match=r"missing: .*layers\.1\.self_attn\.q_proj\.lora_B"):
        model.load_adapter(str(folder))
    assert torch.equal(prompt_logits(model), plain)


def test_a_larger_adapter_than_the_model_is_an_error(base, runs, tmp_path):
    def twice(tensors):
        return {n: torch.cat([value, value], dim=1) if "lora_A" in n else value for n, value in tensors.items()}

    folder = damaged(runs["narrow"], tmp_path / "run", twice)
    with pytest.raises(ValueError, match=r"(?s)size mismatch for .*linear_1\.lora_A.*4, 64.*4, 32"):
        load(base).load_adapter(str(folder))


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        (WEIGHTS, None, "only safetensors are read"),
        (WEIGHTS, b"version https://git-lfs", "no safetensors file"),
        ("run.json", b"{", "does not parse"),
        ("run.json", b"{}", "run.json has no base_model, config, config_overrides, prune_method"),
        (WEIGHTS, (7).to_bytes(8, "little") + b'{"a":1}', "no safetensors file"),
        ("adapter_config.json", b"[]", "not a JSON object"),
    ],
)
def test_broken_files_are_errors(base, runs, tmp_path, file, content, match):
    folder = copy_folder(runs["wide"].folder, tmp_path / "run")
    (folder / file).unlink() if content is None else (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=match):
        load(base).load_adapter(str(folder))


def test_no_adapter_is_an_error(base, tmp_path):
    with pytest.raises(ValueError, match="no adapter_config.json"):
        load(base).load_adapter(str(tmp_path))


def test_an_adapter_without_a_report_loads_and_says_what_is_not_known(runs, tmp_path, said):
    folder = copy_folder(runs["wide"].folder, tmp_path / "run")
    (folder / "run.json").unlink()
    assert torch.equal(prompt_logits(load(folder)), runs["wide"].logits)
    assert "its base is not checked" in said()


# Fingerprints


def test_a_fingerprint_is_that_of_folder_and_model_in_every_type(base, runs):
    wanted = base_fingerprint(base)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert base_fingerprint(load(base, dtype=dtype)) == wanted
    assert base_fingerprint(load(base, prune_method="siglip-672")) == wanted
    assert base_fingerprint(load(runs["wide"].folder)) == wanted
    assert base_fingerprint(PeftModel.from_pretrained(load(base), runs["wide"].folder)) == wanted
    assert base_fingerprint(PeftModel.from_pretrained(load(base), runs["wide"].folder).merge_and_unload()) != wanted


def test_a_fingerprint_of_shards_is_that_of_one_file(base, tmp_path):
    load(base).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert base_fingerprint(tmp_path) == base_fingerprint(base)


@pytest.mark.parametrize("part", ["multi_modal_projector.linear_2", "vision_tower", "language_model.layers.0"])
def test_training_any_part_changes_the_fingerprint(part):
    model = tiny_model(tiny_config())
    wanted = base_fingerprint(model)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if part in name:
                weight.add_(torch.randn_like(weight) * weight.std() * 1e-2)
    assert base_fingerprint(model) != wanted


def test_what_cannot_be_read_has_no_fingerprint(runs, said):
    model = load(runs["wide"].folder).to("meta")
    assert base_fingerprint(model) is None
    model.check_adapter(str(runs["wide"].folder))
    assert "its base is not checked" in said()
