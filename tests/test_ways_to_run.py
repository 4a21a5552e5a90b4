"""The same function however it is run: precision, attention kernels, placement, checkpointing, compilation.

What this machine cannot run is skipped with its reason, so that the report lists it as untested.
"""

import copy

import pytest
import torch
from transformers.utils import is_flash_attn_2_available

from modeling_shirg import ShirgLavidaForConditionalGeneration
from tiny_model import QUESTIONS, chat, encode, noise_image, tiny_config, tiny_model, tiny_processor

PRESETS = ("shirg", "lavida")
needs_accelerator = pytest.mark.skipif(not torch.cuda.is_available(), reason="untested here: no CUDA device")
LANGUAGE_MODEL = ("embed_tokens", "layers.1", "norm", "rotary_emb")
CHATS = [chat(question, noise_image(number, 300 + 100 * number)) for number, question in enumerate(QUESTIONS)]


def _setup(preset: str, **overrides):
    config = tiny_config(preset, **overrides)
    return tiny_model(config), encode(tiny_processor(config), *CHATS)


@torch.no_grad()
def _logits(model, batch) -> torch.Tensor:
    """Logits of the last tokens, which no row of a left-padded batch pads."""
    return model(**batch.to(model.device), logits_to_keep=8).logits.float().cpu()


def _error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


DEVICES = ["cpu", pytest.param("cuda", marks=needs_accelerator)]


# With the presets `random` and `lavida` every precision keeps the same tokens. Where a score decides, tokens near the
# cut may differ, and then every logit does: `shirg` is held to its scores.
@pytest.mark.parametrize("preset", ["random", "lavida", "shirg"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "near", "score"), [(torch.bfloat16, 0.1, 0.25), (torch.float16, 0.02, 0.03)])
def test_half_precision_answers_and_stays_near_float32(preset, device, dtype, near, score):
    model, batch = _setup(preset)
    half = copy.deepcopy(model).to(device, dtype)
    with torch.no_grad():
        expected = model(**batch, output_selection=True, logits_to_keep=8)
        actual = half(**batch.to(device), output_selection=True, logits_to_keep=8)
    assert actual.logits.shape == expected.logits.shape and actual.logits.dtype == dtype
    if preset == "shirg":
        assert actual.scores.dtype == torch.float32 and _error(actual.scores.cpu(), expected.scores) < score
        for kept, wanted in zip(actual.kept_indices.tolist(), expected.kept_indices.tolist(), strict=True):
            assert len(kept) == len(wanted) and len(set(kept) & set(wanted)) >= 0.95 * len(kept)
    else:
        assert _error(actual.logits.float().cpu(), expected.logits) < near
    answer = half.generate(**batch.to(device), max_new_tokens=8, block_length=4)
    assert answer.shape == (len(batch["input_ids"]), batch["input_ids"].shape[1] + 8)
    assert (answer[:, -8:] != half.config.mask_token_id).all()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "implementation",
    [
        "eager",
        pytest.param(
            "flash_attention_2",
            marks=[
                needs_accelerator,
                pytest.mark.skipif(not is_flash_attn_2_available(), reason="untested here: flash-attn not installed"),
            ],
        ),
    ],
)
def test_attention_kernels_agree(tmp_path, preset, implementation):
    model, batch = _setup(preset)
    model.save_pretrained(tmp_path)
    flash = implementation == "flash_attention_2"
    dtype = torch.float16 if flash else torch.float32
    pair = [
        ShirgLavidaForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=name, dtype=dtype)
        .eval()
        .to("cuda" if flash else "cpu")
        for name in ("sdpa", implementation)
    ]
    assert pair[1].model.language_model.config._attn_implementation == implementation
    assert pair[1].model.vision_tower.vision_model.config._attn_implementation == implementation
    assert _error(*(_logits(each, batch) for each in reversed(pair))) < (0.02 if flash else 5e-5)
    answers = [each.generate(**batch.to(each.device), max_new_tokens=8) for each in pair]
    assert flash or torch.equal(*answers)


def test_eager_attention_returns_its_weights_and_hidden_states(tmp_path):
    model, batch = _setup("shirg")
    model.save_pretrained(tmp_path)
    eager = ShirgLavidaForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="eager").eval()
    output = eager(**batch, output_attentions=True, output_hidden_states=True)
    length = batch["input_ids"].shape[1]
    assert [weights.shape for weights in output.attentions] == [(3, 2, length, length)] * 2
    assert len(output.hidden_states) == 3


def _device_map(vision_tower: str) -> dict[str, str]:
    parts = ["multi_modal_projector", "image_newline", *(f"language_model.{name}" for name in LANGUAGE_MODEL)]
    map_to = {"model.vision_tower": vision_tower, "lm_head": "disk", **{f"model.{name}": "cpu" for name in parts}}
    return map_to | {"model.language_model.layers.0": "disk"}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("place", ["auto", "auto, too small", "by hand"])
def test_placing_the_model_changes_nothing(tmp_path, preset, place):
    model, batch = _setup(preset)
    model.save_pretrained(tmp_path / "model")
    options = {
        "auto": {"device_map": "auto"},
        "auto, too small": {"device_map": "auto", "max_memory": {"cpu": int(0.8 * model.get_memory_footprint())}},
        "by hand": {"device_map": _device_map("cpu" if preset == "shirg" else "disk")},
    }[place]
    placed = ShirgLavidaForConditionalGeneration.from_pretrained(
        tmp_path / "model", offload_folder=tmp_path / "offload", **options
    ).eval()
    if place == "auto":  # without a map where there is one place only
        where = {weight.device.type for weight in placed.parameters()}
        assert where == {"cuda" if torch.cuda.is_available() else "cpu"}
        assert hasattr(placed, "hf_device_map") == torch.cuda.is_available()
    else:
        assert set(placed.hf_device_map.values()) == {"cpu", "disk"}
    assert _error(_logits(placed, batch), _logits(model, batch)) < (5e-5 if torch.cuda.is_available() else 1e-12)
    answers = [each.generate(**batch.to(each.device), max_new_tokens=8).cpu() for each in (placed, model)]
    assert torch.equal(*answers)


def test_an_offloaded_pooling_head_is_named(tmp_path):
    model, batch = _setup("shirg")
    model.save_pretrained(tmp_path / "model")
    split = ShirgLavidaForConditionalGeneration.from_pretrained(
        tmp_path / "model",
        device_map=_device_map("disk"),
        offload_folder=tmp_path / "offload",
    ).eval()
    with pytest.raises(ValueError, match="offloaded. Give model.vision_tower a device"):
        split(**batch)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="untested here: fewer than two CUDA devices")
def test_two_devices(tmp_path):
    model, batch = _setup("shirg")
    model.save_pretrained(tmp_path)
    split = ShirgLavidaForConditionalGeneration.from_pretrained(tmp_path, device_map="balanced").eval()
    assert len(set(split.hf_device_map.values())) == 2
    assert _error(_logits(split, batch), _logits(model, batch)) < 1e-3


@pytest.mark.parametrize("preset", PRESETS)
def test_gradient_checkpointing_gives_the_same_gradients(preset):
    model, batch = _setup(preset)
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, -10:] = batch["input_ids"][:, -10:]
    gradients = []
    for checkpointing in (False, True):
        each = copy.deepcopy(model).train()
        if checkpointing:
            each.activation_checkpointing_enable()
            assert each.model.language_model.layers[0].gradient_checkpointing
            assert each.model.vision_tower.vision_model.encoder.layers[0].gradient_checkpointing
        torch.manual_seed(0)
        each(**batch, labels=labels).loss.backward()
        gradients.append({name: weight.grad for name, weight in each.named_parameters() if weight.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        assert torch.allclose(gradients[1][name], expected, rtol=1e-4, atol=1e-6), name


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("device", DEVICES)
def test_a_compiled_language_model_gives_the_same_tokens(device):
    model, batch = _setup("shirg")
    batch = batch.to(device)
    plain = model.to(device)
    compiled = copy.deepcopy(plain)
    compiled.model.language_model.compile()
    options = {"max_new_tokens": 6, "return_dict_in_generate": True, "output_history": True}
    assert torch.equal(plain.generate(**batch, **options).history, compiled.generate(**batch, **options).history)
    assert _error(_logits(compiled, batch), _logits(plain, batch)) < 5e-5
