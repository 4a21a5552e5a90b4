"""The compressed prefix cache: PrefixKV's choice against searches and counts, and generation with it."""

import functools
import itertools
import math

import pytest
import torch
from PIL import Image
from transformers import LlamaConfig
from transformers.cache_utils import DynamicCache, QuantizedCache

from configuration_shirg import ShirgLavidaProcessor
from modeling_shirg import (
    ShirgLavidaForConditionalGeneration,
)
from modeling_shirg.generation_config_shirg import ShirgGenerationConfig
from modeling_shirg.prefix_cache_shirg import (
    CACHE_ARGUMENT,
    NarrowPrefixLayer,
    PrefixCache,
    PrefixLayer,
    _read_prompt,
    attention_mass,
    encode_compressed,
    encode_whole,
    kept_positions,
    prefix_budget,
    run_layers,
)
from shirg_scripts.cli import main
from test_ask import BUNDLED, GRID, QUESTION, _report
from test_generation import DraftRecorder, TinyModel, capture_logits, golden, model, pad, prompts, tiny_config
from tiny_model import QUESTIONS, chat, encode, noise_image, tiny_processor
from tiny_model import tiny_config as tiny_lavida_config
from tiny_model import tiny_model as tiny_lavida

__all__ = ["golden", "model", "prompts"]  # fixtures
LAYERS, HEADS, HEAD_WIDTH = 3, 4, 16


def random_scores(num_layers: int, length: int, seed: int = 0) -> torch.Tensor:
    """Scores of layers whose attention is spread out to different degrees."""
    generator = torch.Generator().manual_seed(seed)
    sharpness = torch.linspace(0.5, 4, num_layers)[:, None]
    return (torch.randn(num_layers, length, generator=generator) * sharpness).softmax(-1) * length


@pytest.fixture(scope="module")
def bundled():
    """The trained toy model, and its inputs for one question."""
    checkpoint = ShirgLavidaForConditionalGeneration.from_pretrained(BUNDLED).eval()
    processor = ShirgLavidaProcessor.from_pretrained(BUNDLED)
    return checkpoint, encode(processor, chat(QUESTION, Image.open(GRID)))


def generate(model: TinyModel, prompt: torch.Tensor, **kwargs):
    return model.generate(input_ids=prompt, return_dict_in_generate=True, **{"max_new_tokens": 8, **kwargs})


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


def test_the_threshold_is_that_of_a_bisection_on_long_prompts():
    scores_LP = random_scores(8, 980)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        fits = len(shortest_prefixes(scores_LP, middle)) <= math.floor(0.3 * 8 * 980)
        low, high = (middle, high) if fits else (low, middle)
    found = {(layer, position) for layer, position in kept_positions(scores_LP, 0.3).nonzero().tolist()}
    assert found == shortest_prefixes(scores_LP, low)


@pytest.mark.parametrize(("ratio", "length"), [(0.29, 100), (0.5, 33), (0.7, 10), (0.999, 977), (5 / 23, 23)])
def test_the_count_is_the_ratio_rounded_down(ratio, length):
    kept_LP = kept_positions(random_scores(4, length), ratio)
    assert kept_LP.sum() == math.floor(ratio * 4 * length + 1e-6) == prefix_budget(ratio, 4, length)


def test_layers_keep_what_they_need_and_protected_positions():
    scores_LP = random_scores(4, 100)
    scores_LP[:, [0, 1, 2, 3, -1]] = 1e-9
    kept_LP = kept_positions(scores_LP, 0.3)
    assert kept_LP[:, [0, 1, 2, 3, -1]].all()
    lengths = kept_LP.sum(-1).tolist()
    assert lengths == sorted(lengths, reverse=True) and len(set(lengths)) == 4  # the sharpest layer is the last


def test_equal_scores_still_give_the_exact_count_and_the_first_positions():
    kept_LP = kept_positions(torch.ones(3, 20), 0.5)
    assert kept_LP.sum(-1).tolist() == [10, 10, 10]
    assert kept_LP[:, :9].all() and kept_LP[:, 19].all()
    uneven = kept_positions(torch.ones(3, 20), 32 / 60)
    assert uneven.sum(-1).tolist() == [11, 11, 10]
    nothing_else_seen = torch.zeros(3, 20).index_fill(1, torch.tensor([0]), 20.0)
    assert kept_positions(nothing_else_seen, 0.5).sum(-1).tolist() == [10, 10, 10]


def test_a_tail_below_the_resolution_of_float32_is_compared_between_layers():
    tail = torch.linspace(1e-10, 1e-9, 49)
    scores_LP = torch.stack([torch.cat([torch.tensor([1.0]), tail * factor]) for factor in (0.001, 1.0)])
    kept_LP = kept_positions(scores_LP, 0.4)
    assert kept_LP.sum(-1).tolist() == [5, 35] and kept_LP[1, 50 - 31 :].all()


@pytest.mark.parametrize("length", [3, 5])
def test_a_prompt_of_protected_positions_alone(length):
    assert kept_positions(torch.rand(2, length), 1.0).all()
    with pytest.raises(ValueError, match=rf"prefix_kv=0.9 keeps .* {2 * length} keys .* {length}/{length}"):
        kept_positions(torch.rand(2, length), 0.9)


# ---------------------------------------------------------------- the scores
def layer_scores(model: TinyModel, prompt: torch.Tensor) -> list[torch.Tensor]:
    language_model, cache, scores = model.model.language_model, DynamicCache(), []
    real = torch.ones(prompt.shape, dtype=torch.bool)

    def score(layer, hidden, rotary):
        scores.append(attention_mass(layer, hidden, rotary, cache.layers[len(scores)].keys, real)[0])

    with torch.no_grad():
        embeds = language_model.embed_tokens(prompt)
        positions = torch.arange(prompt.shape[1])[None]
        _read_prompt(language_model, embeds, None, positions, cache, score)
    return scores


def eager_copy(model: TinyModel, **fields) -> TinyModel:
    eager = TinyModel(tiny_config(attn_implementation="eager", **fields)).eval()
    eager.load_state_dict(model.state_dict())
    return eager


@pytest.mark.parametrize("length", [24, 300])
def test_scores_are_column_sums_of_the_weights_of_eager_attention(model, length):
    prompt = torch.randint(0, 480, (1, length), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        attentions = eager_copy(model).model.language_model(prompt, output_attentions=True).attentions
    for scores_P, weights_1HPP in zip(layer_scores(model, prompt), attentions, strict=True):
        torch.testing.assert_close(scores_P, weights_1HPP[0].sum(1).mean(0), rtol=1e-4, atol=1e-6)
        assert scores_P.dtype == torch.float32 and scores_P.sum().item() == pytest.approx(length, rel=1e-5)


def test_scores_with_shared_key_heads(model):
    torch.manual_seed(0)
    shared = TinyModel(tiny_config(num_key_value_heads=2)).eval()
    prompt = torch.randint(0, 480, (1, 30))
    eager = eager_copy(shared, num_key_value_heads=2)
    with torch.no_grad():
        attentions = eager.model.language_model(prompt, output_attentions=True).attentions
    for scores_P, weights_1HPP in zip(layer_scores(shared, prompt), attentions, strict=True):
        torch.testing.assert_close(scores_P, weights_1HPP[0].sum(1).mean(0), rtol=1e-5, atol=1e-6)
    assert generate(shared, prompt, prefix_kv=0.4).prefix_lengths.sum() == 36


def test_attention_is_never_held_for_more_than_a_chunk_of_queries(model, monkeypatch):
    heights, softmax = [], torch.Tensor.softmax
    monkeypatch.setattr(
        torch.Tensor, "softmax", lambda self, dim: heights.append(self.shape[-2]) or softmax(self, dim)
    )
    layer_scores(model, torch.randint(0, 480, (1, 300)))
    assert heights == [128, 128, 44] * LAYERS


def test_scores_are_float32_under_autocast(model):
    layer = model.model.language_model.layers[0]
    hidden, rotary = torch.randn(1, 24, 64), (torch.ones(1, 24, 16), torch.zeros(1, 24, 16))
    keys, real = torch.randn(1, HEADS, 24, HEAD_WIDTH), torch.ones(1, 24, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (scores_P,) = attention_mass(layer, hidden, rotary, keys, real)
    assert scores_P.dtype == torch.float32
    assert scores_P.bfloat16().float().ne(scores_P).any()
    assert scores_P.sum().item() == pytest.approx(24, rel=1e-5)


# ---------------------------------------------------------------- generation
def test_a_ratio_of_one_changes_no_bit(model, prompts):
    for prompt in prompts:
        plain, plain_logits = capture_logits(model, input_ids=prompt, max_new_tokens=8)
        full, full_logits = capture_logits(model, input_ids=prompt, max_new_tokens=8, prefix_kv=1.0)
        assert torch.equal(plain, full) and torch.equal(plain_logits, full_logits)


def rotation(model: TinyModel, first: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    positions = torch.arange(first, first + length)[None]
    return model.model.language_model.rotary_emb(torch.zeros(1, length, 64), position_ids=positions)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_prompt_is_read_as_the_stock_model_reads_it(model, prompts, side):
    input_ids, mask = pad(prompts, side)
    language_model = model.model.language_model
    with torch.no_grad():
        embeds, positions = language_model.embed_tokens(input_ids), (mask.cumsum(-1) - 1).clamp(min=0)
        cache, lengths_LB = encode_whole(language_model, embeds, mask.bool(), positions, 8)
        compressed, same_LB = encode_compressed(language_model, embeds, mask.bool(), positions, 8, None, None)
        stock = DynamicCache(config=language_model.config)
        kwargs = {"attention_mask": mask, "position_ids": positions, "is_causal": False}
        language_model(inputs_embeds=embeds, **{CACHE_ARGUMENT: stock}, use_cache=True, **kwargs)
    assert lengths_LB.tolist() == same_LB.tolist() == [[11, 24, 17]] * LAYERS
    for layer, small, expected in zip(cache.layers, compressed.layers, stock.layers, strict=True):
        for row in range(3):
            for own, less, whole in zip(layer.prompt(), small.prompt(), (expected.keys, expected.values), strict=True):
                seen = whole[row, :, mask[row].bool()]
                assert torch.equal(own[row, :, mask[row].bool()], seen)
                assert torch.equal(less[row, :, : seen.shape[1]], seen)


def test_a_step_runs_as_the_stock_model_runs_it(model, prompts):
    _, plain = capture_logits(model, input_ids=prompts[1], max_new_tokens=8)
    language_model = model.model.language_model
    with torch.no_grad():
        stock = DynamicCache(config=language_model.config)
        language_model(prompts[1], **{CACHE_ARGUMENT: stock}, use_cache=True, is_causal=False)
        hidden = language_model(
            torch.full((1, 8), 500),
            position_ids=torch.arange(24, 32)[None],
            **{CACHE_ARGUMENT: stock},
            use_cache=True,
            is_causal=False,
        ).last_hidden_state
    torch.testing.assert_close(plain[0], model.lm_head(hidden), rtol=0, atol=1e-5 * plain[0].abs().max().item())


def test_bytes_fall_to_the_ratio_and_layers_differ(model, golden):
    kwargs = {"inputs_embeds": golden["inputs_embeds"], "return_dict_in_generate": True, "max_new_tokens": 4}
    length = golden["inputs_embeds"].shape[1]
    bytes_per_key = 2 * HEADS * HEAD_WIDTH * 4
    plain = model.generate(**kwargs)
    assert plain.prefix_bytes == [length * bytes_per_key] * LAYERS
    assert plain.prefix_lengths.tolist() == [[length]] * LAYERS
    for ratio in (0.7, 0.5, 0.2):
        output = model.generate(**kwargs, prefix_kv=ratio)
        lengths = output.prefix_lengths[:, 0].tolist()
        assert sum(lengths) == math.floor(ratio * LAYERS * length)
        assert output.prefix_bytes == [count * bytes_per_key for count in lengths]
        assert len(set(lengths)) > 1


def test_nothing_is_reported_without_a_cache(model, prompts):
    output = generate(model, prompts[0], use_cache=False)
    assert output.prefix_bytes is None and output.prefix_lengths is None


def test_evicting_is_hiding(model, prompts):
    """The logits are those of a full cache in which each layer masks what it dropped."""
    prompt = prompts[1]
    kept_LP = kept_positions(torch.stack(layer_scores(model, prompt)), 0.5)
    _, logits = capture_logits(model, input_ids=prompt, max_new_tokens=8, steps=1, prefix_kv=0.5)
    with torch.no_grad():
        language_model = model.model.language_model
        full = DynamicCache(config=language_model.config)
        language_model(prompt, **{CACHE_ARGUMENT: full}, use_cache=True, is_causal=False)
        masks = [torch.nn.functional.pad(kept_P, (0, 8), value=True).expand(1, 1, 8, -1) for kept_P in kept_LP]
        embeds = language_model.embed_tokens(torch.full((1, 8), 500))
        hidden = run_layers(language_model, embeds, rotation(model, 24, 8), masks, full)
    expected = model.lm_head(hidden)
    torch.testing.assert_close(logits[0], expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    _, plain = capture_logits(model, input_ids=prompt, max_new_tokens=8, steps=1)
    assert (plain[0] - expected).abs().max() > 1e-2


@pytest.mark.parametrize(
    "options", [{"prefix_kv": 0.6}, {"prefix_kv": 0.6, "prefix_dtype": "int8"}, {"prefix_dtype": "int8"}]
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_single_runs(model, prompts, side, attention, options):
    runner = model if attention == "sdpa" else eager_copy(model)
    kwargs = {"max_new_tokens": 16, "block_length": 8, "return_dict_in_generate": True, **options}
    input_ids, attention_mask = pad(prompts, side)
    batch, batch_logits = capture_logits(runner, input_ids=input_ids, attention_mask=attention_mask, **kwargs)
    singles = [capture_logits(runner, input_ids=prompt, **kwargs) for prompt in prompts]
    for row, (single, single_logits) in enumerate(singles):
        assert torch.equal(batch.sequences[row, -16:], single.sequences[0, -16:])
        assert torch.equal(batch.prefix_lengths[:, row], single.prefix_lengths[:, 0])
        # A key on the edge between two steps of int8 may round either way, and moves the logits by its share.
        tolerance = (1e-2 if "prefix_dtype" in options else 5e-5) * single_logits.abs().max().item()
        torch.testing.assert_close(batch_logits[:, row], single_logits[:, 0], rtol=0, atol=tolerance)
    longest = [max(single.prefix_lengths[layer, 0].item() for single, _ in singles) for layer in range(LAYERS)]
    width = HEADS * HEAD_WIDTH
    for layer, num_bytes in enumerate(batch.prefix_bytes):
        scales = 3 * 4 * (width + HEADS * longest[layer]) if "prefix_dtype" in options else 0
        assert num_bytes == 3 * longest[layer] * 2 * width * (1 if "prefix_dtype" in options else 4) + scales


def test_rows_of_one_length_need_no_padding_to_keep_different_numbers(model):
    generator = torch.Generator().manual_seed(7)
    rows = torch.randint(0, 480, (4, 40), generator=generator)
    rows[1] = rows[1, :1]  # one token repeated: nothing to choose between
    batch, logits = capture_logits(
        model, input_ids=rows, max_new_tokens=8, prefix_kv=0.3, return_dict_in_generate=True
    )
    assert batch.prefix_lengths.sum(0).tolist() == [36] * 4
    assert len({tuple(lengths) for lengths in batch.prefix_lengths.T.tolist()}) > 1
    for row in range(4):
        single, single_logits = capture_logits(model, input_ids=rows[row : row + 1], max_new_tokens=8, prefix_kv=0.3)
        assert torch.equal(batch.sequences[row], single[0])
        tolerance = 5e-5 * single_logits.abs().max().item()
        torch.testing.assert_close(logits[:, row], single_logits[:, 0], rtol=0, atol=tolerance)


def test_eager_and_sdpa_agree(model, prompts):
    kwargs = {"input_ids": prompts[1], "max_new_tokens": 8, "prefix_kv": 0.5}
    tokens, logits = capture_logits(model, **kwargs)
    eager_tokens, eager_logits = capture_logits(eager_copy(model), **kwargs)
    assert torch.equal(tokens, eager_tokens)
    torch.testing.assert_close(logits, eager_logits, rtol=0, atol=5e-5 * logits.abs().max().item())


def test_survivors_stay_in_the_order_of_the_prompt_and_hold_its_rotated_keys(model, prompts):
    prompt = prompts[1]
    language_model = model.model.language_model
    with torch.no_grad():
        full = DynamicCache(config=language_model.config)
        language_model(prompt, **{CACHE_ARGUMENT: full}, use_cache=True, is_causal=False)
        embeds = language_model.embed_tokens(prompt)
        cache, _ = encode_compressed(language_model, embeds, None, torch.arange(24)[None], 8, 0.5, None)
    kept_LP = kept_positions(torch.stack(layer_scores(model, prompt)), 0.5)
    for layer, full_layer, kept_P in zip(cache.layers, full.layers, kept_LP, strict=True):
        keys, values = layer.prompt()
        assert torch.equal(keys, full_layer.keys[:, :, kept_P])
        assert torch.equal(values, full_layer.values[:, :, kept_P])


@pytest.mark.parametrize("dtype", [None, torch.int8])
def test_the_prefix_is_never_written(model, prompts, dtype):
    embeds = model.model.language_model.embed_tokens(prompts[1]).detach()
    cache, _ = encode_compressed(model.model.language_model, embeds, None, torch.arange(24)[None], 8, 0.5, dtype)
    before = [[part.clone() for part in layer.prompt()] for layer in cache.layers]
    for _ in range(2):
        new_keys, new_values = torch.randn(2, 1, HEADS, 8, 16)
        keys, values = cache.update(new_keys, new_values, 0)
        assert keys.shape[2] == values.shape[2] == cache.get_seq_length(0) + 8 == cache.layers[0].get_max_length()
        assert torch.equal(keys[:, :, -8:], new_keys) and torch.equal(values[:, :, -8:], new_values)
    for layer, parts in zip(cache.layers, before, strict=True):
        assert all(torch.equal(part, old) for part, old in zip(layer.prompt(), parts, strict=True))


def test_steps_write_into_one_buffer(model, prompts):
    embeds = model.model.language_model.embed_tokens(prompts[1]).detach()
    cache, _ = encode_whole(model.model.language_model, embeds, None, torch.arange(24)[None], 8)
    first, second = (cache.update(*torch.randn(2, 1, HEADS, 8, 16), 0) for _ in range(2))
    assert [each.data_ptr() for each in first] == [each.data_ptr() for each in second]


def test_full_attention_has_no_mask(model, prompts):
    language_model = model.model.language_model
    embeds = language_model.embed_tokens(torch.cat([prompts[1], prompts[1]])).detach()
    positions = torch.arange(24).expand(2, -1)
    for read in (encode_whole, functools.partial(encode_compressed, ratio=None, dtype=None)):
        cache, _ = read(language_model, embeds, None, positions, 8)
        assert cache.attention_masks(language_model, embeds[:, :8]) == [None] * LAYERS


def test_blocks_drafts_and_streaming(model, prompts):
    streamer = DraftRecorder()
    kwargs = {"prefix_kv": 0.5, "prefix_dtype": "bfloat16", "block_length": 4}
    output = generate(model, prompts[1], streamer=streamer, output_history=True, **kwargs)
    drafts = [value for name, value in streamer.events if name == "draft"]
    assert len(drafts) == output.forwards == 8 and torch.equal(drafts[-1], output.sequences[:, -8:])
    draft = torch.tensor([500, 500, 500, 500, 1, 2, 3, 4])
    drafted = generate(model, prompts[1], draft_ids=draft, **kwargs)
    assert drafted.sequences[0, -4:].tolist() == [1, 2, 3, 4] and drafted.forwards == 4


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_model_with_images_answers_in_padded_batches_as_alone(side):
    config = tiny_lavida_config()
    lavida, processor = tiny_lavida(config), tiny_processor(config, side)
    chats = [chat(question, noise_image(seed)) for seed, question in enumerate(QUESTIONS)]
    kwargs = {"max_new_tokens": 6, "prefix_kv": 0.4, "return_dict_in_generate": True}
    batch = lavida.generate(**encode(processor, *chats, padding=True), **kwargs)
    for row, one in enumerate(chats):
        single = lavida.generate(**encode(processor, one), **kwargs)
        assert torch.equal(batch.sequences[row, -6:], single.sequences[0, -6:])
        assert torch.equal(batch.prefix_lengths[:, row], single.prefix_lengths[:, 0])


# ---------------------------------------------------------------- types
@pytest.mark.parametrize(("dtype", "step"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_stored_floats_are_off_by_at_most_their_rounding(dtype, step):
    keys, values = torch.randn(2, 2, 3, 10, 8)
    layer = NarrowPrefixLayer(1, dtype)
    layer.update(keys, values)
    restored = layer.update(torch.zeros(2, 3, 1, 8), torch.zeros(2, 3, 1, 8))
    assert layer.keys.dtype == dtype and layer.keys.nbytes * 2 == keys.nbytes
    for stored, states in zip(restored, (keys, values), strict=True):
        assert stored.dtype == torch.float32
        assert ((stored[:, :, :-1] - states).abs() <= step * states.abs() + 1e-7).all()


def test_int8_is_off_by_at_most_half_a_step_per_channel_of_keys_and_per_position_of_values():
    keys, values = torch.randn(2, 2, 3, 10, 8)
    keys[..., 0] *= 100  # a channel far out leaves the others alone
    values[:, :, 0] *= 100  # and so does a position
    keys[:, :, :, 1] = 0
    layer = NarrowPrefixLayer(1, torch.int8)
    layer.update(keys, values)
    assert layer.keys.dtype == layer.values.dtype == torch.int8
    new_keys, new_values = layer.update(torch.ones(2, 3, 1, 8), torch.ones(2, 3, 1, 8))
    assert ((new_keys[:, :, :-1] - keys).abs() <= keys.abs().amax(-2, keepdim=True) / 254 + 1e-6).all()
    assert ((new_values[:, :, :-1] - values).abs() <= values.abs().amax(-1, keepdim=True) / 254 + 1e-6).all()
    assert (new_keys[:, :, -1] == 1).all() and (new_values[:, :, -1] == 1).all()


@pytest.mark.parametrize(
    ("dtype", "bound", "share"), [("bfloat16", 6e-2, 0.5), ("float16", 6e-3, 0.5), ("int8", 0.2, 0.3)]
)
@pytest.mark.parametrize("ratio", [None, 0.5])
def test_logits_with_a_smaller_type_are_close_even_where_attention_is_sharp(model, golden, dtype, bound, share, ratio):
    kwargs = {"inputs_embeds": golden["inputs_embeds"], "max_new_tokens": 8, "return_dict_in_generate": True}
    plain, plain_logits = capture_logits(model, **kwargs, prefix_kv=ratio)
    output, logits = capture_logits(model, **kwargs, prefix_kv=ratio, prefix_dtype=dtype)
    assert 0 < (logits[0] - plain_logits[0]).norm() / plain_logits[0].norm() < bound
    assert output.prefix_lengths.tolist() == plain.prefix_lengths.tolist()
    assert sum(output.prefix_bytes) <= share * sum(plain.prefix_bytes)


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 4e-3), ("float16", 1e-3), ("int8", 1e-2)])
def test_a_smaller_type_does_not_change_the_answer_of_the_bundled_checkpoint(bundled, dtype, bound):
    checkpoint, inputs = bundled
    plain, plain_logits = capture_logits(checkpoint, **inputs)
    tokens, logits = capture_logits(checkpoint, **inputs, prefix_dtype=dtype)
    assert torch.equal(tokens, plain)
    assert 0 < (logits[0] - plain_logits[0]).norm() / plain_logits[0].norm() < bound


def test_a_bfloat16_model_answers_with_every_type(prompts):
    torch.manual_seed(0)
    half = TinyModel(tiny_config()).eval().to(torch.bfloat16)
    plain = generate(half, prompts[1])
    same = generate(half, prompts[1], prefix_dtype="bfloat16")
    assert torch.equal(plain.sequences, same.sequences) and plain.prefix_bytes == same.prefix_bytes
    for dtype in (None, "float16", "int8"):
        output = generate(half, prompts[1], prefix_kv=0.5, prefix_dtype=dtype)
        assert output.sequences.shape == plain.sequences.shape and output.prefix_lengths.sum() == 36


def test_float16_that_would_overflow_is_named():
    with pytest.raises(ValueError, match="'float16' ends at 65504.0.* reach 1e[+]05: use 'bfloat16'"):
        NarrowPrefixLayer(1, torch.float16).update(torch.full((1, 1, 2, 4), 1e5), torch.ones(1, 1, 2, 4))


def test_why_it_is_not_the_quantized_cache_of_transformers():
    """It mixes the response into what it stores, and `crop` does not take it out again."""
    cache = QuantizedCache("fp8", LlamaConfig(num_hidden_layers=1))
    prefix, response = torch.randn(1, 4, 10, 16), torch.randn(1, 4, 3, 16)
    cache.update(prefix, prefix, 0)
    cache.update(response, response, 0)
    with pytest.raises(IndexError):
        cache.crop(-3)


def test_bytes_count_the_scales():
    keys = torch.randn(1, 2, 6, 4)
    cache = DynamicCache()
    cache.update(keys, keys, 0)
    kept = torch.tensor([[[True, False, True, True, False, True]]])
    small = PrefixCache.survivors(cache, kept, 3, torch.int8)
    assert small.prompt_bytes() == [2 * (2 * 4 * 4) + 4 * (2 * 4 + 2 * 4)]
    layer = PrefixLayer(3)
    layer.update(keys, keys)
    assert PrefixCache([layer], [None]).prompt_bytes() == [2 * keys.nbytes]


# ---------------------------------------------------------------- errors
@pytest.mark.parametrize("ratio", [0, -0.5, 1.01, 2, math.nan, math.inf, True, "0.5"])
def test_a_ratio_out_of_range_is_named(ratio):
    with pytest.raises(ValueError, match=r"prefix_kv=.*\(0, 1\]"):
        ShirgGenerationConfig(prefix_kv=ratio)


@pytest.mark.parametrize("dtype", ["int4", "float32", torch.int8])
def test_an_unknown_type_is_named(dtype):
    with pytest.raises(ValueError, match="prefix_dtype=.*'bfloat16', 'float16', 'int8'"):
        ShirgGenerationConfig(prefix_dtype=dtype)


@pytest.mark.parametrize("option", [{"prefix_kv": 0.5}, {"prefix_kv": 1.0}, {"prefix_dtype": "int8"}])
def test_options_without_a_cache_name_both(option):
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=f"{name}={value!r} needs use_cache=True, got False"):
        ShirgGenerationConfig(use_cache=False, **option)


def test_a_budget_below_the_protected_positions_is_named_before_any_work(model, prompts, monkeypatch):
    for layer in model.model.language_model.layers:
        monkeypatch.setattr(layer, "forward", lambda *args, **kwargs: pytest.fail("a layer ran"))
    input_ids, attention_mask = pad(prompts, "left")
    with pytest.raises(ValueError, match="prefix_kv=0.3 keeps 9 of the 33 keys .* 11 tokens .* are 15.* 5/11"):
        model.generate(input_ids=input_ids, attention_mask=attention_mask, prefix_kv=0.3)


def test_options_are_saved_with_a_model(tmp_path):
    config = ShirgGenerationConfig(prefix_kv=0.5, prefix_dtype="int8")
    config.save_pretrained(tmp_path)
    loaded = ShirgGenerationConfig.from_pretrained(tmp_path)
    assert (loaded.prefix_kv, loaded.prefix_dtype) == (0.5, "int8")


# ---------------------------------------------------------------- the command
def test_the_command_reports_bytes(capsys):
    plain = _report(capsys, GRID, QUESTION)["prefix_bytes"]
    assert plain["total"] == sum(plain["per_layer"]) and len(set(plain["per_layer"])) == 1
    report = _report(capsys, GRID, QUESTION, "--prefix-kv", "0.5", "--prefix_dtype", "bfloat16")
    small = report["prefix_bytes"]
    bytes_per_key = 2 * 192 * 2
    assert small["total"] == plain["total"] // 2 // 2 // bytes_per_key * bytes_per_key
    assert len(small["per_layer"]) == len(plain["per_layer"]) and len(set(small["per_layer"])) > 1
    assert report["seconds"]["prefix"] > 0 and report["seconds"]["denoise"] > 0


def test_the_command_names_wrong_options(capsys):
    assert main(["ask", GRID, QUESTION, "--prefix_kv", "1.5"]) == 2
    error = capsys.readouterr().err
    assert "prefix_kv=1.5" in error and "(0, 1]" in error
