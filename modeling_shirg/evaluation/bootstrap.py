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


def _means(values: np.ndarray, rng: np.random.Generator, draws: int) -> np.ndarray:
    """Means of `draws` resamples; how often each distinct value is drawn is multinomial."""
    distinct, counts = np.unique(values, return_counts=True)
    drawn = rng.multinomial(len(values), counts / len(values), size=draws)
    return drawn @ distinct / len(values)


def _ends(means: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
