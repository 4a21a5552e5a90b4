"""How much of each source an epoch has, and in which order.

Without weights an epoch is every row of every source once. With weights it is as many rows as the shares allow while
no row comes twice: the source that is smallest for its share gives all its rows, the others as many as their share
asks for, drawn anew each epoch. With a given number of rows per epoch a source that has too few is gone through
several times, all of it before any row comes again. Everything is shuffled together, by the seed and the epoch.
"""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from modeling_shirg.training.draws import named_generator


def mixture_shares(
    names: Sequence[str],
    counts: Sequence[int | None],
    weights: Sequence[float | None],
    text_dense: Sequence[bool],
    ocr_share: float | None,
) -> list[Fraction]:
    """The share of each source, adding up to 1.

    Args:
        names: of the sources, for messages.
        counts: their numbers of rows, which are their weights if none has one; `None` where it is not known.
        weights: in proportion; for all or for none.
        text_dense: which of them are text-dense.
        ocr_share: the share of all text-dense sources together; `None` leaves it as the weights have it.

    Raises:
        ValueError: weights for some only, none where counts are not known, or an `ocr_share` that cannot be had.
    """
    given = [weight is not None for weight in weights]
    if any(given) and not all(given):
        raise ValueError(f"{names[given.index(False)]} has no weight and {names[given.index(True)]} has: all or none.")
    if not any(given) and None in counts:
        if len(names) > 1:
            raise ValueError(f"Streams of unknown length need weights: give {', '.join(names)} a weight each.")
        return [Fraction(1)]
    parts = [Fraction(str(weight)) for weight in weights] if any(given) else [Fraction(count) for count in counts]
    if ocr_share is None:
        return [part / sum(parts) for part in parts]
    totals = {
        kind: sum(part for part, dense in zip(parts, text_dense, strict=True) if dense == kind)
        for kind in (True, False)
    }
    for kind, total in totals.items():
        if total == 0:
            raise ValueError(
                f"ocr_share={ocr_share} needs text-dense sources and others; {', '.join(names)} are "
                f"{'none' if kind else 'all'} of them text-dense. The field text_dense=true or =false says otherwise."
            )
    asked = {True: Fraction(str(ocr_share)), False: 1 - Fraction(str(ocr_share))}
    return [asked[dense] * part / totals[dense] for part, dense in zip(parts, text_dense, strict=True)]


def rows_per_source(counts: Sequence[int], shares: Sequence[Fraction], total: int | None) -> list[int]:
    """How many rows of each source an epoch has, `total` in all or as many as there are without repeating one."""
    if total is None:
        total = min(int(count / share) for count, share in zip(counts, shares, strict=True))
    exact = [total * share for share in shares]
    rows = [int(part) for part in exact]
    largest_remainders = sorted(range(len(rows)), key=lambda i: (rows[i] - exact[i], i))
    for i in largest_remainders[: total - sum(rows)]:
        rows[i] += 1
    return rows


class EpochPlan:
    """Which row of which source stands at each place of an epoch.

    Args:
        counts: number of rows of each source.
        shares: what `mixture_shares` returned.
        total: rows per epoch; `None` is as many as there are without repeating one.
        seed: the run's.
    """

    def __init__(self, counts: Sequence[int], shares: Sequence[Fraction], total: int | None, seed: int):
        self.counts = list(counts)
        self.rows = rows_per_source(counts, shares, total)
        self.seed = seed

    def __len__(self) -> int:
        return sum(self.rows)

    def order(self, epoch: int) -> np.ndarray:
        """int64 (places, 3): source, row of the source, and how often the row came before in this epoch."""
        parts = []
        for source, (count, rows) in enumerate(zip(self.counts, self.rows, strict=True)):
            passes = [
                named_generator(self.seed, "pass", epoch, source, repeat).permutation(count)
                for repeat in range(-(-rows // count))
            ]
            places = np.arange(rows)
            part = np.concatenate(passes)[:rows] if passes else places
            parts.append(np.stack([np.full(rows, source), part, places // count], axis=1))
        order = np.concatenate(parts)
        return order[named_generator(self.seed, "order", epoch).permutation(len(order))]
