"""The language model in 8 and 4 bits by bitsandbytes: what becomes small, what stays, how near the answers are."""

import json
from importlib.util import find_spec

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import BitsAndBytesConfig

from adapter_runs import PROJECTOR, save_base, save_run
from configuration_shirg import ShirgLavidaProcessor
from modeling_shirg import ShirgLavidaForConditionalGeneration
from modeling_shirg.backbone_shirg import ShirgLavidaModel
from modeling_shirg.running.load import load
from shirg_scripts.cli import main
from test_ask import BUNDLED, GRID, QUESTION, _report
from test_text_relevance import TOWER
from tiny_model import chat, encode, tiny_config, tiny_model

needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: pip install 'shirg-lavida[quant]'"
)
CONFIGS = {
    "int8": BitsAndBytesConfig(load_in_8bit=True),
    "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
}
MATRICES = {"int8": ("Linear8bitLt", torch.int8), "nf4": ("Linear4bit", torch.uint8)}
LAYERS = "model.language_model.layers."


@pytest.fixture(scope="module")
def whole():
    """The bundled model as it is, inputs for one question, and the logits of its prompt."""
    model = ShirgLavidaForConditionalGeneration.from_pretrained(BUNDLED)
    inputs = encode(ShirgLavidaProcessor.from_pretrained(BUNDLED), chat(QUESTION, Image.open(GRID)))
    return model, inputs, logits_of(model, inputs)


@torch.no_grad()
def logits_of(model, inputs) -> torch.Tensor:
    return model(**inputs).logits.float()


def quantized(source, name: str, **kwargs) -> ShirgLavidaForConditionalGeneration:
    return ShirgLavidaForConditionalGeneration.from_pretrained(source, quantization_config=CONFIGS[name], **kwargs)


def small_matrices(model: nn.Module, name: str) -> set[str]:
    """Names of the modules that bitsandbytes made, all with weights of its type."""
    kind, dtype = MATRICES[name]
    found = {path: module for path, module in model.named_modules() if type(module).__name__ == kind}
    assert {module.weight.dtype for module in found.values()} <= {dtype}
    return set(found)


def linears(model: nn.Module) -> set[str]:
    return {path for path, module in model.named_modules() if isinstance(module, nn.Linear)}


@needs_bitsandbytes
@pytest.mark.parametrize(("name", "bound"), [("int8", 0.02), ("nf4", 0.06)])
def test_only_the_language_models_matrices_become_small(whole, name, bound):
    model, inputs, logits = whole
    small = quantized(BUNDLED, name)
    assert small_matrices(small, name) == {path for path in linears(model) if path.startswith(LAYERS)}
    weights = dict(small.named_parameters())
    for path, weight in model.named_parameters():
        if path.removesuffix(".weight") not in small_matrices(small, name):
            assert torch.equal(weights[path], weight) and weights[path].dtype == weight.dtype, path
    for path, module in model.model.vision_tower.named_modules():
        assert type(small.model.vision_tower.get_submodule(path)) is type(module)
    distance = (logits_of(small, inputs) - logits).norm() / logits.norm()
    assert 0 < distance < bound
    output = small.generate(**inputs, return_dict_in_generate=True, output_selection=True)
    plain = model.generate(**inputs, return_dict_in_generate=True, output_selection=True)
    assert output.forwards == plain.forwards and output.sequences.shape == plain.sequences.shape
    assert torch.equal(output.kept_indices, plain.kept_indices)


@needs_bitsandbytes
def test_parts_that_not_every_system_has_stay_too(tmp_path):
    config = tiny_config("shirg-fixed", relevance_text_config=TOWER, text_relevance="siglip")
    model = tiny_model(config)
    model.save_pretrained(tmp_path)
    assert model.model.coordinate_embedding is not None and model.model.relevance_text_model is not None
    expected = {path for path in linears(model) if path.startswith(LAYERS)}
    assert small_matrices(quantized(tmp_path, "int8"), "int8") == expected
    alone = ShirgLavidaModel.from_pretrained(tmp_path, quantization_config=CONFIGS["int8"])
    assert small_matrices(alone, "int8") == {path.removeprefix("model.") for path in expected}


@needs_bitsandbytes
@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_small_model_loads_as_it_is(whole, name, tmp_path):
    _, inputs, _ = whole
    small = quantized(BUNDLED, name)
    small.save_pretrained(tmp_path)
    loaded = ShirgLavidaForConditionalGeneration.from_pretrained(tmp_path)
    assert small_matrices(loaded, name) == small_matrices(small, name)
    assert torch.equal(logits_of(loaded, inputs), logits_of(small, inputs))


@needs_bitsandbytes
def test_an_adapter_comes_with_a_small_base(tmp_path):
    run = save_run(tmp_path / "run", save_base(tmp_path / "base"), PROJECTOR, None)
    loaded = ShirgLavidaForConditionalGeneration.from_pretrained(run.folder, quantization_config=CONFIGS["int8"])
    assert small_matrices(loaded, "int8") and any("lora_A" in path for path, _ in loaded.named_parameters())


@needs_bitsandbytes
@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_the_commands_answer_with_it(capsys, tmp_path, quantize):
    report = _report(capsys, GRID, QUESTION, "--quantize", quantize)
    assert report["image_tokens"] == 245 and report["forwards"] == 8
    sheet = ["--out", str(tmp_path / "sheet.png"), "--systems", "shirg", "lavida-980", "--json"]
    assert main(["compare", GRID, QUESTION, "--quantize", quantize, *sheet]) == 0
    assert set(json.loads(capsys.readouterr().out.splitlines()[-1])["systems"]) == {"shirg", "lavida-980"}
    model = load(quantize=quantize, device="cpu", dtype="bfloat16").model
    assert small_matrices(model, {"int4": "nf4"}.get(quantize, quantize))
    assert model.lm_head.weight.dtype == torch.bfloat16
    if quantize == "int4":
        assert model.model.language_model.layers[0].mlp.up_proj.weight.quant_type == "nf4"


def test_without_bitsandbytes_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.setattr("modeling_shirg.running.extras.find_spec", lambda name: None)
    assert main(["ask", GRID, QUESTION, "--quantize", "int8"]) == 2
    assert "bitsandbytes is not installed: pip install 'shirg-lavida[quant]'" in capsys.readouterr().err
