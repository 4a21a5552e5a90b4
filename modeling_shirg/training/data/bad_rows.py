"""Rows that cannot be learned from: why, how many, and when there are too many."""

import json
import os
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

# How many bad rows a message shows.
_SHOWN = 5
_MOST_WORKERS = 1024


class BadRow(ValueError):
    """A row that cannot be learned from; the message is the reason."""


class LongRow(BadRow):
    """A row that is fine and does not fit the context."""


class Skipped(NamedTuple):
    """A bad row of a source, by its number there."""

    source: str
    row: int
    reason: str


def check_share(source: str, bad: int, total: int, limit: float, listed: Callable[[], Sequence[Skipped]]) -> None:
    """Raises a `ValueError` if more than the share `limit` of a source's `total` rows is bad.

    Rows that `skip_long` leaves out are not bad. `listed` gives bad rows of the source to show; it is asked only for
    an error.
    """
    if bad <= limit * total:
        return
    skipped = listed()
    shown = "".join(f"\n  row {each.row}: {each.reason}" for each in skipped[:_SHOWN])
    more = "\n  ..." if len(skipped) > _SHOWN else ""
    raise ValueError(
        f"{bad} of {total} rows of {source} cannot be used, {bad / total:.2%}: more than max_bad_share={limit:.2%}. "
        f"Mend them, or raise --max_bad_share.{shown}{more}"
    )


class SharedCounts:
    """How many rows of each source were read and how many of them were bad, over all workers of this process.

    A worker writes to a column of its own, so no two of them write to one place. Shape suffixes: S sources, W workers.
    """

    def __init__(self, sources: int):
        self._seen_SW = torch.zeros(sources, _MOST_WORKERS, dtype=torch.int64).share_memory_()
        self._bad_SW = torch.zeros_like(self._seen_SW).share_memory_()
        self._ended_SW = torch.zeros_like(self._seen_SW, dtype=torch.bool).share_memory_()

    def start(self, source: int, worker: int) -> None:
        """The worker starts on the source from zero."""
        for counts_SW in (self._seen_SW, self._bad_SW, self._ended_SW):
            counts_SW[source, worker] = 0

    def add(self, source: int, worker: int, is_bad: bool) -> None:
        """One more row was read."""
        self._seen_SW[source, worker] += 1
        self._bad_SW[source, worker] += is_bad

    def end(self, source: int, worker: int, workers: int) -> bool:
        """The worker has no more rows of the source; whether all workers have none."""
        self._ended_SW[source, worker] = True
        return bool(self._ended_SW[source, :workers].all())

    def of(self, source: int, workers: int) -> tuple[int, int]:
        """Rows read, and bad ones among them."""
        return int(self._seen_SW[source, :workers].sum()), int(self._bad_SW[source, :workers].sum())


class SkipLog:
    """Bad rows that worker processes meet, kept in a temporary file until this object goes."""

    def __init__(self):
        handle, name = tempfile.mkstemp(prefix="shirg-skipped-", suffix=".jsonl")
        os.close(handle)
        self.file = Path(name)
        weakref.finalize(self, _remove, name, os.getpid())

    def add(self, bad: Skipped) -> None:
        """Append one row; safe from several processes at once."""
        with self.file.open("a") as file:
            file.write(json.dumps(bad) + "\n")

    def read(self) -> list[Skipped]:
        """Every row once, in order, however often it was met."""
        return sorted({Skipped(*json.loads(line)) for line in self.file.read_text().splitlines()})


def _remove(name: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked worker has the object too
        Path(name).unlink(missing_ok=True)
