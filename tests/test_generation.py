"""The denoising loop against what the original LaViDa computed, and against itself: cached, padded, drafted, sampled.

`generation_lm.safetensors` is a tiny random LLaDA in the names of a stock `LlamaModel`; `generation_golden.*` are the
original's tokens and step histories on one prompt of 836 embeddings, with its arguments in the names of this package.
"""

import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import GenerationConfig, LlamaConfig, LlamaModel, PreTrainedModel, TextDiffusionStreamer
from transformers.generation.streamers import BaseStreamer

from fresh_process import run_fresh
from modeling_shirg.denoising_shirg import (
    CONFIDENCES,
    MaskedDiffusionSampler,
    RowNoise,
    select_positions,
    transfer_counts,
    transfer_table,
)
from modeling_shirg.generation_config_shirg import ShirgGenerationConfig
from modeling_shirg.generation_shirg_lavida import ShirgGenerationOutput, ShirgLavidaGenerationMixin
from tiny_model import tiny_config as tiny_lavida_config
from tiny_model import tiny_model as tiny_lavida

FIXTURES = Path(__file__).parent / "fixtures"
SCHEDULE_CASES = json.loads((FIXTURES / "lavida" / "golden" / "schedules.json").read_text())
GOLDEN_CASES = json.loads((FIXTURES / "generation_golden.json").read_text())
MASK, IMAGE = 500, 511


@dataclass
class ImageOutputs:
    kept_indices: torch.Tensor
    scores: torch.Tensor
    visible_mask: torch.Tensor | None = None


class TinyBody(torch.nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.language_model = LlamaModel(config)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.language_model.embed_tokens

    def prepare_inputs_embeds(self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None = None):
        """The image is one vector that takes the place of each image token."""
        embeds_BPD = self.get_input_embeddings()(input_ids)
        if pixel_values is None:
            return embeds_BPD, None
        embeds_BPD = torch.where((input_ids == IMAGE)[..., None], pixel_values[:, None], embeds_BPD)
        return embeds_BPD, ImageOutputs(kept_indices=torch.arange(3), scores=torch.ones(3))


class TinyModel(PreTrainedModel, ShirgLavidaGenerationMixin):
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
    return load_file(FIXTURES / "generation_golden.safetensors")


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


def capture_logits(model: TinyModel, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
    """What `generate` returns, and the logits of all its forwards, `(forwards, B, L, V)`."""
    seen = []
    handle = model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        return model.generate(**kwargs), torch.stack(seen)
    finally:
        handle.remove()


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


# ---------------------------------------------------------------- the original
@pytest.mark.parametrize(
    "case", SCHEDULE_CASES, ids=lambda case: f"{case['n_mask']}-{case['steps']}-{case['schedule']}"
)
def test_transfer_counts_are_the_originals(case):
    shift = (case["schedule_kwargs"] or {}).get("shift", 3.0)
    counts = transfer_counts(case["n_mask"], case["steps"], case["schedule"], shift)
    assert counts == case["num_transfer_tokens"]


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_tokens_and_history_are_the_originals(model, golden, name):
    case = GOLDEN_CASES[name]
    output = model.generate(
        inputs_embeds=golden["inputs_embeds"],
        use_cache=name.endswith(".prefix"),
        suppress_tokens=[],
        return_dict_in_generate=True,
        output_history=True,
        **case["kwargs"],
    )
    assert output.sequences.tolist() == [case["tokens"]]
    assert torch.equal(output.history[:, 0], golden[f"gen.{name}.history"].long())
    assert output.forwards == case["forwards"]
    assert output.tokens_per_forward.tolist() == [32 / case["forwards"]]


@pytest.mark.parametrize("mode", ["prefix", "full"])
def test_first_logits_are_the_originals(model, golden, mode):
    _, logits = capture_logits(model, inputs_embeds=golden["inputs_embeds"], steps=1, use_cache=mode == "prefix")
    reference = golden[f"gen.none.{mode}.step0_logits"]
    torch.testing.assert_close(logits[0], reference, rtol=0, atol=1e-3 * reference.abs().max().item())


# ---------------------------------------------------------------- the prefix cache
def blind_prefix_logits(model: TinyModel, prompt: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
    """One forward over prompt and response in which no prompt row sees the response."""
    length, total = prompt.shape[1], prompt.shape[1] + response.shape[1]
    seen = torch.ones(total, total, dtype=torch.bool)
    seen[:length, length:] = False
    embeds = model.model.get_input_embeddings()(torch.cat([prompt, response], dim=1))
    hidden = model.model.language_model(inputs_embeds=embeds, attention_mask=seen[None, None], is_causal=False)
    return model.lm_head(hidden.last_hidden_state[:, length:])


@torch.no_grad()
def test_cache_equals_a_forward_with_a_blind_prompt(model, prompts):
    prompt = prompts[1]
    output, logits = capture_logits(
        model,
        input_ids=prompt,
        max_new_tokens=12,
        return_dict_in_generate=True,
        output_history=True,
    )
    response, sampler = (
        torch.full((1, 12), MASK),
        MaskedDiffusionSampler("low_confidence", suppress_tokens=[MASK, IMAGE]),
    )
    for step, recorded in enumerate(output.history):
        expected = blind_prefix_logits(model, prompt, response)
        torch.testing.assert_close(logits[step], expected, rtol=0, atol=1e-5 * expected.abs().max().item())
        tokens, confidence = sampler(expected, response == MASK)
        keep = select_positions(confidence, response == MASK, torch.tensor([1]))
        response = torch.where(keep, tokens, response)
        assert torch.equal(response, recorded)
    assert MASK not in response


def test_the_uncached_prompt_sees_the_response(model, prompts):
    _, cached = capture_logits(model, input_ids=prompts[0], max_new_tokens=8, steps=1)
    _, uncached = capture_logits(model, input_ids=prompts[0], max_new_tokens=8, steps=1, use_cache=False)
    assert (cached - uncached).abs().max() > 1e-2


def test_an_all_ones_mask_changes_no_bit(model, prompts):
    kwargs = {"input_ids": prompts[0], "max_new_tokens": 8}
    _, bare = capture_logits(model, **kwargs)
    _, masked = capture_logits(model, **kwargs, attention_mask=torch.ones_like(prompts[0]))
    assert torch.equal(bare, masked)


def test_logits_are_computed_for_the_current_block_alone(model, prompts):
    _, logits = capture_logits(model, input_ids=prompts[0], max_new_tokens=8, block_length=4, step_ratio=0.5)
    assert logits.shape == (4, 1, 4, 512)


# ---------------------------------------------------------------- batches
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_single_runs(model, prompts, side, use_cache):
    kwargs = {"max_new_tokens": 16, "block_length": 8, "schedule": "shift", "use_cache": use_cache}
    input_ids, attention_mask = pad(prompts, side)
    batch, batch_logits = capture_logits(model, input_ids=input_ids, attention_mask=attention_mask, **kwargs)
    for row, prompt in enumerate(prompts):
        single, single_logits = capture_logits(model, input_ids=prompt, **kwargs)
        assert torch.equal(batch[row, -16:], single[0, -16:])
        tolerance = 5e-5 * single_logits.abs().max().item()
        torch.testing.assert_close(batch_logits[:, row], single_logits[:, 0], rtol=0, atol=tolerance)
    assert torch.equal(batch[:, :-16], input_ids)


def test_tokens_hidden_inside_a_prompt_leave_no_gap(model, prompts):
    hidden = torch.cat([prompts[0][:, :5], torch.full((1, 4), 481), prompts[0][:, 5:]], dim=1)
    attention_mask = (hidden != 481).long()
    _, expected = capture_logits(model, input_ids=prompts[0], max_new_tokens=8)
    _, logits = capture_logits(model, input_ids=hidden, attention_mask=attention_mask, max_new_tokens=8)
    torch.testing.assert_close(logits, expected, rtol=0, atol=5e-5 * expected.abs().max().item())


def test_given_positions_are_continued_by_the_response(model, prompts):
    positions = torch.arange(prompts[0].shape[1])[None]
    kwargs = {"input_ids": prompts[0], "max_new_tokens": 8, "steps": 1}
    _, default = capture_logits(model, **kwargs)
    _, given = capture_logits(model, **kwargs, position_ids=positions)
    _, shifted = capture_logits(model, **kwargs, position_ids=positions + 100)
    assert torch.equal(default, given)
    torch.testing.assert_close(default, shifted, rtol=0, atol=1e-3)  # rotary positions are relative


# ---------------------------------------------------------------- drafts
def test_draft_keeps_what_it_says_and_fills_the_rest(model, prompts):
    draft = torch.tensor([7, MASK, MASK, 9, MASK, 11, MASK, MASK])
    output = model.generate(input_ids=prompts[0], draft_ids=draft, return_dict_in_generate=True, output_history=True)
    response = output.sequences[0, -8:]
    fixed = draft != MASK
    assert torch.equal(response[fixed], draft[fixed])
    assert MASK not in response
    assert output.forwards == 5 and output.tokens_per_forward.tolist() == [1.0]
    assert all(torch.equal(step[0, fixed], draft[fixed]) for step in output.history)


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


def test_a_complete_draft_needs_no_forward(model, prompts):
    output = model.generate(
        input_ids=prompts[0], draft_ids=torch.arange(6), return_dict_in_generate=True, output_history=True
    )
    assert output.forwards == 0 and output.history.shape == (0, 1, 6) and output.tokens_per_forward.tolist() == [0.0]
    assert output.sequences[0, -6:].tolist() == list(range(6))


def test_a_block_ends_when_nothing_is_masked(model, prompts):
    draft = torch.full((8,), MASK)
    draft[:3] = 5
    output = model.generate(input_ids=prompts[0], draft_ids=draft, block_length=4, return_dict_in_generate=True)
    assert output.forwards == 1 + 4


# ---------------------------------------------------------------- sampling
SAMPLED = {"max_new_tokens": 8, "block_length": 4, "do_sample": True, "temperature": 1.5, "remasking": "random"}


def test_a_generator_reproduces_and_another_seed_differs(model, prompts):
    runs = [
        model.generate(input_ids=prompts[0], generator=torch.Generator().manual_seed(seed), **SAMPLED)
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_the_global_seed_is_used_without_a_generator(model, prompts):
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append(model.generate(input_ids=prompts[0], **SAMPLED))
    assert torch.equal(*runs)


def test_greedy_generation_draws_nothing(model, prompts):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model.generate(input_ids=prompts[0], max_new_tokens=4)
    assert torch.equal(before, torch.get_rng_state())


def test_one_generator_per_row_equals_single_runs(model, prompts):
    input_ids, attention_mask = pad(prompts, "right")
    drafts = torch.full((3, 8), MASK)
    drafts[0, 1:4] = 5  # row 0 ends its first block early and must not draw while the others go on
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    batch = model.generate(input_ids, attention_mask, draft_ids=drafts, generator=generators, **SAMPLED)
    for row, prompt in enumerate(prompts):
        generator = [torch.Generator().manual_seed(row)]
        single = model.generate(prompt, draft_ids=drafts[row], generator=generator, **SAMPLED)
        assert torch.equal(batch[row, -8:], single[0, -8:])


def test_the_first_row_of_a_batch_draws_as_a_single_run(model, prompts):
    input_ids, attention_mask = pad(prompts, "left")
    batch = model.generate(input_ids, attention_mask, generator=torch.Generator().manual_seed(4), **SAMPLED)
    single = model.generate(prompts[0], generator=torch.Generator().manual_seed(4), **SAMPLED)
    assert torch.equal(batch[0, -8:], single[0, -8:])


def test_gumbel_draw_equals_the_originals_formula():
    logits = torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4
    masked = torch.ones(2, 5, dtype=torch.bool)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    noise = RowNoise(generators, 2, logits.device)
    sampler = MaskedDiffusionSampler("low_confidence", temperature=0.7, noise=noise)
    tokens, confidence = sampler(logits, masked)
    uniform = torch.stack(
        [torch.rand(5, 40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (0, 1)]
    )
    assert torch.equal(tokens, (logits.exp() / (-uniform.log()) ** 0.7).argmax(-1))
    assert torch.equal(confidence, logits.softmax(-1).gather(-1, tokens[..., None])[..., 0])


def test_confidences_on_a_known_distribution():
    probs, tokens = torch.tensor([[[0.5, 0.3, 0.2], [0.0, 1.0, 0.0]]], dtype=torch.float64), torch.tensor([[1, 1]])
    entropy = -sum(p * math.log(p) for p in (0.5, 0.3, 0.2))
    assert CONFIDENCES["low_confidence"](probs, tokens).tolist() == [[0.3, 1.0]]
    torch.testing.assert_close(CONFIDENCES["margin"](probs, tokens), torch.tensor([[0.2, 1.0]]).double())
    torch.testing.assert_close(CONFIDENCES["entropy"](probs, tokens), torch.tensor([[-entropy, 0.0]]).double())


@pytest.mark.parametrize("remasking", list(CONFIDENCES))
def test_every_remasking_fills_the_response(model, prompts, remasking):
    response = model.generate(input_ids=prompts[0], max_new_tokens=8, remasking=remasking)[0, -8:]
    assert MASK not in response and IMAGE not in response


def test_ties_go_to_the_lower_index():
    confidence = torch.tensor([[0.5, 0.9, 0.5, 0.9, 0.5], [0.1, 0.1, 0.1, 0.1, 0.1]])
    masked = torch.tensor([[True, True, True, True, True], [False, True, True, False, True]])
    keep = select_positions(confidence.masked_fill(~masked, -torch.inf), masked, torch.tensor([3, 2]))
    assert keep.tolist() == [[True, True, False, True, False], [False, True, True, False, False]]


def test_suppressed_tokens_are_never_emitted(model, prompts):
    free = model.generate(input_ids=prompts[0], max_new_tokens=8, suppress_tokens=[])[0, -8:]
    banned = sorted(set(free.tolist()))
    response = model.generate(input_ids=prompts[0], max_new_tokens=8, suppress_tokens=[MASK, *banned])[0, -8:]
    assert not set(response.tolist()) & {MASK, *banned}


def test_transfer_table_pads_finished_rows_with_zeros():
    table = transfer_table([8, 3, 0], steps=4, schedule="linear")
    assert table.tolist() == [[2, 2, 2, 2], [1, 1, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("schedule", [None, "linear", "shift", "cosine", "logit_normal"])
def test_transfer_counts_always_sum_to_the_masks(schedule):
    for num_masks in range(0, 70, 3):
        for steps in (1, 2, 5, 16, 64):
            for shift in (0.1, 0.33, 1.0, 2.7, 9.0):
                assert sum(transfer_counts(num_masks, steps, schedule, shift)) == num_masks


# ---------------------------------------------------------------- inputs and outputs
def test_model_arguments_reach_the_prompt_and_image_outputs_come_back(model):
    input_ids = torch.tensor([[480, IMAGE, IMAGE, 7]])
    kwargs = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_selection": True}
    output, seen = capture_logits(model, input_ids=input_ids, pixel_values=torch.ones(1, 64), **kwargs)
    assert isinstance(output, ShirgGenerationOutput)
    assert output.kept_indices.tolist() == [0, 1, 2] and output.scores.tolist() == [1.0, 1.0, 1.0]
    assert output.sequences.shape == (1, 8) and output.history is None
    text_only, unseen = capture_logits(model, input_ids=input_ids, pixel_values=None, image_sizes=None, **kwargs)
    assert text_only.kept_indices is None and not torch.equal(seen, unseen)
    reported = model.generate(input_ids=input_ids, pixel_values=torch.ones(1, 64), image_sizes=torch.ones(1, 2))
    assert reported.shape == (1, 36)  # what `forward` names and the prompt does not need is no error
    kwargs["output_selection"] = False
    silent = model.generate(input_ids=input_ids, pixel_values=torch.ones(1, 64), **kwargs)
    assert silent.kept_indices is None and silent.scores is None


def test_embeddings_alone_return_the_response_alone(model, prompts):
    embeds = model.model.get_input_embeddings()(prompts[0])
    with_ids = model.generate(input_ids=prompts[0], max_new_tokens=4)
    assert torch.equal(model.generate(inputs_embeds=embeds, max_new_tokens=4), with_ids[:, -4:])
    assert torch.equal(model.generate(input_ids=prompts[0], inputs_embeds=embeds, max_new_tokens=4), with_ids)


def test_drafts_are_streamed(model, prompts):
    streamer = DraftRecorder()
    output = model.generate(
        input_ids=prompts[0],
        max_new_tokens=4,
        streamer=streamer,
        return_dict_in_generate=True,
        output_history=True,
    )
    names, values = zip(*streamer.events, strict=True)
    assert names == ("put", "draft", "draft", "draft", "draft", "put", "end")
    assert torch.equal(values[0], prompts[0])
    assert torch.equal(torch.stack(values[1:5]), output.history)
    assert torch.equal(values[5], output.sequences[:, -4:])


def test_a_streamer_without_drafts_gets_the_prompt_first(model, prompts):
    streamer = Recorder()
    embeds = model.model.get_input_embeddings()(prompts[0])
    model.generate(inputs_embeds=embeds, max_new_tokens=4, streamer=streamer)
    assert [(name, None if value is None else tuple(value.shape)) for name, value in streamer.events] == [
        ("put", (1, 0)),
        ("put", (1, 4)),
        ("end", None),
    ]


def test_generate_accepts_the_shared_fields_of_a_stock_config(model, prompts):
    stock = GenerationConfig(max_new_tokens=4)
    expected = model.generate(input_ids=prompts[0], max_new_tokens=4)
    assert torch.equal(model.generate(input_ids=prompts[0], generation_config=stock), expected)
    with pytest.raises(ValueError, match="top_p"):
        model.generate(input_ids=prompts[0], generation_config=GenerationConfig(top_p=0.5))


def test_an_argument_replaces_its_stored_counterpart(model, prompts):
    stored = ShirgGenerationConfig(max_new_tokens=8, step_ratio=0.5, do_sample=True, temperature=0.5)
    output = model.generate(
        input_ids=prompts[0], generation_config=stored, steps=2, do_sample=False, return_dict_in_generate=True
    )
    assert output.forwards == 2
    assert stored.steps is None and stored.step_ratio == 0.5


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_beams": 2}, "'num_beams'.*max_new_tokens.*pixel_values"),
        ({"labels": torch.ones(1, 11)}, "unknown argument 'labels'"),
        ({"steps": 4, "step_ratio": 0.5}, "steps=4 and step_ratio=0.5"),
        ({"input_ids": None}, "input_ids or inputs_embeds"),
        (
            {"attention_mask": torch.ones(1, 3)},
            r"attention_mask must have the prompt's shape \(1, 11\), got torch.float32 \(1, 3\)",
        ),
        ({"attention_mask": torch.zeros(1, 11)}, "without a single real token"),
        (
            {"position_ids": torch.ones(1, 2)},
            r"position_ids must have the prompt's shape \(1, 11\), got torch.float32 \(1, 2\)",
        ),
        ({"draft_ids": torch.ones(4, dtype=int), "max_new_tokens": 8}, "length 4 and max_new_tokens=8"),
        ({"draft_ids": torch.ones(2, 4, dtype=int)}, r"draft_ids \(2, 4\).*batch of 1"),
        ({"draft_ids": torch.ones(1, 2, 4, dtype=int)}, r"\(R,\) or \(B, R\), got \(1, 2, 4\)"),
        ({"draft_ids": torch.tensor([5, 512])}, "from 5 to 512, the model has 0 to 511"),
        ({"suppress_tokens": [512]}, "id 512, the model has 512 logits"),
        ({"inputs_embeds": torch.zeros(1, 3, 64)}, r"input_ids \(1, 11\).*inputs_embeds \(1, 3, 64\)"),
        (
            {"inputs_embeds": torch.zeros(1, 11, 64), "pixel_values": torch.ones(1, 64)},
            "hold the images.*pixel_values",
        ),
        ({"do_sample": True, "generator": [torch.Generator()] * 2}, "2 generators for a batch of 1"),
    ],
)
def test_generate_names_what_does_not_fit(model, prompts, kwargs, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**{"input_ids": prompts[0], **kwargs})


def test_a_streamer_with_a_batch_is_an_error(model, prompts):
    with pytest.raises(ValueError, match="one response, got a batch of 2"):
        model.generate(input_ids=prompts[0].expand(2, -1), streamer=Recorder())


def test_a_model_without_a_mask_token_is_an_error(prompts):
    config = tiny_config()
    config.mask_token_id = None
    with pytest.raises(ValueError, match="mask_token_id"):
        TinyModel(config).generate(input_ids=prompts[0])


# ---------------------------------------------------------------- the configuration
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_k": 3, "beam": 1}, "'beam', 'top_k'.*Known: max_new_tokens, block_length"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be an int > 0"),
        ({"max_new_tokens": 4.0}, "max_new_tokens=4.0"),
        ({"block_length": -1}, "block_length=-1 must be an int > 0"),
        ({"max_new_tokens": 30, "block_length": 8}, "max_new_tokens=30 must be a multiple of block_length=8"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 3, "block_length": 8}, "steps=3 must be a multiple of the number of blocks, 4"),
        ({"steps": 4, "step_ratio": 1.0}, "steps=4 and step_ratio=1.0"),
        ({"step_ratio": 1.5}, r"step_ratio=1.5 must be a number in \(0, 1\]"),
        ({"step_ratio": 0.1, "block_length": 8}, "step_ratio=0.1 leaves no step for a block of 8"),
        ({"schedule": "quadratic"}, "schedule='quadratic' must be one of None, 'linear'"),
        ({"shift": 0}, "shift=0 must be a number > 0"),
        ({"remasking": "entrophy"}, "remasking='entrophy' must be one of 'low_confidence'"),
        ({"temperature": 0.5}, "temperature=0.5 needs do_sample=True, got do_sample=False"),
        ({"temperature": -1.0, "do_sample": True}, "temperature=-1.0 must be a number > 0"),
        ({"temperature": 0.0, "do_sample": True}, "temperature=0 draws nothing, got do_sample=True"),
        ({"do_sample": 1}, "do_sample=1 must be True or False"),
        ({"output_selection": True}, "output_selection=True needs return_dict_in_generate=True, got False"),
        ({"output_history": True}, "output_history=True needs return_dict_in_generate=True, got False"),
        ({"mask_token_id": -1}, "mask_token_id=-1 must be a token id"),
        ({"eos_token_id": ["a"]}, "eos_token_id=.*must be a token id or a list"),
        ({"suppress_tokens": [1.5]}, "suppress_tokens=.*must be a list of token ids"),
    ],
)
def test_config_names_what_does_not_fit(fields, message):
    with pytest.raises(ValueError, match=message):
        ShirgGenerationConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "blocks", "steps"),
    [
        ({}, 1, 32),
        ({"step_ratio": 0.3}, 1, 9),
        ({"block_length": 8, "steps": 8}, 4, 2),
        ({"block_length": 8, "steps": 64}, 4, 8),
        ({"block_length": 8, "step_ratio": 0.5}, 4, 4),
    ],
)
def test_steps_per_block(fields, blocks, steps):
    config = ShirgGenerationConfig(**fields)
    assert (config.num_blocks, config.steps_per_block) == (blocks, steps)


def test_config_round_trip(tmp_path):
    config = ShirgGenerationConfig(
        max_new_tokens=64,
        block_length=16,
        steps=8,
        schedule="shift",
        shift=0.33,
        do_sample=True,
        temperature=0.3,
        suppress_tokens=[],
        eos_token_id=[1, 2],
    )
    config.save_pretrained(tmp_path)
    assert ShirgGenerationConfig.from_pretrained(tmp_path) == config
    stored = json.loads((tmp_path / "generation_config.json").read_text())
    assert None not in stored.values()
    assert stored["suppress_tokens"] == [] and stored["steps"] == 8 and not any(key.startswith("_") for key in stored)


@pytest.mark.parametrize(
    ("fields", "temperature"),
    [
        ({}, None),
        ({"do_sample": True}, 1.0),
        ({"do_sample": True, "temperature": 0.3}, 0.3),
        ({"temperature": 0}, None),
    ],
)
def test_sampling_temperature(fields, temperature):
    assert ShirgGenerationConfig(**fields).sampling_temperature == temperature


def test_what_transformers_adds_is_no_argument_and_is_not_lost(tmp_path):
    config = ShirgGenerationConfig(shift=0.5)
    config.save_pretrained(tmp_path / "first")
    loaded = ShirgGenerationConfig.from_pretrained(tmp_path / "first")
    assert loaded._from_model_config is False
    loaded.save_pretrained(tmp_path / "second")
    first, second = ((tmp_path / name / "generation_config.json").read_text() for name in ("first", "second"))
    assert first == second and json.loads(first)["transformers_version"] == transformers.__version__
    for same in (copy.deepcopy(loaded), ShirgGenerationConfig(**vars(loaded), _commit_hash="0123abc")):
        assert same == config and hash(same) == hash(config)


def test_an_invalid_change_is_not_saved(tmp_path):
    config = ShirgGenerationConfig()
    config.temperature = 0.5
    with pytest.raises(ValueError, match="temperature=0.5 needs do_sample=True"):
        config.save_pretrained(tmp_path)


def test_from_model_config_is_not_supported():
    with pytest.raises(NotImplementedError):
        ShirgGenerationConfig.from_model_config(tiny_config())


def test_model_round_trip(model, prompts, tmp_path):
    fresh = TinyModel(model.config)
    fresh.load_state_dict(model.state_dict())
    fresh.generation_config = ShirgGenerationConfig(max_new_tokens=6, block_length=3, schedule="linear")
    fresh.save_pretrained(tmp_path)
    loaded = TinyModel.from_pretrained(tmp_path)
    assert type(loaded.generation_config) is ShirgGenerationConfig
    assert loaded.generation_config == fresh.generation_config
    assert torch.equal(loaded.generate(input_ids=prompts[0]), fresh.generate(input_ids=prompts[0]))

    (tmp_path / "generation_config.json").unlink()
    bare = TinyModel.from_pretrained(tmp_path)
    assert bare.generation_config == ShirgGenerationConfig()
    response = bare.generate(input_ids=prompts[0])[0, prompts[0].shape[1] :]
    assert response.shape == (32,) and MASK not in response and IMAGE not in response


def test_a_generation_config_can_be_given_to_from_pretrained(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = TinyModel.from_pretrained(tmp_path, generation_config=ShirgGenerationConfig(max_new_tokens=5))
    assert loaded.generation_config.max_new_tokens == 5


def test_a_saved_folder_generates_where_the_package_is_missing(tmp_path):
    model = tiny_lavida(tiny_lavida_config())
    model.generation_config = ShirgGenerationConfig(max_new_tokens=6, schedule="shift", shift=0.5, step_ratio=0.5)
    model.save_pretrained(tmp_path)
    shipped = {path.name for path in tmp_path.glob("*.py")}
    assert {"denoising_shirg.py", "generation_config_shirg.py", "generation_shirg_lavida.py"} <= shipped
    code = f"""
import torch
from transformers import AutoModelForImageTextToText

model = AutoModelForImageTextToText.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)
print(model.generation_config.shift, *model.generate(torch.arange(5)[None])[0].tolist())
"""
    answer = model.generate(torch.arange(5)[None])[0].tolist()
    assert run_fresh(code).split() == ["0.5", *map(str, answer)]


def test_what_could_generate_nothing_is_named(model, prompts):
    with pytest.raises(ValueError, match="names all 512 ids"):
        model.generate(input_ids=prompts[0], suppress_tokens=list(range(512)))
    with pytest.raises(ValueError, match="mask_token_id=100000 .* 512 ids"):
        model.generate(input_ids=prompts[0], mask_token_id=100_000)
    with pytest.raises(ValueError, match="draft_ids must be a tensor of ids, got a list"):
        model.generate(input_ids=prompts[0], draft_ids=[500, 500])


def test_more_positions_than_the_model_knows_are_a_warning(model, prompts, caplog):
    short = copy.deepcopy(model)
    short.model.language_model.config.max_position_embeddings = 12
    with caplog.at_level("WARNING"):
        short.generate(input_ids=prompts[0], max_new_tokens=4)
    assert "15 tokens long; the language model knows 12 positions" in caplog.text
