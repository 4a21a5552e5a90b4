"""The generation arguments of SHIRG-LaViDa: a table of names, defaults and ranges, and which values work together."""

import math
from collections.abc import Callable
from typing import Any

from transformers import CompileConfig, GenerationConfig

from .denoising_shirg import CONFIDENCES, SCHEDULES
from .prefix_cache_shirg import PREFIX_DTYPES


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_id(value: Any) -> bool:
    return _is_int(value) and value >= 0


# A range: what a value must be, in words, and the test.
_Range = tuple[str, Callable[[Any], bool]]
_COUNT: _Range = ("an int > 0", lambda value: _is_int(value) and value > 0)
_SHARE: _Range = ("a number in (0, 1]", lambda value: _is_number(value) and 0 < value <= 1)
_POSITIVE: _Range = ("a number > 0", lambda value: _is_number(value) and value > 0)
_NOT_NEGATIVE: _Range = ("a number > 0", lambda value: _is_number(value) and value >= 0)
_SWITCH: _Range = ("True or False", lambda value: isinstance(value, bool))
_ID: _Range = ("a token id, an int >= 0", _is_id)
_IDS: _Range = ("a list of token ids, ints >= 0", lambda value: isinstance(value, list) and all(map(_is_id, value)))
_ID_OR_IDS: _Range = ("a token id or a list of them", lambda value: _is_id(value) or _IDS[1](value))
_COMPILE: _Range = (
    "a CompileConfig or a dict of its fields, {} for all defaults",
    lambda value: isinstance(value, CompileConfig),
)


def _one_of(choices: Any) -> _Range:
    names = [choice for choice in choices if choice is not None]
    return f"one of {', '.join(map(repr, names))}", lambda value: isinstance(value, str) and value in names


# Every argument: its default and its range. `None` is always allowed where it is the default.
_ARGUMENTS: dict[str, tuple[Any, _Range]] = {
    "max_new_tokens": (32, _COUNT),
    "block_length": (None, _COUNT),
    "steps": (None, _COUNT),
    "step_ratio": (None, _SHARE),
    "schedule": (None, _one_of(SCHEDULES)),
    "shift": (3.0, _POSITIVE),
    "remasking": ("low_confidence", _one_of(CONFIDENCES)),
    "confidence_threshold": (None, _SHARE),
    "stop_at_eos": (False, _SWITCH),
    "do_sample": (False, _SWITCH),
    "temperature": (None, _NOT_NEGATIVE),
    "use_cache": (True, _SWITCH),
    "prefix_kv": (None, _SHARE),
    "prefix_dtype": (None, _one_of(PREFIX_DTYPES)),
    "dual_cache": (False, _SWITCH),
    "compile_config": (None, _COMPILE),
    "suppress_tokens": (None, _IDS),
    "return_dict_in_generate": (False, _SWITCH),
    "output_history": (False, _SWITCH),
    "output_selection": (False, _SWITCH),
    "bos_token_id": (None, _ID),
    "eos_token_id": (None, _ID_OR_IDS),
    "pad_token_id": (None, _ID),
    "mask_token_id": (None, _ID),
}
GENERATION_DEFAULTS: dict[str, Any] = {name: default for name, (default, _) in _ARGUMENTS.items()}
# An argument replaces the stored value of its counterpart, which would contradict it.
_COUNTERPARTS = {"steps": "step_ratio", "step_ratio": "steps"}
# Arguments that need another argument: (argument, needed argument, needed value, reason).
_NEEDS = (
    ("output_history", "return_dict_in_generate", True, "ids cannot hold it"),
    ("output_selection", "return_dict_in_generate", True, "ids cannot hold it"),
    ("prefix_kv", "use_cache", True, "there is no cache"),
    ("prefix_dtype", "use_cache", True, "there is no cache"),
    ("dual_cache", "use_cache", True, "there is no cache"),
    ("compile_config", "use_cache", True, "there is no cache"),
    ("confidence_threshold", "remasking", "low_confidence", "the threshold is a probability"),
)
# Fields that transformers itself writes into a generation config, or hands to one.
_METADATA = ("_commit_hash", "_from_model_config", "_original_object_hash", "transformers_version")
# Arguments of version 0.1, which wrote them into every generation_config.json: read where they ask for nothing.
_REMOVED = ("confidence_factor", "prefix_offload")


def overridden_fields(stored: GenerationConfig, overrides: dict[str, Any]) -> dict[str, Any]:
    """The fields of `stored` under the arguments of one call, which also replace contradicting stored fields."""
    fields = stored.to_diff_dict()
    for name, counterpart in _COUNTERPARTS.items():
        if overrides.get(name) is not None:
            fields.pop(counterpart, None)
    if overrides.get("do_sample") is False:
        fields.pop("temperature", None)
    return fields | overrides


class ShirgGenerationConfig(GenerationConfig):
    r"""
    Args:
        max_new_tokens (`int`, defaults to 32): length R of the response. It is fixed; see `stop_at_eos`.
        block_length (`int`, *optional*): the response is filled in blocks of this length from left to right; it
            divides `max_new_tokens`. `None` is one block.
        steps (`int`, *optional*): denoising steps over all blocks, a multiple of the number of blocks. A block has at
            most as many steps as tokens.
        step_ratio (`float`, *optional*): steps per token instead of `steps`, in (0, 1]; each block gets
            `int(block_length * step_ratio)`. `None` is 1.0, one token per step.
        schedule (`"linear"`, `"shift"`, `"cosine"`, `"logit_normal"`, *optional*): how many tokens each step fills,
            see `transfer_counts`. `None` spreads them evenly.
        shift (`float`, defaults to 3.0): strength of `"shift"`; above 1 starts slowly, below 1 fast.
        remasking (`"low_confidence"`, `"random"`, `"entropy"` or `"margin"`, defaults to `"low_confidence"`): which
            predictions a step keeps, see `CONFIDENCES`.
        confidence_threshold (`float`, *optional*): a step also keeps every prediction of at least this probability, in
            (0, 1], beyond the schedule's count: fewer forwards, at the risk that predictions do not fit each other
            (Fast-dLLM, arXiv:2505.22618).
        stop_at_eos (`bool`, defaults to `False`): when everything before an end-of-text token is filled, the rest
            becomes end-of-text without further forwards. The text before it is unchanged.
        do_sample (`bool`, defaults to `False`): draw tokens with `temperature` instead of taking the most probable
            one.
        temperature (`float`, *optional*): of the draw, > 0, only with `do_sample=True`, where `None` is 1.0. The
            confidence is always that of the unscaled distribution.
        use_cache (`bool`, defaults to `True`): encode the prompt once, blind to the response. `False` recomputes
            prompt and response together at every step, so that the prompt sees the response: another function, as in
            the original.
        prefix_kv (`float`, *optional*): share of the prompt's keys and values that is kept after the pass over it, in
            (0, 1], over all layers together (PrefixKV, arXiv:2412.03409). `None` and 1.0 keep all.
        prefix_dtype (`"bfloat16"`, `"float16"` or `"int8"`, *optional*): the type in which the prompt's keys and
            values are stored; they are used in the model's own. `None` is the model's.
        dual_cache (`bool`, defaults to `False`): within a block, compute only the block's tokens after its first step,
            on the keys and values that the rest of the response had then (Fast-dLLM's DualCache): an approximation,
            for long answers in blocks.
        compile_config (`CompileConfig` or `dict`, *optional*): run denoising steps under `torch.compile` with these
            arguments. The first answer of a length waits for the compiler. Not saved with a model.
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
        for key in _REMOVED:
            if not kwargs.get(key):
                kwargs.pop(key, None)
        unknown = sorted(set(kwargs) - set(GENERATION_DEFAULTS))
        if unknown:
            raise ValueError(
                f"Unknown generation argument {', '.join(map(repr, unknown))}. "
                f"Known: {', '.join(GENERATION_DEFAULTS)}."
            )
        for name, default in GENERATION_DEFAULTS.items():
            setattr(self, name, kwargs.get(name, default))
        if isinstance(self.compile_config, dict):
            self.compile_config = CompileConfig(**self.compile_config)
        self._from_model_config = False
        self.validate()

    def validate(self, **unused_kwargs) -> None:
        """Raises a `ValueError` that names the offending value and the allowed ones."""
        for name, (default, (allowed, fits)) in _ARGUMENTS.items():
            value = getattr(self, name)
            if not fits(value) and not (value is None and default is None):
                raise ValueError(f"{name}={value!r} must be {allowed}.")
        for name, other, needed, reason in _NEEDS:
            if getattr(self, name) not in (None, False) and getattr(self, other) != needed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} needs {other}={needed!r}, got {getattr(self, other)!r}: {reason}."
                )
        self._validate_steps()
        if self.dual_cache and self.block_length is None:
            raise ValueError("dual_cache=True needs block_length: one block has no other tokens to keep.")
        if self.dual_cache and self.prefix_dtype is not None:
            raise ValueError(
                f"dual_cache=True keeps the response in the cache, which prefix_dtype={self.prefix_dtype!r} cannot: "
                "give one of them."
            )
        if self.do_sample and self.temperature == 0:
            raise ValueError("temperature=0 draws nothing, got do_sample=True: set do_sample=False for the argmax.")
        if not self.do_sample and self.temperature:
            raise ValueError(f"temperature={self.temperature} needs do_sample=True, got do_sample=False.")

    def _validate_steps(self) -> None:
        if self.block_length is not None and self.max_new_tokens % self.block_length:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens} must be a multiple of block_length={self.block_length}."
            )
        if self.steps is not None and self.step_ratio is not None:
            raise ValueError(
                f"steps={self.steps} and step_ratio={self.step_ratio} both set the number of steps: give one of them."
            )
        if self.steps is not None and self.steps % self.num_blocks:
            raise ValueError(
                f"steps={self.steps} must be a multiple of the number of blocks, {self.num_blocks} "
                f"(max_new_tokens={self.max_new_tokens} / block_length={self.block_length})."
            )
        if self.step_ratio is not None and self.steps_per_block == 0:
            raise ValueError(
                f"step_ratio={self.step_ratio} leaves no step for a block of {self.tokens_per_block} tokens: it must "
                f"be at least 1/{self.tokens_per_block}."
            )

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
        """Number of denoising steps that a block may take; fewer when nothing is masked any more."""
        if self.steps is not None:
            return min(self.steps // self.num_blocks, self.tokens_per_block)
        return int(self.tokens_per_block * (1.0 if self.step_ratio is None else self.step_ratio))

    @property
    def fills_by_schedule(self) -> bool:
        """Whether every step fills exactly the schedule's count: no threshold, no early end, no predicted mask."""
        mask_is_suppressed = self.mask_token_id in (self.suppress_tokens or [])
        return mask_is_suppressed and self.confidence_threshold is None and not self.stop_at_eos

    @property
    def end_ids(self) -> list[int]:
        """The ids that end an answer, the first of which fills its rest."""
        return self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]

    @property
    def sampling_temperature(self) -> float | None:
        """The temperature of the draw; `None` for the argmax."""
        if not self.do_sample:
            return None
        return 1.0 if self.temperature is None else self.temperature

    @property
    def evicted_ratio(self) -> float | None:
        """`prefix_kv`; `None` where nothing is evicted."""
        return None if self.prefix_kv == 1 else self.prefix_kv

    def to_diff_dict(self) -> dict[str, Any]:
        """The fields of a generation_config.json: all that are not `None`, so that a file keeps its meaning when a
        default of this class changes."""
        return {key: value for key, value in self.to_dict().items() if value is not None and not key.startswith("_")}

    @classmethod
    def from_model_config(cls, model_config: Any) -> GenerationConfig:
        """A model config holds no generation arguments; `PreTrainedModel` then starts from the defaults."""
        raise NotImplementedError("ShirgGenerationConfig does not read generation arguments from a model config.")


__all__ = ["GENERATION_DEFAULTS", "ShirgGenerationConfig"]
