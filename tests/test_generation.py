"""The denoising loop against itself: cached, padded, drafted, sampled. (tests/exactness.py has the original LaViDa.)

`generation_lm.safetensors` is a tiny random LLaDA in the names of a stock `LlamaModel`.
"""

import copy
import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import (
    CompileConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
    TextDiffusionStreamer,
)
from transformers.cache_utils import DynamicCache
from transformers.generation.streamers import BaseStreamer

from modeling_shirg.denoising_shirg import (
    DenoisingStep,
    select_positions,
    transfer_counts,
)
from modeling_shirg.generation_config_shirg import ShirgGenerationConfig
from modeling_shirg.generation_shirg_lavida import ShirgGenerationOutput, ShirgLavidaGenerationMixin
from modeling_shirg.prefix_cache_shirg import CACHE_ARGUMENT

FIXTURES = Path(__file__).parent / "fixtures"
MASK, IMAGE = 500, 511


class TinyBody(torch.nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.language_model = LlamaModel(config)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.language_model.embed_tokens

    def prepare_inputs_embeds(self, input_ids: torch.Tensor):
        return self.get_input_embeddings()(input_ids), None


class TinyModel(ShirgLavidaGenerationMixin, PreTrainedModel):
    """The contract of the mixin around a stock Llama."""

    config_class = LlamaConfig
    base_model_prefix = "model"
    _supports_sdpa = True

    def __init__(self, config: LlamaConfig):
        super().__init__(config)
        self.model = TinyBody(config)
        self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, pixel_values=None, image_sizes=None, labels=None, **kwargs):
        raise AssertionError("generate runs the language model itself")


def tiny_config(**fields) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        is_causal=False,
        bos_token_id=480,
        eos_token_id=481,
        pad_token_id=481,
        mask_token_id=MASK,
        image_token_id=IMAGE,
        **fields,
    )


@pytest.fixture(scope="module")
def model() -> TinyModel:
    model = TinyModel(tiny_config()).eval()
    model.load_state_dict(load_file(FIXTURES / "generation_lm.safetensors"))
    return model


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    """A prompt of 836 embeddings."""
    return load_file(FIXTURES / "generation_prompt.safetensors")


@pytest.fixture(scope="module")
def prompts() -> list[torch.Tensor]:
    """Three prompts of different lengths, each `(1, P)`."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 480, (1, length), generator=generator) for length in (11, 24, 17)]


def pad(prompts: list[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """`input_ids` and `attention_mask` of the padded batch."""
    longest = max(prompt.shape[1] for prompt in prompts)
    rows, masks = [], []
    for prompt in prompts:
        gap = longest - prompt.shape[1]
        padding = (gap, 0) if side == "left" else (0, gap)
        rows.append(torch.nn.functional.pad(prompt, padding, value=481))
        masks.append(torch.nn.functional.pad(torch.ones_like(prompt), padding))
    return torch.cat(rows), torch.cat(masks)


@torch.no_grad()
def capture_logits(model, **kwargs) -> tuple[ShirgGenerationOutput, torch.Tensor]:
    """The output of `generate`, and the logits of all its forwards, `(forwards, B, R, V)`: 0 at filled positions."""
    products = []
    handle = model.lm_head.register_forward_hook(lambda module, args, output: products.append(output.clone()))
    try:
        output = report(model, **kwargs)
    finally:
        handle.remove()
    mask = model.config.mask_token_id
    logits, response_BR = [], torch.full_like(output.history[0], mask)
    for product_BMV, after_BR in zip(products, output.history, strict=True):
        start, length = 0, kwargs.get("block_length") or response_BR.shape[1]
        while not (response_BR[:, start : start + length] == mask).any():
            start += length
        masked_BL = response_BR[:, start : start + length] == mask
        whole_BRV = product_BMV.new_zeros(*response_BR.shape, product_BMV.shape[-1])
        for row, masked_L in enumerate(masked_BL):
            positions = start + masked_L.nonzero()[:, 0]
            whole_BRV[row, positions] = product_BMV[row, : len(positions)]
        logits.append(whole_BRV)
        response_BR = after_BR
    return output, torch.stack(logits)


def report(model, **kwargs) -> ShirgGenerationOutput:
    return model.generate(return_dict_in_generate=True, output_history=True, **kwargs)


def assert_rows_equal_single_runs(model, prompts, side: str, tolerance: float = 5e-5, **kwargs):
    """Tokens equal, logits to the tolerance; returns the batch's output and those of the single runs."""
    input_ids, attention_mask = pad(prompts, side)
    batch, logits = capture_logits(model, input_ids=input_ids, attention_mask=attention_mask, **kwargs)
    singles = []
    for row, prompt in enumerate(prompts):
        single, single_logits = capture_logits(model, input_ids=prompt, **kwargs)
        assert torch.equal(batch.history[: single.forwards, row], single.history[:, 0])
        assert torch.equal(batch.sequences[row, input_ids.shape[1] :], single.sequences[0, prompt.shape[1] :])
        close(logits[: single.forwards, row], single_logits[:, 0], tolerance)
        singles.append(single)
    assert torch.equal(batch.sequences[:, : input_ids.shape[1]], input_ids)
    return batch, singles


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 5e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * expected.abs().max().item())


def step(**fields) -> DenoisingStep:
    return DenoisingStep(ShirgGenerationConfig(**{"mask_token_id": MASK, "suppress_tokens": [], **fields}))


class Recorder(BaseStreamer):
    def __init__(self):
        self.events = []

    def put(self, value):
        self.events.append(("put", value))

    def end(self):
        self.events.append(("end", None))


class DraftRecorder(Recorder, TextDiffusionStreamer):
    def put_draft(self, value, **kwargs):
        self.events.append(("draft", value))


@pytest.mark.parametrize("schedule", [None, "linear", "shift", "cosine", "logit_normal"])
def test_transfer_counts_always_sum_to_the_masks(schedule):
    for num_masks in range(0, 70, 3):
        for steps in (1, 2, 5, 16, 64):
            for shift in (0.1, 0.33, 1.0, 2.7, 9.0):
                assert sum(transfer_counts(num_masks, steps, schedule, shift)) == num_masks


@torch.no_grad()
def blind_prefix_logits(model: TinyModel, prompt: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
    """One forward over prompt and response in which no prompt row sees the response."""
    length, total = prompt.shape[1], prompt.shape[1] + response.shape[1]
    seen = torch.ones(total, total, dtype=torch.bool)
    seen[:length, length:] = False
    embeds = model.model.get_input_embeddings()(torch.cat([prompt, response], dim=1))
    hidden = model.model.language_model(inputs_embeds=embeds, attention_mask=seen[None, None], is_causal=False)
    return model.lm_head(hidden.last_hidden_state[:, length:])


def assert_follows_the_rule(
    model: TinyModel, prompt: torch.Tensor, output: ShirgGenerationOutput, count: int, **step_fields
):
    """Every response of the history is that of the rule on a forward with a blind prompt, `count` tokens a step."""
    response, predict = torch.full((1, 12), MASK), step(**step_fields).predict
    for recorded in output.history:
        tokens, confidence = predict(blind_prefix_logits(model, prompt, response), [12])
        keep = select_positions(confidence.masked_fill(response != MASK, -torch.inf), torch.tensor([count]))
        response = torch.where(keep, tokens, response)
        assert torch.equal(response, recorded)


def test_a_predicted_mask_fills_nothing_and_is_predicted_again(model, prompts):
    """As in the original, where nothing is suppressed."""
    often = model.generate(prompts[1], max_new_tokens=12)[0, -12:].mode().values.item()
    masking = copy.deepcopy(model)
    with torch.no_grad():
        masking.lm_head.weight[[often, MASK]] = model.lm_head.weight[[MASK, often]]
    output = report(masking, input_ids=prompts[1], max_new_tokens=12, steps=6, suppress_tokens=[])
    assert_follows_the_rule(masking, prompts[1], output, 2)
    assert output.forwards == 6 and MASK in output.sequences


def test_the_prompt_is_read_once_and_a_dual_cache_reads_the_block_alone(model, prompts):
    lengths = []
    mlp = model.model.language_model.layers[0].mlp
    handle = mlp.register_forward_hook(lambda module, args, output: lengths.append(output.shape[1]))
    for options in ({}, {"prefix_kv": 0.5}, {"dual_cache": True}):
        model.generate(prompts[1], max_new_tokens=12, block_length=4, steps=6, **options)
    handle.remove()
    assert lengths == [24, *[12] * 6, 24, *[12] * 6, 24, 12, 4, 12, 4, 12, 4]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cache": False},
        {"confidence_threshold": 0.3, "schedule": None},
        {"dual_cache": True},
        {"dual_cache": True, "prefix_kv": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_single_runs(model, prompts, side, options):
    kwargs = {"max_new_tokens": 16, "block_length": 8, "schedule": "shift", **options}
    if "confidence_threshold" not in options:
        assert_rows_equal_single_runs(model, prompts, side, **kwargs)
        return
    input_ids, attention_mask = pad(prompts, side)
    batch = report(model, input_ids=input_ids, attention_mask=attention_mask, **kwargs)
    singles = [report(model, input_ids=prompt, **kwargs) for prompt in prompts]
    assert all(torch.equal(batch.sequences[row, -16:], one.sequences[0, -16:]) for row, one in enumerate(singles))
    assert len({single.forwards for single in singles}) > 1
    assert batch.forwards >= max(single.forwards for single in singles)


def test_tokens_hidden_inside_a_prompt_leave_no_gap(model, prompts):
    hidden = torch.cat([prompts[0][:, :5], torch.full((1, 4), 481), prompts[0][:, 5:]], dim=1)
    _, expected = capture_logits(model, input_ids=prompts[0], max_new_tokens=8)
    _, logits = capture_logits(model, input_ids=hidden, attention_mask=(hidden != 481).long(), max_new_tokens=8)
    close(logits, expected)


def test_draft_keeps_what_it_says_and_fills_the_rest(model, prompts):
    draft = torch.tensor([7, MASK, MASK, 9, MASK, 11, MASK, MASK])
    output = report(model, input_ids=prompts[0], draft_ids=draft)
    fixed = draft != MASK
    assert MASK not in output.sequences
    assert output.forwards == 5 and output.tokens_per_forward.tolist() == [1.0]
    assert all(torch.equal(response[0, fixed], draft[fixed]) for response in output.history)
    blocks = report(model, input_ids=prompts[0], draft_ids=torch.tensor([5] * 3 + [MASK] * 5), block_length=4)
    assert blocks.forwards == 1 + 4


def test_rows_of_a_draft_batch_equal_single_runs(model, prompts):
    drafts = torch.full((3, 12), MASK)
    drafts[1, :9] = torch.arange(20, 29)
    drafts[2] = torch.arange(40, 52)
    input_ids, attention_mask = pad(prompts, "left")
    kwargs = {"block_length": 6, "step_ratio": 0.5, "schedule": "cosine"}
    batch = model.generate(input_ids=input_ids, attention_mask=attention_mask, draft_ids=drafts, **kwargs)
    for row, prompt in enumerate(prompts):
        single = model.generate(input_ids=prompt, draft_ids=drafts[row], **kwargs)
        assert torch.equal(batch[row, -12:], single[0, -12:])
    assert torch.equal(batch[2, -12:], drafts[2])


SAMPLED = {"max_new_tokens": 8, "block_length": 4, "do_sample": True, "temperature": 1.5, "remasking": "random"}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_generator_reproduces_and_another_seed_differs(model, prompts):
    first, same, other = (model.generate(prompts[0], generator=seeded(seed), **SAMPLED) for seed in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append(model.generate(prompts[0], **SAMPLED))
    assert torch.equal(*runs)
    before = torch.get_rng_state()
    model.generate(input_ids=prompts[0], max_new_tokens=4)
    assert torch.equal(before, torch.get_rng_state())  # without sampling nothing is drawn


def test_one_generator_per_row_equals_single_runs(model, prompts):
    input_ids, attention_mask = pad(prompts, "right")
    drafts = torch.full((3, 8), MASK)
    drafts[0, 1:4] = 5  # row 0 ends its first block early and must not draw while the others go on
    generators = [seeded(row) for row in range(3)]
    batch = model.generate(input_ids, attention_mask, draft_ids=drafts, generator=generators, **SAMPLED)
    for row, prompt in enumerate(prompts):
        for generator in (seeded(row), [seeded(row)]):
            single = model.generate(prompt, draft_ids=drafts[row], generator=generator, **SAMPLED)
            assert torch.equal(batch[row, -8:], single[0, -8:])


def test_gumbel_draw_equals_the_originals_formula():
    logits = torch.randn(2, 5, 40, generator=seeded(0), dtype=torch.float64) * 4
    config = ShirgGenerationConfig(do_sample=True, temperature=0.7, suppress_tokens=[], mask_token_id=MASK)
    tokens, confidence = DenoisingStep(config, [seeded(0), seeded(1)]).predict(logits.clone(), [5, 5])
    uniform = torch.stack([torch.rand(5, 40, generator=seeded(seed), dtype=torch.float64) for seed in (0, 1)])
    assert torch.equal(tokens, (logits.exp() / (-uniform.log()) ** 0.7).argmax(-1))
    expected = logits.softmax(-1).gather(-1, tokens[..., None])[..., 0]
    torch.testing.assert_close(confidence, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("remasking", ["low_confidence", "entropy", "margin"])
@pytest.mark.parametrize(("length", "vocabulary"), [(5, 300), (40, 5000), (3, 70_000)])
def test_confidence_is_the_one_of_all_positions_in_float64(remasking, length, vocabulary):
    logits = torch.randn(2, length, vocabulary, generator=seeded(0)) * 8 + 700  # exp would overflow
    banned = int(logits[0, 0].argmax())
    predict = step(remasking=remasking, suppress_tokens=[banned]).predict
    tokens, confidence = predict(logits.clone(), [length, length - 2])
    whole = logits.double().index_fill(-1, torch.tensor([banned]), -torch.inf)
    assert torch.equal(tokens, whole.argmax(-1)) and tokens[0, 0] != banned
    probs = whole.softmax(-1)
    two = probs.topk(2).values
    expected = {
        "low_confidence": probs.gather(-1, tokens[..., None])[..., 0],
        "entropy": torch.xlogy(probs, probs + 1e-10).sum(-1),
        "margin": two[..., 0] - two[..., 1],
    }[remasking]
    expected[1, -2:] = -torch.inf
    torch.testing.assert_close(confidence, expected, rtol=1e-12, atol=1e-14)
    assert confidence.dtype == torch.float64


def test_ties_go_to_the_lower_index():
    confidence = torch.tensor([[0.5, 0.9, 0.5, 0.9, 0.5], [0.1, 0.1, 0.1, 0.1, 0.1]])
    masked = torch.tensor([[True, True, True, True, True], [False, True, True, False, True]])
    keep = select_positions(confidence.masked_fill(~masked, -torch.inf), torch.tensor([3, 2]))
    assert keep.tolist() == [[True, True, False, True, False], [False, True, True, False, False]]


def test_suppressed_tokens_are_never_emitted(model, prompts):
    free = model.generate(input_ids=prompts[0], max_new_tokens=8, suppress_tokens=[])[0, -8:]
    banned = sorted(set(free.tolist()))
    response = model.generate(input_ids=prompts[0], max_new_tokens=8, suppress_tokens=[MASK, *banned])[0, -8:]
    assert not set(response.tolist()) & {MASK, *banned}


def test_embeddings_alone_return_the_response_alone(model, prompts):
    embeds = model.model.get_input_embeddings()(prompts[0])
    with_ids = model.generate(input_ids=prompts[0], max_new_tokens=4)
    assert torch.equal(model.generate(inputs_embeds=embeds, max_new_tokens=4), with_ids[:, -4:])
    assert torch.equal(model.generate(input_ids=prompts[0], inputs_embeds=embeds, max_new_tokens=4), with_ids)


def test_drafts_are_streamed(model, prompts):
    streamer = DraftRecorder()
    output = report(model, input_ids=prompts[0], max_new_tokens=4, streamer=streamer)
    names, values = zip(*streamer.events, strict=True)
    assert names == ("put", "draft", "draft", "draft", "draft", "put", "end")
    assert torch.equal(values[0], prompts[0])
    assert torch.equal(torch.stack(values[1:5]), output.history)
    assert torch.equal(values[5], output.sequences[:, -4:])
    plain = Recorder()
    model.generate(inputs_embeds=model.model.get_input_embeddings()(prompts[0]), max_new_tokens=4, streamer=plain)
    assert [name for name, _ in plain.events] == ["put", "put", "end"] and plain.events[0][1].shape == (1, 0)


def test_generate_accepts_the_shared_fields_of_a_stock_config(model, prompts):
    expected = model.generate(input_ids=prompts[0], max_new_tokens=4)
    stock = GenerationConfig(max_new_tokens=4)
    assert torch.equal(model.generate(input_ids=prompts[0], generation_config=stock), expected)
    with pytest.raises(ValueError, match="top_p"):
        model.generate(input_ids=prompts[0], generation_config=GenerationConfig(top_p=0.5))


def test_an_argument_replaces_its_stored_counterpart(model, prompts):
    stored = ShirgGenerationConfig(max_new_tokens=8, step_ratio=0.5, do_sample=True, temperature=0.5)
    output = report(model, input_ids=prompts[0], generation_config=stored, steps=2, do_sample=False)
    assert output.forwards == 2
    assert stored.steps is None and stored.step_ratio == 0.5


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"input_ids": None}, "input_ids or inputs_embeds"),
        ({"attention_mask": torch.zeros(1, 11)}, "attention_mask .* real token"),
        ({"draft_ids": torch.ones(4, dtype=int), "max_new_tokens": 8}, r"draft_ids .*\(8,\) .* got \(4,\)"),
        ({"inputs_embeds": torch.zeros(1, 3, 64)}, r"input_ids \(1, 11\).*inputs_embeds .*1, 3, 64"),
        ({"inputs_embeds": torch.zeros(1, 11, 64), "pixel_values": torch.ones(1, 64)}, "inputs_embeds.*pixel_values"),
        ({"do_sample": True, "generator": [torch.Generator()] * 2}, "2 generators for a batch of 1"),
        ({"input_ids": torch.ones(2, 3, dtype=int), "streamer": Recorder()}, "streamer .* batch of 2"),
    ],
)
def test_generate_names_what_does_not_fit(model, prompts, kwargs, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**{"input_ids": prompts[0], **kwargs})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_new_tokens": 30, "block_length": 8}, "max_new_tokens=30 .*block_length=8"),
        ({"steps": 3, "block_length": 8}, "steps=3 .*blocks, 4"),
        ({"steps": 4, "step_ratio": 1.0}, "steps=4 and step_ratio=1.0"),
        ({"step_ratio": 0.1, "block_length": 8}, "step_ratio=0.1 .*block of 8"),
        ({"temperature": 0.5}, "temperature=0.5 .*do_sample=True"),
        ({"temperature": 0.0, "do_sample": True}, "temperature=0 .*do_sample=True"),
        ({"output_history": True}, "output_history=True .*return_dict_in_generate=True"),
        ({"confidence_threshold": 0.9, "remasking": "margin"}, "confidence_threshold=0.9 .*remasking='margin'"),
        ({"prefix_kv": 1.0, "use_cache": False}, "prefix_kv=1.0 .*use_cache=True"),
        ({"dual_cache": True}, "dual_cache=True .*block_length"),
        ({"dual_cache": True, "block_length": 8, "prefix_dtype": "int8"}, "dual_cache=True .*prefix_dtype='int8'"),
        ({"compile_config": True}, "compile_config=True .*CompileConfig"),
    ],
)
def test_config_names_what_does_not_fit(fields, message):
    with pytest.raises(ValueError, match=message):
        ShirgGenerationConfig(**fields)


def test_config_round_trip(tmp_path):
    config = ShirgGenerationConfig(steps=8, schedule="shift", shift=0.33, prefix_dtype="int8", eos_token_id=[1, 2])
    config.save_pretrained(tmp_path / "first")
    loaded = ShirgGenerationConfig.from_pretrained(tmp_path / "first")
    loaded.save_pretrained(tmp_path / "second")
    first, second = ((tmp_path / name / "generation_config.json").read_text() for name in ("first", "second"))
    stored = json.loads(first)
    assert first == second and stored["transformers_version"] == transformers.__version__
    assert None not in stored.values() and not any(key.startswith("_") for key in stored)
    of_0_1 = {"prefix_offload": False, "confidence_factor": None}
    for same in (loaded, copy.deepcopy(loaded), ShirgGenerationConfig(**vars(loaded), **of_0_1, _commit_hash="0123")):
        assert same == config and hash(same) == hash(config)
    with pytest.raises(NotImplementedError):
        ShirgGenerationConfig.from_model_config(tiny_config())


def test_model_round_trip(model, prompts, tmp_path):
    fresh = copy.deepcopy(model)
    fresh.generation_config = ShirgGenerationConfig(max_new_tokens=6, block_length=3, schedule="linear")
    fresh.save_pretrained(tmp_path)
    loaded = TinyModel.from_pretrained(tmp_path)
    assert type(loaded.generation_config) is ShirgGenerationConfig
    assert loaded.generation_config == fresh.generation_config
    assert torch.equal(loaded.generate(input_ids=prompts[0]), fresh.generate(input_ids=prompts[0]))
    given = TinyModel.from_pretrained(tmp_path, generation_config=ShirgGenerationConfig(max_new_tokens=5))
    assert given.generation_config.max_new_tokens == 5
    (tmp_path / "generation_config.json").unlink()
    assert TinyModel.from_pretrained(tmp_path).generation_config == ShirgGenerationConfig()


def test_a_threshold_keeps_what_reaches_it_and_at_least_what_the_schedule_says(model, prompts):
    threshold, reached = 0.3, []
    output, logits = capture_logits(
        model, input_ids=prompts[1], max_new_tokens=16, steps=8, confidence_threshold=threshold
    )
    before = torch.full((16,), MASK)
    for step_logits, after in zip(logits[:, 0], output.history[:, 0], strict=True):
        masked = before == MASK
        step_logits[:, [MASK, IMAGE]] = -torch.inf
        sure = int((step_logits[masked].double().softmax(-1).amax(-1) >= threshold).sum())
        assert int((masked & (after != MASK)).sum()) == min(max(2, sure), int(masked.sum()))
        reached.append(sure)
        before = after
    assert max(reached) > 2 and output.forwards < 8


def test_stopping_early_keeps_the_text_and_spares_forwards(model, prompts):
    """With an end-of-text that this model likes to predict."""
    kwargs = {"max_new_tokens": 16, "block_length": 4}
    plain = report(model, input_ids=prompts[1], **kwargs)
    answer = plain.sequences[0, -16:].tolist()
    eos = answer[5]
    stopped = report(model, input_ids=prompts[1], **kwargs, stop_at_eos=True, eos_token_id=eos)
    first = answer.index(eos)
    assert stopped.sequences[0, -16:].tolist()[: first + 1] == answer[: first + 1]
    assert set(stopped.sequences[0, -16:].tolist()[8:]) == {eos}
    assert stopped.forwards < plain.forwards == 16


def test_a_row_that_has_ended_waits_for_the_others(model, prompts):
    input_ids, attention_mask = pad(prompts, "right")
    eos = int(model.generate(prompts[0], max_new_tokens=16, block_length=4)[0, -14])
    kwargs = {"max_new_tokens": 16, "block_length": 4, "stop_at_eos": True, "eos_token_id": eos}
    batch = report(model, input_ids=input_ids, attention_mask=attention_mask, **kwargs)
    singles = [report(model, input_ids=prompt, **kwargs) for prompt in prompts]
    assert all(torch.equal(batch.sequences[row, -16:], one.sequences[0, -16:]) for row, one in enumerate(singles))
    assert singles[0].forwards < batch.forwards == max(single.forwards for single in singles)


@torch.no_grad()
def test_the_dual_cache_sees_the_rest_of_the_response_as_it_was_in_the_blocks_first_step(model, prompts):
    prompt, language_model = prompts[1], model.model.language_model
    kwargs = {"input_ids": prompt, "max_new_tokens": 12, "block_length": 4, "steps": 6}
    _, plain = capture_logits(model, **kwargs)
    output, dual = capture_logits(model, **kwargs, dual_cache=True)
    assert torch.equal(dual[0], plain[0]) and not torch.equal(dual[1], plain[1])
    for first in (0, 2, 4):  # forwards that begin a block
        before = torch.full((1, 12), MASK) if first == 0 else output.history[first - 1]
        start, cache = 2 * first, DynamicCache(config=language_model.config)
        kwargs = {CACHE_ARGUMENT: cache, "use_cache": True, "is_causal": False}
        positions = torch.arange(24, 36)[None]
        language_model(prompt, **kwargs)
        language_model(before, position_ids=positions, **kwargs)
        for layer in cache.layers:
            layer.keys, layer.values = (
                torch.cat([part[:, :, : 24 + start], part[:, :, 28 + start :]], dim=2)
                for part in (layer.keys, layer.values)
            )
        block = slice(start, start + 4)
        tokens = output.history[first][:, block]
        hidden = language_model(tokens, position_ids=positions[:, block], **kwargs).last_hidden_state
        close(dual[first + 1][:, block][tokens == MASK], model.lm_head(hidden)[tokens == MASK], 1e-5)


def assert_compiled_equals_eager(model: TinyModel, backend: str, **kwargs) -> None:
    plain, plain_logits = capture_logits(model, **kwargs)
    config = {"backend": backend, "mode": None, "fullgraph": True}
    compiled, logits = capture_logits(model, **kwargs, compile_config=config)
    assert torch.equal(compiled.sequences, plain.sequences)
    close(logits, plain_logits)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # torch's own
def test_compiled_steps_give_the_same_tokens(model, prompts):
    """Whatever the prompt's length, padding or not, evicted or not."""
    input_ids, attention_mask = pad(prompts, "left")
    kwargs = {"max_new_tokens": 8, "steps": 4}
    for option in ({}, {"prefix_kv": 0.5}, {"dual_cache": True, "block_length": 4}):
        for prompt in prompts:
            assert_compiled_equals_eager(model, "inductor", input_ids=prompt, **kwargs, **option)
    assert_compiled_equals_eager(model, "inductor", input_ids=input_ids, attention_mask=attention_mask, **kwargs)


def test_a_step_is_compiled_once_for_all_calls(model, prompts):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    for _ in range(2):
        config = CompileConfig(backend=backend, mode=None, fullgraph=True)
        model.generate(prompts[1], max_new_tokens=8, compile_config=config)
    assert len(graphs) == 1
