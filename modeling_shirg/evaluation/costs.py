"""The machine that a measurement ran on, and the peak memory of a run."""

import gc
import json
import os
import platform
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.profiler import ProfilerActivity, profile

from modeling_shirg import ShirgLavidaForConditionalGeneration


def peak_memory(model: ShirgLavidaForConditionalGeneration, run: Callable[[], Any]) -> dict[str, int]:
    """Bytes of the weights, the peak of torch's allocations beside them during one run, and both together."""
    weights = {tensor.untyped_storage()._cdata: tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    gc.collect()
    beside = _cuda_peak(run) if model.device.type == "cuda" else _cpu_peak(run)
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
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    return max(int(np.cumsum([change for _, change in changes]).max(initial=0)), 0)


def machine(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Where and when a measurement is taken, and how busy the machine is."""
    cpu = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2] for line in cpu.read_text().splitlines() if "model name" in line]
        if cpu.exists()
        else []
    )
    return {
        "cpu": names[0].strip() if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "load_average": round(os.getloadavg()[0], 2),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def machine_words(machine: dict[str, Any]) -> str:
    """The machine in one line."""
    where = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
    return (
        f"{where}, load average {machine['load_average']} at the start, torch {machine['torch']}, transformers "
        f"{machine['transformers']}, {machine['date']}"
    )
