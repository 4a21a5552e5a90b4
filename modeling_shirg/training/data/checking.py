"""Which rows of a source can be learned from: every row is read once before training, its images decoded.

The result is kept in datasets' cache under a fingerprint of the table, the way it is read and the code that reads it,
so a restart reads nothing again. Rows that were bad because of an image file are read again: the file may have been
mended.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Features, Value
from datasets.fingerprint import Hasher

from modeling_shirg.training import encoder
from modeling_shirg.training.data import adapters, bad_rows, image_files, reading
from modeling_shirg.training.data.bad_rows import BadRow, Skipped, check_share
from modeling_shirg.training.data.reading import RowReader
from modeling_shirg.training.data.scenes import SceneTable
from modeling_shirg.training.draws import named_generator
from modeling_shirg.training.encoder import Lengths, RowEncoder

_READ_BY = (adapters, bad_rows, encoder, image_files, reading)


@dataclass
class CheckedSource:
    """A source that can be read at random, and which of its rows can be used.

    `numbers`, int64 (usable rows,), are their places in `table`; `rows`, int64 (table,), is where in the source each
    row of the table stands.
    """

    reader: RowReader
    table: Any
    rows: np.ndarray
    numbers: np.ndarray
    skipped: list[Skipped] = field(default_factory=list)

    def item(self, usable: int) -> dict[str, Any]:
        """The item of usable row number `usable`.

        Raises:
            ValueError: it can no longer be read.
        """
        number = int(self.numbers[usable])
        row = int(self.rows[number])
        try:
            return self.reader.item(self.table[number], row)
        except BadRow as bad:
            raise ValueError(
                f"Row {row} of {self.reader.name} could be read when it was checked and cannot be now: {bad}. Bring "
                "back what is missing; it is not replaced."
            ) from None


class _RowCheck:
    """What is found out about one row; its lengths are 0 if it is bad or nobody asks for them."""

    def __init__(self, reader: RowReader, row_encoder: RowEncoder | None):
        self.reader = reader
        self.encoder = row_encoder

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        lengths = Lengths(0, 0, 0)
        try:
            item = self.reader.item(row, 0)
            if self.encoder is not None:
                lengths = self.encoder.lengths(item["messages"], [image.size for image in item["images"]])
        except BadRow as bad:
            return {"reason": str(bad), **lengths._asdict()}
        return {"reason": "", **lengths._asdict()}


def check_source(
    reader: RowReader,
    table: Any,
    rows: int | None,
    *,
    seed: int,
    row_encoder: RowEncoder | None,
    max_bad_share: float,
    skip_long: bool,
    num_proc: int,
) -> CheckedSource:
    """Reads every row of a table, or of `rows` rows that the seed draws.

    Rendered scenes are not read: nothing can be wrong with them.

    Raises:
        ValueError: too many rows are bad, none is left, or one is too long and `skip_long` is false.
    """
    places = np.arange(len(table))
    if isinstance(table, SceneTable):
        return CheckedSource(reader, table, places, places)
    if rows is not None and rows < len(table):
        places = np.sort(named_generator(seed, "rows", reader.number).permutation(len(table))[:rows])
        table = table.select(places)
    found = _found(reader, table, row_encoder, num_proc)
    skipped = [
        Skipped(reader.name, int(places[number]), reason) for number, reason in enumerate(found["reason"]) if reason
    ]
    check_share(reader.name, len(skipped), len(table), max_bad_share, lambda: skipped)
    if row_encoder is not None:
        skipped += _too_long(reader, places, found, row_encoder, skip_long)
    usable = np.flatnonzero(~np.isin(places, [bad.row for bad in skipped]))
    if not len(usable):
        raise ValueError(f"{reader.name} has no rows to train on: {len(table)} were read, {len(skipped)} skipped.")
    return CheckedSource(reader, table, places, usable, sorted(skipped))


def _too_long(
    reader: RowReader, places: np.ndarray, found: dict[str, list], row_encoder: RowEncoder, skip_long: bool
) -> list[Skipped]:
    """The rows beyond the length limit, with their reasons."""
    skipped = []
    for row, *numbers in zip(places.tolist(), found["prompt"], found["answer"], found["image"], strict=True):
        lengths = Lengths(*numbers)
        if row_encoder.is_too_long(lengths):
            if not skip_long:
                row_encoder.check_length(lengths, f"Row {row} of {reader.name}")
            skipped.append(Skipped(reader.name, row, f"too long: {lengths.total} tokens"))
    return skipped


def _found(reader: RowReader, table: Any, row_encoder: RowEncoder | None, num_proc: int) -> dict[str, list]:
    """What `_RowCheck` says of every row, by column."""
    check = _RowCheck(reader, row_encoder)
    if isinstance(table, list):
        results = [check(row) for row in table]
        return {name: [result[name] for result in results] for name in ("reason", *Lengths._fields)}
    options = {"remove_columns": table.column_names, "num_proc": num_proc if num_proc > 1 else None}
    code = [Path(module.__file__).read_bytes() for module in _READ_BY]
    state = [table._fingerprint, reader.adapt.__name__, reader.suffix, reader.files.stamp(), code]
    state.append(row_encoder and row_encoder.fingerprint())
    options["desc"] = f"Checking {reader.name}"
    # Named, because a column of the data may have a finding's name and would lend it its type.
    options["features"] = Features({"reason": Value("string"), **{name: Value("int64") for name in Lengths._fields}})
    results = table.map(check, new_fingerprint=Hasher.hash(state), **options)
    found = {name: list(results[name]) for name in results.column_names}
    bad = [number for number, reason in enumerate(found["reason"]) if reason]
    if bad and reader.files.archive is None:
        state.append("again")
        again = table.select(bad).map(check, keep_in_memory=True, new_fingerprint=Hasher.hash(state), **options)
        for name, values in found.items():
            for number, value in zip(bad, again[name], strict=True):
                values[number] = value
    return found
