"""`shirg train` on a tiny model, in a process of its own, in several, or in some that are killed."""

import contextlib
import json
import os
import random
import socket
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing import Process
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from child_process import finish, fork, kill_when, spawn
from modeling_shirg.training import run_parts  # noqa: F401  (once, for all processes that are forked here)
from shirg_scripts import cli, train
from tiny_model import VISION, tiny_config, tiny_model, tiny_processor

# Rows that are read from the package alone, small steps, everything logged.
COMMON = {
    "data": ["synthetic:guard,rows=14"],
    "effective_batch_size": 4,
    "per_device_train_batch_size": 2,
    "max_steps": 6,
    "warmup_steps": 1,
    "learning_rate": 1e-2,
    "rank": 4,
    "logging_steps": 1,
    "eval_steps": 2,
    "save_steps": 2,
    "validation_rows": 5,
    "answer_length": 1,  # answers of different lengths
    "dataloader_num_workers": 0,
    "disable_tqdm": True,
    "loss_curve": False,
    "activation_checkpointing": False,
}


def save_base(folder: Path, preset: str = "shirg", **overrides) -> Path:
    """A tiny model that projects the output of block 3, and its processor, as a checkpoint."""
    config = tiny_config(preset, vision_config={**VISION, "num_hidden_layers": 5}, **overrides)
    tiny_model(config).save_pretrained(folder)
    tiny_processor(config).save_pretrained(folder)
    return folder


def flags(**arguments: Any) -> list[str]:
    """Arguments as the command line has them; `None` leaves one out."""
    words = []
    for name, value in {**COMMON, **arguments}.items():
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer,SiglipEncoderLayer",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


@contextlib.contextmanager
def _fsdp2() -> Iterator[None]:
    """In here the model is sharded by FSDP2, which accelerate itself leaves out on the CPU."""
    before = AcceleratorState.__init__

    def initialise(self, *args, **kwargs):
        before(self, *args, **kwargs)
        self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = kwargs.get("fsdp_plugin") or FullyShardedDataParallelPlugin()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(AcceleratorState, "__init__", initialise)
        for name, value in FSDP.items():
            patched.setenv(name, value)
        yield


def run(count: int = 1, sharded: bool = False, **arguments: Any) -> Path:
    """Run the command to its end in `count` processes over gloo, as torchrun would start them; returns its folder."""
    assert finish(*_start(count, sharded, **arguments)) == [0] * count
    return Path(arguments["output_dir"])


def output_of(**arguments: Any) -> tuple[int, str]:
    """Exit status of the command, and what it wrote to both outputs."""
    with tempfile.TemporaryDirectory() as folder:
        words = flags(**arguments, use_cpu=True)
        (status,) = finish(fork(_into, f"{folder}/output", words))
        return status, Path(f"{folder}/output").read_text()


def _into(file: str, words: list[str]) -> int:
    opened = open(file, "w")  # noqa: SIM115 (open until the process ends)
    os.dup2(opened.fileno(), 1)
    os.dup2(opened.fileno(), 2)
    sys.stdout = sys.stderr = opened
    return cli.main(["train", *words])


def run_and_kill(after_step: int, count: int = 1, sharded: bool = False, **arguments: Any) -> Path:
    """Start the command and kill -9 all its processes some time after a step was logged; returns its folder."""
    folder = Path(arguments["output_dir"])
    started = _start(count, sharded, **arguments)
    kill_when(lambda: any(step >= after_step for step in losses(folder)), *started, delay=random.uniform(0, 0.5))
    return folder


def _start(count: int, sharded: bool, **arguments: Any) -> list[Process]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = flags(**arguments, use_cpu=True)
    start = fork if count == 1 else spawn
    return [start(_as_rank, rank, count, port, sharded, words) for rank in range(count)]


def _as_rank(rank: int, count: int, port: int, sharded: bool, words: list[str]) -> None:
    if count > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    with _fsdp2() if sharded else contextlib.nullcontext():
        train.main(train.parse_args(words))


def log(folder: Path) -> list[dict[str, Any]]:
    """The entries of a run's log."""
    file = folder / "log.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def losses(folder: Path, name: str = "loss") -> dict[int, float]:
    """The logged losses of a run by step."""
    return {entry["step"]: entry[name] for entry in log(folder) if name in entry}


def facts(folder: Path) -> dict:
    """run.json."""
    return json.loads((folder / "run.json").read_text())
