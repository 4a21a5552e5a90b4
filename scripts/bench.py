"""Time systems side by side, stage by stage, with random weights at a profile's widths or with your own.

    shirg bench --profile cpu --systems lavida-980 shirg lavida-full --baseline lavida-980 --repeats 5
    shirg bench --profile cpu --systems shirg --prefix_kv 0.6 --prefix_dtype int8 --no_prefix_cache
    shirg bench --profile cpu --systems shirg shirg:confidence_threshold=0.9 'shirg:compile_config={"fullgraph":true}'
    shirg bench --profile cpu --systems lavida-980 shirg --limits --out docs/speed/cpu.json
    shirg bench --profile cpu --stage selection --out docs/speed/selection.json
    shirg bench --profile cpu --curve batch --systems lavida-980 shirg
    shirg bench --profile gpu --repeats 50
    shirg bench --model me/my-lavida --profile gpu --systems lavida shirg

A system is a preset, or one that differs: shirg:prefix_kv=0.6,steps=8 takes arguments of `generate`, fields of the
config and `batch`. Repeats are taken in turn (A B C, A B C, ...) after a warm-up that does not count. The last line is
one JSON object: `systems` (seconds by stage: median, min, max, q1, q3), `ratios` to the baseline, `facts` (bytes and
counts), `machine`, `settings`.
"""

import argparse
import json
import os
import shlex
from pathlib import Path

_SYSTEMS = ["lavida-980", "shirg", "lavida-full"]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    from modeling_shirg.evaluation.profiles import PROFILES

    parser = argparse.ArgumentParser(
        prog="shirg bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", choices=list(PROFILES), default="cpu", help="widths and length of answer")
    parser.add_argument("--model", help="folder or Hub id: its widths and weights instead of random ones")
    parser.add_argument("--systems", nargs="+", metavar="NAME[:FIELD=VALUE,...]", help=f"default: {_SYSTEMS}")
    parser.add_argument("--baseline", metavar="NAME", help="row that ratios are to; by default the first")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before that do not")
    parser.add_argument("--stage", choices=("selection",), help="time this alone: every selection method")
    parser.add_argument("--curve", choices=("batch", "steps", "response", "tokens"), help="time as this grows")
    parser.add_argument("--points", type=int, nargs="+", help="of the curve; for `tokens` sides of the pooled grids")
    parser.add_argument(
        "--limits", action="store_true", help="measure the machine and put each stage beside its floor"
    )
    parser.add_argument(
        "--prefix_kv", type=float, metavar="RATIO", help="a row more of each system, with this eviction"
    )
    parser.add_argument("--prefix_dtype", choices=("bfloat16", "float16", "int8"), help="a row more, stored so")
    parser.add_argument("--no_prefix_cache", action="store_true", help="a row more, without the cache")
    parser.add_argument(
        "--clock", choices=("wall", "processor"), default="wall", help="processor: on a CPU that others use too"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, help="of torch on the CPU; by default torch's own choice")
    parser.add_argument("--vocab_size", type=int, help="of random weights, such as 126464")
    parser.add_argument("--max_new_tokens", type=int, help="length of the answer in tokens")
    parser.add_argument("--steps", type=int, help="denoising steps in all")
    parser.add_argument("--batch", type=int, default=1, help="pictures at once")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the last line here too")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Build, time, print the tables, then the JSON object."""
    from transformers.utils import logging

    from modeling_shirg.evaluation.side_by_side import load_average, machine, torch_threads
    from modeling_shirg.running.systems import Bench

    from .bench_tables import render

    logging.disable_progress_bar()
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler, which counts memory, else says when it runs
    _check(args)
    generation = {name: getattr(args, name) for name in ("max_new_tokens", "steps") if getattr(args, name) is not None}
    with torch_threads(args.threads):
        bench = Bench(args.profile, args.model, args.device, args.dtype, args.vocab_size, generation, args.batch)
        weight = bench.loaded.model.lm_head.weight
        if args.clock == "processor" and weight.device.type != "cpu":
            raise ValueError(f"--clock processor times the CPU; {weight.device} needs --clock wall.")
        result = {"machine": machine(weight.device, weight.dtype), "settings": _settings(args, bench)}
        measured = _selection if args.stage == "selection" else _curve if args.curve else _answers
        result = {**measured(args, bench), **result}
        result["machine"]["load_average_end"] = load_average()
    print(render(result))
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def command(args: argparse.Namespace) -> str:
    """The command that these arguments came from, without what only says where to write."""
    words, default = ["shirg", "bench"], vars(parse_args([]))
    for name, value in vars(args).items():
        if value != default[name] and name != "out":
            values = value if isinstance(value, list) else [] if value is True else [value]
            words += [f"--{name}", *map(str, values)]
    return shlex.join(words)


def _check(args: argparse.Namespace) -> None:
    rows = {name: getattr(args, name) for name in ("prefix_kv", "prefix_dtype", "no_prefix_cache")}
    smaller = [name for name, value in rows.items() if value is not None and value is not False]
    if smaller and (args.stage or args.curve):
        raise ValueError(f"--{smaller[0]} adds rows of answers, which --stage and --curve do not time: leave one out.")
    for name, least in (("repeats", 1), ("warmup", 0), ("batch", 1)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name} {getattr(args, name)}: it must be {least} or more.")
    if args.stage and args.curve:
        raise ValueError(f"--stage {args.stage} and --curve {args.curve} are two measurements: run them one by one.")
    if args.stage and args.systems:
        raise ValueError(f"--stage selection times every method; leave out --systems {' '.join(args.systems)}.")
    if args.points and not args.curve:
        raise ValueError(f"--points {args.points} are points of a curve: name one with --curve.")
    if args.limits and (args.stage or args.curve):
        raise ValueError("--limits is of whole answers: leave out --stage and --curve.")
    if args.out is not None and not args.out.resolve().parent.is_dir():
        raise ValueError(f"--out {args.out}: {args.out.resolve().parent} is no folder.")


def _settings(args: argparse.Namespace, bench) -> dict:
    return {
        "command": command(args),
        "profile": args.profile,
        **bench.settings(),
        "repeats": args.repeats,
        "warmup": args.warmup,
        "clock": args.clock,
        "order": "in turn, one repeat of every system after the other",
    }


def _answers(args: argparse.Namespace, bench) -> dict:
    """Whole answers of every row, with the limits if they are asked for."""
    from modeling_shirg.evaluation.side_by_side import prefix_savings
    from modeling_shirg.running.systems import parse_row, smaller_caches, with_variants

    variants = [f"{name}={getattr(args, name)}" for name in ("prefix_kv", "prefix_dtype") if getattr(args, name)]
    variants += ["use_cache=false"] * args.no_prefix_cache
    rows = with_variants([parse_row(text) for text in args.systems or _SYSTEMS], variants)
    systems = bench.systems(rows)
    result = _compare(args, systems)
    result["prefix"] = prefix_savings(result["systems"], result["facts"], smaller_caches(rows))
    result["limits"] = _limits(args, systems, result["systems"]) if args.limits else None
    return {"measured": "answers", **result}


def _limits(args: argparse.Namespace, systems: dict, spreads: dict) -> dict:
    """What this machine can do, every stage beside its floor, and where the time goes."""
    from modeling_shirg.evaluation.limits import limits, measure_rates, operators
    from modeling_shirg.running.timing import CLOCKS

    weight = next(iter(systems.values())).model.lm_head.weight
    rates = measure_rates(weight.device, weight.dtype, now=CLOCKS[args.clock])
    return {
        "rates": vars(rates),
        "systems": {name: limits(each, spreads[name], rates) for name, each in systems.items()},
        "operators": {name: operators(each) for name, each in systems.items()},
    }


def _compare(args: argparse.Namespace, systems: dict, **how) -> dict:
    """`systems`, `ratios`, `facts` and the baseline's name, of systems that are timed in turn."""
    from modeling_shirg.evaluation.side_by_side import check_baseline, measure, ratios
    from modeling_shirg.running.timing import CLOCKS

    baseline = args.baseline or next(iter(systems))
    check_baseline(baseline, systems)
    measured = measure(systems, args.repeats, args.warmup, now=CLOCKS[args.clock], **how)
    spreads = {name: each.spreads() for name, each in measured.items()}
    facts = {name: each.facts for name, each in measured.items()}
    return {"systems": spreads, "ratios": ratios(spreads, facts, baseline), "facts": facts, "baseline": baseline}


def _selection(args: argparse.Namespace, bench) -> dict:
    """Every selection method in its own system and alone, and SHIRG's counted at full size."""
    from modeling_shirg.evaluation.selection_cost import full_size_share, growth, own_system, see
    from modeling_shirg.published_selections_shirg import METHODS
    from modeling_shirg.running.systems import parse_row
    from modeling_shirg.running.timing import CLOCKS

    own = {method: own_system(method) for method in METHODS}
    result = _compare(args, bench.systems(parse_row(name) for name in own.values()), ask=see)
    grown = {method: growth(bench.loaded.model, method, args.repeats, now=CLOCKS[args.clock]) for method in METHODS}
    alone = {method: {**vars(each), "order": each.order, "system": own[method]} for method, each in grown.items()}
    return {"measured": "selection", **result, "methods": alone, "full_size": full_size_share("shirg")}


def _curve(args: argparse.Namespace, bench) -> dict:
    """Cost per unit of every system as one size grows."""
    from .bench_curves import CURVES, curve_rows, curve_table

    curve = CURVES[args.curve]
    rows = curve_rows(args.curve, bench, args.systems or list(curve.systems), args.points or curve.points(bench))
    result = _compare(args, bench.systems(row for points in rows.values() for row in points))
    return {"measured": "curve", **result, "curve": curve_table(args.curve, rows, result)}


if __name__ == "__main__":
    main(parse_args())
