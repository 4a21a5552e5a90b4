"""The prefix cache: PrefixKV's choice against searches and counts, stored types, and generation with it."""

import itertools
import math

import pytest
import torch
from PIL import Image
from transformers.cache_utils import DynamicCache

from configuration_shirg import ShirgLavidaProcessor
from modeling_shirg import ShirgLavidaForConditionalGeneration
from modeling_shirg.generation_config_shirg import ShirgGenerationConfig
from modeling_shirg.prefix_cache_shirg import (
    CACHE_ARGUMENT,
    PrefixCache,
    PrefixLayer,
    attention_mass,
    encode_prefix,
    kept_positions,
    prefix_budget,
    run_layers,
)
from test_ask import BUNDLED, GRID, QUESTION
from test_generation import (
    TinyModel,
    assert_rows_equal_single_runs,
    capture_logits,
    close,
    golden,
    model,
    pad,
    prompts,
    report,
    seeded,
    tiny_config,
)
from tiny_model import QUESTIONS, chat, encode, noise_image, tiny_processor
from tiny_model import tiny_config as tiny_lavida_config
from tiny_model import tiny_model as tiny_lavida

__all__ = ["golden", "model", "prompts"]  # fixtures
LAYERS, HEADS, HEAD_WIDTH = 3, 4, 16


def random_scores(num_layers: int, length: int, seed: int = 0) -> torch.Tensor:
    """Scores of layers whose attention is spread out to different degrees."""
    sharpness = torch.linspace(0.5, 4, num_layers)[:, None]
    return (torch.randn(num_layers, length, generator=seeded(seed)) * sharpness).softmax(-1) * length


def eager_copy(model: TinyModel, **fields) -> TinyModel:
    eager = TinyModel(tiny_config(attn_implementation="eager", **fields)).eval()
    eager.load_state_dict(model.state_dict())
    return eager


@torch.no_grad()
def read(model: TinyModel, prompt: torch.Tensor) -> tuple[DynamicCache, torch.Tensor]:
    """The stock model's cache of a prompt, and the scores of its positions, (L, P)."""
    language_model, length = model.model.language_model, prompt.shape[1]
    cache = DynamicCache(config=language_model.config)
    kwargs = {CACHE_ARGUMENT: cache, "use_cache": True, "is_causal": False}
    inputs = language_model(prompt, output_hidden_states=True, **kwargs).hidden_states
    rotary = language_model.rotary_emb(inputs[0], position_ids=torch.arange(length)[None])
    real = torch.ones(1, length, dtype=torch.bool)
    triples = zip(language_model.layers, inputs, cache.layers, strict=False)
    return cache, torch.stack([attention_mass(layer, x, rotary, held.keys, real)[0] for layer, x, held in triples])


@torch.no_grad()
def prefix(model: TinyModel, prompt: torch.Tensor, mask: torch.Tensor | None = None, **options) -> PrefixCache:
    """The prompt's cache with room for 8 tokens."""
    real = torch.ones_like(prompt) if mask is None else mask
    positions = (real.cumsum(-1) - 1).clamp(min=0)
    response = positions.amax(-1, keepdim=True) + 1 + torch.arange(8)
    language_model = model.model.language_model
    mask = None if mask is None else mask.bool()
    config = ShirgGenerationConfig(**options)
    return encode_prefix(language_model, language_model.embed_tokens(prompt), mask, positions, response, config)


# ---------------------------------------------------------------- which positions are kept
def shortest_prefixes(scores_LP: torch.Tensor, threshold: float) -> set[tuple[int, int]]:
    """The rule as it is written: per layer the shortest sorted start that reaches the threshold, and the protected."""
    kept = set()
    for layer, scores_P in enumerate(scores_LP.tolist()):
        length, total, mass = len(scores_P), sum(scores_P), 0.0
        for position in sorted(range(length), key=lambda index: -scores_P[index]):
            if mass / total >= threshold:
                break
            mass += scores_P[position]
            kept.add((layer, position))
        kept |= {(layer, position) for position in (0, 1, 2, 3, length - 1)}
    return kept


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ratio", [0.45, 0.6, 0.8, 0.97])
def test_the_threshold_is_that_of_an_exhaustive_search(ratio, seed):
    scores_LP = random_scores(3, 14, seed)
    budget = math.floor(ratio * 3 * 14)
    masses = scores_LP.double().sort(descending=True).values.cumsum(-1)
    masses = [0.0, *sorted((masses / masses[:, -1:]).flatten().tolist())]
    thresholds = [0.0, *((one + next_one) / 2 for one, next_one in itertools.pairwise(masses))]
    fitting = [kept for kept in (shortest_prefixes(scores_LP, t) for t in thresholds) if len(kept) <= budget]
    found = {(layer, position) for layer, position in kept_positions(scores_LP, ratio).nonzero().tolist()}
    assert len(found) == budget
    assert found == max(fitting, key=len)


@pytest.mark.parametrize(("ratio", "length"), [(0.29, 100), (0.5, 33), (0.7, 10), (0.999, 977), (5 / 23, 23)])
def test_the_count_is_the_ratio_rounded_down(ratio, length):
    kept_LP = kept_positions(random_scores(4, length), ratio)
    assert kept_LP.sum() == math.floor(ratio * 4 * length + 1e-6) == prefix_budget(ratio, 4, length)


def test_equal_scores_still_give_the_exact_count_and_the_first_positions():
    kept_LP = kept_positions(torch.ones(3, 20), 0.5)
    assert kept_LP.sum(-1).tolist() == [10, 10, 10]
    assert kept_LP[:, :9].all() and kept_LP[:, 19].all()
    assert kept_positions(torch.ones(3, 20), 32 / 60).sum(-1).tolist() == [11, 11, 10]
    nothing_else_seen = torch.zeros(3, 20).index_fill(1, torch.tensor([0]), 20.0)
    assert kept_positions(nothing_else_seen, 0.5).sum(-1).tolist() == [10, 10, 10]


@torch.no_grad()
@pytest.mark.parametrize(("length", "key_heads"), [(24, 4), (300, 4), (30, 2)])
def test_scores_are_column_sums_of_the_weights_of_eager_attention(length, key_heads):
    torch.manual_seed(0)
    tiny = TinyModel(tiny_config(num_key_value_heads=key_heads)).eval()
    prompt = torch.randint(0, 480, (1, length), generator=seeded(3))
    eager = eager_copy(tiny, num_key_value_heads=key_heads)
    weights_L1HPP = torch.stack(eager.model.language_model(prompt, output_attentions=True).attentions)
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            _, scores_LP = read(tiny, prompt)
        assert scores_LP.dtype == torch.float32
        assert scores_LP.sum(-1).tolist() == pytest.approx([length] * LAYERS, rel=1e-5)
        if not autocast:
            torch.testing.assert_close(scores_LP, weights_L1HPP[:, 0].sum(2).mean(1), rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------- the prompt and the steps on it
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_prompt_is_read_as_the_stock_model_reads_it(model, prompts, side):
    cache = prefix(model, *pad(prompts, side))
    assert cache.lengths_LB.tolist() == [[11, 24, 17]] * LAYERS
    for row, prompt in enumerate(prompts):
        stock, _ = read(model, prompt)
        for layer, expected in zip(cache.layers, stock.layers, strict=True):
            for own, whole in zip(layer.prompt(), (expected.keys, expected.values), strict=True):
                close(own[row, :, : prompt.shape[1]], whole[0], 1e-5)


def test_survivors_stay_in_the_order_of_the_prompt_and_hold_its_rotated_keys(model, prompts):
    stock, scores_LP = read(model, prompts[1])
    cache = prefix(model, prompts[1], prefix_kv=0.5)
    for layer, expected, kept_P in zip(cache.layers, stock.layers, kept_positions(scores_LP, 0.5), strict=True):
        keys, values = layer.prompt()
        assert torch.equal(keys, expected.keys[:, :, kept_P]) and torch.equal(values, expected.values[:, :, kept_P])


@torch.no_grad()
@pytest.mark.parametrize("ratio", [None, 0.5])
def test_a_step_is_the_stock_model_on_a_cache_in_which_each_layer_hides_what_it_dropped(model, prompts, ratio):
    _, logits = capture_logits(model, input_ids=prompts[1], max_new_tokens=8, steps=1, prefix_kv=ratio)
    language_model, (stock, scores_LP) = model.model.language_model, read(model, prompts[1])
    kept_LP = torch.ones_like(scores_LP).bool() if ratio is None else kept_positions(scores_LP, ratio)
    masks = [torch.nn.functional.pad(kept_P, (0, 8), value=True).expand(1, 1, 8, -1) for kept_P in kept_LP]
    embeds = language_model.embed_tokens(torch.full((1, 8), 500))
    rotary = language_model.rotary_emb(embeds, position_ids=torch.arange(24, 32)[None])
    close(logits[0], model.lm_head(run_layers(language_model, embeds, rotary, masks, stock)), 1e-5)


# ---------------------------------------------------------------- generation
def test_a_ratio_of_one_changes_no_bit(model, prompts):
    kwargs = {"input_ids": prompts[1], "max_new_tokens": 8}
    _, plain = capture_logits(model, **kwargs)
    _, full = capture_logits(model, **kwargs, prefix_kv=1.0)
    assert torch.equal(plain, full)


def test_bytes_fall_to_the_ratio_and_layers_differ(model, golden):
    kwargs = {"inputs_embeds": golden["inputs_embeds"], "max_new_tokens": 4}
    length = golden["inputs_embeds"].shape[1]
    bytes_per_key = 2 * HEADS * HEAD_WIDTH * 4
    plain = report(model, **kwargs)
    assert plain.prefix_bytes == [length * bytes_per_key] * LAYERS
    assert plain.prefix_lengths.tolist() == [[length]] * LAYERS
    for ratio in (0.7, 0.5, 0.2):
        output = report(model, **kwargs, prefix_kv=ratio)
        lengths = output.prefix_lengths[:, 0].tolist()
        assert sum(lengths) == math.floor(ratio * LAYERS * length)
        assert output.prefix_bytes == [count * bytes_per_key for count in lengths]
        assert len(set(lengths)) > 1
    uncached = report(model, **kwargs, use_cache=False)
    assert uncached.prefix_bytes is None and uncached.prefix_lengths is None


@pytest.mark.parametrize("dtype", [None, "int8"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_single_runs(model, prompts, side, attention, dtype):
    runner = model if attention == "sdpa" else eager_copy(model)
    kwargs = {"max_new_tokens": 16, "block_length": 8, "prefix_kv": 0.6, "prefix_dtype": dtype}
    # A key on the edge between two steps of int8 may round either way, and moves the logits by its share.
    tolerance = 5e-5 if dtype is None else 1e-2
    batch, singles = assert_rows_equal_single_runs(runner, prompts, side, tolerance=tolerance, **kwargs)
    assert torch.equal(batch.prefix_lengths, torch.cat([single.prefix_lengths for single in singles], dim=1))
    width = HEADS * HEAD_WIDTH
    for num_bytes, longest in zip(batch.prefix_bytes, batch.prefix_lengths.amax(-1).tolist(), strict=True):
        scales = 0 if dtype is None else 3 * 4 * (width + HEADS * longest)
        assert num_bytes == 3 * longest * 2 * width * (4 if dtype is None else 1) + scales


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_model_with_images_answers_in_padded_batches_as_alone(side):
    config = tiny_lavida_config()
    lavida, processor = tiny_lavida(config), tiny_processor(config, side)
    chats = [chat(question, noise_image(seed)) for seed, question in enumerate(QUESTIONS)]
    kwargs = {"max_new_tokens": 6, "prefix_kv": 0.4}
    batch = report(lavida, **encode(processor, *chats, padding=True), **kwargs)
    for row, one in enumerate(chats):
        single = report(lavida, **encode(processor, one), **kwargs)
        assert torch.equal(batch.sequences[row, -6:], single.sequences[0, -6:])
        assert torch.equal(batch.prefix_lengths[:, row], single.prefix_lengths[:, 0])


def test_a_budget_below_the_protected_positions_is_named_before_any_work(model, prompts, monkeypatch):
    for layer in model.model.language_model.layers:
        monkeypatch.setattr(layer, "forward", lambda *args, **kwargs: pytest.fail("a layer ran"))
    input_ids, attention_mask = pad(prompts, "left")
    with pytest.raises(ValueError, match="prefix_kv=0.3 .* 9 of the 33 keys .* 11 tokens .* 15.* 5/11"):
        model.generate(input_ids=input_ids, attention_mask=attention_mask, prefix_kv=0.3)


# ---------------------------------------------------------------- types


def test_int8_is_off_by_at_most_half_a_step_per_channel_of_keys_and_per_position_of_values():
    keys, values = torch.randn(2, 2, 3, 10, 8)
    keys[..., 0] *= 100  # a channel far out leaves the others alone
    values[:, :, 0] *= 100  # and so does a position
    keys[:, :, :, 1] = 0
    layer = PrefixLayer(keys, values, 1, torch.int8)
    assert layer.keys.dtype == layer.values.dtype == torch.int8
    assert sum(part.nbytes for part in layer.prompt()) == 2 * keys.nbytes // 4 + 4 * (2 * 3 * 8 + 2 * 3 * 10)
    new_keys, new_values = layer.update(torch.ones(2, 3, 1, 8), torch.ones(2, 3, 1, 8))
    assert ((new_keys[:, :, :-1] - keys).abs() <= keys.abs().amax(-2, keepdim=True) / 254 + 1e-6).all()
    assert ((new_values[:, :, :-1] - values).abs() <= values.abs().amax(-1, keepdim=True) / 254 + 1e-6).all()
    assert (new_keys[:, :, -1] == 1).all() and (new_values[:, :, -1] == 1).all()


def test_a_smaller_type_does_not_change_the_answer_of_the_bundled_checkpoint():
    checkpoint = ShirgLavidaForConditionalGeneration.from_pretrained(BUNDLED).eval()
    inputs = encode(ShirgLavidaProcessor.from_pretrained(BUNDLED), chat(QUESTION, Image.open(GRID)))
    plain, plain_logits = capture_logits(checkpoint, max_new_tokens=8, **inputs)
    for dtype, bound in (("bfloat16", 4e-3), ("float16", 1e-3), ("int8", 1e-2)):
        output, logits = capture_logits(checkpoint, max_new_tokens=8, **inputs, prefix_dtype=dtype)
        assert torch.equal(output.sequences, plain.sequences)
        assert 0 < (logits[0] - plain_logits[0]).norm() / plain_logits[0].norm() < bound


def test_float16_that_would_overflow_is_named():
    with pytest.raises(ValueError, match="'float16' .*65504.* 1e[+]05.*'bfloat16'"):
        PrefixLayer(torch.full((1, 1, 2, 4), 1e5), torch.ones(1, 1, 2, 4), 1, torch.float16)
