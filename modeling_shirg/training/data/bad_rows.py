"""Rows that cannot be learned from: why, how many, and when there are too many."""

import json
import os
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# How many bad rows a message shows.
_SHOWN = 5


class BadRow(ValueError):
    """A row that cannot be learned from; the message is the reason."""


class Skipped(NamedTuple):
    """A bad row of a source, by its number there."""

    source: str
    row: int
    reason: str


def check_share(source: str, skipped: Sequence[Skipped], total: int, limit: float) -> None:
    """Raises a `ValueError` if more than the share `limit` of a source's `total` rows is bad."""
    if len(skipped) > limit * total:
        shown = "".join(f"\n  row {bad.row}: {bad.reason}" for bad in skipped[:_SHOWN])
        more = f"\n  and {len(skipped) - _SHOWN} more" if len(skipped) > _SHOWN else ""
        raise ValueError(
            f"{len(skipped)} of {total} rows of {source} cannot be used, {len(skipped) / total:.2%}: more than "
            f"max_bad_share={limit:.2%}. Mend them, or raise --max_bad_share.{shown}{more}"
        )


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
