"""What the measurements of memory share: a process of its own, a checkpoint of noise, where and when it was."""

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

# Ends every process that is started here: its `result`, and its peak resident memory in its own view.
_REPORT = "import json, resource; print(json.dumps([result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))"


def measured(code: str) -> tuple:
    """What a new process leaves in `result`, and its peak resident memory in bytes.

    The caller has to stay small: Linux counts the parent's memory at the start as the child's.
    """
    run = subprocess.run([sys.executable, "-c", f"{code}\n{_REPORT}"], stdout=subprocess.PIPE, text=True, check=True)
    result, peak = json.loads(run.stdout.splitlines()[-1])
    return result, peak * (1 if sys.platform == "darwin" else 1024)


def facts() -> dict[str, str]:
    """Where and when."""
    return {
        "machine": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        **{name: version(name) for name in ("shirg-lavida", "torch", "transformers", "safetensors")},
        "date": datetime.now(UTC).date().isoformat(),
    }


@dataclass(frozen=True)
class Noise:
    """A tensor whose values are made while it is written; real pages on disk, not a sparse file."""

    shape: tuple[int, ...]

    def pieces(self) -> Iterator:
        import torch

        left = math.prod(self.shape)
        noise = torch.randn(min(left, 1 << 24)).to(torch.bfloat16)
        while left:
            yield noise[:left]
            left -= min(left, len(noise))
