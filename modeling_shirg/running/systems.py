"""The rows of a comparison: `NAME:FIELD=VALUE,...` on a command line becomes a system that can be timed."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import torch

from configuration_shirg import PRESETS, ShirgLavidaProcessor
from configuration_shirg.presets_shirg import geometry_of
from modeling_shirg.evaluation.profiles import PROFILES, profile_config, random_model, under_system
from modeling_shirg.evaluation.side_by_side import System
from modeling_shirg.generation_config_shirg import GENERATION_DEFAULTS
from modeling_shirg.running.load import DTYPES, Loaded, load, parse_options, resolve_device

# A comma before the next FIELD=; other commas belong to a value, which may be JSON.
_SEPARATOR = re.compile(r",(?=\s*[A-Za-z_][\w-]*=)")
_CACHE_FIELDS = ("prefix_kv", "prefix_dtype")
_WIDTHS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@dataclass
class Row:
    """A preset, and how it differs from what the others do.

    Args:
        label: as it was written; the row's name in every table.
        preset: name of the system.
        options: fields of the config.
        generation: arguments of `generate`.
        batch: number of pictures at once; `None` is what the others have.
    """

    label: str
    preset: str
    options: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    batch: int | None = None


def parse_row(text: str) -> Row:
    """A row from `NAME` or `NAME:FIELD=VALUE,FIELD=VALUE`: `batch`, an argument of `generate`, or a field of the
    config.

    Raises:
        ValueError: an unknown preset or field, or a value that does not fit.
    """
    preset, _, rest = text.partition(":")
    if preset not in PRESETS:
        nearest = "".join(f" Did you mean {match!r}?" for match in get_close_matches(preset, PRESETS, n=1))
        raise ValueError(f"Unknown system {preset!r}.{nearest} Known: {', '.join(PRESETS)}.")
    entries = [_entry(text, each) for each in filter(None, _SEPARATOR.split(rest.rstrip(",")))]
    values = dict(entries)
    if len(values) < len(entries):
        raise ValueError(f"{text}: a field is given twice, in {', '.join(name for name, _ in entries)}.")
    batch = values.pop("batch", None)
    if batch is not None and (not isinstance(batch, int) or batch < 1):
        raise ValueError(f"{text}: batch={batch} must be a whole number of pictures, 1 or more.")
    generation = {name: values.pop(name) for name in list(values) if name in GENERATION_DEFAULTS}
    options = parse_options([f"{name}={json.dumps(value)}" for name, value in values.items()])
    return Row(text, preset, options, generation, batch)


def _entry(text: str, entry: str) -> tuple[str, Any]:
    name, equals, value = entry.partition("=")
    if not equals:
        raise ValueError(f"{text}: write {entry!r} as FIELD=VALUE, for example prefix_kv=0.6.")
    try:
        return name.strip().replace("-", "_"), json.loads(value)
    except json.JSONDecodeError:
        if "," in value:
            raise ValueError(f"{text}: {value!r} is no value; write every field as FIELD=VALUE.") from None
        return name.strip().replace("-", "_"), value


def with_variants(rows: list[Row], variants: Iterable[str]) -> list[Row]:
    """Every row, followed by itself with each of `variants`, entries such as `prefix_kv=0.6`.

    Raises:
        ValueError: two rows have one label.
    """
    variants = list(variants)
    joined = [f"{row.label}{',' if ':' in row.label else ':'}{entry}" for row in rows for entry in variants]
    every = [*rows, *(parse_row(label) for label in joined)]
    twice = [label for label, count in Counter(row.label for row in every).items() if count > 1]
    if twice:
        raise ValueError(f"{', '.join(twice)}: given more than once; a table has one row of each.")
    return every


def smaller_caches(rows: list[Row]) -> dict[str, str]:
    """Rows whose prefix cache is evicted or stored smaller, and the row that is the same but for that."""
    smaller = {}
    for row in rows:
        rest = {name: value for name, value in row.generation.items() if name not in _CACHE_FIELDS}
        whole = [other for other in rows if (other.generation, other.options) == (rest, row.options)]
        alike = [other.label for other in whole if (other.preset, other.batch) == (row.preset, row.batch)]
        if len(rest) < len(row.generation) and alike:
            smaller[row.label] = alike[0]
    return smaller


class Bench:
    """One set of weights, and the systems that are timed on it.

    Args:
        profile: a key of `PROFILES`.
        model: a checkpoint, whose widths and weights replace the profile's; `None` is random weights.
        device, dtype: where and in what the weights are; "auto" is the accelerator if there is one, and the profile's
            dtype.
        vocab_size: of random weights; `None` is the profile's.
        generation: length of the answer and steps where they are not the profile's.
        batch: of rows that name none.

    Raises:
        ValueError: the profile needs an accelerator and there is none, memory cannot be measured on the device, or an
            argument does not fit another.
    """

    def __init__(
        self,
        profile: str,
        model: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        vocab_size: int | None = None,
        generation: dict[str, Any] | None = None,
        batch: int = 1,
    ):
        self.profile, self.batch = PROFILES[profile], batch
        self.device = resolve_device(device)
        if self.device.type not in ("cpu", "cuda"):
            raise ValueError(f"Memory is measured on cpu and cuda, not on {self.device.type}: say --device cpu.")
        if self.profile.needs_accelerator and device == "auto" and self.device.type == "cpu":
            raise ValueError(
                f"Profile {profile!r} has 8.4 billion weights and this machine no accelerator: use --profile cpu, or "
                "say --device cpu if you have the memory and the hours."
            )
        dtype = self.profile.dtype if dtype == "auto" and model is None else dtype
        if model is not None and vocab_size is not None:
            raise ValueError(f"vocab_size={vocab_size} is for random weights; {model} has its own vocabulary.")
        given = load(model, device="cpu" if model is None else device, dtype="auto" if model is None else dtype)
        self.loaded = given if model is not None else self._random(given, DTYPES[dtype], vocab_size)
        self.generation = {
            "max_new_tokens": self.profile.max_new_tokens,
            "steps": self.profile.steps,
            **(generation or {}),
        }
        self._models: dict[str, Any] = {}

    def _random(self, given: Loaded, dtype: torch.dtype, vocab_size: int | None) -> Loaded:
        config = profile_config(self.profile, given.model.config, vocab_size)
        return Loaded(random_model(config, dtype, self.device), given.processor, "random weights")

    def system(self, row: Row) -> System:
        """The system of one row; rows of one preset and the same options share a model."""
        key = json.dumps([row.preset, row.options], sort_keys=True)
        if key not in self._models:
            model = under_system(self.loaded.model, row.preset, **row.options)
            saved = self.loaded.processor
            self._models[key] = (
                model,
                ShirgLavidaProcessor.from_config(
                    model.config, saved.tokenizer, saved.chat_template, relevance_tokenizer=saved.relevance_tokenizer
                ),
            )
        model, processor = self._models[key]
        return System(
            model, processor, {**self.generation, **row.generation}, row.batch or self.batch, self.profile.image_size
        )

    def systems(self, rows: Iterable[Row]) -> dict[str, System]:
        """The systems of rows, by their labels."""
        return {row.label: self.system(row) for row in rows}

    def settings(self) -> dict[str, Any]:
        """What all rows have in common."""
        config = self.loaded.model.config
        return {
            "weights": self.loaded.name,
            "geometry": geometry_of(config.vision_config.image_size),
            "parameters": sum(each.numel() for each in self.loaded.model.parameters()),
            "vision": {name: getattr(config.vision_config, name) for name in _WIDTHS},
            "text": {name: getattr(config.text_config, name) for name in (*_WIDTHS, "vocab_size")},
            "image_size": list(self.profile.image_size),
            **self.generation,
            "batch": self.batch,
        }
