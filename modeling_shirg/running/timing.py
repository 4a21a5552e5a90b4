"""Where the time of an answer goes: the spans `shirg.STAGE` that `ask` and the model mark, read from a profile."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# In the order in which an answer passes them: image and text processing, vision tower, scores and choice of the image
# tokens, projector, prompt into the prefix cache, all denoising steps.
STAGES = ("preprocess", "encode", "select", "project", "prefix", "denoise")


def wall_seconds() -> float:
    """Seconds on the wall, once the accelerator has done what it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


@contextmanager
def stage_seconds() -> Iterator[dict[str, float]]:
    """Profile a block; the dictionary has the seconds of each of `STAGES`, and their `total`, once the block ends.

    A stage lasts as long as its spans on the host, or as long as their work on the accelerator if that is more. A
    profiled block is slower than others.
    """
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    seconds: dict[str, float] = {}
    start = wall_seconds()
    with profile(activities=activities) as profiler:
        yield seconds
        total = wall_seconds() - start
    seconds.update(dict.fromkeys(STAGES, 0.0), total=total)
    for event in profiler.events():
        stage = event.name.removeprefix("shirg.")
        if stage in STAGES and stage != event.name and event.device_type == DeviceType.CPU:
            seconds[stage] += max(event.cpu_time_total, event.device_time_total) / 1e6
