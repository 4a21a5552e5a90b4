"""Bootstrap intervals of means: how far a mean would move had other questions been drawn."""

from collections.abc import Sequence

import numpy as np

DRAWS = 2000
LEVEL = 0.95


def mean_interval(values: Sequence[float], seed: int, draws: int = DRAWS) -> tuple[float, float]:
    """The 95% percentile interval of the mean of at least one value, by resampling the values.

    The interval of paired systems is that of the differences question by question. Where all values are equal, it has
    no width.
    """
    means = _means(np.asarray(values, dtype=np.float64), np.random.default_rng(seed), draws)
    return _ends(means)


def difference_interval(one: Sequence[float], other: Sequence[float], seed: int) -> tuple[float, float]:
    """The same of mean(one) - mean(other) where the two are of different questions, each resampled by itself."""
    rng = np.random.default_rng(seed)
    return _ends(_means(np.asarray(one, float), rng, DRAWS) - _means(np.asarray(other, float), rng, DRAWS))


def ratio_interval(one: Sequence[float], other: Sequence[float], seed: int) -> tuple[float, float]:
    """The same of mean(one) / mean(other) where the two are of the same questions, which are resampled together.

    Where a resample of `other` is all 0, the ratio is infinite.
    """
    pairs, counts = np.unique(np.stack([one, other], axis=1).astype(np.float64), axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(one), counts / len(one), size=DRAWS)
    sums = drawn @ pairs
    ratios = np.divide(sums[:, 0], sums[:, 1], out=np.full(DRAWS, np.inf), where=sums[:, 1] > 0)
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest")
    return float(low), float(high)


def _means(values: np.ndarray, rng: np.random.Generator, draws: int) -> np.ndarray:
    """Means of `draws` resamples; how often each distinct value is drawn is multinomial."""
    distinct, counts = np.unique(values, return_counts=True)
    drawn = rng.multinomial(len(values), counts / len(values), size=draws)
    return drawn @ distinct / len(values)


def _ends(means: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
