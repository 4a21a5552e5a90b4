"""Systems timed side by side: the same pictures and question, repeats in turn (A B C, A B C, ...)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from configuration_shirg import ShirgLavidaConfig, ShirgLavidaProcessor
from modeling_shirg import ShirgLavidaForConditionalGeneration
from modeling_shirg.evaluation.costs import machine_words, peak_memory
from modeling_shirg.running.ask import Answers, ask, conversation
from modeling_shirg.running.load import Loaded
from modeling_shirg.running.timing import STAGES, stage_seconds, wall_seconds

QUESTION = "What is written in the middle of the picture?"


@dataclass(frozen=True)
class Timed:
    """A system with its arguments of `generate`, and the number and size of the pictures it is asked about."""

    loaded: Loaded
    generation: dict[str, Any]
    batch: int = 1
    image_size: tuple[int, int] = (1024, 768)

    def chats(self) -> list[list[dict]]:
        """The prompts: pictures of noise, which cost as much as others."""
        width, height = self.image_size
        draws = (
            np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8) for seed in range(self.batch)
        )
        return [conversation(Image.fromarray(pixels), QUESTION) for pixels in draws]


def measure(systems: dict[str, Timed], repeats: int, warmup: int = 1) -> dict[str, dict[str, Any]]:
    """Time every system `repeats` times in turn after `warmup` rounds that do not count; then count, once each.

    By system: `seconds`, the spread over the repeats, and `first_seconds`; `stages`, seconds of one profiled answer;
    `flops` of matrix products and attention; tokens, forwards and bytes.
    """
    asked = {name: partial(ask, each.loaded, each.chats(), **each.generation) for name, each in systems.items()}
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    answers: dict[str, Answers] = {}
    for _ in range(warmup + repeats):
        for name, once in asked.items():
            start = wall_seconds()
            answers[name] = once()
            seconds[name].append(wall_seconds() - start)
    found = {}
    for name, once in asked.items():
        with stage_seconds() as stages:
            once()
        with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
            once()
        held = answers[name].outputs.prefix_bytes
        found[name] = {
            "seconds": spread(seconds[name][warmup:]),
            "first_seconds": seconds[name][0],
            "stages": {stage: stages[stage] for stage in STAGES},
            "image_tokens": answers[name].num_image_tokens[0],
            "prompt_tokens": answers[name].inputs["input_ids"].shape[1],
            "forwards": answers[name].outputs.forwards,
            "prefix_bytes": None if held is None else sum(held),
            "flops": counter.get_total_flops(),
            **peak_memory(systems[name].loaded.model, once),
        }
    return found


def _attention_flops(query_shape, key_shape, value_shape, *args, out_shape=None, **kwargs) -> int:
    return sdpa_flop_count(query_shape, key_shape, value_shape)


# Attention on the CPU, missing from torch's own registry.
_FORMULAS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum, maximum and quartiles."""
    names = ("min", "q1", "median", "q3", "max")
    return dict(zip(names, np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist(), strict=True))


def check_baseline(baseline: str, systems: Iterable[str]) -> None:
    """Raises a `ValueError` unless `baseline` is one of `systems`."""
    names = list(systems)
    if baseline not in names:
        raise ValueError(f"The baseline {baseline!r} is none of the systems: {', '.join(names)}.")


def ratios(systems: dict[str, dict[str, Any]], baseline: str) -> dict[str, dict[str, float]]:
    """Each system's median seconds and counts over the baseline's; a zero of the baseline has no ratio."""
    flat = {
        name: {key: value["median"] if key == "seconds" else value for key, value in found.items() if key != "stages"}
        for name, found in systems.items()
    }
    return {
        name: {key: own[key] / base for key, base in flat[baseline].items() if base and own[key] is not None}
        for name, own in flat.items()
    }


def table(result: dict[str, Any]) -> str:
    """The measurement as text: what was timed and where, and a line per system."""
    settings, base, rows = result["settings"], result["baseline"], []
    for name, found in result["systems"].items():
        ratio, seconds, stages = result["ratios"][name], found["seconds"], found["stages"]
        whole = sum(stages.values()) or 1.0
        row = {"system": name, "image tokens": found["image_tokens"], "forwards": found["forwards"]}
        row["ms (min..max)"] = (
            f"{1e3 * seconds['median']:,.1f} ({1e3 * seconds['min']:,.1f}..{1e3 * seconds['max']:,.1f})"
        )
        row |= {f"of {base}": f"{ratio['seconds']:.2f}"}
        row |= {f"{stage} %": f"{100 * stages[stage] / whole:.1f}" for stage in STAGES}
        row |= {"GFLOP": f"{found['flops'] / 1e9:,.2f}", "GFLOP ratio": f"{ratio['flops']:.2f}"}
        row["prefix cache MB"] = "none" if found["prefix_bytes"] is None else f"{found['prefix_bytes'] / 1e6:,.1f}"
        row["peak MB"] = f"{found['peak_memory_bytes'] / 1e6:,.1f}"
        rows.append(row | {"peak ratio": f"{ratio['peak_memory_bytes']:.2f}"})
    about = ", ".join(f"{name} {value}" for name, value in settings.items())
    return f"{about}. {machine_words(result['machine'])}.\n\n{pandas.DataFrame(rows).to_string(index=False)}"


@dataclass(frozen=True)
class Profile:
    """Geometry, widths (empty is the full size), picture size, answer and dtype of a measurement."""

    geometry: str
    vision: dict[str, int]
    text: dict[str, int]
    image_size: tuple[int, int]
    max_new_tokens: int
    steps: int
    dtype: str = "float32"


def _widths(hidden: int, intermediate: int, layers: int, heads: int, **more: int) -> dict[str, int]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return dict(zip(names, (hidden, intermediate, layers, heads), strict=True)) | more


# MLPs are as wide beside the layers, and heads as wide, as at the full size.
PROFILES = {
    "toy": Profile("toy", _widths(128, 512, 5, 4), _widths(192, 512, 4, 3, vocab_size=768), (512, 384), 8, 8),
    "cpu": Profile("full", _widths(256, 960, 6, 4), _widths(512, 1536, 8, 8, vocab_size=4096), (1024, 768), 32, 16),
    "gpu": Profile("full", {}, {}, (1024, 768), 32, 30, "bfloat16"),
}
# A random model is asked through the tokenizer of a checkpoint, so it takes that checkpoint's token ids.
_TOKEN_IDS = ("image_token_id", "mask_token_id", "infill_token_id", "bos_token_id", "eos_token_id", "pad_token_id")


def random_system(
    profile: Profile, preset: str, fields: dict[str, Any], given: Loaded, dtype: torch.dtype, device: torch.device
) -> Loaded:
    """A preset with random weights at a profile's widths, asked through the tokenizer of `given`, any checkpoint.

    `fields` of the config win over the preset's.
    """
    fields |= {name: getattr(given.model.config, name) for name in _TOKEN_IDS}
    text = {"max_position_embeddings": 4096, **profile.text}
    config = ShirgLavidaConfig.from_preset(
        preset, geometry=profile.geometry, vision_config=profile.vision, text_config=text, **fields
    )
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        model = ShirgLavidaForConditionalGeneration._from_config(config, dtype=dtype).eval()
    saved = given.processor
    processor = ShirgLavidaProcessor.from_config(config, saved.tokenizer, saved.chat_template)
    return Loaded(model, processor, "random weights")
