"""The data sets that a Trainer reads: rows at random places of a mixture, or a stream of them.

Both shuffle themselves, by seed and epoch, and put into every item where in the epoch it stands. They are read in
order (`train_sampling_strategy="sequential"`), so the same places make a batch for one process and for many, and a
resumed run that skips places reads on where it stopped.
"""

import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from modeling_shirg.training.data.bad_rows import BadRow, LongRow, SharedCounts, SkipLog, Skipped, check_share
from modeling_shirg.training.data.checking import CheckedSource
from modeling_shirg.training.data.mixing import EpochPlan
from modeling_shirg.training.data.reading import RowReader
from modeling_shirg.training.data.scenes import SceneTable
from modeling_shirg.training.draws import named_generator
from modeling_shirg.training.encoder import RowEncoder

# The place of a row within its shard of a stream takes so many bits.
_SHARD_BITS = 24
# The share of bad rows of a stream is judged from this many on, and again at its end.
_JUDGED_FROM = 100


class _Epoch:
    """An epoch number that worker processes see change, however long they live."""

    def __init__(self):
        self._shared = torch.zeros((), dtype=torch.int64).share_memory_()

    def get(self) -> int:
        return int(self._shared)

    def set(self, epoch: int) -> None:
        self._shared.fill_(epoch)


class TrainingRows(Dataset):
    """Rows of a mixture; place i of an epoch holds the row that seed and epoch put there.

    An item is a dict:

    - `row`: int, the same in every run for the same row of the same list of sources; `name` says it for people;
    - `epoch`, `repeat`: which use of the row this is;
    - `position`, `counted_from`: its place among the rows since the beginning of that epoch;
    - `source`: the name of its source;
    - `images`: upright RGB PIL images;
    - `messages`: chat turns for the processor, with `{"type": "image"}` where an image belongs;
    - `fovea_boxes`: (left, top, right, bottom) in pixels, or `None`, for each image.

    Args:
        sources: what was checked.
        plan: what an epoch consists of.
        shares: of the sources, for the report.
        fixed: validation rows: sorted, and the same order and draws whatever epoch is set.
    """

    def __init__(self, sources: list[CheckedSource], plan: EpochPlan, shares: Sequence[Fraction], fixed: bool = False):
        self.sources = sources
        self.plan = plan
        self.shares = shares
        self.fixed = fixed
        self._epoch = _Epoch()
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.plan)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle for another epoch; to be called before workers start on it."""
        if not self.fixed:
            self._epoch.set(epoch)

    def __getitem__(self, position: int) -> dict[str, Any]:
        epoch = self._epoch.get()
        source, usable, repeat = self._ordered(epoch)[position].tolist()
        item = self.sources[source].item(usable)
        return {**item, "epoch": epoch, "repeat": repeat, "position": position, "counted_from": epoch}

    def report(self) -> dict[str, list[dict]]:
        """What is read and what is not: `sources` with their numbers, and every row that was `skipped`, with why."""
        parts = zip(self.sources, self.plan.rows, self.shares, strict=True)
        return {
            "sources": [
                _facts(source.reader, share, rows=len(source.numbers), skipped=len(source.skipped), per_epoch=rows)
                for source, rows, share in parts
            ],
            "skipped": [bad._asdict() for source in self.sources for bad in source.skipped],
        }

    def _ordered(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            order = self.plan.order(epoch)
            if self.fixed:
                order = order[np.lexsort(order.T[::-1])]
            self._order = (epoch, order)
        return self._order[1]


class TrainingStream(IterableDataset):
    """A mixture that is read from the start to the end, without a table in between.

    Items are those of `TrainingRows` without a position, which `EndlessStream` adds.

    An epoch ends where the first source ends. Each row is taken from a source drawn by the shares, out of a buffer
    that shuffles. Bad rows are left out where they are met.

    Worker w of n reads every n-th shard of a source, or every n-th row where there are fewer shards than workers, so
    the order depends on the number of workers. Each training process reads (and decodes) the whole stream and keeps
    its part of every batch: set `dispatch_batches` of the accelerator to false.

    Args:
        readers: how each source is read.
        tables: `datasets.IterableDataset`s or `SceneTable`s.
        shares: of the sources.
        seed: the run's.
        buffer: number of undecoded rows in each source's shuffle buffer.
        max_bad_share: the share of bad rows of a source beyond which it raises an error.
        row_encoder: measures rows, if those that are too long are to be found.
        skip_long: leave out rows that are too long, instead of raising.
    """

    def __init__(
        self,
        readers: list[RowReader],
        tables: list[Any],
        shares: Sequence[Fraction],
        *,
        seed: int,
        buffer: int,
        max_bad_share: float,
        row_encoder: RowEncoder | None,
        skip_long: bool,
    ):
        self.readers = readers
        self.tables = tables
        self.shares = shares
        self.seed = seed
        self.buffer = buffer
        self.max_bad_share = max_bad_share
        self.encoder = row_encoder
        self.skip_long = skip_long
        self._epoch = _Epoch()
        self._log = SkipLog()
        self._counts = SharedCounts(len(readers))

    def set_epoch(self, epoch: int) -> None:
        """Shuffle for another epoch; to be called before workers start on it."""
        self._epoch.set(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.rows_of(self._epoch.get())

    def rows_of(self, epoch: int) -> Iterator[dict[str, Any]]:
        """One epoch's items, whatever epoch is set; in a worker, its part of them."""
        stream, workers = _this_worker()
        rng = named_generator(self.seed, "mix", epoch, stream)
        feeds = [self._usable(number, epoch, stream, workers) for number in range(len(self.readers))]
        shares = np.array([float(share) for share in self.shares])
        while True:
            item = next(feeds[int(rng.choice(len(feeds), p=shares))], None)
            if item is None:
                return
            yield {**item, "epoch": epoch, "repeat": 0}

    def report(self) -> dict[str, list[dict]]:
        """What is read and what was skipped until now, by this process and its workers."""
        skipped = self._log.read()
        return {
            "sources": [
                _facts(reader, share, skipped=sum(bad.source == reader.name for bad in skipped), rows=None)
                for reader, share in zip(self.readers, self.shares, strict=True)
            ],
            "skipped": [bad._asdict() for bad in skipped],
        }

    def _usable(self, number: int, epoch: int, stream: int, workers: int) -> Iterator[dict[str, Any]]:
        """The items of one source that this worker reads, shuffled."""
        reader = self.readers[number]
        rng = named_generator(self.seed, "buffer", epoch, stream, number)
        self._counts.start(number, stream)
        for index, row in _shuffled(_raw_rows(self.tables[number], stream, workers, rng), self.buffer, rng):
            try:
                item = self._item(reader, row, index)
            except BadRow as bad:
                self._counts.add(number, stream, is_bad=not isinstance(bad, LongRow))
                self._log.add(Skipped(reader.name, index, str(bad)))
                self._judge(number, workers, at_least=_JUDGED_FROM)
            else:
                self._counts.add(number, stream, is_bad=False)
                yield item
        if self._counts.end(number, stream, workers):
            self._judge(number, workers, at_least=0)

    def _judge(self, number: int, workers: int, at_least: int) -> None:
        """Raises a `ValueError` if too many rows of a source, of `at_least` so many, are bad."""
        name = self.readers[number].name
        seen, bad = self._counts.of(number, workers)
        if seen >= at_least:
            check_share(name, bad, seen, self.max_bad_share, lambda: [s for s in self._log.read() if s.source == name])

    def _item(self, reader: RowReader, row: dict[str, Any], index: int) -> dict[str, Any]:
        item = reader.item(row, index)
        if self.encoder is not None:
            lengths = self.encoder.lengths(item["messages"], [image.size for image in item["images"]])
            if self.encoder.is_too_long(lengths):
                if self.skip_long:
                    raise LongRow(f"too long: {lengths.total} tokens")
                self.encoder.check_length(lengths, f"Row {item['name']}")
        return item


class EndlessStream(IterableDataset):
    """Epoch after epoch of a stream; `position` counts the rows in the order in which all workers' batches are used.

    Args:
        stream: what is read.
        batch_rows: rows that a worker gives in one turn: those of one forward on all processes together.
    """

    def __init__(self, stream: TrainingStream, batch_rows: int):
        self.stream = stream
        self.batch_rows = batch_rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker, workers = _this_worker()
        rows = itertools.chain.from_iterable(map(self._epoch_of_some, itertools.count()))
        for place, item in enumerate(rows):
            turn, row = divmod(place, self.batch_rows)
            position = (turn * workers + worker) * self.batch_rows + row
            yield {**item, "position": position, "counted_from": 0}

    def _epoch_of_some(self, epoch: int) -> Iterator[dict[str, Any]]:
        rows = self.stream.rows_of(epoch)
        first = next(rows, None)
        if first is None:
            raise ValueError(
                "An epoch of the stream has no row for one of its workers: give more data or fewer workers."
            )
        return itertools.chain([first], rows)


def _this_worker() -> tuple[int, int]:
    """Number of this worker process, and how many there are."""
    worker = get_worker_info()
    return (0, 1) if worker is None else (worker.id, worker.num_workers)


def _facts(reader: RowReader, share: Fraction, **numbers: int | None) -> dict[str, Any]:
    """One source in a report; `weight` is its share of the rows."""
    place = {"source": reader.place, "dataset_id": reader.dataset_id}
    return {"name": reader.name, **place, "weight": float(share), **numbers}


def _raw_rows(table: Any, stream: int, workers: int, rng: np.random.Generator) -> Iterator[tuple[int, dict[str, Any]]]:
    """The part of a table that worker number `stream` reads, with the number of each row.

    Iterating a `datasets.IterableDataset` in a worker gives that worker a part of the shards; `iter(batch_size)` does
    not, and the rows keep their numbers.
    """
    if isinstance(table, SceneTable):
        yield from ((index, table[index]) for index in range(stream, len(table), workers))
        return
    shards = table.num_shards
    by_shard = shards >= workers
    for shard in rng.permutation(shards).tolist():
        if by_shard and shard % workers != stream:
            continue
        for place, batch in enumerate(table.shard(shards, shard).iter(batch_size=1)):
            if by_shard or place % workers == stream:
                yield (shard << _SHARD_BITS) + place, {name: values[0] for name, values in batch.items()}


def _shuffled(rows: Iterator, size: int, rng: np.random.Generator) -> Iterator:
    """The rows through a buffer of `size`, of which a random one leaves as another comes."""
    held = list(itertools.islice(rows, size))
    for row in rows:
        place = int(rng.integers(len(held)))
        yield held[place]
        held[place] = row
    yield from (held[place] for place in rng.permutation(len(held)))
