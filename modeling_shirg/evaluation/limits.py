"""How fast a stage could be on this machine: the larger of its bytes over the memory's bandwidth and its operations
over the rate of matrix products, both measured in the same process as the stage itself.

Only what cannot be avoided is counted: every weight is read once per forward, the prefix cache once per step, and
matrix products are computed once. Softmax, norms, copies and activations cost nothing in a floor.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from modeling_shirg.evaluation.operations import OperationCount, Operations
from modeling_shirg.evaluation.side_by_side import System, answer
from modeling_shirg.running.timing import StageClock, repeated_seconds, wall_seconds

# Large enough that no cache holds it, and for products to run at their full rate.
_COPY_BYTES = {"cpu": 1 << 30, "accelerator": 1 << 31}
_PRODUCT_SIDES = {"cpu": (1024, 2048), "accelerator": (4096, 8192)}
# The stages that are made of weights and products; the others have no floor but 0.
LIMITED = ("encode", "select", "project", "prefix", "denoise")


@dataclass(frozen=True)
class Rates:
    """What the machine can do with one dtype and the current number of threads.

    Args:
        bytes_per_second: read, or read and written, by the faster of a sum and a copy of a large tensor.
        flops_per_second: of the fastest square matrix product that was tried.
    """

    bytes_per_second: float
    flops_per_second: float


@dataclass(frozen=True)
class Limit:
    """One stage of one system beside its floor.

    Args:
        reached: median seconds.
        floor: seconds.
        bound: which of `"bytes"` and `"flops"` the floor comes from.
        factor: `reached / floor`.
        flops, bytes: what the floor was computed from.
    """

    reached: float
    floor: float
    bound: str
    factor: float
    flops: int
    bytes: int


def measure_rates(
    device: torch.device,
    dtype: torch.dtype,
    repeats: int = 5,
    copy_bytes: int | None = None,
    product_sides: tuple[int, ...] | None = None,
    now: Callable[[], float] = wall_seconds,
) -> Rates:
    """The best of `repeats` of each measurement, by the clock that timed the stages.

    Sizes are by default as large as the device's caches need.
    """
    kind = "cpu" if device.type == "cpu" else "accelerator"
    source = torch.ones((copy_bytes or _COPY_BYTES[kind]) // dtype.itemsize, dtype=dtype, device=device)
    target = torch.empty_like(source)
    copied = min(repeated_seconds(lambda: target.copy_(source), repeats, now)) / 2
    seconds = min(copied, *repeated_seconds(source.sum, repeats, now))
    rates = []
    for side in product_sides or _PRODUCT_SIDES[kind]:
        factor = torch.ones(side, side, dtype=dtype, device=device)
        rates.append(2 * side**3 / min(repeated_seconds(lambda factor=factor: factor @ factor, repeats, now)))
    return Rates(source.nbytes / seconds, max(rates))


def counted_stages(system: System) -> tuple[dict[str, Operations], dict[str, int]]:
    """Operations of one answer by stage, and its facts."""
    clock = StageClock()
    with OperationCount(clock, system.model) as counter:
        facts = answer(system, system.chats(), clock).facts
    return dict(counter.stages), facts


def limits(system: System, stages: dict[str, dict[str, float]], rates: Rates) -> dict[str, dict[str, Any]]:
    """Each stage of `system` that has a floor, and a single denoising `step`, beside it.

    Args:
        system: what was timed.
        stages: its spreads, as `Measured.spreads` gives them.
        rates: measured in the same run.
    """
    counts, facts = counted_stages(system)
    # Each step reads the prefix cache once, which is no weight.
    cache_bytes = {"denoise": facts["forwards"] * facts.get("prefix_bytes", 0)}
    found = {}
    for name in LIMITED:
        if name not in counts:
            continue
        count = counts[name]
        read = count.weight_bytes + cache_bytes.get(name, 0)
        found[name] = _limit(stages[name]["median"], count.flops, read, rates)
    found["step"] = _one_step(found["denoise"], stages["step"]["median"], facts["forwards"])
    return {name: asdict(each) for name, each in found.items()}


def operators(system: System, most: int = 8) -> list[dict[str, Any]]:
    """Where the time of one answer goes by torch's operators: the `most` expensive by their own time, with shares."""
    on_device = system.model.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_device else [])]
    chats = system.chats()
    with profile(activities=activities) as profiler:
        answer(system, chats, StageClock())
    field = "self_device_time_total" if on_device else "self_cpu_time_total"
    rows = [(getattr(each, field), each) for each in profiler.key_averages()]
    total = sum(own for own, _ in rows)
    rows.sort(key=lambda row: row[0], reverse=True)
    return [{"operator": each.key, "share": own / total, "calls": each.count} for own, each in rows[:most]]


def _limit(reached: float, flops: int, read: int, rates: Rates) -> Limit:
    by_flops, by_bytes = flops / rates.flops_per_second, read / rates.bytes_per_second
    floor = max(by_flops, by_bytes)
    return Limit(reached, floor, "flops" if by_flops >= by_bytes else "bytes", reached / floor, flops, read)


def _one_step(denoise: Limit, reached: float, forwards: int) -> Limit:
    floor = denoise.floor / forwards
    return Limit(reached, floor, denoise.bound, reached / floor, denoise.flops // forwards, denoise.bytes // forwards)
