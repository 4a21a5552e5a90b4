"""The training objective: what is masked, who sees whom, and what the loss is made of."""

import pytest
import torch
from torch.nn import functional as F

from modeling_shirg.objective_shirg import (
    additive_mask,
    complementary_masks,
    diffusion_loss,
    masked_ratio,
    prefix_lm_mask,
)
from modeling_shirg.prefix_cache_shirg import CACHE_ARGUMENT
from tiny_model import chat, noise_image, tiny_config, tiny_model, tiny_processor

INFILL = 265


def _labels(rows: int = 3, length: int = 40, prompt: int = 15) -> torch.Tensor:
    labels = torch.randint(0, 200, (rows, length), generator=torch.Generator().manual_seed(0))
    labels[:, :prompt] = -100
    labels[1, 20:23] = INFILL
    return labels


def _noise(labels: torch.Tensor) -> torch.Tensor:
    return torch.rand(labels.shape, generator=torch.Generator().manual_seed(1))


def test_masks_are_complementary_on_the_targets_and_nowhere_else():
    labels = _labels()
    first, second = complementary_masks(labels, torch.tensor([0.2, 0.5, 0.9]), _noise(labels), INFILL).chunk(2)
    targets = (labels != -100) & (labels != INFILL)
    assert torch.equal(first | second, targets)
    assert not (first & second).any()


def test_the_ratio_masked_is_the_time_with_a_floor():
    labels = torch.zeros(4, 20_000, dtype=torch.int64)
    times = torch.tensor([0.0, 0.3, 0.7, 1.0])
    first = complementary_masks(labels, times, _noise(labels), INFILL)[:4]
    assert torch.allclose(first.float().mean(-1), masked_ratio(times), atol=0.01)
    assert masked_ratio(times).tolist() == pytest.approx([0.001, 0.3007, 0.7003, 1.0])


def test_the_prompt_does_not_see_the_answer_and_padding_is_seen_by_none():
    labels = torch.tensor([[-100, -100, 7, 8, -100], [-100, 5, 6, -100, -100]])
    attention = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    sees = prefix_lm_mask(labels, attention)
    assert sees[0, 0].int().tolist() == [[1, 1, 0, 0, 0]] * 2 + [[1, 1, 1, 1, 1]] * 3
    assert sees[1, 0].int().tolist() == [[1, 0, 0, 0, 0]] + [[1, 1, 1, 1, 0]] * 4


def test_inverse_t_weighs_each_use_by_the_ratio_it_was_masked_with():
    labels = _labels(rows=2, length=6, prompt=2)
    labels[1] = torch.tensor([-100, -100, -100, 5, 6, 7])
    times = torch.tensor([0.25, 0.5])
    masked = complementary_masks(labels, times, _noise(labels), INFILL)
    logits = torch.randn(int(masked.sum()), 300, generator=torch.Generator().manual_seed(2))
    losses = F.cross_entropy(logits, labels.repeat(2, 1)[masked], reduction="none")
    rows = masked.nonzero()[:, 0].tolist()
    ratios = [0.001 + 0.999 * t for t in (0.25, 0.5, 0.75, 0.5)]
    lengths = [4, 3, 4, 3]
    expected = sum(loss / ratios[row] / lengths[row] for loss, row in zip(losses, rows, strict=True)) / 4
    assert torch.allclose(diffusion_loss(logits, labels, masked, times, "inverse_t"), expected)
    assert torch.allclose(diffusion_loss(logits, labels, masked, times, "none"), losses.mean())


# Three to four standard deviations of these draws: a row's weight is up to 1,000, so the estimate is a noisy one.


def _training_batch(processor, config):
    turns = [
        [*chat("What?", noise_image(0)), {"role": "assistant", "content": "A square."}],
        [*chat("Which one?", noise_image(1)), {"role": "assistant", "content": "Blue, I think."}],
    ]
    batch = processor.apply_chat_template(turns, tokenize=True, return_dict=True, return_tensors="pt")
    ids = batch["input_ids"]
    starts = [(row == 260).nonzero()[-1, 0].item() + 3 for row in ids]
    labels = torch.full_like(ids, -100)
    for row, start in enumerate(starts):
        labels[row, start:] = ids[row, start:]
    labels[batch["attention_mask"] == 0] = -100
    return batch, labels


def _logits_by_hand(model, embeds: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Logits (L, V) where the prompt does not see the answer, without any mask: the prompt alone, then the answer."""
    start = int((labels != -100).int().argmax())
    prompt = model(inputs_embeds=embeds[:, :start], use_cache=True)
    places = torch.arange(start, embeds.shape[1])[None]
    answer = model(inputs_embeds=embeds[:, start:], position_ids=places, cache=prompt[CACHE_ARGUMENT])
    return torch.cat([prompt.logits[0], answer.logits[0]])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("prefix_lm", [False, True])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_the_loss_is_that_of_both_halves_run_by_hand(prefix_lm, padding_side, implementation):
    config = tiny_config(prefix_lm_loss=prefix_lm)
    model, processor = tiny_model(config), tiny_processor(config, padding_side)
    model.set_attn_implementation(implementation)
    assert model.model.language_model.config._attn_implementation == implementation
    batch, labels = _training_batch(processor, config)
    times, noise = torch.tensor([0.4, 0.6]), _noise(labels)
    output = model(**batch, labels=labels, diffusion_time=times, mask_noise=noise)
    masked = complementary_masks(labels, times, noise, INFILL)
    assert torch.equal(output.masked_positions, masked)
    total, count = 0.0, 0
    for half, row in ((half, row) for half in (0, 1) for row in (0, 1)):
        hidden = masked[2 * half + row]
        real = batch["attention_mask"][row].bool()
        ids = batch["input_ids"][row].where(~hidden, config.mask_token_id)[real][None]
        embeds, _ = model.model.prepare_inputs_embeds(
            ids,
            pixel_values=batch["pixel_values"][row : row + 1],
            fovea_pixel_values=batch["fovea_pixel_values"][row : row + 1],
            question_mask=batch["question_mask"][row : row + 1, real],
        )
        own = labels[row, real]
        logits = _logits_by_hand(model, embeds, own) if prefix_lm else model(inputs_embeds=embeds).logits[0]
        total = total + F.cross_entropy(logits[hidden[real]], own[hidden[real]], reduction="sum")
        count += int(hidden.sum())
    assert output.logits.shape == (count, 272)
    assert torch.allclose(output.loss, total / count, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_4d_mask_is_a_2d_one_spelt_out(implementation):
    config = tiny_config()
    model, processor = tiny_model(config), tiny_processor(config)
    model.set_attn_implementation(implementation)
    batch, labels = _training_batch(processor, config)
    real = batch["attention_mask"].bool()
    assert not real.all()
    given = {name: value for name, value in batch.items() if name != "attention_mask"}
    given["position_ids"] = (real.long().cumsum(-1) - 1).clamp_min(0)
    draws = {"labels": labels, "diffusion_time": torch.tensor([0.4, 0.6]), "mask_noise": _noise(labels)}
    sees = real[:, None, None, :].expand(-1, 1, real.shape[1], -1)
    with torch.no_grad():
        logits, loss = model(**batch).logits[real], model(**batch, **draws).loss
        for mask in (sees, additive_mask(sees, torch.empty(0))):
            assert torch.allclose(model(**given, attention_mask=mask).logits[real], logits, atol=1e-4)
            assert torch.allclose(model(**given, **draws, attention_mask=mask).loss, loss, rtol=1e-5)
        everything = torch.ones_like(sees[:1])
        free = model(**given, **draws).loss
        assert torch.allclose(model(**given, **draws, attention_mask=everything).loss, free, rtol=1e-5)
        assert abs(free - loss) > 1e-4 * loss


def test_drawn_masks_follow_the_seed_and_learning_lowers_the_loss():
    config = tiny_config()
    model, processor = tiny_model(config), tiny_processor(config)
    batch, labels = _training_batch(processor, config)
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(model(**batch, labels=labels).loss.item())
    assert losses[0] == losses[1] != losses[2]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(8):
        torch.manual_seed(0)
        loss = model(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.85 * losses[0]


def _problem():
    """A model, a batch of two rows, and its labels."""
    config = tiny_config()
    return tiny_model(config), *_training_batch(tiny_processor(config), config)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"labels": torch.full((2, 500), -100)}, "no token to predict"),
        ({"labels": torch.zeros(2, 5, dtype=torch.int64)}, r"labels \(2, 5\)"),
        ({"use_cache": True}, "use_cache"),
    ],
)
def test_what_cannot_be_trained_on_is_named(given, words):
    model, batch, labels = _problem()
    if "labels" in given:
        given = {"labels": given["labels"][:, : labels.shape[1]]}
    with pytest.raises(ValueError, match=words):
        model(**{**batch, "labels": labels, **given})
    with pytest.raises(ValueError, match="labels"):
        model.generate(**batch, labels=labels, max_new_tokens=4)


def test_4d_masks_that_no_kernel_reads_alike_are_refused():
    model, batch, labels = _problem()
    model.config.prefix_lm_loss = True
    length = labels.shape[1]
    four = torch.ones(2, 1, length, length, dtype=torch.bool)
    without = {name: value for name, value in batch.items() if name != "attention_mask"}
    with pytest.raises(ValueError, match="attention_mask .B, L., got 4D"):
        model(**without, labels=labels, attention_mask=four)
    with pytest.raises(ValueError, match="torch.int64"):
        model(**without, attention_mask=four.long())
