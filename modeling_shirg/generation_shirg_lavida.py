"""Generation by denoising: a response of fixed length starts as mask tokens and is filled block by block.

The prompt (image tokens included) is encoded once, alone, into a key/value cache: the response sees the prompt and all
of itself, the prompt never sees the response, so the cache stays valid for every step (LaViDa, arXiv:2505.16839). Each
step predicts every masked position of the current block and keeps the most confident predictions; the rest stays
masked (LLaDA, arXiv:2502.09992). The order of business, and what each step may touch, is in
`ShirgLavidaGenerationMixin.generate`.

Shape suffixes: B batch, P prompt length, R response length, L block length, D hidden size, V vocabulary, S = P + R,
K cached keys, N denoising steps of a block.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, TextDiffusionStreamer
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import ModelOutput
from transformers.utils import logging

logger = logging.get_logger(__name__)

_GENERATION_DEFAULTS: dict[str, Any] = {
    "max_new_tokens": 32,
    "block_length": None,
    "steps": None,
    "step_ratio": None,
    "schedule": None,
    "schedule_shift": 3.0,
    "remasking": "low_confidence",
    "do_sample": False,
    "temperature": None,
    "use_cache": True,
    "suppress_tokens": None,
    "return_dict_in_generate": False,
    "output_history": False,
    "output_selection": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "mask_token_id": None,
}
_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id")
_OUTPUT_FLAGS = ("output_history", "output_selection")
# What transformers itself writes into or hands to a generation config.
_METADATA = ("_commit_hash", "_from_model_config", "_original_object_hash", "transformers_version")
# An argument of `generate` replaces the stored value of its counterpart, which would contradict it.
_COUNTERPARTS = {"steps": "step_ratio", "step_ratio": "steps"}
# Arguments of `forward` that would contradict the loop.
_FORWARD_ONLY = {"labels", "logits_to_keep", "past_key_values"}


class ShirgGenerationConfig(GenerationConfig):
    r"""
    Args:
        max_new_tokens (`int`, defaults to 32): length R of the response. It is fixed: nothing ends it early.
        block_length (`int`, *optional*): the response is filled in blocks of this length from left to right; it
            divides `max_new_tokens`. `None` is one block.
        steps (`int`, *optional*): denoising steps over all blocks, a multiple of the number of blocks. A block has at
            most as many steps as tokens.
        step_ratio (`float`, *optional*): steps per token instead of `steps`, in (0, 1]; each block gets
            `int(block_length * step_ratio)`. `None` is 1.0, one token per step.
        schedule (`"linear"`, `"shift"`, `"cosine"`, `"logit_normal"`, *optional*): how many tokens each step fills,
            see `transfer_counts`. `None` spreads them evenly.
        schedule_shift (`float`, defaults to 3.0): strength of `"shift"`; above 1 starts slowly, below 1 fast.
        remasking (`"low_confidence"`, `"random"`, `"entropy"` or `"margin"`, defaults to `"low_confidence"`): which
            predictions a step keeps, see `CONFIDENCES`.
        do_sample (`bool`, defaults to `False`): draw tokens with `temperature` instead of taking the most probable
            one.
        temperature (`float`, *optional*): of the draw, > 0, only with `do_sample=True`, where `None` is 1.0. The
            confidence is always that of the unscaled distribution.
        use_cache (`bool`, defaults to `True`): encode the prompt once, blind to the response. `False` recomputes
            prompt and response together at every step, the prompt sees the response: another function, as in the
            original.
        suppress_tokens (`list[int]`, *optional*): ids that are never emitted; `None` is the mask and the image token,
            `[]` is none.
        return_dict_in_generate (`bool`, defaults to `False`): return a `ShirgGenerationOutput` instead of ids.
        output_history (`bool`, defaults to `False`): also return the response after every step.
        output_selection (`bool`, defaults to `False`): also return which image tokens were kept, and their scores.
        bos_token_id, eos_token_id, pad_token_id, mask_token_id (`int`, *optional*): `None` is the model config's.

    Raises:
        ValueError: an unknown argument, or values that cannot work together; the message names them.
    """

    def __init__(self, **kwargs):
        # The parent's fields are for autoregressive decoding: its constructor is deliberately not called.
        for key in _METADATA:
            kwargs.pop(key, None)
        unknown = sorted(set(kwargs) - set(_GENERATION_DEFAULTS))
        if unknown:
            raise ValueError(
                f"Unknown generation argument {', '.join(map(repr, unknown))}. "
                f"Known: {', '.join(_GENERATION_DEFAULTS)}."
            )
        for name, default in _GENERATION_DEFAULTS.items():
            setattr(self, name, kwargs.get(name, default))
        self._from_model_config = False
        self.validate()

    def validate(self, **unused_kwargs) -> None:
        """Raises a `ValueError` that names the offending value and what is needed."""
        _require_positive_int("max_new_tokens", self.max_new_tokens)
        if self.block_length is not None:
            _require_positive_int("block_length", self.block_length)
            if self.max_new_tokens % self.block_length:
                raise ValueError(
                    f"max_new_tokens={self.max_new_tokens} must be a multiple of block_length={self.block_length}."
                )
        self._validate_steps()
        self._validate_choices()
        self._validate_sampling()
        self._validate_tokens()

    def _validate_steps(self) -> None:
        if self.steps is not None and self.step_ratio is not None:
            raise ValueError(
                f"steps={self.steps} and step_ratio={self.step_ratio} both set the number of steps: give one of them."
            )
        if self.steps is not None:
            _require_positive_int("steps", self.steps)
            if self.steps % self.num_blocks:
                raise ValueError(
                    f"steps={self.steps} must be a multiple of the number of blocks, {self.num_blocks} "
                    f"(max_new_tokens={self.max_new_tokens} / block_length={self.block_length})."
                )
        if self.step_ratio is not None:
            if not _is_number(self.step_ratio) or not 0 < self.step_ratio <= 1:
                raise ValueError(f"step_ratio={self.step_ratio!r} must be a number in (0, 1].")
            if self.steps_per_block == 0:
                raise ValueError(
                    f"step_ratio={self.step_ratio} leaves no step for a block of {self.tokens_per_block} tokens: "
                    f"it must be at least 1/{self.tokens_per_block}."
                )

    def _validate_choices(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule={self.schedule!r} must be one of {', '.join(map(repr, SCHEDULES))}.")
        if not _is_number(self.schedule_shift) or self.schedule_shift <= 0:
            raise ValueError(f"schedule_shift={self.schedule_shift!r} must be a number > 0.")
        if self.remasking not in CONFIDENCES:
            raise ValueError(f"remasking={self.remasking!r} must be one of {', '.join(map(repr, CONFIDENCES))}.")
        for name in ("do_sample", "use_cache", "return_dict_in_generate", *_OUTPUT_FLAGS):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r} must be True or False.")
        for name in _OUTPUT_FLAGS:
            if getattr(self, name) and not self.return_dict_in_generate:
                raise ValueError(f"{name}=True needs return_dict_in_generate=True, got False: ids cannot hold it.")

    def _validate_sampling(self) -> None:
        if self.temperature is None:
            return
        if not _is_number(self.temperature) or self.temperature < 0:
            raise ValueError(f"temperature={self.temperature!r} must be a number > 0.")
        if self.do_sample and self.temperature == 0:
            raise ValueError("temperature=0 draws nothing, got do_sample=True: set do_sample=False for the argmax.")
        if not self.do_sample and self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} needs do_sample=True, got do_sample=False.")

    def _validate_tokens(self) -> None:
        for name in ("bos_token_id", "pad_token_id", "mask_token_id"):
            value = getattr(self, name)
            if value is not None and not _is_id(value):
                raise ValueError(f"{name}={value!r} must be a token id, an int >= 0.")
        eos = self.eos_token_id
        if eos is not None and not all(_is_id(value) for value in (eos if isinstance(eos, list) else [eos])):
            raise ValueError(f"eos_token_id={eos!r} must be a token id or a list of them.")
        if self.suppress_tokens is None:
            return
        if not isinstance(self.suppress_tokens, list) or not all(_is_id(value) for value in self.suppress_tokens):
            raise ValueError(f"suppress_tokens={self.suppress_tokens!r} must be a list of token ids, ints >= 0.")

    @property
    def tokens_per_block(self) -> int:
        """`block_length`, or the whole response."""
        return self.max_new_tokens if self.block_length is None else self.block_length

    @property
    def num_blocks(self) -> int:
        """Number of blocks of the response."""
        return self.max_new_tokens // self.tokens_per_block

    @property
    def steps_per_block(self) -> int:
        """Number of denoising steps that a block may take; it takes fewer when nothing is masked any more."""
        if self.steps is not None:
            return min(self.steps // self.num_blocks, self.tokens_per_block)
        return int(self.tokens_per_block * (1.0 if self.step_ratio is None else self.step_ratio))

    def to_diff_dict(self) -> dict[str, Any]:
        """What a generation_config.json holds: every field that is not `None`, so that a file keeps its meaning when a
        default of this class changes. (The parent leaves out what equals its own defaults.)"""
        return {key: value for key, value in self.to_dict().items() if value is not None and not key.startswith("_")}

    @classmethod
    def from_model_config(cls, model_config: Any) -> GenerationConfig:
        """Not supported: a model config holds no generation arguments, `PreTrainedModel` starts from the defaults."""
        raise NotImplementedError("ShirgGenerationConfig does not read generation arguments from a model config.")


@dataclass
class ShirgGenerationOutput(ModelOutput):
    """
    Args:
        sequences (`torch.LongTensor` of shape `(B, P + R)`): prompt and response ids; `(B, R)`, the response alone,
            when the prompt was given as `inputs_embeds` only.
        forwards (`int`): number of denoising forwards; the prefix pass is not one.
        tokens_per_forward (`torch.FloatTensor` of shape `(B,)`): tokens that were filled in, per denoising forward.
            Without a draft that is `R / forwards`.
        history (`torch.LongTensor` of shape `(forwards, B, R)`, *optional*): the response after each forward.
        kept_indices, scores (*optional*): of the image tokens, as the model's selection reports them, with
            `output_selection=True`.
    """

    sequences: torch.LongTensor | None = None
    forwards: int | None = None
    tokens_per_forward: torch.FloatTensor | None = None
    history: torch.LongTensor | None = None
    kept_indices: Any = None
    scores: Any = None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _require_positive_int(name: str, value: Any) -> None:
    if not _is_id(value) or value == 0:
        raise ValueError(f"{name}={value!r} must be an int > 0.")


# ---------------------------------------------------------------- how many tokens per step
def _shift(time: torch.Tensor, shift: float) -> torch.Tensor:
    return shift * time / (1 + (shift - 1) * time)


def _cosine(time: torch.Tensor, shift: float) -> torch.Tensor:
    return (1 - torch.cos(torch.pi * time)) / 2


def _logit_normal(time: torch.Tensor, shift: float) -> torch.Tensor:
    """Distribution function of the standard logit-normal."""
    return torch.special.ndtr(torch.logit(time))


# Monotone maps of [0, 1] onto itself; `None` is not a map, see `transfer_counts`.
SCHEDULES: dict[str | None, Callable[[torch.Tensor, float], torch.Tensor] | None] = {
    None: None,
    "linear": lambda time, shift: time,
    "shift": _shift,
    "cosine": _cosine,
    "logit_normal": _logit_normal,
}


def transfer_counts(num_masks: int, steps: int, schedule: str | None = None, shift: float = 3.0) -> list[int]:
    """How many of `num_masks` tokens each step fills, as LaViDa's generation does (arXiv:2505.16839).

    Without a schedule: evenly, the remainder to the first steps (LLaDA, arXiv:2502.09992); trailing steps may be 0.
    With a schedule f: the differences of `int(f(i / steps) * num_masks)`, at least 1 each, the surplus taken back one
    at a time from the entries above 1 in turn, and the whole reversed; at most `num_masks` steps. f is evaluated in
    float32 on the
    CPU: the truncation makes the counts depend on the precision.

    Returns:
        At most `steps` counts >= 0 that sum to `num_masks`.
    """
    if schedule is None:
        return [num_masks // steps + (step < num_masks % steps) for step in range(steps)]
    steps = min(steps, num_masks)
    if steps == 0:
        return []
    reached = (SCHEDULES[schedule](torch.linspace(0, 1, steps + 1), shift) * num_masks).to(torch.int64)
    reached[-1] = num_masks  # f(1) = 1, which float32 may miss for some shifts; a token would stay masked
    counts = reached.diff().clamp(min=1).tolist()
    surplus, step = sum(counts) - num_masks, 0
    while surplus > 0:
        if counts[step] > 1:
            counts[step] -= 1
            surplus -= 1
        step = (step + 1) % steps
    return counts[::-1]


def transfer_table(num_masks: list[int], config: ShirgGenerationConfig) -> torch.LongTensor:
    """`transfer_counts` of every row, `(B, N)`, zero-padded to the steps of the longest row."""
    rows = [
        transfer_counts(count, config.steps_per_block, config.schedule, config.schedule_shift) for count in num_masks
    ]
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows], dtype=torch.int64)


# ---------------------------------------------------------------- which tokens
def _top_confidence(probs_BLV: torch.Tensor, tokens_BL: torch.Tensor) -> torch.Tensor:
    """Probability of the predicted token."""
    return probs_BLV.gather(-1, tokens_BL[..., None]).squeeze(-1)


def _negative_entropy(probs_BLV: torch.Tensor, tokens_BL: torch.Tensor) -> torch.Tensor:
    return (probs_BLV * torch.log(probs_BLV + 1e-10)).sum(-1)


def _margin(probs_BLV: torch.Tensor, tokens_BL: torch.Tensor) -> torch.Tensor:
    """Distance of the two largest probabilities."""
    top_BL2 = probs_BLV.topk(2, dim=-1).values
    return top_BL2[..., 0] - top_BL2[..., 1]


# The confidence of a prediction, by `remasking`; a step keeps the largest. `None` is a uniform draw.
CONFIDENCES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None] = {
    "low_confidence": _top_confidence,
    "entropy": _negative_entropy,
    "margin": _margin,
    "random": None,
}


class RowNoise:
    """Uniform float64 draws with one independent stream per batch row.

    Row r's stream is seeded by the r-th number that `generator` yields, and a row draws only in the steps in which it
    has something to fill. So a row's draws depend on the generator's state and on r, not on the batch size, the
    padding or the other rows: row 0 of any batch equals a single run. For other rows pass a list of generators, one
    per row, which are used as they are. Streams live on the generator's device; another device type gives other
    numbers.
    """

    def __init__(
        self, generator: torch.Generator | list[torch.Generator] | None, batch_size: int, device: torch.device
    ):
        if isinstance(generator, (list, tuple)):
            if len(generator) != batch_size:
                raise ValueError(f"Got {len(generator)} generators for a batch of {batch_size}: give one per row.")
            self.streams = list(generator)
            return
        home = device if generator is None else generator.device
        seeds = [torch.randint(2**62, (1,), generator=generator, device=home).item() for _ in range(batch_size)]
        self.streams = [torch.Generator(device=home).manual_seed(seed) for seed in seeds]

    def draw(self, like_BX: torch.Tensor, active_B: list[bool]) -> torch.Tensor:
        """Draws in [0, 1) of the shape and on the device of `like_BX`, in float64; rows not in `active_B` get 0.5."""
        draws_BX = torch.full(like_BX.shape, 0.5, dtype=torch.float64, device=like_BX.device)
        for row, (stream, active) in enumerate(zip(self.streams, active_B, strict=True)):
            if active:
                draws_BX[row] = torch.rand(
                    like_BX.shape[1:], generator=stream, dtype=torch.float64, device=stream.device
                ).to(like_BX.device)
        return draws_BX


class MaskedDiffusionSampler:
    """One prediction and its confidence per position, in float64 (arXiv:2409.02908: low precision Gumbel noise biases
    masked diffusion).

    Args:
        config: `remasking`, `do_sample`, `temperature`.
        suppress_tokens: ids that are never predicted and have no probability.
        noise: needed with `do_sample` or `remasking="random"`.
    """

    def __init__(self, config: ShirgGenerationConfig, suppress_tokens: list[int], noise: RowNoise | None = None):
        self.confidence = CONFIDENCES[config.remasking]
        self.temperature = None
        if config.do_sample:
            self.temperature = 1.0 if config.temperature is None else config.temperature
        self.suppress_tokens = suppress_tokens
        self.noise = noise

    def __call__(self, logits_BLV: torch.Tensor, masked_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and confidences, both `(B, L)`. The confidence at a position that is not masked is -inf."""
        logits_BLV = self._suppress(logits_BLV.to(torch.float64))
        active_B = masked_BL.any(-1).tolist() if self.noise is not None else []
        tokens_BL = self._predict(logits_BLV, active_B)
        if self.confidence is None:
            confidence_BL = self.noise.draw(masked_BL, active_B)
        else:
            confidence_BL = self.confidence(logits_BLV.softmax(-1), tokens_BL)
        return tokens_BL, confidence_BL.masked_fill(~masked_BL, -torch.inf)

    def _suppress(self, logits_BLV: torch.Tensor) -> torch.Tensor:
        if not self.suppress_tokens:
            return logits_BLV
        if max(self.suppress_tokens) >= logits_BLV.shape[-1]:
            raise ValueError(
                f"suppress_tokens holds id {max(self.suppress_tokens)}, the model has {logits_BLV.shape[-1]} logits."
            )
        suppressed = torch.tensor(self.suppress_tokens, device=logits_BLV.device)
        return logits_BLV.index_fill(-1, suppressed, -torch.inf)

    def _predict(self, logits_BLV: torch.Tensor, active_B: list[bool]) -> torch.Tensor:
        """The argmax of `exp(logits) / (-log u)^T`, in log space, where it neither overflows nor underflows."""
        if self.temperature is not None:
            uniform_BLV = self.noise.draw(logits_BLV, active_B)
            logits_BLV = logits_BLV - self.temperature * torch.log(-torch.log(uniform_BLV))
        return logits_BLV.argmax(-1)


def select_positions(confidence_BL: torch.Tensor, masked_BL: torch.Tensor, counts_B: torch.Tensor) -> torch.Tensor:
    """The `counts_B[b]` masked positions of row b with the largest confidence, as a boolean `(B, L)`. Ties go to the
    lower index, so the choice does not depend on the device's sorting."""
    order_BL = confidence_BL.sort(dim=-1, descending=True, stable=True).indices
    rank_BL = torch.empty_like(order_BL)
    rank_BL.scatter_(-1, order_BL, torch.arange(order_BL.shape[-1], device=order_BL.device).expand_as(order_BL))
    return (rank_BL < counts_B[:, None]) & masked_BL


# ---------------------------------------------------------------- the loop
@dataclass
class _Prompt:
    """What stays fixed during one call. `mask_BP` is `None` when nothing is padded: attention then needs no mask."""

    embeds_BPD: torch.Tensor
    mask_BP: torch.Tensor | None
    positions_BP: torch.Tensor
    response_positions_BR: torch.Tensor


class ShirgLavidaGenerationMixin:
    """`generate` for a bidirectional language model behind a vision prefix.

    The model provides `model.prepare_inputs_embeds(input_ids, **vision_kwargs) -> (inputs_embeds_BPD, image_outputs)`,
    where `image_outputs` is `None` or has `kept_indices` and `scores`; `model.language_model`, which takes `is_causal`
    and is bidirectional; `model.get_input_embeddings()`; `lm_head`; and a `forward` that names every argument
    `generate` may get.
    """

    generation_config_class = ShirgGenerationConfig

    def __init_subclass__(cls, **kwargs) -> None:
        """`PreTrainedModel` names the stock class and comes first in the usual order of bases."""
        super().__init_subclass__(**kwargs)
        if cls.generation_config_class is GenerationConfig:
            cls.generation_config_class = ShirgGenerationConfig

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        generation_config: GenerationConfig | None = None,
        streamer: BaseStreamer | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        draft_ids: torch.LongTensor | None = None,
        **kwargs,
    ) -> torch.LongTensor | ShirgGenerationOutput:
        """Fills a response of `max_new_tokens` masks after the prompt.

        0. Prepare: the configuration, the prompt's embeddings and positions, the response (masks, or the draft).
        1. Encode the prompt alone into the prefix cache; no logits are computed for it.
        2. For each block, from left to right, until its steps are spent or nothing in it is masked:
            a. Run the response on the prefix (or, without the cache, prompt and response together) and compute logits
               for the block alone.
            b. Predict a token and a confidence for each masked position of the block.
            c. Keep the most confident predictions, as many as the row's schedule says for this step.
            d. Record and stream the response.
        3. Return.

        A row gives the tokens that it gives alone, however it is padded. There is no handling of the end-of-text
        token.

        Args:
            input_ids (`(B, P)`): the prompt, with image placeholders already expanded.
            attention_mask (`(B, P)`, *optional*): 0 marks padding, on either side. `None` is all ones.
            inputs_embeds (`(B, P, D)`, *optional*): the prompt's embeddings, images included, instead of computing
                them; `input_ids` then only lend their ids to the returned sequences.
            position_ids (`(B, P)`, *optional*): by default they count the prompt's real tokens from 0. The response
                goes on after the largest of a row.
            generation_config: replaces the model's; token ids that it leaves at `None` still come from the model.
            streamer (*optional*): gets the prompt, the draft after each forward if it is a `TextDiffusionStreamer`,
                and the response. Batch size 1 only.
            generator (*optional*): source of randomness of `do_sample` and `remasking="random"`, or one per row. What
                a row's draws depend on is said in `RowNoise`.
            draft_ids (`(R,)` or `(B, R)`, *optional*): a response with gaps: mask ids are filled, all others stay.
                Sets `max_new_tokens`. Each row follows the schedule of its own number of masks.
            **kwargs: fields of `ShirgGenerationConfig`, which override it, and the vision arguments of `forward`.

        Returns:
            Ids `(B, P + R)`, or `(B, R)` when only `inputs_embeds` were given; a `ShirgGenerationOutput` with
            `return_dict_in_generate=True`.

        Raises:
            ValueError: unknown arguments, or shapes and values that do not fit; the message names them.
        """
        # 0. Prepare
        vision_kwargs = self._vision_kwargs({k: v for k, v in kwargs.items() if k not in _GENERATION_DEFAULTS})
        overrides = {k: v for k, v in kwargs.items() if k in _GENERATION_DEFAULTS}
        config = self._resolve_generation_config(generation_config, draft_ids, overrides)
        embeds_BPD, image_outputs = self._embed_prompt(input_ids, inputs_embeds, vision_kwargs)
        prompt = _prepare_prompt(embeds_BPD, attention_mask, position_ids, config.max_new_tokens)
        batch_size, device = embeds_BPD.shape[0], embeds_BPD.device
        response_BR = self._start_response(draft_ids, batch_size, config, device)
        num_masks_B = (response_BR == config.mask_token_id).sum(-1)
        sampler = _prepare_sampler(config, generator, batch_size, device)
        _start_stream(streamer, input_ids, batch_size)

        # 1. Encode the prompt
        prefix = self._encode_prefix(prompt) if config.use_cache else None

        # 2. Fill the response, block by block
        history = []
        for start in range(0, config.max_new_tokens, config.tokens_per_block):
            block = slice(start, start + config.tokens_per_block)
            masked_BL = response_BR[:, block] == config.mask_token_id
            for counts_B in transfer_table(masked_BL.sum(-1).tolist(), config).to(device).unbind(-1):
                if not masked_BL.any():
                    break
                logits_BLV = self._denoise(prompt, prefix, response_BR, block)  # 2.a
                tokens_BL, confidence_BL = sampler(logits_BLV, masked_BL)  # 2.b
                keep_BL = select_positions(confidence_BL, masked_BL, counts_B)  # 2.c
                response_BR[:, block] = torch.where(keep_BL, tokens_BL, response_BR[:, block])
                masked_BL = response_BR[:, block] == config.mask_token_id
                history.append(response_BR.clone())  # 2.d
                if isinstance(streamer, TextDiffusionStreamer):
                    streamer.put_draft(history[-1].cpu())

        # 3. Return
        if streamer is not None:
            streamer.put(response_BR.cpu())
            streamer.end()
        sequences = response_BR if input_ids is None else torch.cat([input_ids.to(device), response_BR], dim=-1)
        if not config.return_dict_in_generate:
            return sequences
        report_images = config.output_selection and image_outputs is not None
        return ShirgGenerationOutput(
            sequences=sequences,
            forwards=len(history),
            tokens_per_forward=num_masks_B.float() / max(len(history), 1),
            history=_stack_history(history, response_BR) if config.output_history else None,
            kept_indices=image_outputs.kept_indices if report_images else None,
            scores=image_outputs.scores if report_images else None,
        )

    def _resolve_generation_config(
        self, generation_config: GenerationConfig | None, draft_ids: torch.Tensor | None, overrides: dict[str, Any]
    ) -> ShirgGenerationConfig:
        """The configuration of this call, complete with token ids."""
        fields = (self.generation_config if generation_config is None else generation_config).to_diff_dict()
        for name, counterpart in _COUNTERPARTS.items():
            if overrides.get(name) is not None:
                fields.pop(counterpart, None)
        if overrides.get("do_sample") is False:
            fields.pop("temperature", None)
        fields.update(overrides)
        if draft_ids is not None:
            fields["max_new_tokens"] = _draft_length(draft_ids, overrides.get("max_new_tokens"))
        for name in _SPECIAL_TOKENS:
            if fields.get(name) is None:
                fields[name] = self._model_token(name)
        if fields["mask_token_id"] is None:
            raise ValueError(
                "Generation starts from mask tokens, but neither the generation config nor the model config has a "
                "mask_token_id."
            )
        if fields.get("suppress_tokens") is None:
            fields["suppress_tokens"] = self._default_suppress_tokens(fields["mask_token_id"])
        return ShirgGenerationConfig(**fields)

    def _vision_kwargs(self, model_kwargs: dict[str, Any]) -> dict[str, Any]:
        """Those of the model's arguments that the prompt is made of. The others that `forward` names are the
        processor's reports about the views; whatever it does not name is an error."""
        parameters = inspect.signature(type(self).forward).parameters
        accepted = {name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD}
        accepted -= {"self", *_FORWARD_ONLY}
        unknown = sorted(set(model_kwargs) - accepted)
        if unknown:
            raise ValueError(
                f"generate got the unknown argument {', '.join(map(repr, unknown))}. Generation arguments: "
                f"{', '.join(_GENERATION_DEFAULTS)}. Model arguments: {', '.join(sorted(accepted))}."
            )
        taken = inspect.signature(self.model.prepare_inputs_embeds).parameters.values()
        names = {parameter.name for parameter in taken}
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken):
            names = accepted
        return {name: value for name, value in model_kwargs.items() if value is not None and name in names}

    def _model_token(self, name: str) -> Any:
        """A special token: the model's generation config, then its config."""
        stored = getattr(self.generation_config, name, None)
        return getattr(self.config, name, None) if stored is None else stored

    def _default_suppress_tokens(self, mask_token_id: int | None) -> list[int]:
        """The mask, which would never be filled, and the image placeholder, which is no text."""
        size = self.model.get_input_embeddings().weight.shape[0]
        ids = (mask_token_id, getattr(self.config, "image_token_id", None))
        return sorted({token for token in ids if token is not None and 0 <= token < size})

    def _embed_prompt(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, vision_kwargs: dict[str, Any]
    ) -> tuple[torch.Tensor, Any]:
        """The prompt's embeddings `(B, P, D)` and what the model reports about its images, or `None`."""
        if input_ids is None and inputs_embeds is None:
            raise ValueError("generate needs input_ids or inputs_embeds.")
        if inputs_embeds is None:
            return self.model.prepare_inputs_embeds(input_ids, **vision_kwargs)
        if vision_kwargs:
            raise ValueError(f"inputs_embeds hold the images already, got {', '.join(sorted(vision_kwargs))} as well.")
        if input_ids is not None and input_ids.shape != inputs_embeds.shape[:2]:
            raise ValueError(
                f"input_ids {tuple(input_ids.shape)} do not fit inputs_embeds {tuple(inputs_embeds.shape)}."
            )
        return inputs_embeds, None

    def _start_response(
        self, draft_ids: torch.Tensor | None, batch_size: int, config: ShirgGenerationConfig, device: torch.device
    ) -> torch.LongTensor:
        """The response `(B, R)` before the first step: all masks, or a copy of the draft."""
        shape = (batch_size, config.max_new_tokens)
        if draft_ids is None:
            return torch.full(shape, config.mask_token_id, dtype=torch.int64, device=device)
        if draft_ids.ndim == 2 and draft_ids.shape[0] != batch_size:
            raise ValueError(f"draft_ids {tuple(draft_ids.shape)} do not fit a prompt batch of {batch_size}.")
        size = self.model.get_input_embeddings().weight.shape[0]
        if draft_ids.min() < 0 or draft_ids.max() >= size:
            raise ValueError(
                f"draft_ids hold ids from {draft_ids.min()} to {draft_ids.max()}, the model has 0 to {size - 1}."
            )
        return draft_ids.to(device=device, dtype=torch.int64).expand(shape).clone()

    def _encode_prefix(self, prompt: _Prompt) -> tuple[Cache, torch.Tensor | None]:
        """The prefix cache, and the mask `(B, K)` of its keys (`None`: all are seen). A cache that drops keys
        overrides this method; keys are stored rotated, so nothing else depends on their number."""
        cache = DynamicCache(config=self.model.language_model.config)
        self.model.language_model(
            inputs_embeds=prompt.embeds_BPD,
            attention_mask=prompt.mask_BP,
            position_ids=prompt.positions_BP,
            past_key_values=cache,
            use_cache=True,
            is_causal=False,
        )
        return cache, prompt.mask_BP

    def _denoise(
        self,
        prompt: _Prompt,
        prefix: tuple[Cache, torch.Tensor | None] | None,
        response_BR: torch.Tensor,
        block: slice,
    ) -> torch.Tensor:
        """Logits `(B, L, V)` of the response's `block`. The cache is left as it was found."""
        embeds_BRD = self.model.get_input_embeddings()(response_BR)
        length = response_BR.shape[1]
        if prefix is None:
            hidden_BSD = self.model.language_model(
                inputs_embeds=torch.cat([prompt.embeds_BPD, embeds_BRD], dim=1),
                attention_mask=_append_ones(prompt.mask_BP, length),
                position_ids=torch.cat([prompt.positions_BP, prompt.response_positions_BR], dim=1),
                use_cache=False,
                is_causal=False,
            ).last_hidden_state
            return self.lm_head(hidden_BSD[:, -length:][:, block])
        cache, mask_BK = prefix
        hidden_BRD = self.model.language_model(
            inputs_embeds=embeds_BRD,
            attention_mask=_append_ones(mask_BK, length),
            position_ids=prompt.response_positions_BR,
            past_key_values=cache,
            use_cache=True,
            is_causal=False,
        ).last_hidden_state
        cache.crop(-length)
        return self.lm_head(hidden_BRD[:, block])

    def adjust_generation_fn(
        self,
        generation_config: GenerationConfig | None,
        from_auto_class: bool,
        from_pipeline: str | None,
        pretrained_model_name_or_path: str | None,
        cache_dir: str | None,
        force_download: bool,
        proxies: dict | None,
        local_files_only: bool,
        token: str | bool | None,
        revision: str,
        subfolder: str,
        trust_remote_code: bool | None = None,
        **kwargs,
    ) -> None:
        """Called by `from_pretrained` after the weights are loaded: reads generation_config.json, if there is one."""
        if generation_config is not None:
            self.generation_config = ShirgGenerationConfig(**generation_config.to_diff_dict())
            return
        if pretrained_model_name_or_path is None:
            return
        try:
            self.generation_config = ShirgGenerationConfig.from_pretrained(
                pretrained_model_name_or_path,
                cache_dir=cache_dir,
                force_download=force_download,
                proxies=proxies,
                local_files_only=local_files_only,
                token=token,
                revision=revision,
                subfolder=subfolder,
                _from_auto=from_auto_class,
                _from_pipeline=from_pipeline,
            )
        except OSError:
            logger.info("No generation_config.json found: using the default generation config.")


def _draft_length(draft_ids: torch.Tensor, max_new_tokens: int | None) -> int:
    if draft_ids.ndim not in (1, 2):
        raise ValueError(f"draft_ids must have the shape (R,) or (B, R), got {tuple(draft_ids.shape)}.")
    length = draft_ids.shape[-1]
    if max_new_tokens is not None and max_new_tokens != length:
        raise ValueError(f"draft_ids of length {length} and max_new_tokens={max_new_tokens} contradict each other.")
    return length


def _prepare_prompt(
    embeds_BPD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    response_length: int,
) -> _Prompt:
    """Positions count the real tokens of a row, so padding on either side changes nothing."""
    shape, device = embeds_BPD.shape[:2], embeds_BPD.device
    for name, value in (("attention_mask", attention_mask), ("position_ids", position_ids)):
        if value is not None and value.shape != shape:
            raise ValueError(f"{name} has the shape {tuple(value.shape)}, the prompt {tuple(shape)}.")
    mask_BP = torch.ones(shape, dtype=torch.bool, device=device)
    if attention_mask is not None:
        mask_BP = attention_mask.to(device=device, dtype=torch.bool)
    if not mask_BP.any(-1).all():
        raise ValueError("attention_mask has a row without a single real token.")
    if position_ids is None:
        position_ids = (mask_BP.long().cumsum(-1) - 1).clamp(min=0)
    positions_BP = position_ids.to(device)
    last_B = positions_BP.masked_fill(~mask_BP, -1).amax(-1)
    response_positions_BR = last_B[:, None] + 1 + torch.arange(response_length, device=device)
    return _Prompt(embeds_BPD, None if mask_BP.all() else mask_BP, positions_BP, response_positions_BR)


def _prepare_sampler(
    config: ShirgGenerationConfig,
    generator: torch.Generator | list[torch.Generator] | None,
    batch_size: int,
    device: torch.device,
) -> MaskedDiffusionSampler:
    random = config.do_sample or CONFIDENCES[config.remasking] is None
    noise = RowNoise(generator, batch_size, device) if random else None
    return MaskedDiffusionSampler(config, config.suppress_tokens, noise)


def _start_stream(streamer: BaseStreamer | None, input_ids: torch.Tensor | None, batch_size: int) -> None:
    """Hands the prompt to the streamer, which expects one before it takes anything for an answer."""
    if streamer is None:
        return
    if batch_size > 1:
        raise ValueError(f"A streamer shows one response, got a batch of {batch_size}.")
    streamer.put(torch.empty(batch_size, 0, dtype=torch.int64) if input_ids is None else input_ids.cpu())


def _append_ones(mask_BK: torch.Tensor | None, length: int) -> torch.Tensor | None:
    return None if mask_BK is None else torch.nn.functional.pad(mask_BK, (0, length), value=True)


def _stack_history(history: list[torch.Tensor], response_BR: torch.Tensor) -> torch.LongTensor:
    return torch.stack(history) if history else response_BR.new_empty((0, *response_BR.shape))


__all__ = [
    "CONFIDENCES",
    "SCHEDULES",
    "MaskedDiffusionSampler",
    "RowNoise",
    "ShirgGenerationConfig",
    "ShirgGenerationOutput",
    "ShirgLavidaGenerationMixin",
    "select_positions",
    "transfer_counts",
    "transfer_table",
]
