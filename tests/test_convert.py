"""`shirg convert`: the tiny reference checkpoint of the original LaViDa, whole and in every kind of disrepair."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, SiglipConfig, SiglipTextModel, SiglipVisionConfig, SiglipVisionModel

from configuration_shirg import PRESETS, ShirgLavidaConfig, ShirgLavidaProcessor
from fresh_process import run_fresh
from loopback_hub import Blob, Repo
from modeling_shirg import ShirgGenerationConfig, ShirgLavidaForConditionalGeneration
from modeling_shirg.conversion import convert, convert_checkpoint, original_config, plan
from shirg_scripts.cli import main
from tiny_model import chat, encode
from tokenizer_fixture import make_relevance_tokenizer

FIXTURES = Path(__file__).parent / "fixtures" / "lavida"
ORIGINAL = FIXTURES / "checkpoint"
BASE = FIXTURES / "tiny-siglip-so400m-patch14-384"
GOLDEN = FIXTURES / "golden"
QUESTION = "Describe the image in detail."
PROMPT_LAST = "model.transformer.blocks.2.attn_norm.weight"


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    """The reference with its base, preset `lavida`."""
    out = tmp_path_factory.mktemp("converted") / "out"
    convert_checkpoint(ORIGINAL, out, vision_base=BASE)
    return out


@pytest.fixture
def source(tmp_path) -> Path:
    """A copy of the reference to damage."""
    return Path(shutil.copytree(ORIGINAL, tmp_path / "source"))


@pytest.fixture
def known_width(monkeypatch) -> None:
    """The tiny tower's number of heads is known, as so400m's is, so that no base is needed."""
    monkeypatch.setitem(original_config._KNOWN_HEADS, 64, 4)


def edit_config(folder: Path, **fields) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


def edit_tensors(folder: Path, edit) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def load(folder: Path, **kwargs) -> tuple[ShirgLavidaForConditionalGeneration, ShirgLavidaProcessor]:
    model, info = ShirgLavidaForConditionalGeneration.from_pretrained(folder, output_loading_info=True, **kwargs)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval(), ShirgLavidaProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory) -> Path:
    """The tiny base with a random text tower and a tokenizer, as google/siglip-so400m-patch14-384 has them."""
    folder = tmp_path_factory.mktemp("siglip") / "whole"
    tower = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 257,
        "max_position_embeddings": 64,
    }
    vision = json.loads((BASE / "config.json").read_text())
    config = SiglipConfig(vision_config=vision, text_config=tower)
    config.save_pretrained(folder)
    torch.manual_seed(0)
    text = SiglipTextModel(config.text_config).state_dict()
    tensors = {**load_file(BASE / "model.safetensors"), **{f"text_model.{name}": text[name] for name in text}}
    tensors |= {"logit_scale": torch.ones(1), "text_model.embeddings.position_ids": torch.arange(64)[None]}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    make_relevance_tokenizer().save_pretrained(folder)
    return folder


def nothing_beside(out: Path) -> bool:
    return not any(entry.name.startswith(f".{out.name}") for entry in out.parent.iterdir())


# ---------------------------------------------------------------- what comes out


@torch.no_grad()
def test_computes_what_the_original_computes(converted):
    golden = load_file(GOLDEN / "landscape.safetensors")
    model, processor = load(converted)
    inputs = encode(processor, chat(QUESTION, Image.open(GOLDEN / "landscape.png")))
    inputs.pop("question_mask")
    answers = {
        mode: model.generate(**inputs, max_new_tokens=32, block_length=32, schedule=None, use_cache=mode == "prefix")
        for mode in ("prefix", "full")
    }
    for mode, answer in answers.items():
        assert answer[0, -32:].tolist() == golden[f"gen.none.{mode}.tokens"].tolist()
    for name, last in (("input_ids", model.config.mask_token_id), ("attention_mask", 1)):
        inputs[name] = torch.cat([inputs[name], torch.full((1, 32), last)], dim=1)
    logits, reference = model(**inputs, logits_to_keep=32).logits[0], golden["full_logits_last32"].reshape(32, -1)
    assert (logits - reference).abs().max() <= 1e-3 * reference.abs().max()


def test_config_and_ids(converted):
    config = ShirgLavidaConfig.from_pretrained(converted)
    assert (config.prune_method, config.view_policy, config.patch_merge_type) == ("lavida", "anyres", "spatial_unpad")
    assert config.image_grid_pinpoints == [[384, 768], [768, 384], [768, 768], [1152, 384], [384, 1152]]
    assert config.pooled_grid_size == 14
    ids = ("image", "mask", "infill", "bos", "eos", "pad")
    assert [getattr(config, f"{name}_token_id") for name in ids] == [509, 500, 485, 480, 481, 481]
    assert config.text_config.pad_token_id is None
    assert (config.vision_config.num_hidden_layers, config.vision_feature_layer) == (4, -2)
    assert config.vision_config.vision_use_head
    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert tokenizer.encode("<image>", add_special_tokens=False) == [509]
    assert str(FIXTURES) not in "".join(path.read_text() for path in converted.glob("*.json"))


def test_generation_config(converted):
    """Nothing is suppressed: the original's answer of mode `full`, reproduced above, holds the id of `<image>`."""
    saved = ShirgGenerationConfig.from_pretrained(converted)
    assert saved.suppress_tokens == []
    assert load(converted)[0].generation_config.suppress_tokens == []
    assert (saved.max_new_tokens, saved.block_length, saved.step_ratio, saved.schedule) == (64, None, 0.5, "shift")
    assert 509 in load_file(GOLDEN / "landscape.safetensors")["gen.none.full.tokens"].tolist()


def test_every_tensor_is_written_once_and_unchanged(converted):
    written, original, base = (load_file(folder / "model.safetensors") for folder in (converted, ORIGINAL, BASE))
    assert len(written) == len(original) + 16 + 11  # a SigLIP layer has 16 tensors, its pooling head 11
    pairs = {
        "lm_head.weight": original["model.transformer.ff_out.weight"],
        "model.image_newline": original["model.image_newline"],
        "model.language_model.layers.1.mlp.down_proj.weight": original["model.transformer.blocks.1.ff_out.weight"],
        "model.vision_tower.vision_model.head.probe": base["vision_model.head.probe"],
        "model.vision_tower.vision_model.encoder.layers.3.mlp.fc1.weight": base[
            "vision_model.encoder.layers.3.mlp.fc1.weight"
        ],
        "model.vision_tower.vision_model.post_layernorm.weight": original[
            "model.vision_tower.vision_tower.vision_model.post_layernorm.weight"
        ],
    }
    for name, expected in pairs.items():
        assert torch.equal(written[name], expected), name


def test_names_and_shapes_of_the_full_size():
    config = ShirgLavidaConfig.from_preset(
        "lavida", vision_config={"num_hidden_layers": 26, "vision_use_head": False}, vision_feature_layer=-1
    )
    expected = plan.expected_shapes(plan.empty_model(config))
    shapes = json.loads((GOLDEN / "fullsize_state_dict.json").read_text())["shapes"]
    assert {plan.original_name(name): list(shape) for name, shape in expected.items()} == shapes


def test_without_a_base(tmp_path, converted, known_width):
    facts = convert_checkpoint(ORIGINAL, tmp_path / "out")
    model, processor = load(tmp_path / "out")
    assert facts.vision_base is None
    assert (model.config.vision_config.num_hidden_layers, model.config.vision_feature_layer) == (3, -1)
    assert not model.config.vision_config.vision_use_head
    inputs = encode(processor, chat(QUESTION, Image.open(GOLDEN / "doc.png")))
    with_base, _ = load(converted)
    with torch.no_grad():
        assert torch.equal(model(**inputs, logits_to_keep=1).logits, with_base(**inputs, logits_to_keep=1).logits)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "What is not here" in card
    assert "What was grafted" not in card


def test_foveal_presets_write_their_position_table(tmp_path, converted):
    convert_checkpoint(ORIGINAL, tmp_path / "out", vision_base=BASE, prune_method="shirg")
    saved, _ = load(tmp_path / "out")
    config = ShirgLavidaConfig.from_pretrained(converted).with_preset("shirg")
    derived = ShirgLavidaForConditionalGeneration.from_pretrained(converted, config=config)
    tables = [model.model.vision_tower.foveal_position_embedding.weight for model in (saved, derived)]
    assert tables[0].shape == (32 * 32, 64)
    assert torch.equal(*tables)


def test_a_scored_preset_needs_the_base(tmp_path, known_width):
    with pytest.raises(ValueError, match="'shirg-v1' scores patches .* pass --vision_base"):
        convert_checkpoint(ORIGINAL, tmp_path / "out", prune_method="shirg-v1")
    convert_checkpoint(ORIGINAL, tmp_path / "out", prune_method="uniform")


@pytest.mark.parametrize(("asked", "policy", "pooled", "tokens"), [(None, "pad", 14, 197), (0, "pad", None, 730)])
def test_single_view_checkpoints(source, tmp_path, asked, policy, pooled, tokens):
    edit_config(source, image_aspect_ratio="pad", image_grid_pinpoints=None)
    convert_checkpoint(source, tmp_path / "out", vision_base=BASE, pooled_grid_size=asked)
    config = ShirgLavidaConfig.from_pretrained(tmp_path / "out")
    assert (config.view_policy, config.pooled_grid_size, config.num_image_tokens) == (policy, pooled, tokens)
    assert config.lavida_views == {"view_policy": policy, "image_grid_pinpoints": None, "pooled_grid_size": pooled}
    assert ("not pooled" if pooled is None else "pooled to 14x14") in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("prune_method", ["lavida", "shirg"])
def test_pooling_is_a_choice_for_single_views_only(tmp_path, prune_method):
    with pytest.raises(ValueError, match="pooled_grid_size=0"):
        convert_checkpoint(ORIGINAL, tmp_path / "out", vision_base=BASE, prune_method=prune_method, pooled_grid_size=0)


def test_dtype_and_shards(tmp_path, converted):
    out = tmp_path / "out"
    facts = convert_checkpoint(ORIGINAL, out, vision_base=BASE, dtype="bfloat16", max_shard_size="200KB")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert facts.shards == len(files) > 3
    assert files == sorted(set(index["weight_map"].values()))
    assert index["metadata"]["total_size"] == facts.bytes == 2 * facts.parameters
    whole = load_file(converted / "model.safetensors")
    for file in files:
        with safe_open(out / file, "pt") as shard:
            assert shard.metadata() == {"format": "pt"}
            for name in shard.keys():
                assert torch.equal(shard.get_tensor(name), whole[name].bfloat16()), name
    model, _ = load(out)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_mixed_dtypes_stay_as_stored(source, tmp_path):
    name = "model.transformer.blocks.0.attn_norm.weight"
    edit_tensors(source, lambda tensors: tensors.update({name: tensors[name][:].bfloat16()}))
    facts = convert_checkpoint(source, tmp_path / "out", vision_base=BASE)
    assert facts.dtype == "bfloat16, float32"
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored["model.language_model.layers.0.input_layernorm.weight"].dtype == torch.bfloat16
    assert load(tmp_path / "out")[0].dtype == torch.float32


def test_float16_overflow_is_an_error(source, tmp_path):
    edit_tensors(source, lambda tensors: tensors["model.image_newline"].fill_(1e6))
    with pytest.raises(ValueError, match="model.image_newline holds values up to 1e[+]06, float16 ends at 65504"):
        convert_checkpoint(source, tmp_path / "out", vision_base=BASE, dtype="float16")
    assert not (tmp_path / "out").exists()
    assert nothing_beside(tmp_path / "out")


def test_tied_embeddings(source, tmp_path):
    edit_config(source, weight_tying=True)
    edit_tensors(source, lambda tensors: tensors.pop("model.transformer.ff_out.weight"))
    convert_checkpoint(source, tmp_path / "out", vision_base=BASE)
    model, _ = load(tmp_path / "out")
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    assert model.lm_head.weight is model.get_input_embeddings().weight


# ---------------------------------------------------------------- the views of training


CANVASES = [[384, 768], [768, 384]]
TRAINED = {
    "pad": (
        {"image_aspect_ratio": "pad", "image_grid_pinpoints": None},
        {"view_policy": "pad", "image_grid_pinpoints": None, "pooled_grid_size": None},
    ),
    "canvases": (
        {"image_grid_pinpoints": CANVASES},
        {"view_policy": "anyres", "image_grid_pinpoints": CANVASES, "pooled_grid_size": 14},
    ),
}


@pytest.mark.parametrize("kind", TRAINED)
@pytest.mark.parametrize("prune_method", ["lavida", "shirg"])
def test_preset_lavida_is_what_the_checkpoint_was_trained_with(source, tmp_path, capsys, kind, prune_method):
    fields, views = TRAINED[kind]
    edit_config(source, **fields)
    pooled = 0 if kind == "pad" else None
    options = {"vision_base": BASE, "prune_method": prune_method, "pooled_grid_size": pooled}
    convert_checkpoint(source, tmp_path / "out", **options)
    config = ShirgLavidaConfig.from_pretrained(tmp_path / "out")
    assert config.lavida_views == views and config.prune_method == prune_method
    config.with_preset("shirg").save_pretrained(tmp_path / "shirg")
    restored = ShirgLavidaConfig.from_pretrained(tmp_path / "shirg", prune_method="lavida")
    for lavida in (restored, config.with_preset("lavida-980").with_preset("lavida")):
        assert {name: getattr(lavida, name) for name in views} == views
        assert (lavida.patch_merge_type, lavida.fovea_size, lavida.selection_budget) == ("spatial_unpad", None, None)
    image = str(GOLDEN / "landscape.png")
    question = ["ask", image, QUESTION, "--model", str(tmp_path / "out"), "--max_new_tokens", "4", "--json"]
    assert main([*question, "--prune_method", "lavida"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["image_tokens"] == config.with_preset("lavida").count_image_tokens(*Image.open(image).size)
    assert kind != "pad" or answer["image_tokens"] == 730
    row = f"| views in training, of preset `lavida` | `{views['view_policy']}` |"
    assert row in (tmp_path / "out" / "README.md").read_text()


# ---------------------------------------------------------------- what goes in


def shard_source(folder: Path) -> dict[str, str]:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, weight_map = list(tensors), {}
    for number in range(3):
        file = f"model-0000{number + 1}-of-00003.safetensors"
        save_file({name: tensors[name] for name in names[number::3]}, folder / file)
        weight_map |= dict.fromkeys(names[number::3], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def test_sharded_source(source, tmp_path, converted):
    shard_source(source)
    convert_checkpoint(source, tmp_path / "out", vision_base=BASE)
    same = ("model.safetensors", "config.json", "tokenizer.json")
    assert all((tmp_path / "out" / name).read_bytes() == (converted / name).read_bytes() for name in same)
    linked = tmp_path / "linked"  # as a snapshot of the Hub is
    linked.mkdir()
    for path in source.iterdir():
        (linked / path.name).symlink_to(path)
    convert_checkpoint(linked, tmp_path / "from-links", vision_base=BASE)
    (source / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match="lacks 1 of 3 shards .* model-00002-of-00003"):
        convert_checkpoint(source, tmp_path / "other", vision_base=BASE)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([], "index.json holds a list, not a JSON object"),
        ({}, "has no weight_map from tensor names to files, got None"),
        ({"weight_map": ["model.safetensors"]}, "has no weight_map from tensor names to files, got .'model"),
        ({"weight_map": {"a": 1}}, "has 'a' in 1, which is not the name of a file beside it"),
        ({"weight_map": {"a": "../secret/x.safetensors"}}, "has 'a' in '../secret/x.safetensors', which is not"),
        ({"weight_map": {"a": "/secret/x.safetensors"}}, "has 'a' in '/secret/x.safetensors', which is not"),
        ({"weight_map": {"a": ".."}}, "lacks 1 of 1 shards"),
        ({"weight_map": {"a": ""}}, "lacks 1 of 1 shards"),
    ],
)
def test_a_tampered_index(source, tmp_path, index, message):
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(source, tmp_path / "out", vision_base=BASE)


def tamper(folder: Path, edit, padding: bytes = b"") -> None:
    """Rewrite the header of the weights; their bytes stay, but for `padding`."""
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.dumps(edit(json.loads(raw[8 : 8 + length]))).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :] + padding)


TAMPERED = {
    "half the bytes": lambda entry, other: {**entry, "data_offsets": [entry["data_offsets"][0], 64]},
    "another's bytes": lambda entry, other: {**entry, "data_offsets": other["data_offsets"]},
    "negative offsets": lambda entry, other: {**entry, "data_offsets": [-256, 0]},
    "no dtype": lambda entry, other: {name: entry[name] for name in ("shape", "data_offsets")},
    "unknown dtype": lambda entry, other: {**entry, "dtype": "Q5"},
    "another shape": lambda entry, other: {**entry, "shape": [65]},
    "a list": lambda entry, other: [entry["dtype"], entry["shape"]],
}


@pytest.mark.parametrize("kind", TAMPERED)
def test_a_tampered_entry(source, tmp_path, kind):
    name, other = "model.image_newline", "model.transformer.ln_f.weight"
    tamper(source, lambda header: {**header, name: TAMPERED[kind](header[name], header[other])})
    with pytest.raises(ValueError, match="model.safetensors is no whole safetensors file"):
        convert_checkpoint(source, tmp_path / "out", vision_base=BASE)


def test_a_tampered_header(source, tmp_path):
    tamper(source, list)
    with pytest.raises(ValueError, match="model.safetensors is no whole safetensors file"):
        convert_checkpoint(source, tmp_path / "out", vision_base=BASE)


def test_bytes_that_no_tensor_has(source, tmp_path):
    tamper(source, lambda header: header, padding=bytes(8))
    with pytest.raises(ValueError, match="model.safetensors is no whole safetensors file"):
        convert_checkpoint(source, tmp_path / "out", vision_base=BASE)


def test_full_siglip_as_base(tmp_path, converted):
    """Vision and text tower in one checkpoint, as google/siglip-so400m-patch14-384 has them."""
    base = tmp_path / "siglip"
    base.mkdir()
    vision = json.loads((BASE / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(SiglipConfig(vision_config=vision).to_dict()))
    tensors = load_file(BASE / "model.safetensors")
    extra = {"text_model.final_layer_norm.weight": torch.ones(64), "logit_scale": torch.ones(1)}
    save_file({**tensors, **extra}, base / "model.safetensors")
    convert_checkpoint(ORIGINAL, tmp_path / "out", vision_base=base)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (converted / "model.safetensors").read_bytes()


def test_text_tower(tmp_path, siglip, converted):
    out = tmp_path / "out"
    facts = convert_checkpoint(ORIGINAL, out, vision_base=siglip, text_tower=True, prune_method="shirg")
    model, processor = load(out, text_relevance="siglip")
    stock = SiglipTextModel.from_pretrained(siglip).eval()
    tower = model.config.relevance_text_config
    assert (tower.projection_size, tower.bos_token_id, tower.eos_token_id, tower.pad_token_id) == (
        64,
        None,
        None,
        None,
    )
    ours = model.model.relevance_text_model.state_dict()
    assert all(torch.equal(ours[name], weight) for name, weight in stock.state_dict().items())
    inputs = encode(processor, chat(QUESTION, Image.open(GOLDEN / "doc.png")))
    expected = make_relevance_tokenizer()(QUESTION, padding="max_length", max_length=64, return_tensors="pt")
    assert torch.equal(inputs["relevance_input_ids"], expected["input_ids"])
    with torch.no_grad():
        kept = model(**inputs, logits_to_keep=1, output_selection=True).kept_indices
        other = encode(processor, chat("Where is the total?", Image.open(GOLDEN / "doc.png")))
        assert not torch.equal(model(**other, logits_to_keep=1, output_selection=True).kept_indices, kept)
    written = set(load_file(out / "model.safetensors")) - set(load_file(converted / "model.safetensors"))
    tower = {f"model.relevance_text_model.{name}" for name in stock.state_dict()}
    assert written == tower | {"model.vision_tower.foveal_position_embedding.weight"}
    assert facts.text_tower and ShirgLavidaConfig.from_pretrained(out).text_relevance == "lm"
    assert "SigLIP's text tower and its tokenizer came along" in (out / "README.md").read_text()
    assert str(siglip) not in "".join(path.read_text() for path in out.rglob("*.json"))


def test_text_tower_in_shards_of_another_dtype(tmp_path, siglip):
    options = {"vision_base": siglip, "text_tower": True, "dtype": "bfloat16", "max_shard_size": "100KB"}
    convert_checkpoint(ORIGINAL, tmp_path / "out", **options)
    tower = load(tmp_path / "out")[0].model.relevance_text_model
    stock = SiglipTextModel.from_pretrained(siglip, dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(weight, stock[name]) for name, weight in tower.state_dict().items())


def test_what_siglips_tokenizer_class_does_in_python_is_done(tmp_path, siglip):
    base = Path(shutil.copytree(siglip, tmp_path / "base"))
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    (base / "tokenizer.json").write_text(json.dumps({**tokenizer, "normalizer": None}))
    path = base / "tokenizer_config.json"
    declared = {**json.loads(path.read_text()), "tokenizer_class": "SiglipTokenizer", "do_lower_case": True}
    path.write_text(json.dumps({**declared, "model_max_length": 64, "sp_model_kwargs": {}}))
    convert_checkpoint(ORIGINAL, tmp_path / "out", vision_base=base, text_tower=True)
    relevance = ShirgLavidaProcessor.from_pretrained(tmp_path / "out").relevance_tokenizer
    assert relevance.decode(relevance(" What's  IN it?")["input_ids"]) == "whats in it</s>"
    convert_checkpoint(ORIGINAL, tmp_path / "plain", vision_base=siglip, text_tower=True)
    own = ShirgLavidaProcessor.from_pretrained(tmp_path / "plain").relevance_tokenizer
    assert own.decode(own(" What's  IN it?")["input_ids"]) == " what's  in it?</s>"


def test_text_tower_needs_a_whole_base(tmp_path, siglip):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="none was given: pass --vision_base"):
        convert_checkpoint(ORIGINAL, out, text_tower=True)
    with pytest.raises(ValueError, match="a vision tower alone .model_type 'siglip_vision_model'"):
        convert_checkpoint(ORIGINAL, out, vision_base=BASE, text_tower=True)
    base = Path(shutil.copytree(siglip, tmp_path / "base"))
    (base / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="no tokenizer.json .a spiece.model alone"):
        convert_checkpoint(ORIGINAL, out, vision_base=base, text_tower=True)
    shutil.copy(siglip / "tokenizer.json", base)
    edit_tensors(base, lambda tensors: tensors.pop("text_model.head.bias"))
    with pytest.raises(ValueError, match="1 missing:\n  text_model.head.bias .of the vision base"):
        convert_checkpoint(ORIGINAL, out, vision_base=base, text_tower=True)
    config = json.loads((siglip / "config.json").read_text())
    edit_config(base, text_config={**config["text_config"], "num_hidden_layers": 1})
    with pytest.raises(ValueError, match="16 unknown:\n  text_model.encoder.layers.1"):
        convert_checkpoint(ORIGINAL, out, vision_base=base, text_tower=True)
    edit_config(base, text_config={**config["text_config"], "projection_size": 32})
    with pytest.raises((ValueError, StrictDataclassError), match="projection_size=32 .*hidden_size=64"):
        convert_checkpoint(ORIGINAL, out, vision_base=base, text_tower=True)
    edit_config(base, text_config={**config["text_config"], "vocab_size": 200})
    with pytest.raises(ValueError, match="has 257 ids, but relevance_text_config.vocab_size is 200"):
        convert_checkpoint(ORIGINAL, out, vision_base=base, text_tower=True)
    assert not out.exists() and nothing_beside(out)


def test_every_misfit_in_one_error(source, tmp_path):
    def damage(tensors):
        del tensors["model.mm_projector.0.bias"]
        tensors["model.faster_token"] = torch.zeros(64)
        tensors["model.transformer.ln_f.weight"] = torch.zeros(65)
        tensors[PROMPT_LAST] = tensors[PROMPT_LAST].to(torch.int8)

    edit_tensors(source, damage)
    with pytest.raises(ValueError) as error:
        convert_checkpoint(source, tmp_path / "out", vision_base=BASE)
    for part in (
        "1 missing:\n  model.mm_projector.0.bias",
        "1 unknown:\n  model.faster_token",
        "2 misshapen:",
        "model.transformer.ln_f.weight is [65], the config needs [64]",
        f"{PROMPT_LAST} is stored as I8",
    ):
        assert part in str(error.value)
    assert not (tmp_path / "out").exists()


def test_every_missing_tensor_is_listed(source, tmp_path):
    edit_config(source, n_layers=5)
    with pytest.raises(ValueError, match="18 missing:") as error:
        convert_checkpoint(source, tmp_path / "out", vision_base=BASE)
    assert str(error.value).count("model.transformer.blocks.") == 18
    edit_config(source, n_layers=20)
    with pytest.raises(ValueError, match="153 missing:(.|\n)*and 53 more") as error:
        convert_checkpoint(source, tmp_path / "out", vision_base=BASE)
    assert str(error.value).count("model.transformer.blocks.") == 100


def test_every_unsupported_setting_in_one_error(source, tmp_path):
    edit_config(source, alibi=True, layer_norm_type="default", block_type=..., mm_projector_type="linear", n_heads=...)
    with pytest.raises(ValueError, match="5 settings") as error:
        convert_checkpoint(source, tmp_path / "out", vision_base=BASE)
    for part in (
        "n_heads is missing",
        "alibi=True",
        "layer_norm_type='default', supported: 'rms'",
        "mm_projector_type",
    ):
        assert part in str(error.value)
    assert "block_type='sequential' (missing, the original's default)" in str(error.value)


@pytest.mark.parametrize("pinpoints", [None, "(1x1),...,(6x6)", [[384, 700]]])
def test_unsupported_canvases(source, tmp_path, pinpoints):
    edit_config(source, image_grid_pinpoints=pinpoints)
    with pytest.raises((ValueError, StrictDataclassError), match="image_grid_pinpoints"):
        convert_checkpoint(source, tmp_path / "out", vision_base=BASE)


def test_canvases_as_text(source, tmp_path):
    edit_config(source, image_grid_pinpoints="[(384, 768), (768, 384)]")
    convert_checkpoint(source, tmp_path / "out", vision_base=BASE)
    config = ShirgLavidaConfig.from_pretrained(tmp_path / "out")
    assert config.image_grid_pinpoints == [[384, 768], [768, 384]]


@pytest.mark.parametrize("aspect", ["anyres_max_9", "highres"])
def test_unsupported_views(source, tmp_path, aspect):
    edit_config(source, image_aspect_ratio=aspect)
    with pytest.raises(ValueError, match=f"image_aspect_ratio='{aspect}', supported: 'anyres' or 'pad'"):
        convert_checkpoint(source, tmp_path / "out", vision_base=BASE)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 32}, "hidden_size 32, needed 64"),
        ({"num_hidden_layers": 3}, "num_hidden_layers 3, needed 4. LaViDa keeps all layers but the last"),
        ({"patch_size": 16, "image_size": 224}, "image_size 224, needed 384; patch_size 16, needed 14"),
        ({"model_type": "clip"}, "model_type 'clip', it must be 'siglip'"),
    ],
)
def test_wrong_base(tmp_path, fields, message):
    base = shutil.copytree(BASE, tmp_path / "base")
    edit_config(base, **fields)
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(ORIGINAL, tmp_path / "out", vision_base=base)


def test_base_without_a_head(tmp_path):
    base = shutil.copytree(BASE, tmp_path / "base")
    edit_tensors(base, lambda tensors: tensors.pop("vision_model.head.probe"))
    with pytest.raises(ValueError, match="head.probe .of the vision base."):
        convert_checkpoint(ORIGINAL, tmp_path / "out", vision_base=base)


def test_pickles_only(source, tmp_path):
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(ValueError, match="only pytorch_model.bin: only safetensors is read"):
        convert_checkpoint(source, tmp_path / "out", vision_base=BASE)


@pytest.mark.parametrize("keep", [0, 100, 100_000])
def test_broken_download(source, tmp_path, keep):
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ValueError, match="broken download"):
        convert_checkpoint(source, tmp_path / "out", vision_base=BASE)


def test_no_row_for_the_image_token(source, tmp_path):
    edit_config(source, embedding_size=509, vocab_size=509)
    with pytest.raises(ValueError, match="<image> takes id 509.* embedding has 509 rows"):
        convert_checkpoint(source, tmp_path / "out", vision_base=BASE)


@pytest.mark.parametrize(
    ("text", "message"), [("{}", "holds no tokenizer"), ("[]", "holds a list"), ("", "does not parse")]
)
def test_a_tokenizer_file_without_a_tokenizer(source, tmp_path, text, message):
    (source / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=f"tokenizer.json {message}"):
        convert_checkpoint(source, tmp_path / "out", vision_base=BASE)


def test_ids_of_another_tokenizer(source, tmp_path):
    edit_config(source, mask_token_id=126336)
    with pytest.raises(ValueError, match="mask_token_id is 126336 in config.json, but 500 in its tokenizer"):
        convert_checkpoint(source, tmp_path / "out", vision_base=BASE)


@pytest.mark.parametrize("name", ["no/such/folder", "missing-folder"])
def test_no_source(tmp_path, name):
    with pytest.raises(ValueError, match=f"There is no folder '{name}'"):
        convert_checkpoint(name, tmp_path / "out")


def test_a_source_without_a_name(tmp_path):
    with pytest.raises(ValueError, match="'' is no folder and no Hub id"):
        convert_checkpoint("", tmp_path / "out")


def test_a_converted_source(converted, tmp_path):
    with pytest.raises(ValueError, match="It is converted already"):
        convert_checkpoint(converted, tmp_path / "out")


# ---------------------------------------------------------------- where it goes


def test_nothing_is_written_into_a_source(source, tmp_path):
    base = shutil.copytree(BASE, tmp_path / "base")
    before = sorted(tmp_path.rglob("*"))
    for out in (source / "sub", source / "deep" / "sub", base / "sub"):
        with pytest.raises(ValueError, match=f"sub lies inside {out.parents[out.parent.name == 'deep']}"):
            convert_checkpoint(source, out, vision_base=base)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("size", ["lots", "0GB", "5", "nanGB", "-1GB", ""])
def test_a_shard_size_that_is_none_says_what_is_one(tmp_path, size):
    with pytest.raises(ValueError, match=f"max_shard_size='{size}' must be a number above 0 with KB, MB, GB or TB"):
        convert_checkpoint(ORIGINAL, tmp_path / "out", max_shard_size=size)


def test_nothing_is_replaced(tmp_path):
    """Weights trained in an earlier OUT, what was added to it, and a record that does not parse all stay."""
    out = tmp_path / "out"
    out.mkdir()
    convert_checkpoint(ORIGINAL, out, vision_base=BASE)
    (out / "model.safetensors").write_bytes(b"trained")
    (out / "conversion.json").write_text("[]")
    with pytest.raises(ValueError, match="out is a conversion already .* name another OUT, or delete this one first"):
        convert_checkpoint(ORIGINAL, out, vision_base=BASE)
    assert (out / "model.safetensors").read_bytes() == b"trained"
    before = {path: path.read_bytes() for path in ORIGINAL.iterdir()}
    for taken in (ORIGINAL, ORIGINAL / "config.json"):
        with pytest.raises(ValueError, match="is not an empty folder, and nothing is replaced"):
            convert_checkpoint(ORIGINAL, taken, vision_base=BASE)
    assert {path: path.read_bytes() for path in ORIGINAL.iterdir()} == before
    with pytest.raises(ValueError, match="/ is a mount point"):
        convert_checkpoint(ORIGINAL, "/", vision_base=BASE)


def test_what_appears_at_out_meanwhile_stays(tmp_path, monkeypatch):
    out = tmp_path / "out"

    def write_card(*args):
        out.mkdir()
        (out / "thesis.txt").write_text("years")

    monkeypatch.setattr(convert, "write_card", write_card)
    with pytest.raises(ValueError, match="out is not an empty folder"):
        convert_checkpoint(ORIGINAL, out, vision_base=BASE)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"] and nothing_beside(out)


def test_out_has_the_permissions_of_a_new_folder(tmp_path, converted):
    (tmp_path / "new").mkdir()
    assert converted.stat().st_mode == (tmp_path / "new").stat().st_mode


# A run that stops when its weights are written, until it is told to go on.
PAUSED = """
import sys, time
from pathlib import Path
from modeling_shirg.conversion import convert, convert_checkpoint

source, out, base, reached, onward = map(Path, sys.argv[1:])
write_shards = convert.write_shards

def pause(*args):
    shards = write_shards(*args)
    reached.touch()
    while not onward.exists():
        time.sleep(0.05)
    return shards

convert.write_shards = pause
try:
    convert_checkpoint(source, out, vision_base=base)
except ValueError as error:
    sys.exit(str(error))
"""


@pytest.fixture
def paused(tmp_path):
    """Start such a run to `tmp_path / "out"`; `tmp_path / "onward"` lets it go on."""
    runs = []

    def start() -> subprocess.Popen:
        reached = tmp_path / "reached"
        command = [sys.executable, "-c", PAUSED, ORIGINAL, tmp_path / "out", BASE, reached, tmp_path / "onward"]
        runs.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        deadline = time.monotonic() + 120
        while not reached.exists() and runs[-1].poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert reached.exists()
        return runs[-1]

    yield start
    for run in runs:
        run.kill()
        run.wait()
        run.stderr.close()


def test_a_killed_run_leaves_nothing_at_out(tmp_path, paused):
    out, run = tmp_path / "out", paused()
    run.kill()
    run.wait()
    (leftover,) = tmp_path.glob(".out.partial-*")
    assert (leftover / "out" / "model.safetensors").is_file()
    assert not out.exists()
    convert_checkpoint(ORIGINAL, out, vision_base=BASE)
    assert nothing_beside(out)
    load(out)


def test_of_two_runs_at_once_one_wins(tmp_path, paused, converted):
    out, run = tmp_path / "out", paused()
    convert_checkpoint(ORIGINAL, out, vision_base=BASE)
    (running,) = tmp_path.glob(".out.partial-*")
    assert (running / "out" / "model.safetensors").is_file()
    (tmp_path / "onward").touch()
    assert "out is a conversion already" in run.communicate(timeout=120)[1]
    assert run.returncode == 1 and nothing_beside(out)
    assert {path.name for path in out.iterdir()} == {path.name for path in converted.iterdir()}
    load(out)


def test_only_leftovers_of_ended_runs_are_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = platform.node()
    owners = {
        "partial": None,
        "partial-stranger": None,
        "partial-garbled": "thesis",
        "partial-living": f"{here}\n{os.getpid()}\n",
        "partial-elsewhere": f"{here}.example\n{ended.pid}\n",
        "partial-ended": f"{here}\n{ended.pid}\n",
    }
    for name, owner in owners.items():
        folder = tmp_path / f".out.{name}"
        (folder / "out").mkdir(parents=True)
        (folder / "out" / "thesis.txt").write_text("years")
        if owner is not None:
            (folder / ".shirg-convert-process").write_text(owner)
    (tmp_path / ".out.partial-file").write_text("a file")
    convert_checkpoint(ORIGINAL, tmp_path / "out", vision_base=BASE)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"out", ".out.partial-file", *(f".out.{name}" for name in owners if name != "partial-ended")}
    assert all((tmp_path / name / "out" / "thesis.txt").is_file() for name in left - {"out", ".out.partial-file"})


# ---------------------------------------------------------------- the command, the Hub, a stranger's process


def test_command(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["convert", str(ORIGINAL), str(out), "--vision-base", str(BASE), "--prune-method", "shirg"]
    assert main([*arguments, "--dtype", "bfloat16"]) == 0
    assert "623,664 parameters, 0.00125 GB bfloat16 in 1 file, preset shirg" in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "nowhere"), str(tmp_path / "other")]) == 2
    assert "There is no folder" in capsys.readouterr().err


def test_command_with_a_text_tower(tmp_path, siglip, capsys):
    out = tmp_path / "out"
    arguments = ["convert", str(ORIGINAL), str(out), "--vision_base", str(siglip), "--prune_method", "shirg"]
    assert main([*arguments, "--text-tower"]) == 0
    assert "pooling head from whole, with its text tower" in capsys.readouterr().out
    question = ["ask", str(GOLDEN / "doc.png"), QUESTION, "--model", str(out), "--max_new_tokens", "4", "--json"]
    kept = []
    for relevance in ("siglip", "lm"):
        assert main([*question, "--text_relevance", relevance]) == 0
        kept.append(json.loads(capsys.readouterr().out.splitlines()[-1])["kept"])
    assert kept[0] != kept[1]
    assert main(["convert", str(ORIGINAL), str(tmp_path / "no"), "--vision_base", str(BASE), "--text_tower"]) == 2
    assert "a vision tower alone" in capsys.readouterr().err


def test_from_the_hub(hub, tmp_path):
    card = b"---\nlicense: other\nlicense_name: some-licence\n---\n# A model\n"
    commits = {}
    for name, folder in (("tester/lavida", ORIGINAL), ("tester/siglip", BASE)):
        tree = {path.name: Blob(path.read_bytes(), lfs=path.suffix == ".safetensors") for path in folder.iterdir()}
        tree |= {"README.md": Blob(card), "optimizer.bin": Blob(b"pickle"), "old/model.safetensors": Blob(b"old")}
        hub.repos["models", name] = repo = Repo("models", name)
        commits[name] = repo.commit("main", tree)
    command = [sys.executable, "-m", "shirg_scripts.cli", "convert", "tester/lavida"]
    environment = {**os.environ, **hub.env, "HF_HOME": str(tmp_path / "home")}
    run = subprocess.run(
        [*command, "out", "--vision_base", "tester/siglip"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert (record["source"], record["revision"]) == ("tester/lavida", commits["tester/lavida"])
    assert (record["vision_base"], record["vision_base_revision"]) == ("tester/siglip", commits["tester/siglip"])
    written = (tmp_path / "out" / "README.md").read_text()
    assert "license_name: some-licence" in written
    assert f"revision `{commits['tester/lavida']}`" in written
    assert not any("optimizer.bin" in request or "old/" in request for request in hub.requests)
    run = subprocess.run(
        [*command, "other", "--revision", "nope"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 2
    assert "at revision 'nope'" in run.stderr


STRANGER = """
import json
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained({source!r}, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained({source!r}, trust_remote_code=True)
content = [{{"type": "image", "path": {image!r}}}, {{"type": "text", "text": {question!r}}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
answer = model.generate(**inputs, schedule=None, max_new_tokens=32, block_length=32)
assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
print(json.dumps(answer[0, -32:].tolist()))
"""


def test_loads_without_this_package(converted):
    code = STRANGER.format(source=str(converted), image=str(GOLDEN / "landscape.png"), question=QUESTION)
    answer = json.loads(run_fresh(code).strip().splitlines()[-1])
    assert answer == load_file(GOLDEN / "landscape.safetensors")["gen.none.prefix.tokens"].tolist()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_checkpoint(tmp_path):
    command = [sys.executable, "-m", "shirg_scripts.convert_memory", "--blocks", "1", "--dtype", "float32"]
    out = tmp_path / "memory.json"
    run = subprocess.run([*command, "--out", out], capture_output=True, text=True, check=True)
    measured = json.loads(run.stdout.splitlines()[-1])
    assert json.loads(out.read_text()) == measured
    assert measured["checkpoint_bytes"] > 3e9
    assert measured["above_baseline_bytes"] < 0.4e9 < measured["largest_tensor_bytes"]


def _wide_source(folder: Path, layers: int) -> Path:
    """The reference with so400m's width in its vision tower, whose kept layers are known."""
    shutil.copytree(ORIGINAL, folder)
    tensors = load_file(folder / "model.safetensors")
    tower = "model.vision_tower.vision_tower.vision_model."
    tensors = {name: each for name, each in tensors.items() if not name.startswith(tower)}
    with torch.device("meta"):
        vision = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=1152,
                intermediate_size=16,
                num_hidden_layers=layers,
                num_attention_heads=16,
                image_size=384,
                patch_size=14,
                vision_use_head=False,
            )
        )
    for name, each in vision.state_dict().items():
        tensors[tower + name] = torch.zeros(each.shape, dtype=torch.float16)
    tensors["model.mm_projector.0.weight"] = torch.zeros(64, 1152)
    save_file(tensors, folder / "model.safetensors")
    edit_config(folder, mm_hidden_size=1152)
    return folder


def test_missing_last_layers_of_the_known_tower_are_listed(tmp_path):
    convert_checkpoint(_wide_source(tmp_path / "whole", 26), tmp_path / "out")
    with pytest.raises(ValueError, match=r"16 missing(.|\n)*encoder.layers.25.mlp.fc1.weight"):
        convert_checkpoint(_wide_source(tmp_path / "cut", 25), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_first_layer_is_listed_with_everything_else(source, tmp_path, known_width):
    tensors = load_file(source / "model.safetensors")
    gone = (
        "model.vision_tower.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
        "model.transformer.blocks.1.q_proj.weight",
    )
    kept = {name: each for name, each in tensors.items() if name not in gone} | {"foo": torch.zeros(1)}
    save_file(kept, source / "model.safetensors")
    with pytest.raises(ValueError) as raised:
        convert_checkpoint(source, tmp_path / "out")
    assert all(name in str(raised.value) for name in (*gone, "foo", "2 missing", "1 unknown"))


def test_heads_come_from_the_tower_that_the_config_names_if_it_lies_beside(tmp_path):
    facts = convert_checkpoint(ORIGINAL, tmp_path / "out")  # the reference's base lies beside it
    assert facts.vision_base is None
    assert ShirgLavidaConfig.from_pretrained(tmp_path / "out").vision_config.num_attention_heads == 4


def test_without_a_known_width_or_a_folder_the_remedies_are_named(source, tmp_path):
    with pytest.raises(ValueError, match="width 64.*--vision_base.*'tiny-siglip-so400m-patch14-384'"):
        convert_checkpoint(source, tmp_path / "out")


@pytest.mark.parametrize("token", ["<|eot_id|>", "<|start_header_id|>"])
def test_a_tokenizer_without_the_chat_tokens_is_refused(source, tmp_path, token):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = source / name
        path.write_text(path.read_text().replace(token, "<|zzz|>"))
    with pytest.raises(ValueError, match=re.escape(token)):
        convert_checkpoint(source, tmp_path / "out", vision_base=BASE)


def test_bad_numbers_are_listed_and_null_is_the_default(source, tmp_path):
    edit_config(source, n_heads=0, rope_theta="x", n_layers="3")
    with pytest.raises(ValueError) as raised:
        convert_checkpoint(source, tmp_path / "out", vision_base=BASE)
    assert all(text in str(raised.value) for text in ("n_heads=0", "rope_theta='x'", "n_layers='3'"))


def test_a_broken_card_of_the_source_stops_nothing(source, tmp_path):
    (source / "README.md").write_text("---\nlicense: [other\n---\n")
    assert convert_checkpoint(source, tmp_path / "out", vision_base=BASE).license == {}


def test_the_processor_of_an_unconverted_checkpoint_names_the_command(tmp_path):
    with pytest.raises(ValueError, match="shirg convert SRC OUT"):
        ShirgLavidaProcessor.from_pretrained(ORIGINAL)
    with pytest.raises(OSError):
        ShirgLavidaProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("prune_method", sorted(PRESETS))
def test_every_preset_converts_and_loads_whole(tmp_path, prune_method):
    convert_checkpoint(ORIGINAL, tmp_path / "out", vision_base=BASE, prune_method=prune_method)
    _, info = ShirgLavidaForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_every_preset_that_scores_by_the_pooling_head_names_the_base(tmp_path):
    for prune_method in ("shirg-fixed", "shirg-mixed", "shirg-adaptive", "visionzip", "vispruner", "holov"):
        with pytest.raises(ValueError, match=f"'{prune_method}' scores patches .* pass --vision_base"):
            convert_checkpoint(ORIGINAL, tmp_path / "out", prune_method=prune_method)
