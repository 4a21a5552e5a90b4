"""Compare systems on one base, zero-shot and adapted with equal samples; the same command continues a killed run.

    shirg study scripts/configs/study/cpu.yaml --base hub_card/shirg-lavida-tiny-base --out runs/study
    shirg report runs/study                                         # page and slides, also while it runs

The config lists tables of systems, adaptations with their seeds, the recipe and aims
(modeling_shirg/evaluation/study_plan.py). The study is `shirg evaluate` of all systems, and `shirg train` and `shirg
evaluate` of every adapter. Finished parts are skipped.
"""

import argparse
import json
from pathlib import Path


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    from .argument_types import checkpoint
    from .arguments import CommandParser

    parser = CommandParser("shirg study", __doc__)
    parser.add_argument("config", type=Path, metavar="STUDY.yaml", help="what is run")
    parser.add_argument("--base", type=checkpoint, required=True, help="checkpoint that all start from")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the study")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ...")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Ask all systems on the base, then adapt and ask system by system."""
    import torch

    from modeling_shirg.evaluation.costs import machine
    from modeling_shirg.evaluation.study_plan import ADAPTED, STUDY_FILE, ZERO_SHOT, read_study
    from modeling_shirg.running.files import write_json
    from modeling_shirg.running.load import resolve_device
    from modeling_shirg.running.systems import parse_row
    from modeling_shirg.training.arguments import read_settings

    from . import train

    plan = read_study(args.config, args.out)
    for system in plan.systems:
        parse_row(system)
    facts = {"base": args.base, "machine": machine(resolve_device(args.device), torch.float32)}
    write_json(args.out / STUDY_FILE, {**facts, "plan": read_settings(args.config)})
    _ask(args, plan, args.base, plan.systems, args.out / ZERO_SHOT)
    finished, _ = plan.answers(ADAPTED)
    for adaptation in plan.adapt:
        if adaptation.label in finished:
            print(f"{adaptation.label}: finished before, skipped")
            continue
        adapter, recipe = args.out / "adapters" / adaptation.name, args.out / "recipe.json"
        write_json(recipe, plan.train | adaptation.train)
        row = parse_row(adaptation.system)
        options = [f"{n}={v if isinstance(v, str) else json.dumps(v)}" for n, v in row.options.items()]
        words = ["--model", args.base, "--prune_method", row.preset, *(["--option", *options] if options else [])]
        words += ["--seed", str(adaptation.seed), "--output_dir", str(adapter), "--early_stopping_patience", "0"]
        train.main(train.parse_args([str(recipe), *words, *(["--use_cpu", "true"] if args.device == "cpu" else [])]))
        _ask(args, plan, str(adapter), [adaptation.system], args.out / ADAPTED / adaptation.name)
    print(f"{args.out} is finished. Page and slides: shirg report {args.out}")


def _ask(args: argparse.Namespace, plan, model: str, systems: list[str], out: Path) -> None:
    from . import evaluate

    words = ["--model", model, "--systems", *systems, "--tasks", *plan.tasks, "--split", plan.split]
    words += ["--out", str(out), "--device", args.device, "--batch_size", str(plan.batch_size)]
    words += [] if plan.limit is None else ["--limit", str(plan.limit)]
    evaluate.main(evaluate.parse_args(words))
