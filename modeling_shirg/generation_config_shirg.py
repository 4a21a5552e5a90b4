"""The generation arguments of SHIRG-LaViDa: names, defaults, allowed values, and which contradict each other."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from transformers import CompileConfig, GenerationConfig

from .denoising_shirg import CONFIDENCES, SCHEDULES
from .prefix_cache_shirg import PREFIX_DTYPES


class _Kind(NamedTuple):
    """The allowed values of an argument, in words for the error message and as a test."""

    words: str
    accepts: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _one_of(choices: dict[str | None, Any]) -> _Kind:
    names = [name for name in choices if name is not None]
    return _Kind(f"one of {', '.join(map(repr, names))}", lambda value: value in names)


_SWITCH = _Kind("True or False", lambda value: isinstance(value, bool))
_COUNT = _Kind("an int > 0", lambda value: _is_id(value) and value > 0)
_SHARE = _Kind("a number in (0, 1]", lambda value: _is_number(value) and 0 < value <= 1)
_POSITIVE = _Kind("a number > 0", lambda value: _is_number(value) and value > 0)
_TEMPERATURE = _Kind("a number >= 0", lambda value: _is_number(value) and value >= 0)
_ID = _Kind("a token id, an int >= 0", _is_id)
_IDS = _Kind("a list of token ids, ints >= 0", lambda value: isinstance(value, list) and all(map(_is_id, value)))
_ID_OR_IDS = _Kind("a token id, an int >= 0, or a list of them", lambda value: _is_id(value) or _IDS.accepts(value))
_COMPILE = _Kind("a CompileConfig or a dict of its fields", lambda value: isinstance(value, CompileConfig))

# Default and allowed values of every argument. An argument with the default `None` also takes `None`.
_ARGUMENTS: dict[str, tuple[Any, _Kind]] = {
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
    "temperature": (None, _TEMPERATURE),
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
# The value of another argument without which an argument says nothing.
_NEEDS: tuple[tuple[str, str, Any], ...] = (
    ("temperature", "do_sample", True),
    ("confidence_threshold", "remasking", "low_confidence"),
    ("prefix_kv", "use_cache", True),
    ("prefix_dtype", "use_cache", True),
    ("dual_cache", "use_cache", True),
    ("compile_config", "use_cache", True),
    ("output_history", "return_dict_in_generate", True),
    ("output_selection", "return_dict_in_generate", True),
)
# Every argument with its default.
GENERATION_DEFAULTS: dict[str, Any] = {name: default for name, (default, _) in _ARGUMENTS.items()}
# An argument of a call replaces the stored value of the other one, which would contradict it.
_COUNTERPARTS = {"steps": "step_ratio", "step_ratio": "steps"}
# Keys that transformers itself writes into or hands to a generation config.
_METADATA = ("_commit_hash", "_from_model_config", "_original_object_hash", "transformers_version")
# Arguments of version 0.1; files saved by it hold them at these values.
_REMOVED = {"prefix_offload": False, "confidence_factor": None}


def overridden_fields(stored: GenerationConfig, overrides: dict[str, Any]) -> dict[str, Any]:
    """The fields of `stored` under the arguments of one call, which also replace contradicting stored values."""
    fields = stored.to_diff_dict()
    for name, counterpart in _COUNTERPARTS.items():
        if overrides.get(name) is not None:
            fields.pop(counterpart, None)
    if overrides.get("do_sample") is False:
        fields.pop("temperature", None)
    return fields | overrides


class ShirgGenerationConfig(GenerationConfig):
    """The arguments of `generate`; defaults and types stand in `_ARGUMENTS`.

    Args:
        max_new_tokens: length of the response, which is fixed.
        block_length: the response is filled in blocks of this length from left to right. `None` is one block.
        steps: denoising steps over all blocks, a multiple of the number of blocks.
        step_ratio: steps per token instead of `steps`. `None` is 1.0, one token per step.
        schedule: how many tokens a step fills, see `transfer_counts`. `None` spreads them evenly.
        shift: strength of the schedule `"shift"`; above 1 starts slowly, below 1 fast.
        remasking: which predictions a step keeps, see `CONFIDENCES`.
        confidence_threshold: a step also keeps every prediction of at least this probability: fewer forwards, at the
            risk that predictions do not fit each other (Fast-dLLM, arXiv:2505.22618).
        stop_at_eos: when everything before an end-of-text token is filled, the masks after it become end-of-text
            without further forwards. The text up to there stays the same.
        do_sample: draw tokens instead of taking the most probable one.
        temperature: of the draw; `None` is 1.0. The confidence is always that of the unscaled distribution.
        use_cache: encode the prompt once, blind to the response. `False` recomputes prompt and response at every step,
            and the prompt sees the response: another function, as in the original.
        prefix_kv: share of the prompt's keys and values that is kept after the pass over it, over all layers together
            (PrefixKV, arXiv:2412.03409). `None` and 1.0 keep all.
        prefix_dtype: type in which the prompt's keys and values are stored; attention computes in the model's own
            type. `None` is the model's.
        dual_cache: within a block, compute only the block's tokens after its first step, on the keys and values that
            the rest of the response had then (Fast-dLLM): an approximation.
        compile_config: run denoising steps under `torch.compile` with these arguments. Not saved with a model.
        suppress_tokens: ids that are never emitted; `None` is the mask and the image token.
        return_dict_in_generate: return a `ShirgGenerationOutput` instead of ids.
        output_history: also return the response after every step.
        output_selection: also return which image tokens were kept, and their scores.
        bos_token_id, eos_token_id, pad_token_id, mask_token_id: `None` is the model config's.
    """

    def __init__(self, **kwargs):
        # The parent's fields are for autoregressive decoding: its constructor is deliberately not called.
        ignored = [item for item in kwargs.items() if item[0] in _METADATA or item in _REMOVED.items()]
        for name, _ in ignored:
            kwargs.pop(name)
        unknown = sorted(set(kwargs) - set(_ARGUMENTS))
        if unknown:
            raise ValueError(
                f"Unknown generation argument {', '.join(map(repr, unknown))}. Known: {', '.join(_ARGUMENTS)}; "
                "`generate` also takes the image arguments of `forward`, such as pixel_values."
            )
        for name, default in GENERATION_DEFAULTS.items():
            setattr(self, name, kwargs.get(name, default))
        if isinstance(self.compile_config, dict):
            self.compile_config = CompileConfig(**self.compile_config)
        self._from_model_config = False
        self.validate()

    def validate(self, **unused_kwargs) -> None:
        """Raises a `ValueError` that names the offending value and the allowed ones."""
        for name, (default, kind) in _ARGUMENTS.items():
            value = getattr(self, name)
            if not (value is None and default is None) and not kind.accepts(value):
                raise ValueError(f"{name}={value!r} must be {kind.words}.")
        for name, other, needed in _NEEDS:
            value, actual = getattr(self, name), getattr(self, other)
            if value not in (None, False) and actual != needed:
                raise ValueError(f"{name}={value!r} needs {other}={needed!r}, got {other}={actual!r}.")
        for contradiction in self._contradictions():
            raise ValueError(contradiction)

    def _contradictions(self) -> Iterator[str]:
        if self.max_new_tokens % self.tokens_per_block:
            yield f"max_new_tokens={self.max_new_tokens} must be a multiple of block_length={self.block_length}."
        if self.steps is not None and self.step_ratio is not None:
            yield f"steps={self.steps} and step_ratio={self.step_ratio} set the number of steps: give one of them."
        if self.steps is not None and self.steps % self.num_blocks:
            yield f"steps={self.steps} must be a multiple of the number of blocks, {self.num_blocks}."
        if self.steps_per_block == 0:
            yield f"step_ratio={self.step_ratio} leaves no step for a block of {self.tokens_per_block} tokens."
        if self.do_sample and self.temperature == 0:
            yield "temperature=0 draws nothing, got do_sample=True: set do_sample=False for the most probable tokens."
        if self.dual_cache and self.block_length is None:
            yield "dual_cache=True needs block_length: a response of one block has no other tokens to keep."
        if self.dual_cache and self.prefix_dtype is not None:
            yield f"dual_cache=True keeps the response in the cache, prefix_dtype={self.prefix_dtype!r} does not."

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
        """Most denoising steps of a block; a block ends earlier when all its masks are filled."""
        if self.steps is not None:
            return min(self.steps // self.num_blocks, self.tokens_per_block)
        return int(self.tokens_per_block * (1.0 if self.step_ratio is None else self.step_ratio))

    @property
    def fills_by_schedule(self) -> bool:
        """Whether every step fills exactly the schedule's count: no predicted mask, no threshold, no early end."""
        mask_is_suppressed = self.mask_token_id in (self.suppress_tokens or [])
        return mask_is_suppressed and self.confidence_threshold is None and not self.stop_at_eos

    @property
    def end_ids(self) -> list[int]:
        """Ids that end an answer: those of `eos_token_id` with `stop_at_eos`, none without."""
        if not self.stop_at_eos or self.eos_token_id is None:
            return []
        return self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]

    @property
    def sampling_temperature(self) -> float | None:
        """Temperature of the draw; `None` takes the most probable token."""
        if not self.do_sample:
            return None
        return 1.0 if self.temperature is None else self.temperature

    def to_diff_dict(self) -> dict[str, Any]:
        """Contents of generation_config.json: every field that is not `None`. The parent leaves out values that equal
        its own defaults, so a file would change its meaning with a default of this class."""
        return {key: value for key, value in self.to_dict().items() if value is not None and not key.startswith("_")}

    @classmethod
    def from_model_config(cls, model_config: Any) -> GenerationConfig:
        """A model config holds no generation arguments; `PreTrainedModel` then starts from the defaults."""
        raise NotImplementedError("ShirgGenerationConfig does not read generation arguments from a model config.")
