"""What a training run reads: the usable rows of all sources, mixed anew in each epoch, and the validation rows.

Without weights an epoch is every row of every source once. With weights it is as many rows as the shares allow while
no row comes twice: the source that is smallest for its share gives all its rows, the others as many as their share
asks for, drawn anew each epoch. With `epoch_rows` a source that has too few rows is gone through several times, all of
it before any row comes again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import accumulate, pairwise
from math import floor
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset
from transformers.utils import logging

from modeling_shirg.training.arguments import DataArguments
from modeling_shirg.training.draws import named_generator
from modeling_shirg.training.encoder import RowEncoder
from modeling_shirg.training.reading import BadRow, ImageFiles, check_share, read_row
from modeling_shirg.training.sources import SourceSpec, open_table, read_specs

logger = logging.get_logger(__name__)

# Rows of different sources are told apart by the bits above these.
_ROW_BITS = 40


@dataclass
class Source:
    """An open source: the numbers of its usable rows, and those that are left out with the reasons."""

    number: int
    spec: SourceSpec
    table: datasets.Dataset
    files: ImageFiles
    usable: np.ndarray
    skipped: list[tuple[int, str]]

    def item(self, row: int) -> dict[str, Any]:
        """The item of row number `row` of the table."""
        try:
            item = read_row(self.table[row], self.spec.suffix, self.files)
        except BadRow as bad:
            raise ValueError(
                f"Row {row} of {self.spec.name} could be read when it was checked and cannot be now: {bad}. Bring "
                "back what is missing; it is not replaced."
            ) from None
        return {"row": (self.number << _ROW_BITS) + row, "name": f"{row} of {self.spec.name}", **item}


class TrainingRows(Dataset):
    """Rows of a mixture; place i of an epoch holds the row that seed and epoch put there.

    The rows shuffle themselves and are read in order, so the same places make a batch for one process and for many,
    and a resumed run that skips places reads on where it stopped. An item is what `read_row` returns and

    - `row`: int, the same in every run for the same row of the same list of sources; `name` says it for people;
    - `source`: the name of its source;
    - `epoch`, `repeat`: which use of the row this is; `position`: its place in the epoch;
    - `is_training`: false for validation rows, which have the same order and the same draws in every epoch.
    """

    def __init__(
        self, sources: list[Source], shares: Sequence[Fraction], total: int | None, seed: int, is_training: bool = True
    ):
        self.sources, self.shares, self.seed, self.is_training = sources, shares, seed, is_training
        self.per_epoch = rows_per_source([len(source.usable) for source in sources], shares, total)
        # Worker processes see an epoch change, however long they live.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return sum(self.per_epoch)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle for another epoch; to be called before workers start on it."""
        if self.is_training:
            self._epoch.fill_(epoch)

    def __getitem__(self, position: int) -> dict[str, Any]:
        epoch = int(self._epoch)
        if self._order is None or self._order[0] != epoch:
            order = epoch_order([len(source.usable) for source in self.sources], self.per_epoch, self.seed, epoch)
            self._order = (epoch, order if self.is_training else order[np.lexsort(order.T[::-1])])
        number, place, repeat = self._order[1][position].tolist()
        source = self.sources[number]
        use = {"epoch": epoch, "repeat": repeat, "position": position, "is_training": self.is_training}
        return {**source.item(int(source.usable[place])), "source": source.spec.name, **use}

    def report(self) -> dict[str, list[dict]]:
        """What is read and what is not: `sources` with their numbers, and every row that was `skipped`, with why."""
        parts = list(zip(self.sources, self.per_epoch, self.shares, strict=True))
        return {
            "sources": [
                {
                    "name": source.spec.name,
                    "source": source.spec.place,
                    "dataset_id": source.spec.dataset_id,
                    "weight": float(share),
                    "rows": len(source.usable),
                    "skipped": len(source.skipped),
                    "per_epoch": rows,
                }
                for source, rows, share in parts
            ],
            "skipped": [
                {"source": source.spec.name, "row": row, "reason": reason}
                for source in self.sources
                for row, reason in source.skipped
            ],
        }


def load_rows(
    args: DataArguments, seed: int, encoder: RowEncoder | None = None
) -> tuple[TrainingRows, TrainingRows | None]:
    """Training rows, and validation rows if the arguments name any.

    On several processes, call it on the main one first (`training_args.main_process_first()`): it checks every row
    and the others read what it found.

    Args:
        args: what to read.
        seed: the run's.
        encoder: the collator's, which finds the rows that are too long.

    Raises:
        ValueError: a source cannot be opened, has no usable row or more bad ones than `args.max_bad_share`; or the
            arguments contradict each other.
    """
    specs = read_specs(args.data, args.data_config)
    sources = [_open(spec, "train", number, args, seed, encoder) for number, spec in enumerate(specs)]
    held = []
    if args.validation_data:
        named = read_specs(args.validation_data)
        held = [_open(spec, "validation", number, args, seed, encoder) for number, spec in enumerate(named)]
        shares, total = mixture_shares(held, None), args.validation_rows or None
        if total is not None:
            total = min(total, sum(rows_per_source([len(source.usable) for source in held], shares, None)))
    elif args.validation_rows:
        sources, held = _held_out(sources, args, seed)
        counts, total = [len(source.usable) for source in held], None
        shares = [Fraction(count, sum(counts)) for count in counts]
    rows = TrainingRows(sources, mixture_shares(sources, args.ocr_share), args.epoch_rows, seed)
    return rows, TrainingRows(held, shares, total, seed, is_training=False) if held else None


def _open(
    spec: SourceSpec, split: str, number: int, args: DataArguments, seed: int, encoder: RowEncoder | None
) -> Source:
    """A source of which every row was read once, its images decoded; of rendered scenes nothing can be wrong.

    The cache of `datasets` keeps what was found. Bad rows are read again: their image files may have been mended.
    """
    table, files = open_table(spec, split)
    usable = np.arange(len(table))
    if spec.source == "synthetic":
        return Source(number, spec, table, files, usable, [])
    if spec.rows is not None and spec.rows < len(table):
        usable = np.sort(named_generator(seed, "rows", number).permutation(len(table))[: spec.rows])
    check = partial(_check, suffix=spec.suffix, files=files, encoder=encoder)
    found = table.select(usable).map(
        check,
        remove_columns=table.column_names,
        features=datasets.Features({"reason": datasets.Value("string")}),
        num_proc=args.num_proc if args.num_proc > 1 else None,
        desc=f"Checking {spec.name}",
    )
    again = {
        row: check(table[row])["reason"] for row, bad in zip(usable.tolist(), found["reason"], strict=True) if bad
    }
    skipped = [(row, reason) for row, reason in again.items() if reason]
    check_share(spec.name, skipped, len(usable), args.max_bad_share)
    if skipped:
        row, reason = skipped[0]
        logger.warning(
            f"{len(skipped)} of {len(usable)} rows of {spec.name} are left out, the first is row {row}: {reason}"
        )
    return Source(number, spec, table, files, np.setdiff1d(usable, [row for row, _ in skipped]), skipped)


def _check(row: dict[str, Any], suffix: str, files: ImageFiles, encoder: RowEncoder | None) -> dict[str, str]:
    """Why a row cannot be used; empty if it can."""
    try:
        item = read_row(row, suffix, files)
        if encoder is not None:
            encoder.lengths(item["messages"], [image.size for image in item["images"]])
    except BadRow as bad:
        return {"reason": str(bad)}
    return {"reason": ""}


def _held_out(sources: list[Source], args: DataArguments, seed: int) -> tuple[list[Source], list[Source]]:
    """The sources without the rows of validation, and those rows; rendered scenes have validation scenes instead."""
    counts = [len(source.usable) for source in sources]
    kept, held = [], []
    wanted = rows_per_source(counts, mixture_shares(sources, args.ocr_share), args.validation_rows)
    for source, count in zip(sources, wanted, strict=True):
        if source.spec.source == "synthetic":
            spec = replace(source.spec, rows=max(count, 1))
            part, rest = _open(spec, "validation", source.number, args, seed, None), source
        else:
            if count >= len(source.usable):
                raise ValueError(
                    f"validation_rows={args.validation_rows} would hold out all {len(source.usable)} usable rows of "
                    f"{source.spec.name}: give fewer, or --validation_data."
                )
            drawn = named_generator(seed, "held out", source.number).permutation(source.usable)
            part, rest = (replace(source, usable=np.sort(rows)) for rows in (drawn[:count], drawn[count:]))
        kept.append(rest)
        held += [part] * bool(count)
    return kept, held


def mixture_shares(sources: Sequence[Source], ocr_share: float | None) -> list[Fraction]:
    """The share of each source, adding up to 1: by weight or else by rows, text-dense ones `ocr_share` together."""
    parts = [
        Fraction(len(source.usable)) if source.spec.weight is None else Fraction(str(source.spec.weight))
        for source in sources
    ]
    if ocr_share is None:
        return [part / sum(parts) for part in parts]
    asked = {True: Fraction(str(ocr_share)), False: 1 - Fraction(str(ocr_share))}
    dense = [source.spec.text_dense for source in sources]
    if set(dense) != {True, False}:
        raise ValueError(
            f"ocr_share={ocr_share} needs text-dense sources and others; {'all' if dense[0] else 'none'} of "
            f"{', '.join(source.spec.name for source in sources)} are text-dense. The field text_dense says otherwise."
        )
    totals = {kind: sum(part for part, own in zip(parts, dense, strict=True) if own == kind) for kind in asked}
    return [asked[kind] * part / totals[kind] for part, kind in zip(parts, dense, strict=True)]


def rows_per_source(counts: Sequence[int], shares: Sequence[Fraction], total: int | None) -> list[int]:
    """How many rows of each source an epoch has, `total` in all or as many as there are without repeating one."""
    if total is None:
        total = min(floor(count / share) for count, share in zip(counts, shares, strict=True))
    ends = [floor(total * share + Fraction(1, 2)) for share in accumulate(shares)]
    return [end - start for start, end in pairwise([0, *ends])]


def epoch_order(counts: Sequence[int], per_epoch: Sequence[int], seed: int, epoch: int) -> np.ndarray:
    """int64 (places, 3): source, place among its usable rows, and how often that came before in this epoch."""
    parts = []
    for source, (count, rows) in enumerate(zip(counts, per_epoch, strict=True)):
        passes = [
            named_generator(seed, "pass", epoch, source, repeat).permutation(count)
            for repeat in range(-(-rows // count))
        ]
        drawn = np.concatenate([np.zeros(0, dtype=np.int64), *passes])[:rows]
        parts.append(np.stack([np.full(rows, source), drawn, np.arange(rows) // count], axis=1))
    order = np.concatenate(parts)
    return order[named_generator(seed, "order", epoch).permutation(len(order))]
