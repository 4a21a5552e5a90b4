"""Ask systems the questions of benchmarks, score the answers, and table them with intervals.

    shirg evaluate --systems shirg lavida-980 --baseline lavida-980 --limit 200 --out runs/synthetic
    shirg evaluate --model me/my-lavida --tasks chartqa docvqa textvqa vqav2 --batch_size 8 --out runs/mine
    torchrun --nproc_per_node 4 -m shirg_scripts.cli evaluate --model me/my-lavida --out runs/mine
    shirg evaluate --systems shirg lavida-980 shirg:prefix_kv=0.6 --control blank --out runs/prefix
    shirg evaluate --tasks chartqa --data chartqa=data/charts,split=test --out runs/local

A system is a preset, or one that differs: shirg:prefix_kv=0.6,steps=8 takes arguments of `generate` and fields of the
config. All run on the weights of --model, a checkpoint or an adapter. Processes of torchrun or accelerate launch
answer a part each. The same command continues a killed run; --systems, --tasks and --control may grow in one --out.
"""

import argparse
from pathlib import Path
from typing import Any

from .argument_types import system_label
from .arguments import (
    CommandParser,
    add_answer_arguments,
    add_model_arguments,
    add_quantize_argument,
    add_systems_argument,
    answer_arguments,
)

_SYSTEMS, _TASKS = ["lavida-980", "shirg"], ["chart", "document", "entity_grid", "guard"]
# Answers depend on these; --systems, --tasks and --control have files of their own.
_SETTINGS = ("revision", "dtype", "quantize", "split", "limit", "batch_size")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandParser("shirg evaluate", __doc__)
    add_model_arguments(parser)
    add_quantize_argument(parser)
    add_systems_argument(parser, _SYSTEMS, system_label)
    parser.add_argument("--baseline", metavar="NAME", help="system that differences are to; by default the first")
    parser.add_argument("--tasks", nargs="+", default=_TASKS, metavar="TASK", help=f"by default {' '.join(_TASKS)}")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the evaluation")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N rows of every task")
    parser.add_argument("--batch_size", type=int, default=8, metavar="N", help="questions that are answered together")
    parser.add_argument("--split", help="of all tasks; by default each one's own")
    about = "rows more: a grey image, or the question of another row"
    parser.add_argument("--control", nargs="+", default=[], choices=("blank", "shuffled_question"), help=about)
    about = "where a task's rows are: a Hub id, folder or file, and fields such as ,split=test after it"
    parser.add_argument("--data", nargs="+", default=[], metavar="TASK=PLACE", help=about)
    add_answer_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--max_bad_share", type=float, default=0.01, help="share of a task's rows that may be bad")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Answer this process's share; the process that finds all answers complete writes the tables."""
    from modeling_shirg.evaluation.answer_log import SETTINGS_FILE, check_settings
    from modeling_shirg.evaluation.report import frames
    from modeling_shirg.evaluation.report.reported import open_report
    from modeling_shirg.evaluation.results import Logged, Plan, missing, tabulate, write_results
    from modeling_shirg.running.systems import parse_row

    rows = [parse_row(text) for text in dict.fromkeys(args.systems)]
    places = _places(args, rows)
    model = str(Path(args.model).resolve()) if args.model and Path(args.model).exists() else args.model
    settings = {"model": model, **{name: getattr(args, name) for name in _SETTINGS}, **answer_arguments(args)}
    check_settings(args.out / SETTINGS_FILE, settings, args.out / "answers")
    counts, facts = _ask(args, rows, places)
    systems = {row.label: Logged(args.out, row.label) for row in rows}
    baseline = args.baseline or rows[0].label
    plan = Plan(counts, systems, ["none", *args.control], baseline, args.seed, args.max_bad_share)
    if left := missing(plan):
        return print(f"{left} answers of other processes are missing; the last one writes the tables.")
    results = {"settings": settings, "machine": facts, "baseline": baseline, "systems": list(systems)}
    results |= tabulate(plan)
    write_results(args.out, results)
    print(f"{frames.summary(open_report(args.out).tables[0])}\n\nTables and answers: {args.out}")


def _places(args: argparse.Namespace, rows: list) -> dict[str, str]:
    """Where the rows of the tasks in `--data` are, once the arguments are checked."""
    from modeling_shirg.evaluation.side_by_side import check_baseline
    from modeling_shirg.evaluation.tasks import check_task

    places = dict(entry.partition("=")[::2] for entry in args.data)
    for task in (*args.tasks, *places):
        check_task(task)
        if not places.get(task, "here"):
            raise ValueError(f"--data {task}: write it as TASK=PLACE, for example chartqa=data/charts.")
        if task not in args.tasks:
            raise ValueError(f"--data names {task}, which is none of --tasks {' '.join(args.tasks)}.")
    check_baseline(args.baseline or args.systems[0], args.systems)
    for row in rows:
        if row.batch is not None:
            raise ValueError(f"{row.label}: all systems have the same batch; say --batch_size {row.batch}.")
    if (args.limit is not None and args.limit < 1) or args.batch_size < 1:
        raise ValueError(f"--limit {args.limit} and --batch_size {args.batch_size} must be 1 or more.")
    if not 0 <= args.max_bad_share < 1:
        raise ValueError(f"--max_bad_share {args.max_bad_share} must be a share from 0 to below 1.")
    return places


def _ask(args: argparse.Namespace, rows: list, places: dict[str, str]) -> tuple[dict[str, int], dict[str, Any]]:
    """Let every system answer this process's share; returns the number of rows by task, and the machine."""
    from configuration_shirg.presets_shirg import GEOMETRIES
    from modeling_shirg.evaluation.answer_log import WEIGHTS_FILE, Place, check_settings
    from modeling_shirg.evaluation.asking import Share, ask_rows, generation_of, open_tasks
    from modeling_shirg.evaluation.costs import machine
    from modeling_shirg.fingerprint_shirg import fingerprint
    from modeling_shirg.running.load import load

    share = Share.of_process()
    tasks, asked = {}, (share.device(args.device), args.dtype, None)
    for row in rows:
        loaded = load(args.model, row.preset, *asked, row.options, args.revision, args.quantize)
        weights = {"weights": fingerprint(loaded.model)}
        check_settings(args.out / WEIGHTS_FILE, weights, args.out / "answers")
        scale = loaded.model.config.vision_config.image_size / GEOMETRIES["toy"]["image_size"]
        tasks = tasks or open_tasks(args.out, args.tasks, places, args.split, args.limit, scale)
        for task, table in tasks.items():
            generation = generation_of(task, answer_arguments(args) | row.generation)
            for control in ("none", *args.control):
                ask_rows(args.out, Place(task, row.label, control), loaded, generation, args.batch_size, table, share)
    return {task: len(table) for task, table in tasks.items()}, machine(loaded.model.device, loaded.model.dtype)
