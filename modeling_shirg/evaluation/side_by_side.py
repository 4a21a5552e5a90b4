"""Systems timed side by side: one run, the same picture and question, repeats in turn (A B C, A B C, ...)."""

import gc
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from configuration_shirg import ShirgLavidaProcessor
from modeling_shirg import ShirgLavidaForConditionalGeneration
from modeling_shirg.running.timing import STAGES, StageClock, spread, wall_seconds

QUESTION = "What is written in the middle of the picture?"


@dataclass(frozen=True)
class System:
    """One row of a comparison: a model, its processor, and how it is asked.

    Args:
        model, processor: of the same config.
        generation: arguments of `generate`.
        batch: how many pictures are asked about at once.
        image_size: their width and height in pixels.
    """

    model: ShirgLavidaForConditionalGeneration
    processor: ShirgLavidaProcessor
    generation: dict[str, Any] = field(default_factory=dict)
    batch: int = 1
    image_size: tuple[int, int] = (1024, 768)

    def chats(self) -> list[list[dict]]:
        """The prompts: pictures of noise, which cost what others cost."""
        return [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]}]
            for image in (_noise(seed, *self.image_size) for seed in range(self.batch))
        ]


@dataclass
class Answered:
    """What one run returned: the clock's stages, facts, and for each row its text and number of image tokens."""

    clock: StageClock
    facts: dict[str, int]
    texts: list[str] = field(default_factory=list)
    image_tokens: list[int] = field(default_factory=list)


@torch.no_grad()
def answer(system: System, chats: list[list[dict]], clock: StageClock) -> Answered:
    """Ask once, from pictures to text, with the stages on `clock`."""
    model, processor = system.model, system.processor
    with clock.watch(model), clock.stage("rest"):
        with clock.stage("preprocess"):
            inputs = processor.apply_chat_template(
                chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            ).to(model.device)
        output = model.generate(**inputs, **system.generation, return_dict_in_generate=True, output_selection=True)
        texts = processor.post_process_image_text_to_text(output.sequences[:, inputs["input_ids"].shape[1] :])
    image_tokens = _image_tokens(model.config, inputs, output)
    return Answered(clock, _facts(image_tokens[0], inputs, output), texts, image_tokens)


def _image_tokens(config: Any, inputs: Any, output: Any) -> list[int]:
    """Of every row, the image tokens that are used."""
    written_B = (inputs["input_ids"] == config.image_token_id).sum(1)
    unused_B = 0 if output.kept_indices is None else (output.kept_indices < 0).sum(1).to(written_B.device)
    return (written_B - unused_B).tolist()


def _facts(image_tokens: int, inputs: Any, output: Any) -> dict[str, int]:
    """What of an answer is counted and not timed; of a batch, image and prompt tokens are those of the first row."""
    facts = {
        "answers": len(inputs["input_ids"]),
        "image_tokens": image_tokens,
        "prompt_tokens": inputs["input_ids"].shape[1],
        "new_tokens": output.sequences.shape[1] - inputs["input_ids"].shape[1],
        "forwards": output.forwards,
    }
    return facts if output.prefix_bytes is None else {**facts, "prefix_bytes": sum(output.prefix_bytes)}


@dataclass
class Measured:
    """All repeats of one system.

    Args:
        seconds: by stage, `total` included, one entry per repeat.
        steps: of every denoising step of every repeat.
        facts: of the last repeat, the memory, and `first_seconds` of a warm-up's first answer.
    """

    seconds: dict[str, list[float]]
    steps: list[float]
    facts: dict[str, float]

    def spreads(self) -> dict[str, dict[str, float]]:
        """Median, extremes and quartiles of each stage, of the `total`, and of a single denoising `step`."""
        step = {"step": spread(self.steps)} if self.steps else {}
        return {**{name: spread(values) for name, values in self.seconds.items()}, **step}


def measure(
    systems: dict[str, System],
    repeats: int,
    warmup: int = 1,
    ask: Callable[[System, list[list[dict]], StageClock], Answered] = answer,
    now: Callable[[], float] = wall_seconds,
) -> dict[str, Measured]:
    """Time every system `repeats` times in turn, after `warmup` rounds that do not count; then its memory, once.

    Args:
        systems: by the name of their row.
        repeats: at least 1.
        warmup: 0 or more.
        ask: what is timed; it runs `clock` and returns it.
        now: one of `CLOCKS`.
    """
    chats = {name: system.chats() for name, system in systems.items()}
    runs: dict[str, list[Answered]] = {name: [] for name in systems}
    for _ in range(warmup + repeats):
        for name, system in systems.items():
            runs[name].append(ask(system, chats[name], StageClock(now)))
    return {
        name: _collect(
            runs[name], warmup, peak_memory(system.model, lambda s=system, c=chats[name]: ask(s, c, StageClock()))
        )
        for name, system in systems.items()
    }


def _collect(runs: list[Answered], warmup: int, memory: dict[str, int]) -> Measured:
    counted = runs[warmup:]
    seconds = {stage: [run.clock.seconds[stage] for run in counted] for stage in STAGES}
    seconds["total"] = [sum(run.clock.seconds.values()) for run in counted]
    first = {"first_seconds": sum(runs[0].clock.seconds.values())} if warmup else {}
    return Measured(
        seconds, [step for run in counted for step in run.clock.steps], {**counted[-1].facts, **memory, **first}
    )


def check_baseline(baseline: str, systems: Iterable[str]) -> None:
    """Raises a `ValueError` unless `baseline` is one of `systems`."""
    names = list(systems)
    if baseline not in names:
        raise ValueError(f"The baseline {baseline!r} is none of the systems that are timed: {', '.join(names)}.")


def ratios(spreads: dict[str, dict], facts: dict[str, dict], baseline: str) -> dict[str, dict[str, float]]:
    """Each system's medians and facts over the baseline's; what the baseline has none of is left out."""
    values = {
        name: {**{stage: each["median"] for stage, each in stages.items()}, **facts[name]}
        for name, stages in spreads.items()
    }
    return {
        name: {key: own[key] / base for key, base in values[baseline].items() if base and key in own}
        for name, own in values.items()
    }


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Run a block with so many threads of torch, then with as many as before; `None` changes nothing.

    Raises:
        ValueError: fewer than 1.
    """
    if count is not None and count < 1:
        raise ValueError(f"threads={count}: torch needs 1 or more.")
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def prefix_savings(spreads: dict[str, dict], facts: dict[str, dict], rows: dict[str, str]) -> dict[str, dict]:
    """What a smaller prefix cache costs and saves, beside the same system with the whole one.

    Args:
        spreads, facts: of all systems.
        rows: each system with a smaller cache, and the one that it is compared with.
    """
    return {
        name: {
            "against": whole,
            "evict_seconds": spreads[name]["evict"]["median"],
            "saved_bytes": facts[whole]["prefix_bytes"] - facts[name]["prefix_bytes"],
            "kept_share": facts[name]["prefix_bytes"] / facts[whole]["prefix_bytes"],
            "saved_step_seconds": spreads[whole]["step"]["median"] - spreads[name]["step"]["median"],
        }
        for name, whole in rows.items()
    }


def peak_memory(model: ShirgLavidaForConditionalGeneration, run: Callable[[], Any]) -> dict[str, int]:
    """Bytes of the weights, the most that torch held beside them during one run, and both together.

    On CUDA it is `max_memory_allocated`, on a CPU the largest sum of what torch's allocator gave out and took back
    during the run. Neither holds the interpreter, libraries, their scratch memory, or pixels before they are tensors.
    """
    weights = {each.untyped_storage()._cdata: each.nbytes for each in (*model.parameters(), *model.buffers())}
    gc.collect()
    measured = _cuda_peak if model.device.type == "cuda" else _cpu_peak
    beside = measured(run)
    held = sum(weights.values())
    return {"weight_bytes": held, "activation_bytes": beside, "peak_memory_bytes": held + beside}


def _cuda_peak(run: Callable[[], Any]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _cpu_peak(run: Callable[[], Any]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = sorted((each["ts"], each["args"]["Bytes"]) for each in events if each["name"] == "[memory]")
    held = np.cumsum([change for _, change in changes])
    return max(int(held.max(initial=0)), 0)


def machine(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Where and when a measurement is taken, and how busy the machine is."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_average": load_average(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def load_average() -> float:
    """Processes that ran or waited, over the last minute: more than there are cores is a busy machine."""
    return round(os.getloadavg()[0], 2)


def cpu_name() -> str:
    """The processor as the system names it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _noise(seed: int, width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
