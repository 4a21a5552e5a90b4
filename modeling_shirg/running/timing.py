"""Where the time of an answer goes: a stop-watch of stages that is put around a model from outside, and what repeats
of a measurement spread over.

Every moment belongs to exactly one stage, the innermost that is open, so the stages of a run sum to its time.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps

import torch
from torch import nn

from modeling_shirg.published_selections_shirg import METHODS

# In the order in which an answer passes them. `encode` is the vision tower; `project` the projector. What happens
# between and after them, from scores to gather, pooling and joining, is `select` where a method selects, else
# `project`. `evict` is what `prefix_kv` and `prefix_dtype` add to the prefix pass; `denoise` all denoising steps;
# `rest` embedding, splice, text.
STAGES = ("preprocess", "encode", "select", "project", "prefix", "evict", "denoise", "rest")


def wall_seconds() -> float:
    """Seconds on the wall, once the accelerator has done what it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


# What may be read: the wall, or the seconds that this process was on a processor, all threads together, which others
# on a busy machine hardly change. The second knows nothing of an accelerator.
CLOCKS = {"wall": wall_seconds, "processor": time.process_time}


class StageClock:
    """Adds up seconds per stage.

    Attributes:
        seconds: by stage, without the stages inside it.
        steps: seconds of each denoising step, in order; their sum is the stage `denoise`.
        now: what is read at every change of stage, one of `CLOCKS`.
    """

    def __init__(self, now: Callable[[], float] = wall_seconds):
        self.seconds: dict[str, float] = defaultdict(float)
        self.steps: list[float] = []
        self.now = now
        self._open: list[str] = []
        self._since = 0.0
        self._step_start: float | None = None

    @property
    def current(self) -> str | None:
        """The innermost open stage."""
        return self._open[-1] if self._open else None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block of code as `name`; stages inside it interrupt it."""
        self._credit()
        self._open.append(name)
        try:
            yield
        finally:
            self._credit()
            self._open.pop()

    def switch(self, name: str) -> None:
        """What follows in the innermost open stage is `name`."""
        self._credit()
        self._open[-1] = name

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Time the stages of `model`, a `ShirgLavidaForConditionalGeneration`, while the block runs.

        Methods are wrapped on the instances and modules get hooks; at the end both are as they were.
        """
        core, tower = model.model, model.model.vision_tower
        joining = "select" if model.config.selection_method in METHODS else "project"
        with ExitStack() as stack:
            stack.enter_context(_wrapped(core, "get_image_features", self._as_stage(joining)))
            stack.enter_context(_wrapped(core.multi_modal_projector, "forward", self._as_stage("project")))
            stack.enter_context(_wrapped(tower, "forward", lambda forward: self._encode(tower, forward)))
            stack.enter_context(_wrapped(model, "_encode_prefix", lambda encode: self._prefix(model, encode)))
            stack.enter_context(_wrapped(model, "_denoise", self._step))
            stack.enter_context(_wrapped(model, "generate", self._generate))
            yield

    def _as_stage(self, name: str) -> Callable:
        def around(method: Callable) -> Callable:
            def timed(*args, **kwargs):
                with self.stage(name):
                    return method(*args, **kwargs)

            return timed

        return around

    def _encode(self, tower: nn.Module, forward: Callable) -> Callable:
        """The tower encodes up to its last kept layer; what a selection method asked for comes after."""
        last = tower.vision_model.encoder.layers[tower.num_kept_layers - 1]

        def timed(pixels_V3PP, needs=(), **kwargs):
            with self.stage("encode"), ExitStack() as stack:
                if needs:
                    hook = last.register_forward_hook(lambda *_: self.switch("select"))
                    stack.callback(hook.remove)
                return forward(pixels_V3PP, needs, **kwargs)

        return timed

    def _prefix(self, model: nn.Module, encode: Callable) -> Callable:
        """The whole prefix pass; where the cache is compressed, layers are `prefix` and the rest is `evict`."""

        def timed(prompt, config):
            compresses = config.evicted_ratio is not None or config.prefix_dtype is not None
            with self.stage("evict" if compresses else "prefix"), ExitStack() as stack:
                if compresses:
                    language_model = model.model.language_model
                    last = language_model.layers[-1]  # of which the prompt needs keys and values alone
                    alone = (last.input_layernorm, last.self_attn.k_proj, last.self_attn.v_proj)
                    for module in (language_model.rotary_emb, *language_model.layers, *alone):
                        stack.enter_context(_wrapped(module, "forward", self._as_stage("prefix")))
                return encode(prompt, config)

        return timed

    def _step(self, denoise: Callable) -> Callable:
        """A step lasts until the next begins or `generate` ends: its forward, the sampler, the choice of positions."""

        def timed(*args, **kwargs):
            self.switch("denoise")
            self._end_step()
            self._step_start = self._since
            return denoise(*args, **kwargs)

        return timed

    def _generate(self, generate: Callable) -> Callable:
        def timed(*args, **kwargs):
            try:
                with self.stage("rest"):
                    return generate(*args, **kwargs)
            finally:
                self._end_step()

        return timed

    def _end_step(self) -> None:
        if self._step_start is not None:
            self.steps.append(self._since - self._step_start)
        self._step_start = None

    def _credit(self) -> None:
        """What passed since the last change of stage belongs to the innermost open one."""
        moment = self.now()
        if self._open:
            self.seconds[self._open[-1]] += moment - self._since
        self._since = moment


def repeated_seconds(run: Callable[[], object], repeats: int, now: Callable[[], float] = wall_seconds) -> list[float]:
    """Seconds of each of `repeats` runs, after one that does not count."""
    run()
    seconds = []
    for _ in range(repeats):
        start = now()
        run()
        seconds.append(now() - start)
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum, maximum and quartiles (inclusive) of at least one value."""
    first, median, third = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    )
    return {"median": median, "min": min(values), "max": max(values), "q1": first, "q3": third}


@contextmanager
def _wrapped(owner: nn.Module, method: str, around: Callable[[Callable], Callable]) -> Iterator[None]:
    """`owner.method` replaced by `around(it)`, on this instance alone, while the block runs."""
    before = vars(owner).get(method)
    inner = getattr(owner, method)
    setattr(owner, method, wraps(inner)(around(inner)))
    try:
        yield
    finally:
        delattr(owner, method)
        if before is not None:
            setattr(owner, method, before)
