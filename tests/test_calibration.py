"""`shirg calibrate`: the figures by brute force, the rules on made-up signals, and what a calibration changes."""

import json
import logging
import os
import shutil
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image

from configuration_shirg import ShirgLavidaConfig, ShirgLavidaProcessor
from configuration_shirg.calibration_shirg import check_calibration, joined_calibration
from fresh_process import run_fresh
from modeling_shirg import ShirgLavidaForConditionalGeneration
from modeling_shirg.evaluation.calibrated_folder import (
    calibration_table,
    with_calibration_section,
    write_calibration,
)
from modeling_shirg.evaluation.calibration import (
    Seen,
    auc,
    bootstrapped,
    calibration_of,
    look,
    patches_inside,
    readable_signals,
    text_relevances,
)
from modeling_shirg.evaluation.labelled_boxes import LabelledBox, read_boxes, rendered_boxes
from modeling_shirg.running.load import load, parse_options
from modeling_shirg.selection_shirg import shirg_scores, top_k
from shirg_scripts.cli import main
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


# ---------------------------------------------------------------- figures


@pytest.mark.parametrize("levels", [None, 3, 1])
@pytest.mark.parametrize("num_inside", [1, 7, 29])
def test_auc_is_the_share_of_pairs_that_are_in_order(levels, num_inside):
    draw = torch.Generator().manual_seed(num_inside)
    scores = torch.rand(30, generator=draw)
    scores = scores if levels is None else (scores * levels).floor()
    inside = torch.zeros(30, dtype=torch.bool).index_fill(0, torch.randperm(30, generator=draw)[:num_inside], True)
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[inside].tolist() for b in scores[~inside].tolist()]
    assert auc(scores, inside) == pytest.approx(sum(pairs) / len(pairs))
    assert auc(-scores, inside) == pytest.approx(1 - auc(scores, inside))


def test_the_interval_is_of_the_mean_over_images_and_the_same_again():
    values = np.random.default_rng(1).normal(0.6, 0.1, size=400).tolist()
    figure = bootstrapped(values)
    standard_error = np.std(values) / 20
    assert figure == bootstrapped(values) and figure.images == 400
    assert figure.mean == pytest.approx(np.mean(values), abs=1e-4)
    assert figure.high - figure.low == pytest.approx(2 * 1.96 * standard_error, rel=0.1)
    few = bootstrapped(values[:25])
    assert few.high - few.low > 2.5 * (figure.high - figure.low)
    assert [figure.side_of(level) for level in (0.5, 0.6, 0.7)] == [1, 0, -1]


def test_a_patch_is_inside_if_it_holds_half_as_much_of_the_box_as_any():
    places = torch.arange(16)
    boxes = torch.stack([places % 4 / 4, places // 4 / 4, *torch.full((2, 16), 0.25)], dim=1)

    def inside(*box: float) -> list[int]:
        return patches_inside(boxes, box).nonzero()[:, 0].tolist()

    assert inside(0.25, 0.25, 0.75, 0.75) == [5, 6, 9, 10]
    # The third column is more than half covered, the third row less.
    assert inside(0.0, 0.0, 0.65, 0.6) == [0, 1, 2, 4, 5, 6]
    # Smaller than a patch: within one, and over four.
    assert inside(0.3, 0.3, 0.4, 0.4) == [5]
    assert inside(0.45, 0.45, 0.55, 0.55) == [5, 6, 9, 10]
    # A view beside the box has nothing of it.
    assert patches_inside(boxes + torch.tensor([1.0, 0, 0, 0]), (0.1, 0.1, 0.5, 0.5)).any().item() is False


# ---------------------------------------------------------------- the rules


def seen_of(relevance: list[torch.Tensor], attention: list[torch.Tensor], inside: list[torch.Tensor]) -> list[Seen]:
    return [
        Seen(f"image {number:03}", box[None], torch.ones_like(box)[None], a[None], {"lm": s[None]})
        for number, (s, a, box) in enumerate(zip(relevance, attention, inside, strict=True))
    ]


def made_up(
    num_images: int = 60, bias: float = 0.0, signal: float = 0.0, text: float = 0.0, at_the_bias: bool = False
) -> list[Seen]:
    """Images of 64 patches with boxes of 8: attention = bias of the position + signal in the box + noise."""
    draw = torch.Generator().manual_seed(3)
    positions = torch.rand(64, generator=draw)
    relevance, attention, inside = [], [], []
    for _ in range(num_images):
        box = torch.zeros(64, dtype=torch.bool)
        likely = top_k(positions, 16) if at_the_bias else torch.arange(64)
        box[likely[torch.randperm(len(likely), generator=draw)[:8]]] = True
        relevance.append(torch.rand(64, generator=draw) + text * box)
        attention.append(bias * positions + 0.1 * torch.rand(64, generator=draw) + signal * box)
        inside.append(box)
    return seen_of(relevance, attention, inside)


CONFIG = tiny_config("shirg")


@pytest.mark.parametrize(
    ("text", "verdict", "sign"), [(0.5, "follows", 1), (-0.5, "inverted", -1), (0.0, "undecided", 1)]
)
def test_the_sign_turns_only_where_the_interval_is_below_one_half(text, verdict, sign):
    entry = calibration_of(made_up(text=text), CONFIG, "made up")["relevance"]["lm"]
    assert (entry["verdict"], entry["sign"]) == (verdict, sign)
    before, after = entry["held_out"]["mean"], entry["held_out_corrected"]["mean"]
    assert after == pytest.approx(before if sign > 0 else 1 - before, abs=1e-4)
    assert (entry["decided"]["high"] < 0.5) == (sign < 0)
    assert after > 0.8 or verdict == "undecided"


def test_a_bias_of_the_positions_is_taken_out_and_shown_on_images_that_decided_nothing():
    seen = made_up(bias=1.0, signal=0.1)
    (entry,) = calibration_of(seen, CONFIG, "made up")["attention"]
    assert entry["verdict"] == "better" and len(entry["mean"]) == 64
    assert entry["held_out"]["mean"] < 0.65 < 0.85 < entry["held_out_corrected"]["mean"]
    names = {each.name for each in seen}
    assert entry["decided"]["images"] == entry["held_out"]["images"] == len(names) / 2
    assert {name: entry[name] for name in ("view_policy", "grid", "source")} == {
        "view_policy": "foveal",
        "grid": 16,
        "source": "map",
    }
    never = calibration_of(seen, CONFIG, "made up", "never")["attention"][0]
    assert never == {**entry, "mean": None}


def test_a_mean_that_knows_where_boxes_are_is_kept_unless_asked_for():
    seen = made_up(bias=1.0, at_the_bias=True)
    (entry,) = calibration_of(seen, CONFIG, "made up")["attention"]
    assert entry["verdict"] == "worse" and entry["mean"] is None
    assert entry["held_out_corrected"]["mean"] < entry["held_out"]["mean"] - 0.2
    (asked,) = calibration_of(seen, CONFIG, "made up", "always")["attention"]
    assert asked["verdict"] == "worse" and len(asked["mean"]) == 64


def test_the_mean_is_of_the_deciding_half_alone_and_the_rest_is_measured_on_the_other():
    seen = made_up(num_images=13, signal=0.02)
    deciding = [each for each in seen if _is_deciding(seen, each)]
    reporting = [each for each in seen if each not in deciding]
    assert len(deciding) == 7
    found = calibration_of(seen, CONFIG, "made up", "always")
    (entry,) = found["attention"]
    mean = torch.stack([each.attention_VN[0] for each in deciding]).mean(0)
    assert torch.allclose(torch.tensor(entry["mean"]), mean, atol=1e-6)
    aucs = {
        name: [np.array([each.auc_of(each.attention_VN - taken) for each in half]) for taken in (0, mean)]
        for name, half in (("deciding", deciding), ("reporting", reporting))
    }
    expected = {
        "decided": aucs["deciding"][1] - aucs["deciding"][0],
        "held_out": aucs["reporting"][0],
        "held_out_corrected": aucs["reporting"][1],
    }
    for name, values in expected.items():
        assert entry[name]["mean"] == pytest.approx(values.mean(), abs=2e-3)
        assert entry[name]["images"] == found["relevance"]["lm"][name]["images"] == len(values)
    # The share that an image has in the mean which it is measured with gives it no advantage.
    one, others = deciding[0], torch.stack([each.attention_VN[0] for each in deciding[1:]]).mean(0)
    assert one.auc_of(one.attention_VN - others) == one.auc_of(one.attention_VN - mean)


def _is_deciding(seen: list[Seen], one: Seen) -> bool:
    """Whether this image alone moves the deciding half away from 0.5, where all others are at it."""
    others = [
        replace(each, relevance={"lm": torch.zeros(1, 64) if each is not one else -one.inside_VN.float()})
        for each in seen
    ]
    return calibration_of(others, CONFIG, "made up")["relevance"]["lm"]["decided"]["mean"] < 0.5


def test_all_questions_about_an_image_count_as_one_and_stay_in_one_half():
    seen = made_up(num_images=8, text=0.5, signal=0.3)
    twice = seen + [replace(each, relevance={"lm": -each.relevance["lm"]}) for each in seen]
    once, both = (calibration_of(each, CONFIG, "made up") for each in (seen, twice))
    figures = [both["relevance"]["lm"][name] for name in ("decided", "held_out")]
    assert figures == [{"mean": 0.5, "low": 0.5, "high": 0.5, "images": 4}] * 2
    assert both["attention"] == once["attention"]


@pytest.mark.parametrize("num_images", [0, 1, 3])
def test_too_few_images_are_an_error(num_images):
    with pytest.raises(ValueError, match=f"at least 4 images .* got {num_images}"):
        calibration_of(made_up(num_images), CONFIG, "made up")


# ---------------------------------------------------------------- what a calibration changes


def kept_and_scores(model, inputs) -> tuple[list, torch.Tensor | None]:
    names = (
        "input_ids",
        "pixel_values",
        "fovea_pixel_values",
        "question_mask",
        "mosaic_windows",
        "relevance_input_ids",
        "patch_boxes",
    )
    with torch.no_grad():
        _, images = model.model.prepare_inputs_embeds(*(inputs.get(name) for name in names))
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
    signals = ("input_ids", "pixel_values", "fovea_pixel_values", "question_mask")
    with torch.no_grad():
        (raw,) = model.model.get_view_tokens(*(inputs[name] for name in signals), calibrated=False)
        (corrected,) = model.model.get_view_tokens(*(inputs[name] for name in signals))
    assert torch.equal(corrected.relevance, -raw.relevance)
    assert torch.equal(corrected.attention, raw.attention - torch.tensor(mean))
    weights = (config.attention_weight, config.text_weight, config.diversity_weight)
    expected = shirg_scores(raw.features, raw.attention - torch.tensor(mean), -raw.relevance, 181, *weights)
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
        ({}, ("relevance and attention", "[]")),
        ({"relevance": [], "attention": []}, ("dict of relevance", "a list")),
        (calibration(0), ("sign", "1 or -1", "0")),
        (calibration(2), ("sign", "2")),
        ({"relevance": {"clip": relevance_entry(1)}, "attention": []}, ("clip", "siglip")),
        ({"relevance": {"lm": {"sign": 1}}, "attention": []}, ("exactly the fields", "held_out", "got sign")),
        (calibration(1, attention_entry([0.1] * 255)), ("16x16", "256 values", "got 255 values")),
        (calibration(1, attention_entry([0.1] * 1024)), ("16x16", "256 values", "got 1024 values")),
        (calibration(1, attention_entry("0.1 0.2")), ("256 values", "'0.1 0.2'")),
        (calibration(1, attention_entry([float("nan")] * 256)), ("finite number",)),
        (calibration(1, attention_entry(None, grid=0)), ("whole grid", "0")),
        (calibration(1, attention_entry(None), attention_entry([0.1] * 256)), ("two means", "16x16")),
        (calibration(1, {"mean": []}), ("exactly the fields", "got mean")),
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
    with pytest.raises(
        ValueError, match=r"on foveal views of 16x16 .* nothing of 24x24 patches.* 336 pixels.*Keep fovea_size=224"
    ):
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


def test_entries_of_the_same_signal_are_renewed_and_others_stay():
    old = calibration(-1, attention_entry([0.1] * 256), attention_entry([0.2] * 169, "anyres", 13))
    new = {"relevance": {"siglip": relevance_entry(1)}, "attention": [attention_entry(None)]}
    joined = joined_calibration(old, new)
    assert joined == {
        "relevance": {"lm": relevance_entry(-1), "siglip": relevance_entry(1)},
        "attention": [attention_entry([0.2] * 169, "anyres", 13), attention_entry(None)],
    }
    assert joined_calibration(None, new) == new
    check_calibration(joined)


class Records(logging.Handler):
    def __init__(self):
        super().__init__()
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


@pytest.fixture
def warnings():
    logger = logging.getLogger("modeling_shirg.modeling_shirg_lavida")
    records = Records()
    logger.addHandler(records)
    yield records.texts
    logger.removeHandler(records)


def test_a_view_without_a_mean_of_its_own_says_that_others_have_one(warnings, monkeypatch):
    from modeling_shirg import modeling_shirg_lavida

    # Otherwise the logger says everything once in a process.
    monkeypatch.setattr(modeling_shirg_lavida.logger, "warning_once", modeling_shirg_lavida.logger.warning)
    config = tiny_config("shirg", calibration=calibration(1, attention_entry([0.1] * 256)))
    for preset in ("shirg", "shirg-v1", "uniform", "holov", "saint", "lavida"):
        ShirgLavidaForConditionalGeneration(config.with_preset(preset))
    assert not warnings
    ShirgLavidaForConditionalGeneration(config.with_preset("shirg-3645"))
    (text,) = warnings
    assert "'shirg-3645' uses its attention as it is" in text and "foveal views of 16x16" in text
    assert "shirg calibrate --prune_method shirg-3645" in text
    # Calibrated and found not to need a mean: nothing to say.
    entries = [attention_entry([0.1] * 256), attention_entry(None, "anyres", 13)]
    ShirgLavidaForConditionalGeneration(tiny_config("shirg-3645", calibration=calibration(1, *entries)))
    assert len(warnings) == 1


# ---------------------------------------------------------------- looking


def test_looking_takes_the_models_own_signals_of_patches_that_show_the_image():
    config = tiny_config("shirg-3645", calibration=calibration(-1))
    model, processor = tiny_model(config), tiny_processor(config)
    wide = LabelledBox("wide", noise_image(0, 400, 100), QUESTIONS[0], (0, 0, 150, 50))
    (seen,), unseen = look(model, processor, [wide], ("lm",))
    assert unseen == 0 and seen.attention_VN.shape == seen.inside_VN.shape == (5, 169)
    inputs = encode(processor, chat(QUESTIONS[0], wide.image))
    with torch.no_grad():
        views = model.model.get_view_tokens(
            inputs["input_ids"], inputs["pixel_values"], None, inputs["question_mask"], calibrated=False
        )
    assert torch.equal(seen.relevance["lm"], torch.stack([view.relevance for view in views]))
    assert torch.equal(seen.attention_VN, torch.stack([view.attention for view in views]))
    # The whole image is a view; of the 2x2 tiles the image fills the middle, and the box lies in the first tile.
    assert seen.shown_VN[0].all() and not seen.shown_VN[1:].all(-1).any()
    assert seen.telling_views == [0, 1]
    assert not (seen.inside_VN & ~seen.shown_VN).any()
    by_hand = [
        auc(seen.attention_VN[view][seen.shown_VN[view]], seen.inside_VN[view][seen.shown_VN[view]]) for view in (0, 1)
    ]
    assert seen.auc_of(seen.attention_VN) == pytest.approx(sum(by_hand) / 2)


def test_a_box_beside_the_fovea_is_counted_and_left_out():
    model, processor = tiny_model(CONFIG), tiny_processor(CONFIG)
    image = noise_image(0, 600, 300)
    boxes = [
        LabelledBox("corner", image, "Which?", (0, 0, 20, 20)),
        LabelledBox("middle", image, "Which?", (290, 140, 320, 170)),
        LabelledBox("everything", image, "Which?", (0, 0, 600, 300)),
    ]
    seen, unseen = look(model, processor, boxes, ("lm",))
    assert [each.name for each in seen] == ["middle"] and unseen == 2


def test_both_ways_of_comparing_are_looked_at_where_the_checkpoint_has_them():
    config = siglip_config(text_relevance="lm")
    model, processor = tiny_model(config), siglip_processor(config)
    assert text_relevances(model, processor) == ("lm", "siglip")
    assert text_relevances(tiny_model(CONFIG), tiny_processor(CONFIG)) == ("lm",)
    box = LabelledBox("noise", noise_image(0), QUESTIONS[0], (100, 100, 150, 150))
    (seen,), _ = look(model, processor, [box], ("lm", "siglip"))
    assert set(seen.relevance) == {"lm", "siglip"}
    assert not torch.equal(seen.relevance["lm"], seen.relevance["siglip"])
    (without,), _ = look(model, processor, [box], ())
    assert without.relevance == {} and torch.equal(without.attention_VN, seen.attention_VN)


def test_what_a_preset_does_not_read_is_not_looked_at():
    assert readable_signals(tiny_config("shirg")) == {"attention", "relevance"}
    assert readable_signals(tiny_config("visionzip")) == {"attention"}
    assert readable_signals(tiny_config("cdpruner")) == {"relevance"}
    for preset in ("lavida", "pool", "uniform", "divprune"):
        with pytest.raises(ValueError, match=f"'{preset}' reads neither attention nor relevance.*such as shirg"):
            readable_signals(tiny_config(preset))
    config = tiny_config("cdpruner")
    with pytest.raises(ValueError, match="'cdpruner' reads relevance alone"):
        look(tiny_model(config), tiny_processor(config), [], ())


def test_rendered_scenes_are_those_of_validation_with_the_box_of_what_is_asked():
    from modeling_shirg.scenes import FAMILIES, scene

    boxes = list(rendered_boxes(2 * len(FAMILIES) + 1))
    assert len({box.name for box in boxes}) == len(boxes)
    for number, box in enumerate(boxes):
        drawn = scene(list(FAMILIES)[number % len(FAMILIES)], "validation", number // len(FAMILIES))
        assert np.array_equal(np.asarray(box.image), np.asarray(drawn.image))
        (asked,) = [
            question for question in drawn.questions if (question.text, question.box) == (box.question, box.box)
        ]
        assert asked.kind not in ("count", "difference")
        assert all(0 <= edge <= 1 for edge in box.box_within(*drawn.image.size))


# ---------------------------------------------------------------- the command


@pytest.fixture
def folder(tmp_path) -> Path:
    """A data folder: four images and a file of boxes about them, two of one image."""
    records = []
    for number in range(4):
        noise_image(number, 240, 230).save(tmp_path / f"{number}.png")
        records.append({"image": f"{number}.png", "question": QUESTIONS[0], "box": [100, 100, 160, 150]})
    records.append({**records[0], "question": "Which?", "box": [0, 0, 40, 40]})
    (tmp_path / "boxes.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n\n")
    return tmp_path


def test_records_are_read_from_lines_and_lists_with_paths_from_the_file(folder):
    boxes = read_boxes(folder / "boxes.jsonl")
    assert len(boxes) == 5 and boxes[4].name == boxes[0].name == str(folder / "0.png")
    assert boxes[4].question == "Which?" and boxes[4].box == (0.0, 0.0, 40.0, 40.0)
    records = [json.loads(line) for line in (folder / "boxes.jsonl").read_text().split("\n") if line]
    (folder / "boxes.json").write_text(json.dumps(records, indent=1))
    assert read_boxes(folder / "boxes.json") == boxes
    assert read_boxes(folder / "boxes.json", 2) == [boxes[0], boxes[1], boxes[4]]


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = main(["calibrate", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


KEPT = """
import json
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained({folder!r}, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained({folder!r}, trust_remote_code=True)
inputs = processor(images={image!r}, text="<image>Which?", return_tensors="pt")
output = model(**inputs, output_selection=True)
print(json.dumps([output.kept_indices[0].tolist(), model.config.attention_mean(16) is not None]))
"""


def test_a_calibrated_copy_is_another_checkpoint_for_strangers_too(capsys, folder):
    out = folder / "calibrated"
    arguments = ("--data", folder / "boxes.jsonl", "--subtract-mean", "always", "--out", out, "--json")
    status, printed, err = run(capsys, *arguments)
    assert status == 0, err
    report = json.loads(printed.splitlines()[-1])
    assert report["written"] == str(out) and report["left_out"] == 0 and report["prune_method"] == "shirg"
    config = json.loads((out / "config.json").read_text())
    assert config.pop("calibration") == report["calibration"]
    bundled = json.loads((BUNDLED / "config.json").read_text())
    assert bundled.pop("calibration") is None and config == bundled
    assert report["calibration"]["relevance"]["lm"]["decided"]["images"] == 2
    same = {path.name for path in BUNDLED.iterdir()} - {"config.json", "README.md", "__pycache__"}
    assert {path.name for path in out.iterdir()} == {*same, "config.json", "README.md"}
    assert all((out / name).read_bytes() == (BUNDLED / name).read_bytes() for name in same)
    assert "boxes.jsonl" in (out / "README.md").read_text()
    assert calibration_table(report["calibration"]) in (out / "README.md").read_text()
    assert str(folder) not in (out / "README.md").read_text() + json.dumps(report["calibration"])
    image = str(folder / "1.png")
    kept = {}
    for name, source in (("plain", BUNDLED), ("calibrated", out)):
        model = ShirgLavidaForConditionalGeneration.from_pretrained(source).eval()
        processor = ShirgLavidaProcessor.from_pretrained(source)
        inputs = processor(images=image, text="<image>Which?", return_tensors="pt")
        kept[name] = kept_and_scores(model, inputs)[0][0]
    assert kept["plain"] != kept["calibrated"]
    assert load(str(out), options=parse_options(["calibration=null"])).model.config.calibration is None
    stranger = json.loads(run_fresh(KEPT.format(folder=str(out), image=image)).strip().splitlines()[-1])
    assert stranger == [kept["calibrated"], True]


def test_in_place_other_views_join_and_the_section_is_renewed(capsys, folder):
    model = folder / "model"
    shutil.copytree(BUNDLED, model, ignore=shutil.ignore_patterns("__pycache__"))
    card = (model / "README.md").read_text()
    (model / "README.md").write_text(card + "\nMine.\n")
    weights = (model / "model.safetensors").stat().st_mtime_ns
    for preset in ("shirg", "shirg", "shirg-3645"):
        status, printed, err = run(
            capsys, "--model", model, "--data", folder / "boxes.jsonl", "--in_place", "--prune_method", preset
        )
        assert status == 0, err
        assert f"Written to {model}" in printed
    entries = json.loads((model / "config.json").read_text())["calibration"]["attention"]
    assert [(entry["view_policy"], entry["grid"]) for entry in entries] == [("foveal", 16), ("anyres", 13)]
    assert (model / "model.safetensors").stat().st_mtime_ns == weights
    text = (model / "README.md").read_text()
    assert text.count("## Calibration") == 1 and "Mine." in text and text.startswith(card.rstrip("\n"))
    assert "anyres views, grid 13" in text
    assert with_calibration_section(text, None) == card + "\nMine.\n"
    assert not [path.name for path in model.iterdir() if path.name.startswith(".")]
    assert json.loads((model / "config.json").read_text())["prune_method"] == "shirg"


def test_a_write_that_fails_leaves_the_folder_as_it_was(capsys, folder, monkeypatch):
    model = folder / "model"
    shutil.copytree(BUNDLED, model, ignore=shutil.ignore_patterns("__pycache__"))
    before = {path.name: path.read_bytes() for path in model.iterdir()}

    def full(source, target):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(os, "replace", full)
    for given in (("--model", model, "--in_place"), ("--out", folder / "copy")):
        status, _, err = run(capsys, "--data", folder / "boxes.jsonl", *given)
        assert status == 2 and "No space left" in err
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    assert sorted(path.name for path in folder.iterdir()) == [
        "0.png",
        "1.png",
        "2.png",
        "3.png",
        "boxes.jsonl",
        "model",
    ]


def test_what_would_not_load_is_not_written(tmp_path):
    config = json.dumps({**json.loads((BUNDLED / "config.json").read_text()), "selection_budget": 9999})
    (tmp_path / "config.json").write_text(config)
    for given, named in ((calibration(1, attention_entry([0.1] * 9)), "256 values"), (calibration(), "9999")):
        with pytest.raises((ValueError, StrictDataclassError), match=named):
            write_calibration(tmp_path, given)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == config


def test_the_toy_checkpoint_on_its_own_scenes(capsys):
    status, printed, err = run(capsys, "--images", "24", "--json")
    assert status == 0, err
    report = json.loads(printed.splitlines()[-1])
    found = report["calibration"]
    parts = [found["relevance"]["lm"][part]["images"] for part in ("decided", "held_out")]
    assert min(parts) > 0 and sum(parts) == 24 - report["left_out"]
    assert found["attention"][0]["held_out"]["mean"] > 0.8
    assert "Nothing was written" in printed
    assert "24 rendered scenes" in found["relevance"]["lm"]["data"]


def test_a_section_stands_where_it_stood_and_says_what_the_config_says():
    first = calibration(-1, attention_entry([0.1] * 256))
    card = with_calibration_section("---\nlicense: mit\n---\n\n# Model\n\nText.\n", first)
    assert card.startswith("---\nlicense: mit\n---\n\n# Model\n\nText.\n") and "sign -1" in card
    assert "mean subtracted" in card and "0.600 [0.550, 0.650]" in card
    longer = card + "\n## Licence\n\nMIT.\n"
    second = with_calibration_section(longer, calibration(1, attention_entry(None)))
    assert second.index("sign +1") < second.index("## Licence") and "sign -1" not in second
    assert "as it is |" in second and second.count("## Calibration") == 1
    assert (
        with_calibration_section(second, None) == "---\nlicense: mit\n---\n\n# Model\n\nText.\n\n## Licence\n\nMIT.\n"
    )


ONE = {"image": "0.png", "question": "Which?", "box": [10, 10, 50, 50]}


@pytest.mark.parametrize(
    ("records", "named"),
    [
        ([], ("boxes.jsonl", "no record")),
        (["no json"], ("line 1", "JSON")),
        ([ONE, "{"], ("line 2", "JSON")),
        ([7], ("line 1", "image, question, box", "got 7")),
        (["[7]"], ("record 1", "image, question, box", "got 7")),
        ([{"image": "0.png", "box": [1, 2, 3, 4]}], ("line 1", "question")),
        ([{**ONE, "question": "  "}], ("line 1", "no question")),
        ([{**ONE, "question": None}], ("no question", "None")),
        ([{**ONE, "image": "none.png"}], ("line 1", "no image file", "none.png")),
        ([{**ONE, "image": "boxes.jsonl"}], ("boxes.jsonl", "PNG")),
        ([{**ONE, "box": [1, 2, 3]}], ("left, top, right, bottom", "[1, 2, 3]")),
        ([{**ONE, "box": "here"}], ("left, top, right, bottom", "here")),
        ([{**ONE, "box": [10, 10, 241, 50]}], ("0.png", "[10.0, 10.0, 241.0, 50.0]", "240 x 230")),
        ([{**ONE, "box": [-1, 10, 41, 50]}], ("-1.0", "240 x 230")),
        ([{**ONE, "box": [50, 10, 10, 50]}], ("[50.0, 10.0, 10.0, 50.0]",)),
        ([{**ONE, "box": [10, 10, 10, 50]}], ("[10.0, 10.0, 10.0, 50.0]",)),
        ([ONE], ("at least 4 images", "got 1")),
    ],
)
def test_wrong_data_is_named_by_its_line(capsys, folder, records, named):
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / "boxes.jsonl").write_text("\n".join(lines))
    status, _, err = run(capsys, "--data", folder / "boxes.jsonl")
    assert status == 2 and "Traceback" not in err
    assert all(value in err for value in named), err


def test_boxes_out_of_view_alone_are_too_few_and_some_are_said(capsys, folder):
    for number in range(4):
        Image.new("RGB", (600, 600), "white").save(folder / f"{number}.png")
    records = [{**ONE, "image": f"{number}.png"} for number in range(4)]
    (folder / "boxes.jsonl").write_text("\n".join(map(json.dumps, records)))
    status, _, err = run(capsys, "--data", folder / "boxes.jsonl")
    assert status == 2 and "partly in view" in err and "got 0" in err
    centred = [{**record, "box": [280, 280, 320, 310]} for record in records]
    (folder / "boxes.jsonl").write_text("\n".join(map(json.dumps, [*records, *centred])))
    status, printed, err = run(capsys, "--data", folder / "boxes.jsonl", "--prune_method", "shirg-v1")
    assert status == 0, err
    assert "4 of 8 boxes are left out" in printed


def test_what_cannot_be_done_is_said_before_any_work(capsys, folder, monkeypatch):
    def not_yet(*args, **kwargs):
        pytest.fail("the model was loaded")

    data = ("--data", folder / "boxes.jsonl")
    with monkeypatch.context() as patched:
        patched.setattr("modeling_shirg.running.load.load", not_yet)
        for arguments, named in (
            ((*data, "--in_place"), ("--model FOLDER", "None")),
            ((*data, "--in_place", "--model", "me/on-the-hub"), ("--model FOLDER", "me/on-the-hub")),
            ((*data, "--out", folder), ("not an empty folder",)),
            (("--images", "0"), ("--images 0",)),
            (("--data", folder / "none.jsonl"), ("none.jsonl", "cannot be read")),
        ):
            status, _, err = run(capsys, *arguments)
            assert status == 2 and all(value in err for value in named), err
    for arguments, named in (
        (("--prune_method", "lavida"), ("'lavida' reads neither", "such as shirg")),
        (("--prune_method", "uniform"), ("'uniform' reads neither",)),
        (("--prune_method", "uniform", "--text_relevance", "lm"), ("scores none",)),
        (("--prune_method", "cdpruner", "--text_relevance", "none"), ("reads relevance alone",)),
        (("--text_relevance", "siglip"), ("text tower", "--text_tower")),
    ):
        status, _, err = run(capsys, *data, *arguments)
        assert status == 2 and all(value in err for value in named), err
    with pytest.raises(SystemExit):
        main(["calibrate", "--out", "a", "--in_place"])
    with pytest.raises(SystemExit):
        main(["calibrate", "--prune_method", "shrig"])
    assert "Did you mean 'shirg'?" in capsys.readouterr().err


def test_a_checkpoint_without_a_pooling_head_is_told_what_it_lacks(capsys, folder):
    config = tiny_config("lavida", vision_config={**CONFIG.vision_config.to_dict(), "vision_use_head": False})
    model = tiny_model(config)
    model.save_pretrained(folder / "headless")
    tiny_processor(config).save_pretrained(folder / "headless")
    arguments = ("--model", folder / "headless", "--data", folder / "boxes.jsonl")
    status, _, err = run(capsys, *arguments)
    assert status == 2 and "'lavida' reads neither" in err
    status, _, err = run(capsys, *arguments, "--prune_method", "shirg")
    assert status == 2 and "pooling head" in err and "'received' or 'norm'" in err
