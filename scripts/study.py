"""Compare systems on one base, zero-shot and adapted with equal samples; the same command continues a killed run.

    shirg study --base runs/tiny --out runs/study                    # configs/study/plan.yaml, or cpu.yaml on a CPU
    shirg study --base runs/tiny --out runs/study --config my-study.yaml
    shirg report runs/study                                          # pages and slides, also while it runs

The config lists tables of systems, adaptations with their seeds, the recipe and aims
(modeling_shirg/evaluation/study_plan.py). The study is `shirg evaluate` of all systems, `shirg train` and `shirg
evaluate` of every adapter, and one short evaluation that times all systems. Finished parts are skipped.
"""

import argparse
import json
from pathlib import Path

_CONFIGS = Path(__file__).parent / "configs" / "study"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="shirg study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", required=True, help="folder or Hub id of the checkpoint that all start from")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the study")
    parser.add_argument("--config", type=Path, metavar="FILE", help="what is run; by default as the machine allows")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ...")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Ask all systems, adapt and ask every adapter, time all systems."""
    import torch

    from modeling_shirg.evaluation.costs import machine
    from modeling_shirg.evaluation.study_plan import STUDY_FILE, TIMING, ZERO_SHOT, read_study
    from modeling_shirg.running.files import write_json
    from modeling_shirg.running.load import resolve_device
    from modeling_shirg.running.systems import parse_row
    from modeling_shirg.training.settings_file import read_settings

    from . import evaluate, train

    config = args.config or _CONFIGS / ("plan.yaml" if torch.accelerator.is_available() else "cpu.yaml")
    plan = read_study(config, args.out)
    rows = {adaptation: parse_row(adaptation.system) for adaptation in plan.adapt}
    for system in plan.systems:
        parse_row(system)
    facts = {"base": args.base, "machine": machine(resolve_device(args.device), torch.float32)}
    write_json(args.out / STUDY_FILE, {**facts, "plan": read_settings(config)})

    def ask(model: str, systems: list[str], out: Path, limit: int | None, *words: str) -> None:
        asked = ["--model", model, "--systems", *systems, "--tasks", *plan.tasks, "--split", plan.split, *words]
        asked += ["--out", str(out), "--device", args.device, "--batch_size", str(plan.batch_size)]
        evaluate.main(evaluate.parse_args(asked if limit is None else [*asked, "--limit", str(limit)]))

    ask(args.base, plan.systems, args.out / ZERO_SHOT, plan.limit)
    for adaptation, row in rows.items():
        for seed in adaptation.seeds:
            adapter, recipe = args.out / "adapters" / adaptation.name(seed), args.out / "recipe.json"
            write_json(recipe, plan.train | adaptation.train)
            words = ["--model", args.base, "--prune_method", row.preset, "--seed", str(seed)]
            options = [f"{n}={v if isinstance(v, str) else json.dumps(v)}" for n, v in row.options.items()]
            words += ["--option", *options] if options else []
            words += ["--output_dir", str(adapter), "--early_stopping_patience", "0"]
            train.main(train.parse_args([str(recipe), *words, *(["--use_cpu", "true"] * (args.device == "cpu"))]))
            ask(str(adapter), [adaptation.system], args.out / "adapted" / adaptation.name(seed), plan.limit)
    if plan.timed_rows is not None:
        limit = min(plan.timed_rows, plan.limit or plan.timed_rows)
        ask(args.base, plan.systems, args.out / TIMING, limit, "--max_bad_share", "0.99")
    print(f"{args.out} is finished. Pages and slides: shirg report {args.out}")


if __name__ == "__main__":
    main(parse_args())
