"""`shirg calibrate`: the figures by brute force, the rules on made-up signals, and what a calibration changes."""

import logging
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from configuration_shirg import ShirgLavidaConfig
from configuration_shirg.calibration_shirg import check_calibration
from modeling_shirg import ShirgLavidaForConditionalGeneration
from modeling_shirg.selection_shirg import ViewTokens, shirg_scores, top_k
from test_text_relevance import siglip_config, siglip_processor
from tiny_model import QUESTIONS, chat, encode, noise_image, tiny_config, tiny_model, tiny_processor

BUNDLED = Path(str(files("shirg_hub_card"))) / "shirg-lavida-tiny"
FIGURE = {"mean": 0.6, "low": 0.55, "high": 0.65, "images": 50}
FACTS = {
    "verdict": "undecided",
    "decided": FIGURE,
    "held_out": FIGURE,
    "held_out_corrected": FIGURE,
    "data": "boxes.jsonl",
    "prune_method": "shirg",
}


def relevance_entry(sign: int) -> dict:
    return {"sign": sign, **FACTS}


def attention_entry(mean: list[float] | None, view_policy: str = "foveal", grid: int = 16, source: str = "map"):
    return {"view_policy": view_policy, "grid": grid, "source": source, "mean": mean, **FACTS}


def calibration(sign: int = 1, *entries: dict) -> dict:
    return {"relevance": {"lm": relevance_entry(sign)}, "attention": list(entries)}


# ---------------------------------------------------------------- what a calibration changes


def kept_and_scores(model, inputs) -> tuple[list, torch.Tensor | None]:
    given = {name: value for name, value in inputs.items() if name != "attention_mask"}
    with torch.no_grad():
        _, images = model.model.prepare_inputs_embeds(**given)
    return images.kept_indices.tolist(), images.scores


def view_of(preset: str) -> tuple[str, int]:
    config = tiny_config(preset)
    return config.view_policy, config.selected_grid


READERS = {
    "shirg": {"sign", "mean"},
    "shirg-v1": {"sign", "mean"},
    "shirg-adaptive": {"sign", "mean"},
    "shirg-3645": {"sign", "mean"},
    "shirg-fixed": {"sign"},
    "shirg-mixed": {"sign"},
    "cdpruner": {"sign"},
    "visionzip": {"mean"},
    "vispruner": {"mean"},
    "holov": set(),
    "topv": set(),
    "random": set(),
}


@pytest.mark.parametrize("preset", READERS)
def test_each_correction_changes_the_methods_that_read_its_signal_and_no_other(preset):
    """Off is off: without corrections, with a sign of 1 and with those of other views all is bit-identical."""
    config = tiny_config(preset)
    model, processor = tiny_model(config), tiny_processor(config)
    inputs = encode(processor, chat(QUESTIONS[0], noise_image(0)))
    policy, grid = view_of(preset)
    mean = torch.linspace(0, 0.5, grid**2).tolist()
    nothing = kept_and_scores(model, inputs)
    found = {}
    for name, given in {
        "off": calibration(1, attention_entry(None, policy, grid)),
        "of other views": calibration(
            1,
            attention_entry([0.5] * 25, policy, 5),
            attention_entry(mean, "pad", grid),
            attention_entry(mean, policy, grid, "norm"),
        ),
        "sign": calibration(-1),
        "mean": calibration(1, attention_entry(mean, policy, grid)),
    }.items():
        model.config.calibration = given
        check_calibration(given)
        kept, scores = kept_and_scores(model, inputs)
        same_scores = nothing[1] is None or torch.equal(scores, nothing[1])
        found[name] = kept != nothing[0]
        assert found[name] or same_scores
    assert {name for name, changed in found.items() if changed} == READERS[preset]


@pytest.mark.parametrize("preset", ["shirg", "shirg-v1"])
def test_the_score_is_the_formula_on_the_corrected_signals(preset):
    mean = torch.rand(256).div(128).tolist()
    config = tiny_config(preset, calibration=calibration(-1, attention_entry(mean)))
    model, processor = tiny_model(config), tiny_processor(config)
    inputs = encode(processor, chat(QUESTIONS[0], noise_image(0)))
    kept, scores = kept_and_scores(model, inputs)
    given = {name: value for name, value in inputs.items() if name != "attention_mask"}
    with torch.no_grad():
        (raw,) = model.model.get_view_tokens(**given, calibrated=False)
        (corrected,) = model.model.get_view_tokens(**given)
    assert torch.equal(corrected.relevance, -raw.relevance)
    assert torch.equal(corrected.attention, raw.attention - torch.tensor(mean))
    by_hand = ViewTokens(raw.features, raw.attention - torch.tensor(mean), -raw.relevance)
    expected = shirg_scores(by_hand, 181, config)
    assert torch.equal(scores[0], expected)
    assert kept == [top_k(expected, 181).tolist()]


def test_a_sign_belongs_to_one_way_of_comparing():
    config = siglip_config()
    model, processor = tiny_model(config), siglip_processor(config)
    inputs = encode(processor, chat(QUESTIONS[0], noise_image(0)))
    plain = kept_and_scores(model, inputs)[0]
    model.config.calibration = calibration(-1)
    assert kept_and_scores(model, inputs)[0] == plain
    model.config.calibration = {"relevance": {"siglip": relevance_entry(-1)}, "attention": []}
    turned = kept_and_scores(model, inputs)[0]
    assert turned != plain
    # Without a question there is nothing to turn.
    model.config.text_relevance = "none"
    free = kept_and_scores(model, inputs)[0]
    model.config.calibration = None
    assert kept_and_scores(model, inputs)[0] == free


def test_a_calibrated_model_gives_in_a_batch_and_in_half_precision_what_it_gives_alone():
    mean = torch.linspace(0, 0.01, 256).tolist()
    config = tiny_config("shirg", calibration=calibration(-1, attention_entry(mean)))
    model, processor = tiny_model(config), tiny_processor(config)
    chats = [chat(question, noise_image(number)) for number, question in enumerate(QUESTIONS)]
    for dtype in (torch.float32, torch.bfloat16):
        model = model.to(dtype)
        alone = [kept_and_scores(model, encode(processor, one))[0][0] for one in chats]
        assert kept_and_scores(model, encode(processor, *chats))[0] == alone


# ---------------------------------------------------------------- in the config


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, ("relevance and attention", "{}")),
        (calibration(0), ("sign", "1 or -1", "0")),
        ({"relevance": {"clip": relevance_entry(1)}, "attention": []}, ("clip", "siglip")),
        ({"relevance": {"lm": {"mean": 1}}, "attention": []}, ("lm", "sign")),
        (calibration(1, attention_entry([0.1] * 255)), ("16x16", "256 finite", "got 255 values")),
        (calibration(1, attention_entry([float("nan")] * 256)), ("finite number", "nan")),
        (calibration(1, {"mean": []}), ("view_policy", "grid", "got {'mean': []}")),
    ],
)
def test_a_calibration_that_is_none_is_named(given, named):
    with pytest.raises((ValueError, StrictDataclassError)) as raised:
        tiny_config("shirg", calibration=given)
    assert all(value in str(raised.value) for value in named), str(raised.value)


def test_a_calibration_is_saved_and_survives_a_change_of_presets(tmp_path):
    config = tiny_config("shirg", calibration=calibration(-1, attention_entry([0.25] * 256)))
    config.save_pretrained(tmp_path)
    assert ShirgLavidaConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert config.with_preset("shirg-3645").with_preset("lavida").with_preset("shirg").to_dict() == config.to_dict()
    assert config.attention_mean(16) == [0.25] * 256
    assert config.with_preset("shirg-3645").attention_mean(13) is None
    with pytest.raises(ValueError, match="foveal views of 16x16 .* nothing of 24x24 patches.*fovea_size=224"):
        config.attention_mean(24)
    assert tiny_config("shirg", calibration=calibration(-1, attention_entry(None))).attention_mean(24) is None
    assert config.with_preset("shirg", attention_source="norm").attention_mean(16) is None
    assert [config.relevance_sign(source) for source in ("lm", "siglip", "none")] == [-1, 1, 1]


def test_a_fovea_of_another_size_needs_a_mean_of_its_own():
    known = attention_entry([0.1] * 256), attention_entry(None, grid=18)
    model = tiny_model(tiny_config("shirg", calibration=calibration(1, *known)))
    processor = tiny_processor(model.config)
    for size in (256, 336):
        inputs = processor(text=["<image> Which?"], images=[noise_image(1)], fovea_size=size, return_tensors="pt")
        if size == 256:
            assert torch.isfinite(model(**inputs).logits).all()
        else:
            with pytest.raises(ValueError, match="says nothing of 24x24 patches"):
                model(**inputs)
    random = tiny_model(tiny_config("random", calibration=model.config.calibration))
    assert torch.isfinite(random(**inputs).logits).all()


class Records(logging.Handler):
    def __init__(self):
        super().__init__()
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


@pytest.fixture
def warnings():
    logger = logging.getLogger("modeling_shirg.backbone_shirg")
    records = Records()
    logger.addHandler(records)
    yield records.texts
    logger.removeHandler(records)


def test_a_view_without_a_mean_of_its_own_says_that_others_have_one(warnings, monkeypatch):
    from modeling_shirg import backbone_shirg

    # Otherwise the logger says everything once in a process.
    monkeypatch.setattr(backbone_shirg.logger, "warning_once", backbone_shirg.logger.warning)
    config = tiny_config("shirg", calibration=calibration(1, attention_entry([0.1] * 256)))
    for preset in ("shirg", "shirg-v1", "uniform", "holov", "saint", "lavida"):
        ShirgLavidaForConditionalGeneration(config.with_preset(preset))
    assert not warnings
    ShirgLavidaForConditionalGeneration(config.with_preset("shirg-3645"))
    (text,) = warnings
    assert "'shirg-3645' uses its attention uncorrected" in text and "foveal views of 16x16" in text
    assert "shirg calibrate --prune_method shirg-3645" in text
    # Calibrated and found not to need a mean: nothing to say.
    entries = [attention_entry([0.1] * 256), attention_entry(None, "anyres", 13)]
    ShirgLavidaForConditionalGeneration(tiny_config("shirg-3645", calibration=calibration(1, *entries)))
    assert len(warnings) == 1
