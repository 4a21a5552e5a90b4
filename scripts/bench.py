"""Time systems side by side, with random weights at a profile's widths or with your own.

    shirg bench --profile cpu --systems lavida-980 shirg lavida-full --baseline lavida-980 --repeats 5
    shirg bench --profile cpu --systems shirg shirg:prefix_kv=0.6 shirg:prefix_dtype=int8 shirg:use_cache=false
    shirg bench --profile cpu --systems shirg shirg:confidence_threshold=0.9 shirg:batch=4 --out cpu.json
    shirg bench --profile gpu --repeats 50
    shirg bench --model me/my-lavida --profile gpu --systems lavida shirg

A system is a preset, or one that differs: shirg:prefix_kv=0.6,steps=8 takes arguments of `generate`, fields of the
config and `batch`. Repeats are taken in turn (A B C, A B C, ...) after a warm-up that does not count; stages are
shares of one profiled answer. The last line is one JSON object: `systems`, `ratios`, `machine`, `settings`.
"""

import argparse
import json
import os
from pathlib import Path

_PROFILES = ("toy", "cpu", "gpu")
_SYSTEMS = ["lavida-980", "shirg", "lavida-full"]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    from .argument_types import checkpoint, system_label
    from .arguments import CommandParser, add_systems_argument

    parser = CommandParser("shirg bench", __doc__)
    parser.add_argument("--profile", choices=_PROFILES, default="cpu", help="widths and length of answer")
    parser.add_argument("--model", type=checkpoint, help="its widths and weights instead of random ones")
    add_systems_argument(parser, _SYSTEMS, system_label)
    parser.add_argument("--baseline", metavar="NAME", help="row that ratios are to; by default the first")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before that do not")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, help="of torch on the CPU; by default torch's own choice")
    parser.add_argument("--max_new_tokens", type=int, help="length of the answer in tokens")
    parser.add_argument("--steps", type=int, help="denoising steps in all")
    parser.add_argument("--batch", type=int, default=1, help="pictures at once")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the last line here too")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Build, time, print the table, then the JSON object."""
    import torch
    from transformers.utils import logging

    from modeling_shirg.evaluation.costs import machine
    from modeling_shirg.evaluation.side_by_side import check_baseline, measure, ratios, table
    from modeling_shirg.running.systems import parse_row

    logging.disable_progress_bar()
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler otherwise logs every start
    _check(args)
    rows = [parse_row(label) for label in dict.fromkeys(args.systems)]
    baseline = args.baseline or rows[0].label
    check_baseline(baseline, [row.label for row in rows])
    threads = torch.get_num_threads()
    torch.set_num_threads(args.threads or threads)
    try:
        systems = _systems(args, rows)
        model = systems[baseline].loaded.model
        result = {"machine": machine(model.device, model.dtype), "baseline": baseline}
        result["settings"] = {name: getattr(args, name) for name in ("profile", "repeats", "warmup", "batch")}
        result["settings"] |= {"weights": systems[baseline].loaded.name, "parameters": model.num_parameters()}
        result["systems"] = measure(systems, args.repeats, args.warmup)
    finally:
        torch.set_num_threads(threads)
    result["ratios"] = ratios(result["systems"], baseline)
    print(f"{table(result)}\n")
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def _systems(args: argparse.Namespace, rows: list) -> dict:
    """Every row's system; all share the language model of the first."""
    import torch

    from modeling_shirg.evaluation.side_by_side import PROFILES, Timed, random_system
    from modeling_shirg.running.load import load, resolve_device

    profile, device, loaded, systems = PROFILES[args.profile], resolve_device(args.device), {}, {}
    if args.profile == "gpu" and args.device == "auto" and device.type == "cpu":
        raise ValueError("Profile 'gpu' has 8.4 billion weights and this machine no accelerator: use --profile cpu.")
    dtype = getattr(torch, profile.dtype if args.dtype == "auto" else args.dtype)
    given = load(device="cpu") if args.model is None else None
    answer = {"max_new_tokens": args.max_new_tokens or profile.max_new_tokens, "steps": args.steps or profile.steps}
    for row in rows:
        key = json.dumps([row.preset, row.options], sort_keys=True)
        if key not in loaded:
            if args.model is None:
                system = random_system(profile, row.preset, dict(row.options), given, dtype, device)
            else:
                system = load(args.model, row.preset, args.device, args.dtype, options=row.options)
            first = next(iter(loaded.values()), system).model
            system.model.model.language_model, system.model.lm_head = first.model.language_model, first.lm_head
            loaded[key] = system
        generation = {**answer, **row.generation}
        systems[row.label] = Timed(loaded[key], generation, row.batch or args.batch, profile.image_size)
    return systems


def _check(args: argparse.Namespace) -> None:
    for name, least in (("repeats", 1), ("warmup", 0), ("batch", 1), ("threads", 1)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise ValueError(f"--{name} {getattr(args, name)}: it must be {least} or more.")
    if args.out is not None and not args.out.resolve().parent.is_dir():
        raise ValueError(f"--out {args.out}: {args.out.resolve().parent} is no folder.")
