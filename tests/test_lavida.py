"""Preset `lavida`: tiles without padding, newline tokens, image tokens that depend on the image's size."""

import json
import zlib
from pathlib import Path

import pytest
import torch

from configuration_shirg import ShirgLavidaConfig
from fixtures.pillow_views import noise
from tiny_model import QUESTIONS, chat, encode, noise_image, tiny_config, tiny_model, tiny_processor

COUNTS = json.loads((Path(__file__).parent / "fixtures" / "lavida" / "golden" / "image_token_counts.json").read_text())
SINGLE_VIEW = {"image_grid_pinpoints": None}
RELATIVE = 5e-5


def _close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((actual - expected).abs().max() <= RELATIVE * expected.abs().max())


@pytest.mark.parametrize("row", COUNTS, ids=lambda row: "x".join(map(str, row["size_wh"])))
def test_image_tokens_are_the_originals(row):
    config = ShirgLavidaConfig.from_preset("lavida")
    assert config.count_image_tokens(*row["size_wh"]) == row["n_image_tokens"]
    processor = tiny_processor(tiny_config("lavida", "full"))
    inputs = encode(processor, chat("?", noise_image(0, *row["size_wh"])))
    assert (inputs["input_ids"] == processor.image_token_id).sum() == row["n_image_tokens"]
    assert inputs["pixel_values"].shape == (row["n_views"], 3, 384, 384)


@pytest.mark.parametrize("policy", ["pad", "square"])
@pytest.mark.parametrize(("pooled", "count"), [(14, 197), (None, 730)])
def test_single_view_modes(policy, pooled, count):
    config = tiny_config("lavida", "full", view_policy=policy, pooled_grid_size=pooled, **SINGLE_VIEW)
    assert config.num_image_tokens == config.count_image_tokens(640, 427) == count
    model, processor = tiny_model(config), tiny_processor(config)
    inputs = encode(processor, chat(QUESTIONS[0], noise_image(0, 640, 427)))
    assert inputs["pixel_values"].shape == (1, 3, 384, 384)
    assert (inputs["input_ids"] == config.image_token_id).sum() == count
    with torch.no_grad():
        tokens = model.model.get_image_features(inputs["pixel_values"]).image_tokens[0]
    assert tokens.shape == (count, 32)
    assert torch.equal(tokens[-1], model.model.image_newline)


def test_newlines_end_every_row_of_the_mosaic_and_the_whole_view_has_none():
    config = tiny_config("lavida")
    model, processor = tiny_model(config), tiny_processor(config)
    views = processor.image_processor(noise_image(0, 640, 427), return_tensors="pt")
    rows, columns, top, bottom, left, right = views["mosaic_windows"][0].tolist()
    with torch.no_grad():
        tokens = model.model.get_image_features(**views_for_model(views)).image_tokens[0]
        flat = tiny_model(tiny_config("lavida-980")).model
        flat.load_state_dict(model.model.state_dict())
        every = flat.get_image_features(views["pixel_values"]).image_tokens[0]
    assert torch.equal(tokens[:49], every[:49])
    mosaic = tokens[49:].unflatten(0, (bottom - top, right - left + 1))
    assert (mosaic[:, -1] == model.model.image_newline).all()
    for row in range(top, bottom):
        for column in (left, right - 1):
            tile = (row // 7) * columns + column // 7
            token = every[49 * (1 + tile) + (row % 7) * 7 + column % 7]
            assert torch.equal(mosaic[row - top, column - left], token)


def views_for_model(views) -> dict:
    return {name: views[name] for name in ("pixel_values", "mosaic_windows")}


def test_an_image_too_thin_for_its_mosaic_keeps_the_whole_view():
    config = tiny_config("lavida")
    model, processor = tiny_model(config), tiny_processor(config)
    inputs = encode(processor, chat("?", noise_image(0, 4000, 1)))
    assert (inputs["input_ids"] == config.image_token_id).sum() == config.count_image_tokens(4000, 1) == 49
    with torch.no_grad():
        assert torch.isfinite(model(**inputs).logits).all()


CHATS = [
    chat(QUESTIONS[0], noise_image(0, 640, 427)),
    chat(QUESTIONS[1], noise_image(1, 300, 900)),
    [{"role": "user", "content": "No image here."}],
    chat(QUESTIONS[2], noise_image(2, 384, 384), noise_image(3, 1000, 400)),
    [
        *chat("First?", noise_image(4, 500, 333)),
        {"role": "assistant", "content": "One."},
        *chat("Second?", noise_image(5, 50, 800)),
    ],
]


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_images_of_different_sizes_batch_without_changing_a_row(padding_side):
    config = tiny_config("lavida")
    model, processor = tiny_model(config), tiny_processor(config, padding_side)
    batch = encode(processor, *CHATS)
    options = {"max_new_tokens": 8, "block_length": 4}
    with torch.no_grad():
        together = model(**batch).logits
    for use_cache in (True, False):
        answers = model.generate(**batch, **options, use_cache=use_cache)[:, -8:]
        for row, one in enumerate(CHATS):
            alone = encode(processor, one)
            assert torch.equal(answers[row], model.generate(**alone, **options, use_cache=use_cache)[0, -8:]), (
                row,
                use_cache,
            )
            with torch.no_grad():
                assert _close(together[row, batch["attention_mask"][row].bool()], model(**alone).logits[0])
    assert batch["question_mask"].shape == (6, batch["input_ids"].shape[1])


def test_missing_windows_are_named():
    config = tiny_config("lavida")
    model, processor = tiny_model(config), tiny_processor(config)
    inputs = dict(encode(processor, CHATS[0]))
    with pytest.raises(ValueError, match="'lavida' needs mosaic_windows"):
        model(**{**inputs, "mosaic_windows": None})


def test_the_newline_is_kept_by_every_preset(tmp_path):
    model = tiny_model(tiny_config("lavida"))
    with torch.no_grad():
        model.model.image_newline.fill_(3.0)
    model.save_pretrained(tmp_path / "lavida")
    foveal = type(model).from_pretrained(tmp_path / "lavida", prune_method="shirg")
    foveal.save_pretrained(tmp_path / "shirg")
    again = type(model).from_pretrained(tmp_path / "shirg", prune_method="lavida")
    assert torch.equal(again.model.image_newline, model.model.image_newline)


PILLOW = json.loads((Path(__file__).parent / "fixtures" / "pillow_views.json").read_text())


@pytest.mark.parametrize("size", PILLOW["crc32"])
@pytest.mark.parametrize("prune_method", ["lavida", "shirg"])
def test_views_are_those_of_pillow_13_with_every_pillow(size, prune_method):
    processor = tiny_processor(tiny_config(prune_method, "full")).image_processor
    width, height = map(int, size.split("x"))
    views = processor(noise(width, height), do_rescale=False, do_normalize=False, return_tensors="pt")
    whole = views["pixel_values"][0].permute(1, 2, 0)
    assert whole.shape == (PILLOW["side"], PILLOW["side"], 3)
    assert zlib.crc32(whole.to(torch.uint8).numpy().tobytes()) == PILLOW["crc32"][size]
