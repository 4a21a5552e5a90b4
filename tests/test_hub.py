"""A saved folder and a pushed repository, used by a process that cannot import this project."""

import json
from pathlib import Path

import pytest
import torch

from configuration_shirg import PRESETS, ShirgLavidaProcessor
from fresh_process import ask_fresh, run_fresh
from modeling_shirg import ShirgLavidaForConditionalGeneration
from modeling_shirg.published_selections_shirg import METHODS
from tiny_model import QUESTIONS, chat, encode, noise_image, tiny_config, tiny_model, tiny_processor

ROOT = Path(__file__).parents[1]
SOURCES = [ROOT / "configuration_shirg", ROOT / "modeling_shirg"]
CODE_FILES = {path.name for folder in SOURCES for path in folder.glob("*_shirg*.py")}

PIPELINE = """
import json
from transformers import pipeline
ask = pipeline("image-text-to-text", model={source!r}, trust_remote_code=True)
content = [{{"type": "image", "path": {image!r}}}, {{"type": "text", "text": {question!r}}}]
chat = [{{"role": "user", "content": content}}]
one = ask(text=chat, max_new_tokens=8, return_full_text=False)
many = ask(text=[chat, chat], max_new_tokens=8, return_full_text=False, batch_size=2)
plain = ask(images={image!r}, text="<image>" + {question!r}, max_new_tokens=8, return_full_text=False)
assert isinstance(plain[0]["generated_text"], str)
assert one[0]["generated_text"] == many[0][0]["generated_text"] == many[1][0]["generated_text"]
print(json.dumps(one[0]["generated_text"]))
"""

PUSH = """
from transformers import AutoModelForImageTextToText, AutoProcessor
AutoModelForImageTextToText.from_pretrained({source!r}, trust_remote_code=True).push_to_hub("tester/tiny")
AutoProcessor.from_pretrained({source!r}, trust_remote_code=True).push_to_hub("tester/tiny")
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict:
    """A model saved from the package, an image file, and what the package itself answers."""
    folder = tmp_path_factory.mktemp("saved")
    image_path = folder / "noise.png"
    noise_image(5).save(image_path)
    config = tiny_config()
    model, processor = tiny_model(config), tiny_processor(config)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    inputs = encode(processor, chat(QUESTIONS[0], noise_image(5)))
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=8, return_dict_in_generate=True, output_selection=True)
    answer = processor.post_process_image_text_to_text(output.sequences[:, inputs["input_ids"].shape[1] :])[0]
    return {
        "source": str(folder / "model"),
        "image": str(image_path),
        "question": QUESTIONS[0],
        "ids": output.sequences[0].tolist(),
        "kept": output.kept_indices.tolist(),
        "answer": answer,
    }


def check(saved: dict, source: str, env: dict | None = None) -> None:
    """A stranger is answered what the package answers here."""
    report = ask_fresh(source, saved["image"], saved["question"], env=env, max_new_tokens=8)
    assert report == {name: saved[name] for name in ("ids", "kept", "answer")} | {"tokens": 245}


def test_a_saved_folder_holds_the_code_and_nothing_else_python(saved):
    assert {path.name for path in Path(saved["source"]).glob("*.py")} == CODE_FILES
    assert not list(Path(saved["source"]).glob("*.bin")) and not list(Path(saved["source"]).glob("*.pt"))


def test_every_auto_class_answers_as_the_package_does(saved):
    check(saved, saved["source"])


KEPT = """
import json, sys
from transformers import AutoModelForImageTextToText, AutoProcessor

kept = {{}}
for name in {presets!r}:
    load = dict(trust_remote_code=True, prune_method=name)
    processor = AutoProcessor.from_pretrained({source!r}, **load)
    model = AutoModelForImageTextToText.from_pretrained({source!r}, **load).eval()
    inputs = processor(images=[{image!r}] * 2, text=["<image>" + {question!r}, "<image>Which?"], return_tensors="pt")
    inputs = {{key: inputs[key] for key in {names!r} if key in inputs}}
    kept[name] = model.model.prepare_inputs_embeds(**inputs)[1].kept_indices.tolist()
assert type(model).__module__.startswith("transformers_modules.")
print(json.dumps(kept))
"""


def test_every_system_keeps_the_same_patches_in_another_process(saved):
    """Exact counts, in raster order, and the same as here: from a folder, by a stranger, with another hash seed."""
    presets = [name for name in PRESETS if tiny_config(name).selection_method not in ("none", "pool")]
    names = ("input_ids", "pixel_values", "fovea_pixel_values", "question_mask", "patch_boxes")
    code = KEPT.format(**{name: saved[name] for name in ("source", "image", "question")}, presets=presets, names=names)
    elsewhere = json.loads(run_fresh(code, env={"PYTHONHASHSEED": "7"}).strip().splitlines()[-1])
    assert list(elsewhere) == presets
    for name in presets:
        model = ShirgLavidaForConditionalGeneration.from_pretrained(saved["source"], prune_method=name).eval()
        processor = ShirgLavidaProcessor.from_pretrained(saved["source"], prune_method=name)
        alone = []
        for question in (saved["question"], "Which?"):
            inputs = processor(images=saved["image"], text="<image>" + question, return_tensors="pt")
            with torch.no_grad():
                given = {key: inputs[key] for key in names if key in inputs}
                alone.append(model.model.prepare_inputs_embeds(**given)[1].kept_indices[0])
        for kept_K, there in zip(alone, elsewhere[name], strict=True):
            used_K = kept_K[kept_K >= 0]
            assert [index for index in there if index >= 0] == used_K.tolist(), name
            assert (used_K.diff() > 0).all()
            assert len(used_K) == model.config.selection_budget or name == "shirg-adaptive"
        reads_the_question = "relevance" in METHODS[model.config.selection_method].needs
        assert (alone[0].tolist() != alone[1].tolist()) == reads_the_question, name


def test_pipeline_answers_chats_batches_and_plain_prompts(saved):
    code = PIPELINE.format(source=saved["source"], image=saved["image"], question=saved["question"])
    assert json.loads(run_fresh(code).strip().splitlines()[-1]).strip() == saved["answer"]


def test_without_trust_nothing_runs(saved):
    code = "from transformers import AutoModel; AutoModel.from_pretrained({source!r}, trust_remote_code=False)"
    with pytest.raises(RuntimeError, match="trust_remote_code"):
        run_fresh(code.format(**saved))


def test_push_and_pull_over_http_and_offline_from_the_cache(saved, hub, tmp_path):
    run_fresh(PUSH.format(source=saved["source"]), env=hub.env)
    assert CODE_FILES <= set(hub.files("tester/tiny"))
    home = {"HF_HOME": str(tmp_path / "home")}
    check(saved, "tester/tiny", env=hub.env | home)
    check(saved, "tester/tiny", env=home | {"HF_HUB_OFFLINE": "1"})


SAVE_SYSTEM = """
from transformers import AutoModelForImageTextToText, AutoProcessor

system = dict(prune_method="lavida-980", trust_remote_code=True)
AutoProcessor.from_pretrained({source!r}, **system).save_pretrained({saved!r})
AutoModelForImageTextToText.from_pretrained({source!r}, **system).save_pretrained({saved!r})
"""
LOAD_SYSTEM = """
import json
from transformers import AutoImageProcessor, AutoProcessor

processor = AutoProcessor.from_pretrained({saved!r}, trust_remote_code=True)
images = AutoImageProcessor.from_pretrained({saved!r}, trust_remote_code=True)
print(json.dumps([processor.num_image_tokens, processor.image_processor.view_policy, images.view_policy]))
"""


def test_another_system_saved_by_a_process_without_the_package_loads_in_the_next(saved, tmp_path):
    target = str(tmp_path / "system")
    run_fresh(SAVE_SYSTEM.format(source=saved["source"], saved=target))
    for name in CODE_FILES:
        assert (Path(target) / name).read_text() == (Path(saved["source"]) / name).read_text(), name
    report = json.loads(run_fresh(LOAD_SYSTEM.format(saved=target)).strip().splitlines()[-1])
    tokens = tiny_config().with_preset("lavida-980").num_image_tokens
    assert report == [tokens, "anyres", "anyres"]
    asked = ask_fresh(target, saved["image"], saved["question"], max_new_tokens=8)
    model = ShirgLavidaForConditionalGeneration.from_pretrained(saved["source"], prune_method="lavida-980").eval()
    inputs = encode(ShirgLavidaProcessor.from_pretrained(target), chat(saved["question"], noise_image(5)))
    assert asked["tokens"] == tokens and asked["ids"] == model.generate(**inputs, max_new_tokens=8)[0].tolist()
