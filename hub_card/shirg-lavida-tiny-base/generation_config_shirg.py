"""The generation arguments of SHIRG-LaViDa: their names and defaults, and which values work together."""

import math
from collections.abc import Iterable
from typing import Any

from transformers import CompileConfig, GenerationConfig

from .denoising_shirg import CONFIDENCES, SCHEDULES
from .prefix_cache_shirg import PREFIX_DTYPES

# Every field with its default.
GENERATION_DEFAULTS: dict[str, Any] = {
    "max_new_tokens": 32,
    "block_length": None,
    "steps": None,
    "step_ratio": None,
    "schedule": None,
    "shift": 3.0,
    "remasking": "low_confidence",
    "confidence_threshold": None,
    "confidence_factor": None,
    "stop_at_eos": False,
    "do_sample": False,
    "temperature": None,
    "use_cache": True,
    "prefix_kv": None,
    "prefix_dtype": None,
    "prefix_offload": False,
    "dual_cache": False,
    "compile_config": None,
    "suppress_tokens": None,
    "return_dict_in_generate": False,
    "output_history": False,
    "output_selection": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "mask_token_id": None,
}
# An argument replaces the stored value of its counterpart, which would contradict it.
_COUNTERPARTS = {
    "steps": "step_ratio",
    "step_ratio": "steps",
    "confidence_threshold": "confidence_factor",
    "confidence_factor": "confidence_threshold",
}
_OUTPUT_FLAGS = ("output_history", "output_selection")
_SWITCHES = ("do_sample", "use_cache", "return_dict_in_generate", "stop_at_eos", "dual_cache", "prefix_offload")
# What transformers itself writes into or hands to a generation config.
_METADATA = ("_commit_hash", "_from_model_config", "_original_object_hash", "transformers_version")


def overridden_fields(stored: GenerationConfig, overrides: dict[str, Any]) -> dict[str, Any]:
    """The fields of `stored` under the arguments of one call, which replace those that they contradict too."""
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
            (0, 1], beyond what the schedule says: fewer forwards, and another answer where predictions that are sure
            alone do not fit each other (Fast-dLLM, arXiv:2505.22618).
        confidence_factor (`float`, *optional*): instead, a step keeps the n most probable predictions for the largest
            n with `(n + 1) * (1 - p_n) < confidence_factor`, > 0 (the same paper).
        stop_at_eos (`bool`, defaults to `False`): when everything before an end-of-text token is filled, what is left
            after it becomes end-of-text without further forwards. The text up to there stays what it was.
        do_sample (`bool`, defaults to `False`): draw tokens with `temperature` instead of taking the most probable
            one.
        temperature (`float`, *optional*): of the draw, > 0, only with `do_sample=True`, where `None` is 1.0. The
            confidence is always that of the unscaled distribution.
        use_cache (`bool`, defaults to `True`): encode the prompt once, blind to the response. `False` recomputes
            prompt and response together at every step, the prompt sees the response: another function, as in the
            original.
        prefix_kv (`float`, *optional*): share of the prompt's keys and values that is kept after the pass over it, in
            (0, 1], over all layers together (PrefixKV, arXiv:2412.03409). `None` and 1.0 keep all.
        prefix_dtype (`"bfloat16"`, `"float16"` or `"int8"`, *optional*): the type in which they are stored; they are
            used in the model's own. `None` is the model's.
        prefix_offload (`bool`, defaults to `False`): hold them in host memory, but for those of the layer at work and
            of the next one: for long prompts on an accelerator, where each step then waits for copies. Tokens are the
            same. With `prefix_kv` or `prefix_dtype` all are on the accelerator until the prompt is read.
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
        self._validate_confidence()
        self._validate_prefix()
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
        if not _is_one_of(self.schedule, SCHEDULES):
            raise ValueError(f"schedule={self.schedule!r} must be one of {', '.join(map(repr, SCHEDULES))}.")
        if not _is_number(self.shift) or self.shift <= 0:
            raise ValueError(f"shift={self.shift!r} must be a number > 0.")
        if not _is_one_of(self.remasking, CONFIDENCES):
            raise ValueError(f"remasking={self.remasking!r} must be one of {', '.join(map(repr, CONFIDENCES))}.")
        for name in (*_SWITCHES, *_OUTPUT_FLAGS):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r} must be True or False.")
        for name in _OUTPUT_FLAGS:
            if getattr(self, name) and not self.return_dict_in_generate:
                raise ValueError(f"{name}=True needs return_dict_in_generate=True, got False: ids cannot hold it.")

    def _validate_confidence(self) -> None:
        threshold, factor = self.confidence_threshold, self.confidence_factor
        if threshold is not None and factor is not None:
            raise ValueError(
                f"confidence_threshold={threshold} and confidence_factor={factor} both say what a step keeps: give "
                "one of them."
            )
        if threshold is not None and (not _is_number(threshold) or not 0 < threshold <= 1):
            raise ValueError(f"confidence_threshold={threshold!r} must be a number in (0, 1].")
        if factor is not None and (not _is_number(factor) or not factor > 0):
            raise ValueError(f"confidence_factor={factor!r} must be a number > 0.")
        if self.by_confidence and self.remasking != "low_confidence":
            raise ValueError(
                "confidence_threshold and confidence_factor are of probabilities, so they need "
                f"remasking='low_confidence', got {self.remasking!r}."
            )

    def _validate_prefix(self) -> None:
        if self.prefix_kv is not None and (not _is_number(self.prefix_kv) or not 0 < self.prefix_kv <= 1):
            raise ValueError(f"prefix_kv={self.prefix_kv!r} must be a number in (0, 1].")
        if self.prefix_dtype is not None and not _is_one_of(self.prefix_dtype, PREFIX_DTYPES):
            raise ValueError(
                f"prefix_dtype={self.prefix_dtype!r} must be None or one of {', '.join(map(repr, PREFIX_DTYPES))}."
            )
        for name in ("prefix_kv", "prefix_dtype", "prefix_offload", "dual_cache", "compile_config"):
            if getattr(self, name) not in (None, False) and not self.use_cache:
                raise ValueError(f"{name}={getattr(self, name)!r} needs use_cache=True, got False: there is no cache.")
        if self.dual_cache and self.block_length is None:
            raise ValueError(
                "dual_cache=True needs block_length: a response of one block has no other tokens to keep."
            )
        if self.dual_cache and self.prefix_dtype is not None:
            raise ValueError(
                f"dual_cache=True keeps the response in the cache, which prefix_dtype={self.prefix_dtype!r} cannot: "
                "give one of them."
            )
        if self.prefix_offload and self.dual_cache:
            raise ValueError(
                "dual_cache=True keeps the response in the cache, which prefix_offload=True drops after each layer: "
                "give one of them."
            )
        if self.prefix_offload and self.compile_config is not None:
            raise ValueError(
                f"prefix_offload=True moves layers while a step runs, which compile_config={self.compile_config!r} "
                "cannot compile: give one of them."
            )
        if self.compile_config is not None and not isinstance(self.compile_config, CompileConfig):
            raise ValueError(
                f"compile_config={self.compile_config!r} must be a CompileConfig or a dict of its fields, {{}} for "
                "all defaults."
            )

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
    def by_confidence(self) -> bool:
        """Whether the confidences decide how many predictions a step keeps."""
        return self.confidence_threshold is not None or self.confidence_factor is not None

    @property
    def fills_by_schedule(self) -> bool:
        """Whether every step fills exactly what the schedule says; a mask that is predicted, for example, fills
        nothing."""
        mask_is_suppressed = self.mask_token_id in (self.suppress_tokens or [])
        return mask_is_suppressed and not self.by_confidence and not self.stop_at_eos

    @property
    def end_ids(self) -> list[int]:
        """`eos_token_id` as a list."""
        return self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]

    @property
    def sampling_temperature(self) -> float | None:
        """Temperature of the draw; `None` takes the most probable token."""
        if not self.do_sample:
            return None
        return 1.0 if self.temperature is None else self.temperature

    @property
    def evicted_ratio(self) -> float | None:
        """`prefix_kv`; `None` where nothing is evicted."""
        return None if self.prefix_kv == 1 else self.prefix_kv

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


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_one_of(value: Any, choices: Iterable[Any]) -> bool:
    """`in`, also for a value that cannot be hashed."""
    return value in list(choices)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _require_positive_int(name: str, value: Any) -> None:
    if not _is_id(value) or value == 0:
        raise ValueError(f"{name}={value!r} must be an int > 0.")


__all__ = ["GENERATION_DEFAULTS", "ShirgGenerationConfig"]
