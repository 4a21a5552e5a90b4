"""What a training run reads: `load_rows` opens, checks and mixes the sources of `DataArguments`.

The way of a row: data/ (what was asked for, open tables, decoded images, checked rows, the order of an epoch), then
collator.py with encoder.py, draws.py and augment.py (a batch).
"""

from dataclasses import replace
from fractions import Fraction
from itertools import islice
from typing import Any, Literal

import numpy as np

from modeling_shirg.training.arguments import DataArguments
from modeling_shirg.training.data.adapters import ADAPTERS
from modeling_shirg.training.data.checking import CheckedSource, check_source
from modeling_shirg.training.data.mixing import EpochPlan, mixture_shares, rows_per_source
from modeling_shirg.training.data.reading import RowReader
from modeling_shirg.training.data.rows import TrainingRows, TrainingStream
from modeling_shirg.training.data.scenes import SceneTable
from modeling_shirg.training.data.specs import SourceSpec, read_specs
from modeling_shirg.training.data.tables import hub_id, open_table
from modeling_shirg.training.draws import named_generator
from modeling_shirg.training.encoder import RowEncoder


def load_rows(
    args: DataArguments, split: Literal["train", "validation"], seed: int, encoder: RowEncoder | None = None
) -> TrainingRows | TrainingStream | None:
    """The rows of a run; `None` if validation rows are asked for and the arguments name none.

    On several processes, call it on the main one first (`training_args.main_process_first()`): it checks every row
    and the others read what it found.

    Args:
        args: what to read.
        split: `"train"`, shuffled anew by each epoch, a stream with `args.streaming`; or `"validation"`, always the
            same rows in the same order with the same draws.
        seed: the run's.
        encoder: the collator's, which measures the rows. Without it a row that is too long is found by the collator.

    Raises:
        ValueError: a source cannot be opened, has no usable row, more bad ones than `args.max_bad_share` or one that
            is too long; or the arguments contradict each other.
    """
    if args.skip_long and encoder is None:
        raise ValueError(
            "skip_long needs the encoder that measures the rows: load_rows(..., encoder=collator.encoder)."
        )
    if split == "train":
        return _stream(args, seed, encoder) if args.streaming else _training_rows(args, seed, encoder)
    if args.validation_data:
        if args.streaming and not args.validation_rows:
            raise ValueError("With --streaming, say how many rows of --validation_data to take: --validation_rows N.")
        specs = read_specs(args.validation_data, None, "--validation_data")
        sources = _checked(specs, "validation", args, seed, encoder)
        return _validation_rows(specs, sources, args, seed)
    if not args.validation_rows:
        return None
    specs = read_specs(args.data, args.data_config, "--data")
    return _held_out_rows(specs, args, seed, encoder)


def _training_rows(args: DataArguments, seed: int, encoder: RowEncoder | None) -> TrainingRows:
    specs = read_specs(args.data, args.data_config, "--data")
    sources = _checked(specs, "train", args, seed, encoder)
    if args.validation_rows and not args.validation_data:
        held = _held_out(specs, sources, args, seed)
        sources = [replace(source, numbers=kept) for source, (kept, _) in zip(sources, held, strict=True)]
    shares = _shares(specs, [len(source.numbers) for source in sources], args)
    plan = EpochPlan([len(source.numbers) for source in sources], shares, args.epoch_rows, seed)
    if not len(plan):
        raise ValueError("The weights leave no whole row in an epoch: give sources more even weights or more rows.")
    return TrainingRows(sources, plan, shares)


def _stream(args: DataArguments, seed: int, encoder: RowEncoder | None) -> TrainingStream:
    specs = read_specs(args.data, args.data_config, "--data")
    _check_streamable(specs, args)
    opened = [open_table(spec, "train", streaming=True) for spec in specs]
    readers = [
        _reader(number, spec, files) for number, (spec, (_, files)) in enumerate(zip(specs, opened, strict=True))
    ]
    return TrainingStream(
        readers,
        [table for table, _ in opened],
        _shares(specs, [None] * len(specs), args),
        seed=seed,
        buffer=args.shuffle_buffer,
        max_bad_share=args.max_bad_share,
        row_encoder=encoder,
        skip_long=args.skip_long,
    )


def _check_streamable(specs: list[SourceSpec], args: DataArguments) -> None:
    stored = [spec for spec in specs if spec.source != "synthetic"]
    limited = [spec.name for spec in stored if spec.rows is not None]
    if limited:
        raise ValueError(f"{limited[0]}: rows cannot be drawn from a stream; leave it out and set --max_steps.")
    if args.epoch_rows is not None:
        raise ValueError("epoch_rows cannot be had with --streaming: an epoch ends with the first source.")
    if args.validation_rows and not args.validation_data and stored:
        raise ValueError(
            f"Rows of a stream ({stored[0].name}) cannot be held out: give --validation_data with --streaming."
        )


def _checked(
    specs: list[SourceSpec], split: str, args: DataArguments, seed: int, encoder: RowEncoder | None
) -> list[CheckedSource]:
    sources = []
    for number, spec in enumerate(specs):
        table, files = open_table(spec, split, streaming=args.streaming)
        if args.streaming and not isinstance(table, SceneTable):  # validation rows of a stream: its first ones
            batches = islice(table.iter(batch_size=1), args.validation_rows)
            table = [{name: values[0] for name, values in batch.items()} for batch in batches]
        source = check_source(
            _reader(number, spec, files),
            table,
            spec.rows,
            seed=seed,
            row_encoder=encoder,
            max_bad_share=args.max_bad_share,
            skip_long=args.skip_long,
            num_proc=args.num_proc,
        )
        sources.append(source)
    return sources


def _reader(number: int, spec: SourceSpec, files: Any) -> RowReader:
    parts = {"config": spec.config, "split": spec.split, "revision": spec.revision}
    named = [f"{name}={value}" for name, value in parts.items() if value is not None]
    return RowReader(
        number=number,
        name=spec.name,
        place=", ".join([spec.path, *named]),
        dataset_id=hub_id(spec),
        adapt=ADAPTERS[spec.source].adapt,
        suffix=spec.suffix,
        files=files,
    )


def _shares(specs: list[SourceSpec], counts: list[int | None], args: DataArguments) -> list:
    names, weights = [spec.name for spec in specs], [spec.weight for spec in specs]
    return mixture_shares(names, counts, weights, [spec.text_dense for spec in specs], args.ocr_share)


# Validation


def _validation_rows(
    specs: list[SourceSpec], sources: list[CheckedSource], args: DataArguments, seed: int
) -> TrainingRows:
    """So many rows as are asked for, in the sources' shares; all of them if no number is given."""
    counts = [len(source.numbers) for source in sources]
    shares = mixture_shares(
        [spec.name for spec in specs],
        counts,
        [spec.weight for spec in specs],
        [spec.text_dense for spec in specs],
        None,
    )
    most = len(EpochPlan(counts, shares, None, seed))
    total = min(args.validation_rows or most, most)
    return TrainingRows(sources, EpochPlan(counts, shares, total, seed), shares, fixed=True)


def _held_out_rows(
    specs: list[SourceSpec], args: DataArguments, seed: int, encoder: RowEncoder | None
) -> TrainingRows:
    """The rows that training leaves out, and scenes of their own for rendered sources."""
    if args.streaming:
        _check_streamable(specs, args)
    sources = _checked(specs, "train", args, seed, encoder)
    held = []
    for source, (_, numbers) in zip(sources, _held_out(specs, sources, args, seed), strict=True):
        if isinstance(source.table, SceneTable):
            table = SceneTable(source.table.family, "validation", len(numbers), source.table.scale)
            held.append(CheckedSource(source.reader, table, numbers, numbers))
        else:
            held.append(replace(source, numbers=numbers))
    held = [source for source in held if len(source.numbers)]
    if not held:
        raise ValueError(f"None of the validation_rows={args.validation_rows} rows can be used: hold out more.")
    counts = [len(source.numbers) for source in held]
    shares = [Fraction(count, sum(counts)) for count in counts]
    return TrainingRows(held, EpochPlan(counts, shares, None, seed), shares, fixed=True)


def _held_out(
    specs: list[SourceSpec], sources: list[CheckedSource], args: DataArguments, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each source the places of the usable rows that are trained on and of those held out.

    The seed draws from all rows, whether they can be used or not, so that training and validation agree about the rows
    even where they measure them differently. Rendered scenes are all trained on; in their second array they have the
    numbers of as many validation scenes.
    """
    counts = [len(source.table) for source in sources]
    wanted = rows_per_source(counts, _shares(specs, counts, args), args.validation_rows)
    parts = []
    for number, (source, count) in enumerate(zip(sources, wanted, strict=True)):
        if isinstance(source.table, SceneTable):
            parts.append((source.numbers, np.arange(count)))
            continue
        drawn = named_generator(seed, "held out", number).permutation(counts[number])[:count]
        is_held = np.isin(source.numbers, drawn)
        if is_held.all():
            raise ValueError(
                f"validation_rows={args.validation_rows} would hold out all {len(is_held)} usable rows of "
                f"{specs[number].name}: give fewer, or --validation_data."
            )
        parts.append((source.numbers[~is_held], source.numbers[is_held]))
    return parts
