"""Named LoRA footprints: exactly what they say is trained, counted truly, saved and loaded, and never mixed."""

import copy

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from modeling_shirg import ShirgLavidaForConditionalGeneration
from modeling_shirg.training.footprints import (
    apply_footprint,
    check_trainable,
    group_of,
    load_adapter,
    named_footprint,
    trainable_counts,
)
from tiny_model import QUESTIONS, VISION, chat, encode, noise_image, tiny_config, tiny_model, tiny_processor

DEEP = {**VISION, "num_hidden_layers": 8}


def _adapted(name: str = "shirg-extra", preset: str = "shirg", seed: int = 0, **changes):
    model = tiny_model(tiny_config(preset, vision_config=DEEP))
    return apply_footprint(model, named_footprint(name, **changes), seed)


def _trained(model) -> set[str]:
    return {name for name, each in model.named_parameters() if each.requires_grad}


def _perturb(model) -> None:
    """Moves every trained weight, as training would."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)


def _inputs(model):
    return encode(tiny_processor(model.config), chat(QUESTIONS[0], noise_image(0)))


EXPECTED = {
    "projector": {},
    "shirg-base": {"qk": range(4)},
    "shirg-extra": {"qkv": range(4), "qk": range(4, 6)},
    "shirg-extra-no-v": {"qk": range(6)},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_footprint_trains_what_it_says_and_nothing_else(name):
    modules = {"model.multi_modal_projector.linear_1", "model.multi_modal_projector.linear_2"}
    for letters, blocks in EXPECTED[name].items():
        layer = "model.vision_tower.vision_model.encoder.layers.{}.self_attn.{}_proj"
        modules |= {layer.format(block, letter) for block in blocks for letter in letters}
    adapted = _adapted(name)
    counts = trainable_counts(adapted)
    assert set(counts.modules) == modules | {"model.vision_tower.foveal_position_embedding"}
    check_trainable(adapted)


def test_one_footprint_trains_every_linear_layer_of_the_language_models_blocks_too():
    adapted = _adapted("shirg-extra-language")
    extra = set(trainable_counts(_adapted("shirg-extra")).modules)
    layers = {
        name.removeprefix("base_model.model.").removesuffix(".base_layer")
        for name, module in adapted.named_modules()
        if isinstance(module, torch.nn.Linear) and "language_model.layers" in name and ".lora_" not in name
    }
    counts = trainable_counts(adapted)
    assert len(layers) == 7 * adapted.config.text_config.num_hidden_layers
    assert set(counts.modules) == extra | layers
    assert set(counts.groups) == {"projector", "vision", "positions", "language"}
    check_trainable(adapted)


def test_counts_are_the_sums_of_rank_times_widths():
    counts = trainable_counts(_adapted(rank=8))
    projections = 4 * 3 + 2 * 2
    assert counts.groups == {
        "projector": 2 * 8 * (32 + 32),
        "vision": projections * 8 * (32 + 32),
        "positions": 256 * 32,
    }
    assert counts.total == sum(counts.groups.values()) == sum(counts.modules.values())
    base = sum(each.numel() for each in tiny_model(tiny_config(vision_config=DEEP)).parameters())
    assert counts.share == pytest.approx(counts.total / base)
    assert f"{counts.total:,} weights, {counts.share:.4%}" in counts.table()


def test_the_default_footprint_of_the_full_size_model_has_three_million_lora_weights():
    config = tiny_config("shirg", "full", vision_config={}, text_config={}, image_token_id=1, mask_token_id=2)
    with torch.device("meta"):
        model = ShirgLavidaForConditionalGeneration(config)
    adapted = apply_footprint(model, named_footprint("shirg-extra"), 0)
    counts = trainable_counts(adapted)
    lora = counts.groups["projector"] + counts.groups["vision"]
    assert lora == 64 * ((1152 + 4096) + (4096 + 4096) + (4 * 3 + 2 * 2) * (1152 + 1152))
    assert lora / 1e6 == pytest.approx(3.2, abs=0.1)
    assert counts.groups["positions"] == 1024 * 1152
    assert 0.0004 < counts.share < 0.0006


def test_rank_and_alpha():
    for name, changes, rank, alpha in (
        ("shirg-extra", {}, 64, 128),
        ("shirg-extra", {"rank": 16}, 16, 32),
        ("projector", {"alpha": 16}, 64, 16),
        ("shirg-base", {"rank": 32, "alpha": 8}, 32, 8),
    ):
        footprint = named_footprint(name, **changes)
        assert (footprint.rank, footprint.alpha) == (rank, alpha)
    adapted = _adapted("shirg-extra-narrow", rank=8)
    layers = adapted.base_model.model.model.vision_tower.vision_model.encoder.layers
    for block, rank in enumerate((8, 8, 8, 8, 4, 4)):
        projection = layers[block].self_attn.q_proj
        assert projection.lora_A["default"].weight.shape[0] == rank
        assert projection.scaling["default"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("shirg-extr",), "Did you mean 'shirg-extra'"),
        (("everything",), "Known footprints: projector, shirg-base"),
        (("projector", 0), "rank >= 1"),
        (("projector", 4, -1.0), "alpha > 0"),
    ],
)
def test_an_unknown_footprint_names_the_nearest(arguments, message):
    with pytest.raises(ValueError, match=message):
        named_footprint(*arguments)


def test_a_tensor_that_was_unfrozen_or_frozen_by_accident_is_named():
    adapted = _adapted()
    adapted.base_model.model.lm_head.weight.requires_grad_(True)
    with pytest.raises(ValueError, match="1 tensors outside the footprint would be trained.*lm_head.weight"):
        check_trainable(adapted)
    adapted.base_model.model.lm_head.weight.requires_grad_(False)
    adapted.get_parameter(sorted(_trained(adapted))[0]).requires_grad_(False)
    with pytest.raises(ValueError, match="1 tensors of the footprint are frozen"):
        check_trainable(adapted)


def test_trained_weights_are_float32_in_a_bfloat16_model():
    model = tiny_model(tiny_config(vision_config=DEEP)).to(torch.bfloat16)
    adapted = apply_footprint(model, named_footprint("shirg-extra"), 0)
    assert {each.dtype for each in adapted.parameters() if each.requires_grad} == {torch.float32}
    assert {each.dtype for each in adapted.parameters() if not each.requires_grad} == {torch.bfloat16}
    check_trainable(adapted)
    adapted.get_parameter(sorted(_trained(adapted))[0]).data = torch.zeros(1, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="must be float32"):
        check_trainable(adapted)


def test_the_initial_weights_depend_on_the_seed_alone():
    torch.manual_seed(7)
    first, again, other = _adapted(), _adapted(), _adapted(seed=1)
    for name in _trained(first):
        assert torch.equal(first.get_parameter(name), again.get_parameter(name))
    assert any(not torch.equal(first.get_parameter(name), other.get_parameter(name)) for name in _trained(first))


@pytest.mark.parametrize(
    ("name", "preset"),
    [("shirg-extra", "shirg"), ("shirg-extra-language", "shirg"), ("shirg-fixed", "shirg-fixed")],
)
@torch.no_grad()
def test_saved_is_loaded_is_merged_and_the_base_is_untouched(name, preset, tmp_path):
    base = tiny_model(tiny_config(preset, vision_config=DEEP))
    before = {key: value.clone() for key, value in base.state_dict().items()}
    inputs = _inputs(base)
    plain = base(**inputs).logits
    adapted = apply_footprint(copy.deepcopy(base), named_footprint(name), 0).eval()
    assert torch.allclose(adapted(**inputs).logits, plain, atol=1e-5)
    _perturb(adapted)
    trained = adapted(**inputs).logits
    assert not torch.allclose(trained, plain, atol=1e-2)
    adapted.save_pretrained(tmp_path)
    with adapted.disable_adapter():
        assert torch.allclose(adapted(**inputs).logits, plain, atol=1e-5)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    assert torch.equal(loaded(**inputs).logits, trained)
    exact = adapted.double()(**inputs).logits  # the sharp attention of the test model amplifies rounding
    merged = adapted.merge_and_unload()
    assert set(merged.state_dict()) == set(before)
    assert torch.allclose(merged(**inputs).logits, exact, atol=1e-6)
    assert all(torch.equal(base.state_dict()[key], value) for key, value in before.items())
    held = load_file(tmp_path / "adapter_model.safetensors")
    assert {group_of(key) for key in held} == set(trainable_counts(_adapted(name, preset)).groups)


def test_two_footprints_never_mix(tmp_path):
    first = _adapted("shirg-base", rank=4)
    _perturb(first)
    first.save_pretrained(tmp_path)
    same = _adapted("shirg-base", seed=3, rank=4)
    load_adapter(same, str(tmp_path))
    assert all(torch.equal(same.get_parameter(name), first.get_parameter(name)) for name in _trained(first))
    assert all(same.get_parameter(name).requires_grad for name in _trained(first))
    others = (
        (_adapted("shirg-extra", rank=4), "target_modules"),
        (_adapted("shirg-base", rank=8), "r=4"),
        (_adapted("shirg-base", "lavida-980", rank=4), "modules_to_save"),
    )
    for other, field in others:
        with pytest.raises(ValueError, match=f"{field}.*never mix"):
            load_adapter(other, str(tmp_path))
