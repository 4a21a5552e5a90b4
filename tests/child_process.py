"""Commands in processes of their own, some of which are killed: forked, with everything imported, or spawned."""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

# Far above what any of them takes, on a slow machine too.
SECONDS = 240


def fork(target: Callable[..., int | None], *args: Any) -> multiprocessing.Process:
    """Start `target(*args)` in a process and a session of its own; its exit status is what `target` returns."""
    return _start("fork", target, args)


def spawn(target: Callable[..., int | None], *args: Any) -> multiprocessing.Process:
    """As `fork`, but from nothing, which takes seconds: torch.distributed has crashed in forked processes."""
    return _start("spawn", target, args)


def _start(method: str, target: Callable[..., int | None], args: tuple) -> multiprocessing.Process:
    process = multiprocessing.get_context(method).Process(target=_run, args=(target, args))
    process.start()
    return process


def finish(*processes: multiprocessing.Process) -> list[int]:
    """Their exit statuses; one that has not ended after `SECONDS` is killed, whose status is -9."""
    deadline = time.monotonic() + SECONDS
    for process in processes:
        process.join(max(0, deadline - time.monotonic()))
    _kill(processes)
    return [process.exitcode for process in processes]


def kill_when(reached: Callable[[], Any], *processes: multiprocessing.Process, delay: float = 0) -> None:
    """Kill -9 the processes `delay` seconds after `reached()` is true; they must not end before that."""
    deadline = time.monotonic() + SECONDS
    try:
        while not reached():
            assert all(process.is_alive() for process in processes), "a process ended before it could be killed"
            assert time.monotonic() < deadline, f"what was waited for did not come in {SECONDS} seconds"
            time.sleep(0.005)
        time.sleep(delay)
    finally:
        _kill(processes)


def _kill(processes: Sequence[multiprocessing.Process]) -> None:
    """Kill them, and what they started: a worker of theirs that was just starting would wait for ever."""
    for process in processes:
        process.kill()
        process.join()
    for process in processes:
        with contextlib.suppress(ProcessLookupError):  # nothing is left of it
            os.killpg(process.pid, signal.SIGKILL)


def _run(target: Callable[..., int | None], args: tuple) -> None:
    os.setsid()
    torch.set_num_threads(1)  # a forked process has none of the others
    torch.manual_seed(os.getpid())  # nothing may depend on it
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    sys.exit(target(*args))
