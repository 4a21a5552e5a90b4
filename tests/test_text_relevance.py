"""`text_relevance="siglip"`: numbers against stock SigLIP, the whole model, and the processor's second tokenizer."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch.nn import functional as F
from transformers import SiglipConfig, SiglipModel

from configuration_shirg import PRESETS, ShirgLavidaConfig, ShirgLavidaProcessor
from fresh_process import run_fresh
from modeling_shirg import ShirgLavidaForConditionalGeneration
from modeling_shirg.selection_shirg import ViewTokens, shirg_scores
from tiny_model import QUESTIONS, VISION, chat, encode, noise_image, tiny_config, tiny_model, tiny_processor
from tokenizer_fixture import make_relevance_tokenizer, make_tokenizer

LENGTH = 48
TOWER = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 260,
    "max_position_embeddings": LENGTH,
    "projection_size": 32,
}
EOS = 256


def siglip_config(prune_method: str = "shirg", **overrides) -> ShirgLavidaConfig:
    fields = {"relevance_text_config": TOWER, "text_relevance": "siglip", **overrides}
    return tiny_config(prune_method, **fields)


def siglip_processor(config: ShirgLavidaConfig, padding_side: str = "left") -> ShirgLavidaProcessor:
    return ShirgLavidaProcessor.from_config(
        config, make_tokenizer(padding_side), relevance_tokenizer=make_relevance_tokenizer()
    )


def selection(model, inputs) -> tuple[list[list[int]], torch.Tensor]:
    with torch.no_grad():
        output = model(**inputs, logits_to_keep=1, output_selection=True)
    return output.kept_indices.tolist(), output.scores


def words(ids: torch.Tensor) -> str:
    return make_relevance_tokenizer().decode(ids[ids != EOS])


# ---------------------------------------------------------------- the numbers


@pytest.fixture(scope="module")
def towers() -> tuple[ShirgLavidaForConditionalGeneration, SiglipModel]:
    """Our model and a stock SiglipModel of the same weights."""
    model = tiny_model(siglip_config())
    config = SiglipConfig(vision_config=model.config.vision_config.to_dict(), text_config=TOWER)
    stock = SiglipModel(config).eval()
    stock.text_model.load_state_dict(model.model.relevance_text_model.state_dict())
    stock.vision_model.load_state_dict(model.model.vision_tower.vision_model.state_dict())
    return model, stock


@torch.no_grad()
def test_patch_embeddings_are_the_stock_head_on_one_patch_at_a_time(towers):
    model, stock = towers
    tower, pixels = model.model.vision_tower, torch.randn(2, 3, 192, 192)
    embeddings = tower.patch_embeddings(tower(pixels)[0])
    last = stock.vision_model(pixels).last_hidden_state
    expected = torch.stack([stock.vision_model.head(patches[:, None]) for patches in last])
    assert embeddings.shape == expected.shape == (2, 169, 32)
    assert torch.allclose(embeddings, expected, atol=1e-5 * expected.abs().max().item())


@torch.no_grad()
def test_relevance_is_the_cosine_of_stock_embeddings(towers):
    model, stock = towers
    inputs = encode(siglip_processor(model.config), chat(QUESTIONS[0], noise_image(0)))
    ids = inputs["relevance_input_ids"]
    question = stock.get_text_features(ids).pooler_output
    assert torch.equal(model.model.relevance_text_model(ids).pooler_output, question)
    features, signals = model.model.vision_tower(inputs["fovea_pixel_values"], {"attention"})
    last = stock.vision_model(inputs["fovea_pixel_values"], interpolate_pos_encoding=True).last_hidden_state
    relevance = F.cosine_similarity(stock.vision_model.head(last[0][:, None]), question)
    assert relevance.std() > 0.01
    given = {name: value for name, value in inputs.items() if name != "attention_mask"}
    (view,) = model.model.get_view_tokens(**given)
    assert torch.allclose(view.relevance, relevance, atol=1e-4)
    expected = shirg_scores(ViewTokens(features[0], signals["attention"][0], relevance), 181, model.config)
    assert torch.allclose(selection(model, inputs)[1][0], expected, atol=1e-3)


# ---------------------------------------------------------------- the whole model


@pytest.mark.parametrize("preset", ["shirg", "shirg-v1", "shirg-784"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_batched_selection_is_the_single_one(preset, padding_side):
    config = siglip_config(preset)
    model, processor = tiny_model(config), siglip_processor(config, padding_side)
    chats = [chat(question, noise_image(number)) for number, question in enumerate(QUESTIONS)]
    chats.append(chat("", noise_image(4)))
    chats.append([{"role": "user", "content": "A text-only question among them."}])
    chats.append(chat("Two images?", noise_image(8), noise_image(9, 100, 50)))
    singles = [selection(model, encode(processor, one)) for one in chats if not isinstance(one[0]["content"], str)]
    kept, scores = selection(model, encode(processor, *chats))
    assert kept == [row for each, _ in singles for row in each]
    assert torch.allclose(scores, torch.cat([each for _, each in singles]), atol=1e-5)


def test_selection_follows_the_question_and_the_text_tower():
    config = siglip_config()
    model, processor = tiny_model(config), siglip_processor(config)
    image = noise_image(0)
    first, second = (encode(processor, chat(question, image)) for question in QUESTIONS[:2])
    kept = selection(model, first)[0]
    assert kept != selection(model, second)[0]
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(torch.randn_like(model.get_input_embeddings().weight))
    assert selection(model, first)[0] == kept, "the language model has no part in this relevance"
    with torch.no_grad():
        model.model.relevance_text_model.head.weight.neg_()
    assert selection(model, first)[0] != kept


def test_an_empty_question_moves_the_weight_to_the_attention():
    config = siglip_config()
    model, processor = tiny_model(config), siglip_processor(config)
    inputs = encode(processor, chat(" ", noise_image(0)))
    assert inputs["question_mask"].sum() == 0
    assert inputs["relevance_input_ids"].tolist() == [[-1] * LENGTH]
    free = tiny_model(siglip_config(text_relevance="none"))
    kept, scores = selection(free, inputs)
    found = selection(model, inputs)
    assert found[0] == kept and torch.equal(found[1], scores)
    inputs.pop("relevance_input_ids")
    assert selection(model, inputs)[0] == kept


def test_a_question_without_its_ids_is_an_error():
    config = siglip_config()
    model = tiny_model(config)
    inputs = encode(tiny_processor(siglip_config(text_relevance="lm")), chat(QUESTIONS[0], noise_image(0)))
    with pytest.raises(ValueError, match="needs relevance_input_ids.*relevance_tokenizer="):
        model(**inputs)
    with pytest.raises(ValueError, match="needs relevance_input_ids"):
        model.generate(**inputs, max_new_tokens=4)


# ---------------------------------------------------------------- config, saving and loading


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"relevance_text_config": None}, "no relevance_text_config.*--text_tower"),
        (
            {"vision_config": {**VISION, "vision_use_head": False}, "attention_source": "norm"},
            "use_head=False.*--text_t",
        ),
        ({"vision_feature_layer": -1, "attention_source": "norm"}, "vision_feature_layer=-1.*--text_tower"),
        ({"relevance_text_config": {**TOWER, "projection_size": 24}}, "projection_size=24 .*hidden_size=32"),
        ({"relevance_text_config": {"model_type": "clip_text_model"}}, "'siglip_text_model', got 'clip_text_model'"),
    ],
)
def test_contradictory_configs_name_the_remedy(fields, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        siglip_config(**fields)


def test_the_config_survives_saving_presets_and_keywords(tmp_path):
    config = siglip_config()
    config.save_pretrained(tmp_path)
    loaded = ShirgLavidaConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.relevance_text_config.model_type == "siglip_text_model"
    for preset in PRESETS:
        assert loaded.with_preset(preset).relevance_text_config.to_dict() == config.relevance_text_config.to_dict()
    assert ShirgLavidaConfig.from_pretrained(tmp_path, text_relevance="none").text_relevance == "none"


@pytest.mark.parametrize("preset", ["shirg", "shirg-784", "uniform", "lavida"])
def test_every_preset_keeps_the_tower(tmp_path, preset):
    model, load = tiny_model(siglip_config()), ShirgLavidaForConditionalGeneration.from_pretrained
    model.save_pretrained(tmp_path / "first")
    other, info = load(tmp_path / "first", prune_method=preset, text_relevance="lm", output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    other.save_pretrained(tmp_path / "second")
    again = load(tmp_path / "second", prune_method="shirg", text_relevance="siglip").eval()
    own, found = (dict(each.model.relevance_text_model.state_dict()) for each in (model, again))
    assert own.keys() == found.keys() and all(torch.equal(own[name], found[name]) for name in own)
    inputs = encode(siglip_processor(model.config), chat(QUESTIONS[0], noise_image(0)))
    assert selection(again, inputs)[0] == selection(model, inputs)[0]


# ---------------------------------------------------------------- the processor


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_ids_are_the_words_of_the_question(padding_side):
    config = siglip_config()
    processor = siglip_processor(config, padding_side)
    turns = [
        *chat("First, what IS it?", noise_image(0)),
        {"role": "assistant", "content": "One."},
        *chat("And\n\nthe  second?", noise_image(1), noise_image(2)),
    ]
    inputs = encode(processor, turns, chat("", noise_image(3)), chat(QUESTIONS[1], noise_image(4)))
    ids = inputs["relevance_input_ids"]
    assert ids.shape == (5, LENGTH) and ids.dtype == torch.int64
    second = "and the second?"
    assert [words(row) for row in ids[[0, 1, 2, 4]]] == ["first, what is it?", second, second, "which?"]
    assert ids[3].tolist() == [-1] * LENGTH
    expected = make_relevance_tokenizer()(QUESTIONS[1], padding="max_length", max_length=LENGTH)["input_ids"]
    assert ids[4].tolist() == expected


def test_text_around_an_image_is_one_question_and_long_ones_are_cut():
    processor = siglip_processor(siglip_config())
    inputs = processor(text="Compare <image>with this.", images=noise_image(0), return_tensors="np")
    assert words(torch.from_numpy(inputs["relevance_input_ids"])[0]) == "compare with this."
    long = processor(text="<image>" + "word " * 40, images=noise_image(0))
    assert len(long["relevance_input_ids"][0]) == LENGTH and long["relevance_input_ids"][0][-1] == EOS
    assert "relevance_input_ids" not in processor(text="no image")


def test_from_config_checks_that_both_fit():
    tokenizer, relevance = make_tokenizer(), make_relevance_tokenizer()
    for preset in ("shirg", "shirg-fixed", "shirg-mixed", "shirg-adaptive", "cdpruner"):
        with pytest.raises(ValueError, match="needs SigLIP's own tokenizer.* pass relevance_tokenizer"):
            ShirgLavidaProcessor.from_config(siglip_config(preset), tokenizer)
    assert ShirgLavidaProcessor.from_config(siglip_config("pool"), tokenizer).relevance_tokenizer is None
    with pytest.raises(ValueError, match="no relevance_text_config"):
        ShirgLavidaProcessor.from_config(tiny_config(), tokenizer, relevance_tokenizer=relevance)
    small = siglip_config(relevance_text_config={**TOWER, "vocab_size": 100})
    with pytest.raises(ValueError, match="has 257 ids, .*vocab_size=100"):
        ShirgLavidaProcessor.from_config(small, tokenizer, relevance_tokenizer=relevance)


ASK = """
import json
from transformers import AutoModelForImageTextToText, AutoProcessor
processor = AutoProcessor.from_pretrained({source!r}, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained({source!r}, trust_remote_code=True).eval()
content = [{{"type": "image", "path": {image!r}}}, {{"type": "text", "text": {question!r}}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
output = model.generate(**inputs, max_new_tokens=8, return_dict_in_generate=True, output_selection=True)
assert type(processor).__module__.startswith("transformers_modules."), type(processor).__module__
print(json.dumps([inputs["relevance_input_ids"].tolist(), output.kept_indices.tolist(), output.sequences.tolist()]))
"""

PUSH = """
from transformers import AutoModelForImageTextToText, AutoProcessor
AutoModelForImageTextToText.from_pretrained({source!r}, trust_remote_code=True).push_to_hub("tester/siglip")
processor = AutoProcessor.from_pretrained({source!r}, trust_remote_code=True)
processor.push_to_hub("tester/siglip")
processor.save_pretrained("again", push_to_hub=True, repo_id="tester/processor")
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict:
    """A saved model with a text tower, its processor, and what both make of a question."""
    folder = tmp_path_factory.mktemp("saved")
    noise_image(5).save(folder / "noise.png")
    config = siglip_config()
    model, processor = tiny_model(config), siglip_processor(config)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    inputs = encode(processor, chat(QUESTIONS[0], noise_image(5)))
    output = model.generate(**inputs, max_new_tokens=8, return_dict_in_generate=True, output_selection=True)
    expected = [inputs["relevance_input_ids"], output.kept_indices, output.sequences]
    return {
        "source": str(folder / "model"),
        "image": str(folder / "noise.png"),
        "question": QUESTIONS[0],
        "expected": [each.tolist() for each in expected],
    }


def ask(saved: dict, source: str, **kwargs) -> list:
    code = ASK.format(source=source, image=saved["image"], question=saved["question"])
    return json.loads(run_fresh(code, **kwargs).strip().splitlines()[-1])


def test_a_stranger_loads_the_processor_with_both_tokenizers(saved):
    assert ask(saved, saved["source"]) == saved["expected"]


def test_loading_keeps_both_tokenizers_under_every_preset(saved, tmp_path):
    loaded = ShirgLavidaProcessor.from_pretrained(saved["source"])
    assert loaded.relevance_length == LENGTH and len(loaded.relevance_tokenizer) == 257
    loaded.save_pretrained(tmp_path)
    again = ShirgLavidaProcessor.from_pretrained(tmp_path, local_files_only=True)
    saved_fields, fields = ({**each.to_dict(), "auto_map": None} for each in (loaded, again))
    assert fields == saved_fields
    inputs = encode(again, chat(QUESTIONS[0], noise_image(5)))
    assert inputs["relevance_input_ids"].tolist() == saved["expected"][0]
    other = ShirgLavidaProcessor.from_pretrained(saved["source"], prune_method="lavida-980")
    assert other.num_image_tokens == 245 and len(other.relevance_tokenizer) == 257


def test_both_tokenizers_over_the_hub(saved, hub, tmp_path):
    run_fresh(PUSH.format(source=saved["source"]), env=hub.env)
    for name in ("tester/siglip", "tester/processor"):
        assert "relevance_tokenizer/tokenizer.json" in hub.files(name)
    home = {"HF_HOME": str(tmp_path / "home")}
    assert ask(saved, "tester/siglip", env=hub.env | home) == saved["expected"]
    assert ask(saved, "tester/siglip", env=home | {"HF_HUB_OFFLINE": "1"}) == saved["expected"]
