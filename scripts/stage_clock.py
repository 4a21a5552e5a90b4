"""Seconds per stage of one answer, taken from outside the model with module hooks."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn


class StageClock:
    """Adds up wall-clock seconds per stage; work on an accelerator is waited for.

    Stages of the model: `encode` (vision tower), `project`, `prefix` (the first pass of the language model) and
    `denoise` (the others). What a caller times itself goes through `stage`.
    """

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)
        self._prefix_done = False

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block of code as `name`."""
        start = _now()
        yield
        self.seconds[name] += _now() - start

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Time the stages of `model` while the block runs."""
        core = model.model
        with ExitStack() as stack:
            self._hook(stack, core.vision_tower, lambda: "encode")
            self._hook(stack, core.multi_modal_projector, lambda: "project")
            # Not the model around them: generation over a compressed prefix runs the layers itself.
            self._hook(stack, core.language_model.rotary_emb, self._language_stage, core.language_model.norm)
            yield

    def _language_stage(self) -> str:
        name = "denoise" if self._prefix_done else "prefix"
        self._prefix_done = True
        return name

    def _hook(self, stack: ExitStack, first: nn.Module, name, last: nn.Module | None = None) -> None:
        started = []
        before = first.register_forward_pre_hook(lambda *_: started.append(_now()))
        after = (last or first).register_forward_hook(lambda *_: self._add(name(), _now() - started.pop()))
        stack.callback(before.remove)
        stack.callback(after.remove)

    def _add(self, name: str, seconds: float) -> None:
        self.seconds[name] += seconds


def _now() -> float:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()
