r"""Ask systems the questions of benchmarks, score the answers, and table them with intervals.

    shirg evaluate --systems shirg lavida-980 --baseline lavida-980 --limit 200 --out runs/synthetic
    shirg evaluate --model me/my-lavida --systems shirg lavida-980 lavida-full --baseline lavida-980 \
        --tasks chartqa docvqa textvqa vqav2 --batch_size 8 --out runs/mine
    torchrun --nproc_per_node 4 -m shirg_scripts.cli evaluate --model me/my-lavida --out runs/mine
    shirg evaluate --systems shirg lavida-980 shirg:prefix_kv=0.6 --control blank --out runs/prefix
    shirg evaluate --tasks chartqa --data chartqa=data/charts,split=test --out runs/local

A system is a preset, or one that differs: shirg:prefix_kv=0.6,steps=8 takes arguments of `generate` and fields of the
config. All systems run on the weights of --model, which is a checkpoint or an adapter.

Processes that torchrun or accelerate launch start answer a part each. The same command goes on where a killed one
stopped and asks nothing twice. More --systems, --tasks and --control may be asked for later in the same --out; another
value of what answers depend on is an error. There are then: settings.json; answers/, one JSON line per question;
results.json with all tables; results.csv; groups.csv, accuracy by glyph size, eccentricity and place; curves/. Seconds
and memory are of this machine, of batches of --batch_size; on a CPU, memory is what torch allocated.
"""

import argparse
import os
from pathlib import Path
from typing import Any

_SYSTEMS = ["lavida-980", "shirg"]
_TASKS = ["chart", "document", "entity_grid", "guard"]
# What an answer depends on; --systems, --tasks and --control have files of their own.
_SETTINGS = ("revision", "dtype", "quantize", "split", "limit", "batch_size")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    from .arguments import add_answer_arguments, add_model_arguments, add_quantize_argument

    parser = argparse.ArgumentParser(
        prog="shirg evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    add_quantize_argument(parser)
    parser.add_argument("--systems", nargs="+", default=_SYSTEMS, metavar="NAME[:FIELD=VALUE,...]")
    parser.add_argument("--baseline", metavar="NAME", help="system that differences are to; by default the first")
    parser.add_argument("--tasks", nargs="+", default=_TASKS, metavar="TASK", help=f"by default {' '.join(_TASKS)}")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the evaluation")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N rows of every task")
    parser.add_argument("--batch_size", type=int, default=8, metavar="N", help="questions that are answered together")
    parser.add_argument("--split", help="of all tasks; by default each one's own")
    parser.add_argument(
        "--control",
        nargs="+",
        default=[],
        choices=("blank", "shuffled_question"),
        help="rows more: a grey image, or the question of another row",
    )
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="TASK=PLACE",
        help="where a task's rows are: a Hub id, folder or file, and fields such as ,split=test after it",
    )
    add_answer_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--max_bad_share", type=float, default=0.01, help="share of a task's rows that may be bad")
    parser.add_argument("--no_curves", action="store_true", help="draw nothing; needs no matplotlib")
    return parser.parse_args(argv)


def main(args: argparse.Namespace, opened: dict[str, Any] | None = None) -> None:
    """Answer this process's share; who finds all answers there writes the tables.

    `opened` gets the rows of the tasks; who calls this again with the same tasks, limit and split hands it back.
    """
    from modeling_shirg.evaluation.answer_log import SETTINGS_FILE, check_settings
    from modeling_shirg.evaluation.results import missing
    from modeling_shirg.running.systems import parse_row

    _check(args)
    rows = [parse_row(text) for text in dict.fromkeys(args.systems)]
    settings = _settings(args)
    check_settings(args.out / SETTINGS_FILE, settings, args.out / "answers")
    plan, machine = _ask(args, rows, {} if opened is None else opened)
    left = missing(args.out, plan)
    if left:
        print(
            f"{sum(left.values())} answers of other processes are not there yet; the last process writes the tables."
        )
        return
    _tell(args, plan, {"settings": settings, "machine": machine})


def _check(args: argparse.Namespace) -> None:
    from importlib.util import find_spec

    from modeling_shirg.evaluation.side_by_side import check_baseline
    from modeling_shirg.evaluation.tasks import check_task

    for task in (*args.tasks, *_places(args)):
        check_task(task)
    unasked = [task for task in _places(args) if task not in args.tasks]
    if unasked:
        raise ValueError(f"--data names {unasked[0]}, which is none of --tasks {' '.join(args.tasks)}.")
    check_baseline(args.baseline or args.systems[0], args.systems)
    for name in ("limit", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} {value}: it must be 1 or more.")
    if not 0 <= args.max_bad_share < 1:
        raise ValueError(f"--max_bad_share {args.max_bad_share}: it is a share, from 0 to below 1.")
    if not args.no_curves and find_spec("matplotlib") is None:
        raise ValueError("Curves are drawn with matplotlib: pip install 'shirg-lavida[eval]', or say --no_curves.")


def _places(args: argparse.Namespace) -> dict[str, str]:
    """Where the rows of tasks are, of those that `--data` names."""
    entries = [entry.partition("=") for entry in args.data]
    wrong = next((task for task, _, place in entries if not place), None)
    if wrong is not None:
        raise ValueError(f"--data {wrong}: write it as TASK=PLACE, for example chartqa=data/charts.")
    return {task: place for task, _, place in entries}


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """What the answers in the folder depend on."""
    from .arguments import answer_arguments

    model = args.model and (str(Path(args.model).resolve()) if Path(args.model).exists() else args.model)
    return {"model": model, **{name: getattr(args, name) for name in _SETTINGS}, **answer_arguments(args)}


def _ask(args: argparse.Namespace, rows: list, opened: dict[str, Any]) -> tuple[Any, dict]:
    """Let every system answer this process's share; returns what is to be tabled, and the machine."""
    from modeling_shirg.evaluation.answer_log import WEIGHTS_FILE, Place, check_settings
    from modeling_shirg.evaluation.asking import Share, ask_rows
    from modeling_shirg.evaluation.results import Plan
    from modeling_shirg.evaluation.side_by_side import System, machine
    from modeling_shirg.evaluation.tasks import TASKS
    from modeling_shirg.fingerprint_shirg import fingerprint
    from modeling_shirg.running.load import load

    from .arguments import answer_arguments
    from .compare import errors_alone

    share = Share(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
    given = {name: value for name, value in answer_arguments(args).items() if value is not None}
    tasks: dict[str, Any] = {}
    for row in rows:
        if row.batch is not None:
            raise ValueError(f"{row.label}: all systems have the same batch; say --batch_size {row.batch}.")
        with errors_alone():
            loaded = load(
                args.model,
                row.preset,
                _device(args.device, share),
                args.dtype,
                None,
                row.options,
                args.revision,
                quantize=args.quantize,
            )
        check_settings(args.out / WEIGHTS_FILE, {"weights": fingerprint(loaded.model)}, args.out / "answers")
        tasks = tasks or _open_tasks(args, loaded.model.config, opened)
        for task in tasks:
            generation = _generation(TASKS[task].length, {**given, **row.generation})
            system = System(loaded.model, loaded.processor, generation, args.batch_size)
            for control in ("none", *args.control):
                ask_rows(args.out, Place(task, row.label, control), system, tasks[task], share)
        facts = machine(loaded.model.device, loaded.model.dtype)
    plan = Plan(
        rows={task: len(each) for task, each in tasks.items()},
        systems=[row.label for row in rows],
        controls=["none", *args.control],
        baseline=args.baseline or rows[0].label,
        seed=args.seed,
        max_bad_share=args.max_bad_share,
    )
    return plan, facts


def _open_tasks(args: argparse.Namespace, config: Any, opened: dict[str, Any]) -> dict[str, Any]:
    """The rows of every task that is not open yet, rendered at the scale of the checkpoint's views."""
    from configuration_shirg.presets_shirg import GEOMETRIES
    from modeling_shirg.evaluation.answer_log import ROWS_FILE, check_settings
    from modeling_shirg.evaluation.tasks import TaskRows

    scale, places = config.vision_config.image_size / GEOMETRIES["toy"]["image_size"], _places(args)
    for task in dict.fromkeys(args.tasks):
        if task not in opened:
            opened[task] = TaskRows(task, places.get(task), args.split, args.limit, scale)
        asked = {"data": places.get(task), "rows": len(opened[task])}
        folder = args.out / "answers" / task
        check_settings(folder / ROWS_FILE, asked, folder)
    return {task: opened[task] for task in dict.fromkeys(args.tasks)}


def _generation(length: int, given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `generate`: the task's length and one step per token, where nothing else was asked for."""
    generation = {"max_new_tokens": length, **given}
    if "steps" not in given and "step_ratio" not in given:
        generation["steps"] = generation["max_new_tokens"]
    return generation


def _device(device: str, share) -> str:
    """The accelerator that belongs to this process where there are several."""
    import torch

    if device != "auto" or share.world == 1 or not torch.accelerator.is_available():
        return device
    return f"{torch.accelerator.current_accelerator().type}:{os.environ.get('LOCAL_RANK', 0)}"


def _tell(args: argparse.Namespace, plan, about: dict[str, Any]) -> None:
    """Write the tables, draw the curves, print the figures of every task."""
    from modeling_shirg.evaluation.results import tabulate, write_results

    results = {**about, "baseline": plan.baseline, "systems": plan.systems, **tabulate(args.out, plan)}
    write_results(args.out, results)
    if not args.no_curves:
        from modeling_shirg.evaluation.curves import draw_curves

        draw_curves(args.out / "curves", results)
    print("\n".join(_lines(results)))
    for task, facts in results["tasks"].items():
        if facts["bad"]:
            first = facts["bad"][0]
            print(
                f"{task}: {len(facts['bad'])} of {facts['rows']} rows were bad, row {first['row']}: {first['reason']}"
            )
    print(f"Tables, answers and curves: {args.out}")


def _lines(results: dict[str, Any]) -> list[str]:
    """The figures over all questions, and the guard."""
    costs = {(row["task"], row["system"], "none"): row for row in results["efficiency"]}
    width = max(len(name) for name in results["systems"])
    lines = []
    for row in results["scores"]:
        if row["by"] not in ("", "subset") or row["metric"] == "cider":
            continue
        what = " ".join(filter(None, (row["task"], row["group"], row["control"].replace("none", ""))))
        value = f"{row['value']:6.1%} ({row['low']:.1%} to {row['high']:.1%})"
        cost = costs.get((row["task"], row["system"], row["control"]))
        tail = "" if cost is None else f"{cost['image_tokens']:.0f} tokens, {cost['seconds']:.3f} s"
        lines.append(f"{what:<28} {row['system']:<{width}} {row['metric']:<16} {value:<26} {_against(row):<24} {tail}")
    for system, verdict in results["guard"].items():
        outcome = "passes" if verdict["passes"] else "does not pass"
        few = "" if verdict["enough_rows"] else f"; {verdict['n']} rows are too few to rely on it"
        lines.append(f"guard: {system} {outcome} (lower end {100 * verdict['low']:+.2f} points{few})")
    return lines


def _against(row: dict[str, Any]) -> str:
    """The difference to the baseline, in points where the metric is a share."""
    if row["difference"] is None:
        return "baseline"
    difference, low, high = (100 * row[name] for name in ("difference", "difference_low", "difference_high"))
    return f"{difference:+.1f} ({low:+.1f} to {high:+.1f})"


if __name__ == "__main__":
    main(parse_args())
