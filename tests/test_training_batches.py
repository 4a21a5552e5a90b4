"""Rows become batches: what is learned, what the draws depend on, and what padding and neighbours do not change."""

from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from configuration_shirg import ShirgLavidaProcessor
from modeling_shirg.objective_shirg import complementary_masks
from modeling_shirg.training.augment import MAX_SCALE, augmented
from modeling_shirg.training.collator import RowCollator
from modeling_shirg.training.draws import RowDraws, RowKey
from modeling_shirg.training.encoder import RowEncoder
from tiny_model import chat, encode, noise_image, tiny_config, tiny_model, tiny_processor

END_OF_TEXT = 257
LONG_ANSWER = "a long answer of many bytes"


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(tiny_config())


def collator(
    processor, seed: int = 0, answer_length: int = 8, max_length=None, step_rows: int = 1, **drawn
) -> RowCollator:
    most = max(drawn.get("budgets", ()), default=None)
    encoder = RowEncoder(processor, answer_length, max_length, most)
    return RowCollator(encoder, RowDraws(seed, **drawn), step_rows)


def answered(question: str, answer: str, images: int = 1) -> list[dict]:
    """A question and its answer as an item holds them."""
    return [
        {"role": "user", "content": [*([{"type": "image"}] * images), {"type": "text", "text": question}]},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]


def item(row: int, question: str = "Which?", answer: str = "B", images: int = 1, **changes) -> dict:
    return {
        "row": row,
        "name": f"{row} of test",
        "source": "test",
        "epoch": 0,
        "repeat": 0,
        "position": row,
        "is_training": True,
        "images": [noise_image(10 * row + i, 300, 260) for i in range(images)],
        "messages": answered(question, answer, images),
        "fovea_boxes": [None] * images,
        **changes,
    }


ITEMS = [
    item(0),
    item(1, "What is in cell 5, or in the one beside it?", LONG_ANSWER),
    item(2, "How many?", "two"),
]
MANY_DRAWS = {"token_dropout": 0.1, "gumbel": True, "augment": True}


# Labels


def learned(batch: dict, row: int = 0) -> list[int]:
    return batch["labels"][row][batch["labels"][row] != -100].tolist()


def ids(processor, text: str) -> list[int]:
    return processor.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("answer", "length", "fill"), [("B", 8, 6), (LONG_ANSWER, 8, 4), ("sevenxx", 8, 0), ("B", 1, 0), ("B", 32, 30)]
)
def test_the_answer_its_end_and_end_of_text_up_to_a_multiple_are_learned(processor, answer, length, fill):
    batch = collator(processor, answer_length=length)([item(0, answer=answer)])
    assert learned(batch) == ids(processor, answer + "<|eot_id|>") + [END_OF_TEXT] * fill
    assert batch["attention_mask"].all()


@pytest.mark.parametrize("images", [1, 2])
def test_what_stands_before_the_answer_is_the_prompt_of_inference(processor, images):
    row = item(0, images=images)
    batch = collator(processor)([row])
    prompt = encode(processor, chat("Which?", *row["images"]))
    length = prompt["input_ids"].shape[1]
    assert torch.equal(batch["input_ids"][:, :length], prompt["input_ids"])
    assert (batch["labels"][:, :length] == -100).all() and (batch["labels"][:, length:] != -100).all()
    for name in ("pixel_values", "fovea_pixel_values", "patch_boxes"):
        assert torch.equal(batch[name], prompt[name])
    assert torch.equal(batch["question_mask"][:, :length], prompt["question_mask"])
    assert not batch["question_mask"][:, length:].any()


def test_every_answer_of_a_conversation_is_learned_and_the_last_is_filled(processor):
    messages = [*answered("Which?", "B"), *answered("And then?", "yes", images=0)]
    batch = collator(processor)([item(0, messages=messages)])
    assert learned(batch) == [
        *ids(processor, "B<|eot_id|>"),
        *ids(processor, "yes<|eot_id|>"),
        *[END_OF_TEXT] * 4,
    ]


def test_a_template_that_rewrites_an_answer_later_is_refused(processor):
    template = "{% for m in messages %}{{ m['role'] }}{{ messages | length }}{% endfor %}"
    changed = tiny_processor(tiny_config())
    changed.chat_template = template
    with pytest.raises(ValueError, match="does not write an answer as the prompt"):
        RowEncoder(changed, answer_length=8).lengths(answered("a", "b", images=0), [])


# Lengths


@pytest.mark.parametrize("preset", ["shirg", "lavida", "lavida-980"])
def test_lengths_known_before_training_are_those_of_the_batch(preset):
    processor = tiny_processor(tiny_config(preset))
    encoder = RowEncoder(processor, answer_length=1)
    for row, size in enumerate([(300, 260), (90, 400), (700, 50)]):
        messages, image = answered("Which?", LONG_ANSWER), noise_image(row, *size)
        batch = encoder.encode(messages, [image])
        lengths = encoder.lengths(messages, [size])
        assert lengths.prompt + lengths.answer == batch["input_ids"].shape[1]
        assert lengths.image == (batch["input_ids"] == processor.image_token_id).sum()
        assert lengths.answer == (batch["labels"] != -100).sum()


def test_a_row_longer_than_the_context_is_an_error_that_names_row_lengths_and_limit(processor):
    length = collator(processor, answer_length=1)([ITEMS[1]])["input_ids"].shape[1]
    with pytest.raises(ValueError, match=rf"Row 1 of test .*{length - 28} .*245 .* 28 in it, {length} .*{length - 1}"):
        collator(processor, max_length=length - 1)(ITEMS)
    assert collator(processor, max_length=length)([ITEMS[1]])["input_ids"].shape[1] == length


# Independence


# What a batch fills up, and along which axis.
LONGER_IN_A_BATCH = {
    **dict.fromkeys(("input_ids", "labels", "attention_mask", "mask_noise", "question_mask"), -1),
    **dict.fromkeys(("patch_boxes", "view_boxes"), 1),
}


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("preset", ["shirg", "shirg-fixed", "siglip-672", "shirg-3645", "lavida-980", "lavida"])
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_a_row_is_the_same_alone_and_in_any_batch(preset, order):
    processor = tiny_processor(tiny_config(preset))
    selects = processor.image_processor.selection_budget is not None
    collate = collator(processor, **(MANY_DRAWS if selects else {"augment": True}))
    alone = [collate([ITEMS[row]]) for row in order]
    whole = collate([ITEMS[row] for row in order])
    assert whole.keys() == alone[0].keys()
    for name, values in whole.items():
        parts = values.split([len(each[name]) for each in alone])
        for each, part in zip(alone, parts, strict=True):
            if name in LONGER_IN_A_BATCH:
                axis = LONGER_IN_A_BATCH[name]
                part = part.narrow(axis, 0, each[name].shape[axis])
            assert torch.equal(part, each[name]), name


def test_padding_is_unseen_unlearned_and_changes_no_mask(processor):
    collate = collator(processor)
    batch = collate(ITEMS)
    padding = batch["attention_mask"] == 0
    assert padding.any()
    assert (batch["labels"][padding] == -100).all() and (batch["mask_noise"][padding] == 1).all()
    for time in (0.0, 0.01, 0.5, 1.0):
        together = complementary_masks(batch["labels"], torch.full((3,), time), batch["mask_noise"], None)
        for row, each in enumerate(ITEMS):
            alone = collate([each])
            masked = complementary_masks(alone["labels"], torch.tensor([time]), alone["mask_noise"], None)
            length = alone["labels"].shape[1]
            assert torch.equal(together[[row, row + 3], :length], masked)
            assert not together[[row, row + 3], length:].any()


def test_the_loss_of_a_batch_is_that_of_its_rows(processor):
    model, collate = tiny_model(tiny_config(loss_weighting="inverse_t")), collator(processor)
    with torch.no_grad():
        whole = model(**collate(ITEMS)).loss
        rows = torch.stack([model(**collate([each])).loss for each in ITEMS])
    assert torch.allclose(whole, rows.mean(), rtol=1e-4)


def test_epoch_row_repeat_and_seed_each_change_the_draws(processor):
    names = ("diffusion_time", "mask_noise", "dropped_tokens", "selection_noise", "fovea_pixel_values")
    first = collator(processor, **MANY_DRAWS)([item(0)])
    others = [collator(processor, **MANY_DRAWS)([item(0, **change)]) for change in ({"epoch": 1}, {"repeat": 1})]
    others.append(collator(processor, **MANY_DRAWS)([item(0) | {"row": 1}]))
    others.append(collator(processor, seed=1, **MANY_DRAWS)([item(0)]))
    for other in others:
        for name in names:
            assert not torch.equal(first[name], other[name]), name


def test_the_answers_noise_does_not_depend_on_the_number_of_image_tokens(processor):
    batches = [collator(processor, budgets=(budget,))([ITEMS[0]]) for budget in (100, 181)]
    noise = [batch["mask_noise"][batch["labels"] != -100] for batch in batches]
    assert torch.equal(*noise) and batches[0]["mask_noise"].shape != batches[1]["mask_noise"].shape


# Token dropout, Gumbel noise, budgets, fovea sizes


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_dropout_is_exactly_its_share_of_each_images_tokens(processor, share):
    dropped = collator(processor, token_dropout=share)([item(0, images=2), item(1)])["dropped_tokens"]
    assert dropped.shape == (3, 181) and dropped.dtype == torch.bool
    assert dropped.sum(-1).tolist() == [round(share * 181)] * 3
    assert not torch.equal(dropped[0], dropped[1])


@pytest.mark.parametrize(("preset", "count"), [("shirg", 256), ("shirg-mixed", 576), ("shirg-3645", 845)])
def test_noise_for_every_patch_that_tokens_are_chosen_from(preset, count):
    config = tiny_config(preset)
    assert count == config.num_selected_views * config.selected_grid**2
    batch = collator(tiny_processor(config), gumbel=True)([item(0)])
    assert batch["selection_noise"].shape == (1, count) and batch["selection_noise"].dtype == torch.float32


def test_a_step_has_one_budget_and_one_fovea_size_however_it_is_split(processor):
    collate = collator(processor, budgets=(60, 100, 181), fovea_sizes=(224, 256), step_rows=4, token_dropout=0.1)
    seen = set()
    for step in range(12):
        items = [item(0) | {"row": place, "position": place} for place in range(4 * step, 4 * step + 4)]
        whole = collate(items)
        halves = [collate(items[:2]), collate(items[2:])]
        for name in ("selection_budget", "fovea_pixel_values", "input_ids", "dropped_tokens"):
            parts = [half[name] for half in halves if name in half]
            assert (name in whole) == bool(parts)
            assert not parts or torch.equal(whole[name], torch.cat(parts))
        budget = int(whole["selection_budget"][0]) if "selection_budget" in whole else 181
        assert whole["dropped_tokens"].shape == (4, budget)
        assert (whole["input_ids"] == processor.image_token_id).sum() == 4 * (64 + budget)
        seen.add((budget, whole["fovea_pixel_values"].shape[-1]))
    assert {budget for budget, _ in seen} == {60, 100, 181} and {size for _, size in seen} == {224, 256}


def test_rows_of_two_steps_in_one_batch_are_refused(processor):
    collate = collator(processor, budgets=(60, 181), step_rows=2)
    with pytest.raises(ValueError, match=r"places \[1, 2\] .* several steps of 2 rows"):
        collate(ITEMS[1:])
    assert collator(processor)(ITEMS[1:])


def test_validation_rows_get_the_draws_of_the_loss_alone(processor):
    drawn = collator(processor, **MANY_DRAWS, budgets=(60,), fovea_sizes=(256,))([item(0, is_training=False)])
    assert_same(drawn, collator(processor)([item(0)]))


@pytest.mark.parametrize(
    ("preset", "options", "message"),
    [
        ("shirg", {"answer_length": 0}, "answer_length"),
        ("lavida", {"gumbel": True}, "gumbel need.* preset that selects"),
        ("lavida", {"budgets": (9,)}, "budgets need.* preset that selects"),
        ("lavida", {"fovea_sizes": (224,)}, "preset with a fovea"),
    ],
)
def test_options_that_a_preset_cannot_have_are_refused(preset, options, message):
    with pytest.raises(ValueError, match=message):
        collator(tiny_processor(tiny_config(preset)), **options)


# Fovea boxes and augmentation


def test_a_box_places_the_fovea_and_is_scaled_with_the_image(processor):
    box = [10.0, 20.0, 60.0, 40.0]
    row = item(0, fovea_boxes=[box])
    plain = collator(processor)([row])["view_boxes"][0, 1]
    assert plain.tolist() == [0, 0, 224, 224]
    assert not torch.equal(plain, collator(processor)([item(0)])["view_boxes"][0, 1])
    row["images"][0] = noise_image(0, 1000, 1000)
    row["fovea_boxes"] = [[500.0, 600.0, 520.0, 620.0]]
    batch = collator(processor, augment=True)([row])
    scale = batch["image_sizes"][0, 1] / 1000
    left, top, right, bottom = batch["view_boxes"][0, 1].tolist()
    assert scale != 1
    assert (left + right) / 2 == pytest.approx(510 * scale, abs=1) and (top + bottom) / 2 == pytest.approx(
        610 * scale, abs=1
    )


def test_augmentation_changes_size_sharpness_and_contrast_within_limits_and_never_flips():
    ramp = np.add.outer(np.arange(80) * 2, np.arange(120)).astype(np.uint8)
    image, noise = Image.fromarray(ramp[..., None].repeat(3, axis=2)), noise_image(0, 60, 60)
    scales, contrasts, roughness = [], set(), []
    for row in range(60):
        out, again = (augmented(image, RowDraws(0).augmentation(RowKey(0, row), 0)) for _ in range(2))
        assert out.tobytes() == again.tobytes() and out.mode == "RGB"
        scales.append(out.width / image.width)
        assert out.height / image.height == pytest.approx(scales[-1], abs=0.02)
        back = np.asarray(out.resize(image.size), dtype=float)
        shown = [image, ImageOps.mirror(image), ImageOps.flip(image)]
        distances = [np.abs(back - np.asarray(other, dtype=float)).mean() for other in shown]
        assert distances[0] == min(distances)
        contrasts.add(round(back.std()))
        grain = augmented(noise, RowDraws(0).augmentation(RowKey(0, row), 0)).resize(noise.size)
        roughness.append(np.abs(np.diff(np.asarray(grain, int), axis=0)).mean())
    assert min(scales) >= 1 / MAX_SCALE - 0.01 and max(scales) <= MAX_SCALE + 0.01
    assert max(scales) - min(scales) > 0.3 and len(contrasts) > 3
    assert min(roughness) < 0.5 * max(roughness)


@pytest.mark.parametrize("answer", ["blue", "K", "a star", " 7"])
def test_the_bundled_tokenizer_merges_across_the_seam_and_training_sees_the_prompt_of_inference(answer):
    bundled = ShirgLavidaProcessor.from_pretrained(files("shirg_hub_card") / "shirg-lavida-tiny")
    image = noise_image(0)
    earlier = answered("What shape?", "star")
    for before in ([], earlier):
        messages = [*before, *answered("Which color?", answer, images=0 if before else 1)]
        asked = bundled.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        prompt = bundled(images=[[image]], text=[asked], return_tensors="pt", add_special_tokens=False)
        row = RowEncoder(bundled, answer_length=8).encode(messages, [image])
        length = prompt["input_ids"].shape[1]
        assert torch.equal(row["input_ids"][:, :length], prompt["input_ids"])
        assert torch.equal(row["question_mask"][:, :length], prompt["question_mask"])
        learned = row["labels"][0] != -100
        text = bundled.tokenizer.decode(row["labels"][0][learned])
        assert text.replace("<|endoftext|>", "") == f"{'star<|eot_id|>' if before else ''}{answer.strip()}<|eot_id|>"
        assert learned[length:].all() and row["input_ids"].shape[1] == length + 8
