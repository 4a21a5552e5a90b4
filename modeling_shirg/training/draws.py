"""Everything random about a training row, keyed by (seed, epoch, row) and never by the order of calls.

A row therefore gets the same masks, noise and augmentation in whatever batch, worker or process it lands, and after a
resume. What a whole optimiser step shares (a budget, a fovea size) is keyed by the step's number.

Shape suffixes: L tokens, N patches that tokens are chosen from, K selected tokens.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np


class _Purpose(IntEnum):
    """One stream of draws per purpose; a number, once used, keeps its meaning."""

    TIME = 0
    MASK = 1
    DROPOUT = 2
    SELECTION = 3
    AUGMENTATION = 4
    BUDGET = 5
    FOVEA = 6


class RowKey(NamedTuple):
    """Which use of which row: `repeat` counts the uses of the row within one epoch, from 0."""

    epoch: int
    row: int
    repeat: int = 0


class StepKey(NamedTuple):
    """Which optimiser step, counted from 0 since the beginning of `epoch`."""

    epoch: int
    step: int


class RowDraws:
    """The draws of one training run.

    Args:
        seed: 0 or more; another seed gives other draws everywhere.
    """

    def __init__(self, seed: int):
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}.")
        self.seed = seed

    def diffusion_time(self, key: RowKey) -> np.float32:
        """The diffusion time t of the row, uniform in [0, 1)."""
        return self._generator(_Purpose.TIME, key).random(dtype=np.float32)

    def mask_noise(self, key: RowKey, length: int) -> np.ndarray:
        """The draws that decide what is masked, float32 (L,), uniform in [0, 1).

        They count from the row's end, so that the answer keeps its draws where the prompt changes its length with the
        number of image tokens.
        """
        return self._generator(_Purpose.MASK, key).random(length, dtype=np.float32)[::-1].copy()

    def dropped_tokens(self, key: RowKey, image: int, count: int, share: float) -> np.ndarray:
        """Which of the `count` selected tokens of image number `image` are dropped, bool (K,).

        Exactly `round(share * count)` of them.
        """
        dropped_K = np.zeros(count, dtype=bool)
        order_K = self._generator(_Purpose.DROPOUT, key, image).permutation(count)
        dropped_K[order_K[: round(share * count)]] = True
        return dropped_K

    def selection_noise(self, key: RowKey, image: int, count: int) -> np.ndarray:
        """Standard Gumbel noise for the scores of image number `image`, float32 (N,)."""
        return self._generator(_Purpose.SELECTION, key, image).gumbel(size=count).astype(np.float32)

    def augmentation(self, key: RowKey, image: int) -> np.random.Generator:
        """The generator of how image number `image` is changed."""
        return self._generator(_Purpose.AUGMENTATION, key, image)

    def budget(self, key: StepKey, options: Sequence[int]) -> int:
        """One of `options` for all rows of a step."""
        return self._choice(_Purpose.BUDGET, key, options)

    def fovea_size(self, key: StepKey, options: Sequence[int]) -> int:
        """One of `options` for all rows of a step."""
        return self._choice(_Purpose.FOVEA, key, options)

    def _choice(self, purpose: _Purpose, key: StepKey, options: Sequence[int]) -> int:
        return int(options[self._generator(purpose, key).integers(len(options))])

    def _generator(self, purpose: _Purpose, key: tuple[int, ...], *more: int) -> np.random.Generator:
        # Every number in as many words as it may need: a sequence of words is told apart from another of its length.
        words = [word for number in (*key, *more) for word in divmod(number, 2**32)]
        return np.random.default_rng([self.seed, int(purpose), *words])


def named_generator(seed: int, name: str, *numbers: int) -> np.random.Generator:
    """A generator for a decision about the data as a whole, such as the order of an epoch."""
    return np.random.default_rng([seed, *name.encode(), *numbers])
