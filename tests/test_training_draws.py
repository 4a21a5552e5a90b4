"""What training changes in the model's forward: a fovea of another size, noise on the ranking, dropped tokens."""

import pytest
import torch

from modeling_shirg.vision_shirg import resampled_positions
from tiny_model import QUESTIONS, chat, encode, noise_image, tiny_config, tiny_model, tiny_processor

SCORED = ("shirg", "shirg-784", "shirg-fixed", "shirg-mixed", "shirg-adaptive", "shirg-3645")


def _inputs(preset: str, images: int = 2, **options):
    config = tiny_config(preset)
    chats = [chat(question, noise_image(seed)) for seed, question in zip(range(images), QUESTIONS, strict=False)]
    return tiny_model(config), encode(tiny_processor(config), *chats, processor_kwargs=options)


def _gumbel(model, images: int, patches: int) -> torch.Tensor:
    uniform = torch.rand(images, patches, generator=torch.Generator().manual_seed(0))
    return -(-uniform.clamp_min(1e-20).log()).log()


def _num_patches(model) -> int:
    return model.config.num_selected_views * model.config.selected_grid**2


@pytest.mark.parametrize("preset", SCORED)
@torch.no_grad()
def test_noise_changes_which_tokens_are_kept_and_no_counts(preset):
    model, inputs = _inputs(preset)
    plain = model(**inputs, output_selection=True)
    noise = _gumbel(model, 2, _num_patches(model))
    noisy = model(**inputs, selection_noise=noise, output_selection=True)
    assert noisy.logits.shape == plain.logits.shape and noisy.kept_indices.shape == plain.kept_indices.shape
    assert not torch.equal(noisy.kept_indices, plain.kept_indices)
    assert torch.equal(noisy.scores, plain.scores)
    silent = model(**inputs, selection_noise=torch.zeros_like(noise), output_selection=True)
    assert torch.equal(silent.kept_indices, plain.kept_indices)


@torch.no_grad()
def test_noisy_selection_is_the_top_k_of_score_over_temperature_plus_noise():
    model, inputs = _inputs("shirg")
    noise = _gumbel(model, 2, _num_patches(model))
    for temperature in (0.15, 3.0):
        model.config.selection_temperature = temperature
        output = model(**inputs, selection_noise=noise, output_selection=True)
        expected = (output.scores / temperature + noise).topk(model.config.selection_budget).indices.sort().values
        assert torch.equal(output.kept_indices, expected)


@torch.no_grad()
def test_gumbel_draws_keep_a_token_as_often_as_the_softmax_says():
    """One token kept: Gumbel top-1 is a draw from softmax(score / T)."""
    model = tiny_model(tiny_config("shirg", selection_budget=1, selection_temperature=0.5))
    inputs = encode(tiny_processor(model.config), chat(QUESTIONS[0], noise_image(0)))
    draws = 4000
    noise = _gumbel(model, draws, 256)
    scores = model(**inputs, output_selection=True).scores[0]
    kept = (scores / 0.5 + noise).argmax(-1)
    one = model(**inputs, selection_noise=noise[:1], output_selection=True).kept_indices[0]
    assert one.item() == kept[0].item()
    share = torch.bincount(kept, minlength=256) / draws
    assert (share - (scores / 0.5).softmax(-1)).abs().max() < 0.01


@pytest.mark.parametrize("preset", ["shirg", "shirg-fixed", "shirg-mixed", "pool", "siglip-672", "random"])
@torch.no_grad()
def test_dropped_tokens_are_zero_after_projection_and_change_no_counts(preset):
    model, inputs = _inputs(preset)
    budget = model.config.selection_budget
    dropped = torch.rand(2, budget, generator=torch.Generator().manual_seed(0)) < 0.1
    views = {name: inputs[name] for name in ("pixel_values", "fovea_pixel_values", "patch_boxes") if name in inputs}
    plain = torch.stack(model.model.get_image_features(**views).image_tokens)
    zeroed = torch.stack(model.model.get_image_features(**views, dropped_tokens=dropped).image_tokens)
    expected = plain.clone()
    expected[:, -budget:][dropped] = 0
    assert torch.equal(zeroed, expected) and not torch.equal(zeroed, plain)
    assert not torch.allclose(model(**inputs).logits, model(**inputs, dropped_tokens=dropped).logits)


@pytest.mark.parametrize("preset", ["shirg", "shirg-fixed", "shirg-mixed", "pool"])
@torch.no_grad()
def test_another_fovea_is_read_at_interpolated_positions_and_the_budget_stays(preset):
    size = 256 if tiny_config(preset).fovea_size == 224 else 224
    model, inputs = _inputs(preset, fovea_size=size)
    assert inputs["fovea_size"].tolist() == [size, size]
    fixed = tiny_model(tiny_config(preset, fovea_size=size))
    fixed.load_state_dict({**fixed.state_dict(), **_without_table(model.state_dict())})
    table = model.model.vision_tower.foveal_position_embedding.weight
    fixed.model.vision_tower.foveal_position_embedding.weight.copy_(resampled_positions(table, size // 14))
    given = model(**inputs, output_selection=True)
    del inputs["fovea_size"]
    expected = fixed(**inputs, output_selection=True)
    assert torch.allclose(given.logits, expected.logits, atol=1e-4)
    if given.kept_indices is not None:
        assert torch.equal(given.kept_indices, expected.kept_indices)
        assert given.kept_indices.shape[1] == model.config.selection_budget


def _without_table(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in weights.items() if "foveal_position_embedding" not in name}


def test_the_foveal_table_learns_from_views_of_another_size():
    model, inputs = _inputs("shirg", fovea_size=336)
    labels = torch.where(torch.arange(inputs["input_ids"].shape[1]) > 250, inputs["input_ids"], -100)
    model(**inputs, labels=labels).loss.backward()
    assert model.model.vision_tower.foveal_position_embedding.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("preset", "given", "words"),
    [
        ("uniform", {"selection_noise": torch.zeros(2, 256)}, ("uniform", "ranks no patches")),
        ("pool", {"selection_noise": torch.zeros(2, 256)}, ("pool", "ranks no patches")),
        ("lavida-980", {"fovea_size": torch.tensor([224, 224])}, ("lavida-980", "fovea_size=224")),
        ("siglip-672", {"fovea_size": torch.tensor([336, 336])}, ("siglip-672", "fovea_size=336")),
        ("shirg", {"fovea_size": torch.tensor([224, 256])}, ("same fovea_size", "[224, 256]")),
        ("shirg", {"fovea_size": torch.tensor([256, 256])}, ("256", "224")),
    ],
)
def test_draws_that_do_not_fit_are_refused_by_name(preset, given, words):
    model, inputs = _inputs(preset)
    with pytest.raises(ValueError) as error:
        model(**inputs, **given)
    assert all(word in str(error.value) for word in words), error.value
