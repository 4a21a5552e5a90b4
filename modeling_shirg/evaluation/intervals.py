"""95% intervals of means and shares: bootstrap over questions, and Wilson's."""

from collections.abc import Sequence
from math import sqrt

import numpy as np

DRAWS = 2000
LEVEL = 0.95


def mean_interval(values: Sequence[float], seed: int, draws: int = DRAWS) -> tuple[float, float]:
    """The 95% percentile interval of the mean of at least one value, by resampling the values.

    For paired systems, give the differences question by question. Equal values have an interval of no width.
    """
    return _ends(_means(values, np.random.default_rng(seed), draws))


def difference_interval(one: Sequence[float], other: Sequence[float], seed: int) -> tuple[float, float]:
    """The same of mean(one) - mean(other) for answers to different questions, resampled separately."""
    rng = np.random.default_rng(seed)
    return _ends(_means(one, rng, DRAWS) - _means(other, rng, DRAWS))


def wilson_interval(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share, 95% by default."""
    share = right / count
    center = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z * sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, center - reach), min(1.0, center + reach)


def _means(values: Sequence[float], rng: np.random.Generator, draws: int) -> np.ndarray:
    """Means of `draws` resamples: the count of each distinct value in a resample is multinomial."""
    distinct, counts = np.unique(np.asarray(values, float), return_counts=True)
    drawn = rng.multinomial(len(values), counts / len(values), size=draws)
    return drawn @ distinct / len(values)


def _ends(means: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
