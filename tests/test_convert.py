"""`shirg convert`: the tiny reference checkpoint of the original LaViDa, whole and in every kind of disrepair."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, SiglipConfig, SiglipTextModel

from configuration_shirg import PRESETS, ShirgLavidaConfig, ShirgLavidaProcessor
from fresh_process import ask_fresh
from loopback_hub import Blob, Repo
from modeling_shirg import ShirgLavidaForConditionalGeneration
from modeling_shirg.conversion import convert_checkpoint
from modeling_shirg.conversion.original_config import KNOWN_TOWERS
from shirg_scripts.cli import main
from tiny_model import chat, encode
from tokenizer_fixture import make_relevance_tokenizer

FIXTURES = Path(__file__).parent / "fixtures" / "lavida"
ORIGINAL = FIXTURES / "checkpoint"
BASE = FIXTURES / "tiny-siglip-so400m-patch14-384"
GOLDEN = FIXTURES / "golden"
QUESTION = "Describe the image in detail."
TOWER = "model.vision_tower.vision_tower.vision_model."


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
    """The tiny tower's heads are known, as so400m's are, so that no base is needed."""
    monkeypatch.setitem(KNOWN_TOWERS, 64, (4, 0))


@pytest.fixture(scope="module")
def siglip(tmp_path_factory) -> Path:
    """The tiny base with a random text tower and a tokenizer, as google/siglip-so400m-patch14-384 has them."""
    folder = tmp_path_factory.mktemp("siglip") / "whole"
    tower = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = json.loads((BASE / "config.json").read_text())
    config = SiglipConfig(vision_config=vision, text_config={**tower, "vocab_size": 257})
    config.save_pretrained(folder)
    torch.manual_seed(0)
    text = SiglipTextModel(config.text_config).state_dict()
    tensors = {**load_file(BASE / "model.safetensors"), **{f"text_model.{name}": text[name] for name in text}}
    tensors |= {"logit_scale": torch.ones(1), "text_model.embeddings.position_ids": torch.arange(64)[None]}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    make_relevance_tokenizer().save_pretrained(folder)
    return folder


def edit_json(path: Path, **fields) -> None:
    """Change fields of a JSON file; `...` removes one."""
    edited = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in edited.items() if value is not ...}))


def edit_tensors(folder: Path, **tensors) -> None:
    """Change tensors of a checkpoint; `None` removes one."""
    path = folder / "model.safetensors"
    edited = {**load_file(path), **tensors}
    save_file({name: value for name, value in edited.items() if value is not None}, path, metadata={"format": "pt"})


def load(folder: Path, **kwargs) -> tuple[ShirgLavidaForConditionalGeneration, ShirgLavidaProcessor]:
    """The model, of which nothing is missing or too much, and the processor."""
    model, info = ShirgLavidaForConditionalGeneration.from_pretrained(folder, output_loading_info=True, **kwargs)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval(), ShirgLavidaProcessor.from_pretrained(folder)


def refused(match: str, source: Path | str, out: Path, *flags, **options) -> str:
    """The conversion is an error whose message matches, and nothing is at `out` or beside it."""
    with pytest.raises((ValueError, OSError, StrictDataclassError), match=match) as error:
        convert_checkpoint(source, out, **{"vision_base": BASE, **options})
    assert not out.exists() and not [path for path in out.parent.iterdir() if path.name.startswith(f".{out.name}")]
    return str(error.value)


# What comes out


def test_config_and_ids(converted):
    config = ShirgLavidaConfig.from_pretrained(converted)
    assert (config.prune_method, config.view_policy, config.pooled_grid_size) == ("lavida", "anyres", 14)
    assert config.image_grid_pinpoints == [[384, 768], [768, 384], [768, 768], [1152, 384], [384, 1152]]
    ids = ("image", "mask", "infill", "bos", "eos", "pad")
    assert [getattr(config, f"{name}_token_id") for name in ids] == [509, 500, 485, 480, 481, 481]
    assert AutoTokenizer.from_pretrained(converted).encode("<image>", add_special_tokens=False) == [509]
    assert str(FIXTURES) not in "".join(path.read_text() for path in converted.glob("*.json"))
    saved = load(converted)[0].generation_config
    assert (saved.max_new_tokens, saved.block_length, saved.step_ratio, saved.schedule) == (64, None, 0.5, "shift")


def test_every_tensor_is_written_once_and_unchanged(converted):
    written, original, base = (load_file(folder / "model.safetensors") for folder in (converted, ORIGINAL, BASE))
    assert len(written) == len(original) + 16 + 11  # a SigLIP layer has 16 tensors, its pooling head 11
    tower = "model.vision_tower.vision_model."
    for name, expected in {
        "lm_head.weight": original["model.transformer.ff_out.weight"],
        "model.image_newline": original["model.image_newline"],
        "model.language_model.layers.1.mlp.down_proj.weight": original["model.transformer.blocks.1.ff_out.weight"],
        f"{tower}head.probe": base["vision_model.head.probe"],
        f"{tower}encoder.layers.3.mlp.fc1.weight": base["vision_model.encoder.layers.3.mlp.fc1.weight"],
        f"{tower}post_layernorm.weight": original[f"{TOWER}post_layernorm.weight"],
    }.items():
        assert torch.equal(written[name], expected), name


def test_without_a_base(tmp_path, converted, known_width):
    assert convert_checkpoint(ORIGINAL, tmp_path / "out")["vision_base"] is None
    model, processor = load(tmp_path / "out")
    assert (model.config.vision_config.num_hidden_layers, model.config.vision_feature_layer) == (3, -1)
    inputs = encode(processor, chat(QUESTION, Image.open(GOLDEN / "doc.png")))
    with torch.no_grad():
        logits = [each(**inputs, logits_to_keep=1).logits for each in (model, load(converted)[0])]
    assert torch.equal(*logits)


@pytest.mark.parametrize("prune_method", sorted(PRESETS))
def test_every_preset_converts_and_loads_whole(tmp_path, converted, prune_method):
    convert_checkpoint(ORIGINAL, tmp_path / "out", vision_base=BASE, prune_method=prune_method)
    saved = load(tmp_path / "out")[0].state_dict()
    config = ShirgLavidaConfig.from_pretrained(converted).with_preset(prune_method)
    derived = ShirgLavidaForConditionalGeneration.from_pretrained(converted, config=config).state_dict()
    name = "model.vision_tower.foveal_position_embedding.weight"
    assert saved.keys() == derived.keys() and (name not in saved or torch.equal(saved[name], derived[name]))


def test_dtype_and_shards(tmp_path, converted):
    out = tmp_path / "out"
    facts = convert_checkpoint(ORIGINAL, out, vision_base=BASE, dtype="bfloat16", max_shard_size="200KB")
    assert facts["shards"] == len(list(out.glob("*.safetensors"))) > 3
    shards, whole = load(out)[0].state_dict(), load(converted)[0].state_dict()
    assert shards.keys() == whole.keys()
    for name, tensor in shards.items():
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, whole[name].bfloat16()), name


def test_tied_embeddings(source, tmp_path):
    edit_json(source / "config.json", weight_tying=True)
    edit_tensors(source, **{"model.transformer.ff_out.weight": None})
    convert_checkpoint(source, tmp_path / "out", vision_base=BASE)
    model, _ = load(tmp_path / "out")
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    assert model.lm_head.weight is model.get_input_embeddings().weight


# Fields of the original config, `--pooled_grid_size`, and what the checkpoint was trained with.


# Fields of the original config, `pooled_grid_size`, and what the checkpoint was trained with.
VIEWS = [
    ({"image_aspect_ratio": "pad", "image_grid_pinpoints": None}, 0, ("pad", None, None)),
    ({"image_aspect_ratio": None, "image_grid_pinpoints": None}, None, ("square", None, 14)),
    ({"image_grid_pinpoints": "[(384, 768), (768, 384)]"}, None, ("anyres", [[384, 768], [768, 384]], 14)),
]


@pytest.mark.parametrize(("fields", "pooled", "trained"), VIEWS)
def test_preset_lavida_is_what_the_checkpoint_was_trained_with(source, tmp_path, fields, pooled, trained):
    edit_json(source / "config.json", **fields)
    out = tmp_path / "out"
    convert_checkpoint(source, out, vision_base=BASE, prune_method="shirg", pooled_grid_size=pooled)
    config = ShirgLavidaConfig.from_pretrained(out)
    assert config.prune_method == "shirg"
    restored = ShirgLavidaConfig.from_pretrained(out, prune_method="lavida")
    for lavida in (restored, config.with_preset("lavida-980").with_preset("lavida")):
        assert (lavida.view_policy, lavida.image_grid_pinpoints, lavida.pooled_grid_size) == trained
        assert (lavida.patch_merge_type, lavida.fovea_size, lavida.selection_budget) == ("spatial_unpad", None, None)
        assert trained[0] == "anyres" or lavida.num_image_tokens == (trained[2] or 27) ** 2 + 1


# What goes in


def test_sharded_source(source, tmp_path, converted):
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    weight_map = {name: f"model-0000{place % 3 + 1}-of-00003.safetensors" for place, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, source / file)
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    linked = tmp_path / "linked"  # as a snapshot of the Hub is
    linked.mkdir()
    for path in source.iterdir():
        (linked / path.name).symlink_to(path)
    convert_checkpoint(linked, tmp_path / "out", vision_base=BASE)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (converted / name).read_bytes()
    (source / "model-00002-of-00003.safetensors").unlink()
    refused("model-00002-of-00003", source, tmp_path / "other")


@pytest.mark.parametrize(
    "index",
    [[], {}, {"weight_map": ["x"]}, {"weight_map": {"a": 1}}, {"weight_map": {"a": "../secret/x.safetensors"}}],
)
def test_a_tampered_index(source, tmp_path, index):
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    refused("index.json", source, tmp_path / "out")


@pytest.mark.parametrize("keep", [0, 100, 100_000, None])
def test_a_broken_download_and_pickles(source, tmp_path, keep):
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep] + (bytes(8) if keep is None else b""))
    refused("model.safetensors", source, tmp_path / "out")
    weights.rename(source / "pytorch_model.bin")
    refused("only safetensors", source, tmp_path / "out")


def test_every_misfit_and_every_unsupported_setting_is_named_in_one_error(source, tmp_path):
    misfits = {
        "model.mm_projector.0.bias": None,
        "model.transformer.blocks.1.q_proj.weight": None,
        f"{TOWER}encoder.layers.0.mlp.fc1.weight": None,
        "model.faster_token": torch.zeros(64),
        "model.transformer.ln_f.weight": torch.zeros(65),
        "model.transformer.blocks.2.attn_norm.weight": torch.zeros(64, dtype=torch.int8),
    }
    edit_tensors(source, **misfits)
    message = refused("3 missing:(.|\n)*1 unknown:(.|\n)*2 misshapen:", source, tmp_path / "out")
    assert [part for part in (*misfits, "[65]", "[64]", "I8") if part not in message] == []
    wrong = {"alibi": True, "layer_norm_type": "default", "mm_projector_type": "linear", "rope_theta": "x"}
    wrong |= {"n_heads": 0, "n_layers": "3", "block_type": None, "d_model": None}
    edit_json(source / "config.json", **{name: ... if value is None else value for name, value in wrong.items()})
    message = refused("8 settings", source, tmp_path / "out")
    assert [name for name, value in wrong.items() if f"{name}={value!r}" not in message] == []


def test_a_value_that_overflows_float16_is_refused(source, tmp_path):
    edit_tensors(source, **{"model.image_newline": torch.full((64,), 1e6)})
    refused("model.image_newline .*65504", source, tmp_path / "out", dtype="float16")


def test_an_unconverted_checkpoint_names_the_command():
    for kind in (ShirgLavidaConfig, ShirgLavidaForConditionalGeneration):
        with pytest.raises(ValueError, match="shirg convert SRC OUT"):
            kind.from_pretrained(ORIGINAL)


# The vision base and its text tower


@pytest.mark.parametrize("prune_method", ["shirg", "shirg-v1", "shirg-fixed", "visionzip", "vispruner"])
def test_presets_that_score_by_the_pooling_head_need_the_base(tmp_path, known_width, prune_method):
    refused(
        f"'{prune_method}' .*--vision_base", ORIGINAL, tmp_path / "out", vision_base=None, prune_method=prune_method
    )


# Fields of the base's config, of its text tower's, tensors; and what the error names.
WRONG_BASES = [
    ({"hidden_size": 32}, {}, {}, "hidden_size 32, needed 64"),
    ({"num_hidden_layers": 3}, {}, {}, "num_hidden_layers 3, needed 4"),
    ({"patch_size": 16, "image_size": 224}, {}, {}, "image_size 224, needed 384; patch_size 16, needed 14"),
    ({}, {"num_hidden_layers": 1}, {}, "16 unknown:\n  text_model.encoder.layers.1"),
    ({}, {"projection_size": 32}, {}, "projection_size=32 .*hidden_size=64"),
    ({}, {"vocab_size": 200}, {}, "257 ids, but relevance_text_config.vocab_size is 200|misshapen"),
    ({}, {}, {"vision_model.head.probe": None}, "head.probe"),
    ({}, {}, {"text_model.head.bias": None}, "text_model.head.bias"),
]


@pytest.mark.parametrize(("vision", "text", "tensors", "says"), WRONG_BASES)
def test_a_wrong_base(tmp_path, siglip, vision, text, tensors, says):
    base = Path(shutil.copytree(siglip, tmp_path / "base"))
    whole = json.loads((base / "config.json").read_text())
    towers = {"vision_config": whole["vision_config"] | vision, "text_config": whole["text_config"] | text}
    edit_json(base / "config.json", **towers)
    edit_tensors(base, **tensors)
    refused(says, ORIGINAL, tmp_path / "out", vision_base=base, text_tower=True)


def test_a_base_that_is_none_or_lacks_a_part(tmp_path, siglip):
    base = Path(shutil.copytree(siglip, tmp_path / "base"))
    refused("width 64.*--vision_base", ORIGINAL, tmp_path / "out", vision_base=None)
    refused("text_tower.*--vision_base", ORIGINAL, tmp_path / "out", vision_base=None, text_tower=True)
    refused("'siglip_vision_model'", ORIGINAL, tmp_path / "out", text_tower=True)
    (base / "tokenizer.json").unlink()
    refused("no tokenizer.json", ORIGINAL, tmp_path / "out", vision_base=base, text_tower=True)
    edit_json(base / "config.json", model_type="clip")
    refused("model_type 'clip'", ORIGINAL, tmp_path / "out", vision_base=base)


def test_text_tower(tmp_path, siglip, converted):
    out = tmp_path / "out"
    options = {"vision_base": siglip, "text_tower": True, "prune_method": "shirg"}
    assert convert_checkpoint(ORIGINAL, out, **options, max_shard_size="100KB")["text_tower"]
    model, processor = load(out, text_relevance="siglip")
    tower = model.config.relevance_text_config
    ids = (tower.bos_token_id, tower.eos_token_id, tower.pad_token_id)
    assert (tower.projection_size, tower.max_position_embeddings, *ids) == (64, 64, None, None, None)
    stock = SiglipTextModel.from_pretrained(siglip).state_dict()
    ours = model.model.relevance_text_model.state_dict()
    assert ours.keys() == stock.keys() and all(torch.equal(ours[name], stock[name]) for name in ours)
    kept = []
    with torch.no_grad():
        for question in (QUESTION, "Where is the total?"):
            inputs = encode(processor, chat(question, Image.open(GOLDEN / "doc.png")))
            expected = make_relevance_tokenizer()(question, padding="max_length", max_length=64, return_tensors="pt")
            assert torch.equal(inputs["relevance_input_ids"], expected["input_ids"])
            kept.append(model(**inputs, logits_to_keep=1, output_selection=True).kept_indices)
    assert not torch.equal(*kept) and ShirgLavidaConfig.from_pretrained(out).text_relevance == "lm"
    assert "SigLIP's text tower and its tokenizer came along" in (out / "README.md").read_text()
    assert str(siglip) not in "".join(path.read_text() for path in out.rglob("*.json"))


def test_what_siglips_tokenizer_class_does_in_python_is_done(tmp_path, siglip):
    base = Path(shutil.copytree(siglip, tmp_path / "base"))
    edit_json(base / "tokenizer.json", normalizer=None)
    declared = {"tokenizer_class": "SiglipTokenizer", "do_lower_case": True, "model_max_length": 64}
    edit_json(base / "tokenizer_config.json", **declared, sp_model_kwargs={})
    for folder, decoded in ((base, "whats in it</s>"), (siglip, " what's  in it?</s>")):
        convert_checkpoint(ORIGINAL, tmp_path / folder.name / "out", vision_base=folder, text_tower=True)
        tokenizer = ShirgLavidaProcessor.from_pretrained(tmp_path / folder.name / "out").relevance_tokenizer
        assert tokenizer.decode(tokenizer(" What's  IN it?")["input_ids"]) == decoded


# Where it goes


def test_nothing_is_replaced(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    convert_checkpoint(ORIGINAL, out, vision_base=BASE)
    (out / "model.safetensors").write_bytes(b"trained")
    for taken in (out, ORIGINAL, ORIGINAL / "config.json", Path("/")):
        with pytest.raises(ValueError, match=f"{taken} is .*"):
            convert_checkpoint(ORIGINAL, taken, vision_base=BASE)
    assert (out / "model.safetensors").read_bytes() == b"trained"
    (tmp_path / "new").mkdir()
    assert out.stat().st_mode == (tmp_path / "new").stat().st_mode


# A run that stops when its weights are written, until it is told to go on.
PAUSED = """
import sys, time
from pathlib import Path
from modeling_shirg.conversion import convert

source, out, base, reached, onward = map(Path, sys.argv[1:])
render = convert.render

def pause(*args, **kwargs):
    reached.touch()
    while not onward.exists():
        time.sleep(0.05)
    return render(*args, **kwargs)

convert.render = pause
try:
    convert.convert_checkpoint(source, out, vision_base=base)
except ValueError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize("kill", [True, False])
def test_a_killed_run_leaves_nothing_at_out_and_of_two_runs_one_wins(tmp_path, converted, kill):
    out, reached, onward = (tmp_path / name for name in ("out", "reached", "onward"))
    command = [sys.executable, "-c", PAUSED, ORIGINAL, out, BASE, reached, onward]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not reached.exists() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert reached.exists() and not out.exists()
    assert len(list(tmp_path.glob(".out*"))) == 1
    if kill:
        run.kill()
        run.communicate()
    convert_checkpoint(ORIGINAL, out, vision_base=BASE)
    onward.touch()
    assert kill or f"{out} is " in run.communicate(timeout=120)[1]
    assert run.returncode and not list(tmp_path.glob(".out*"))
    assert {path.name for path in out.iterdir()} == {path.name for path in converted.iterdir()}
    load(out)


# The command, the Hub, a stranger's process


def test_command(tmp_path, siglip, capsys):
    out = tmp_path / "out"
    arguments = ["convert", str(ORIGINAL), str(out), "--vision-base", str(siglip), "--prune-method", "shirg"]
    assert main([*arguments, "--text-tower", "--dtype", "bfloat16"]) == 0
    said = capsys.readouterr().out
    assert [part for part in ("bfloat16", "preset shirg", "text tower") if part not in said] == []
    ask = ["ask", str(GOLDEN / "doc.png"), QUESTION, "--model", str(out), "--max_new_tokens", "4", "--json"]
    kept = []
    for relevance in ("siglip", "lm"):
        assert main([*ask, "--text_relevance", relevance]) == 0
        kept.append(json.loads(capsys.readouterr().out.splitlines()[-1])["kept"])
    assert kept[0] != kept[1]


def test_from_the_hub(hub, tmp_path):
    card, commits = Blob(b"---\nlicense: other\nlicense_name: some-licence\n---\n# A model\n"), {}
    for name, folder in (("tester/lavida", ORIGINAL), ("tester/siglip", BASE)):
        tree = {path.name: Blob(path.read_bytes(), lfs=path.suffix == ".safetensors") for path in folder.iterdir()}
        tree |= {"README.md": card, "optimizer.bin": Blob(b"pickle"), "old/model.safetensors": Blob(b"old")}
        hub.repos[name] = Repo(name)
        commits[name] = hub.repos[name].commit("main", tree)
    command = [sys.executable, "-m", "shirg_scripts.cli", "convert", "tester/lavida"]
    settings = {"cwd": tmp_path, "env": {**os.environ, **hub.env, "HF_HOME": str(tmp_path / "home")}}
    for words, status in (("out --vision_base tester/siglip", 0), ("other --revision nope", 2)):
        run = subprocess.run([*command, *words.split()], **settings, capture_output=True, text=True)
        assert run.returncode == status, run.stderr
    assert "tester/lavida@nope" in run.stderr and not (tmp_path / "other").exists()
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert (record["source"], record["revision"]) == ("tester/lavida", commits["tester/lavida"])
    assert (record["vision_base"], record["vision_base_revision"]) == ("tester/siglip", commits["tester/siglip"])
    written = (tmp_path / "out" / "README.md").read_text()
    assert "license_name: some-licence" in written and f"commit `{commits['tester/lavida']}`" in written
    assert not any("optimizer.bin" in request or "old/" in request for request in hub.requests)


def test_a_stranger_gets_the_originals_answer(converted):
    golden = load_file(GOLDEN / "landscape.safetensors")
    options = {"schedule": None, "max_new_tokens": 32, "block_length": 32}
    ids = ask_fresh(converted, GOLDEN / "landscape.png", QUESTION, **options)["ids"]
    assert ids[-32:] == golden["gen.none.prefix.tokens"].tolist()
