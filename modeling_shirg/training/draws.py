"""Everything random about a training row, keyed by (seed, epoch, row) and never by the order of calls.

A row therefore gets the same masks, noise and augmentation in whatever batch, worker or process it lands, and after a
resume. What a whole optimizer step shares (a budget, a fovea size) is keyed by the step's number.

Shape suffixes: L tokens, N patches that tokens are chosen from, K selected tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# One stream of draws per purpose; the place of a purpose in this list keeps its meaning.
_PURPOSES = ("time", "mask", "dropout", "selection", "augmentation", "budget", "fovea")


class RowKey(NamedTuple):
    """Which use of which row: `repeat` counts the uses of the row within one epoch, from 0."""

    epoch: int
    row: int
    repeat: int = 0


class StepKey(NamedTuple):
    """Which optimizer step, counted from 0 since the beginning of `epoch`."""

    epoch: int
    step: int


@dataclass(frozen=True)
class RowDraws:
    """What one training run draws.

    Args:
        seed: 0 or more; another seed gives other draws everywhere.
        token_dropout: share of the selected tokens of each image that is zeroed after projection.
        gumbel: add Gumbel noise to the scores that tokens are selected by.
        budgets: the number of selected tokens of each step is one of these; empty: the processor's.
        fovea_sizes: the fovea's side of each step is one of these, in pixels; empty: the processor's.
        augment: change the images (augment.py).
    """

    seed: int
    token_dropout: float = 0.0
    gumbel: bool = False
    budgets: tuple[int, ...] = ()
    fovea_sizes: tuple[int, ...] = ()
    augment: bool = False

    def diffusion_time(self, key: RowKey) -> np.float32:
        """The diffusion time t of the row, uniform in [0, 1)."""
        return self._generator("time", key).random(dtype=np.float32)

    def mask_noise(self, key: RowKey, length: int) -> np.ndarray:
        """The draws that decide what is masked, float32 (L,), uniform in [0, 1).

        They count from the row's end, so that the answer keeps its draws where the prompt changes its length with the
        number of image tokens.
        """
        return self._generator("mask", key).random(length, dtype=np.float32)[::-1].copy()

    def dropped_tokens(self, key: RowKey, image: int, count: int) -> np.ndarray:
        """Which `round(token_dropout * count)` selected tokens of image number `image` are dropped, bool (K,)."""
        dropped_K = np.zeros(count, dtype=bool)
        order_K = self._generator("dropout", key, image).permutation(count)
        dropped_K[order_K[: round(self.token_dropout * count)]] = True
        return dropped_K

    def selection_noise(self, key: RowKey, image: int, count: int) -> np.ndarray:
        """Standard Gumbel noise for the scores of image number `image`, float32 (N,)."""
        return self._generator("selection", key, image).gumbel(size=count).astype(np.float32)

    def augmentation(self, key: RowKey, image: int) -> np.random.Generator:
        """The generator of how image number `image` is changed."""
        return self._generator("augmentation", key, image)

    def step_options(self, key: StepKey) -> dict[str, int]:
        """Arguments of the image processor for all rows of a step."""
        drawn = (("selection_budget", "budget", self.budgets), ("fovea_size", "fovea", self.fovea_sizes))
        return {name: self._choice(purpose, key, options) for name, purpose, options in drawn if options}

    def _choice(self, purpose: str, key: StepKey, options: Sequence[int]) -> int:
        return int(options[self._generator(purpose, key).integers(len(options))])

    def _generator(self, purpose: str, key: tuple[int, ...], *more: int) -> np.random.Generator:
        # Every number in as many words as it may need: a sequence of words is told apart from another of its length.
        words = [word for number in (*key, *more) for word in divmod(number, 2**32)]
        return np.random.default_rng([self.seed, _PURPOSES.index(purpose), *words])


def named_generator(seed: int, name: str, *numbers: int) -> np.random.Generator:
    """A generator for a decision about the data as a whole, such as the order of an epoch."""
    return np.random.default_rng([seed, *name.encode(), *numbers])
