"""Print how much memory one device needs for a training run, before any weights are loaded.

    shirg plan                                                          # LLaDA-8B, preset shirg, one device
    shirg plan --prune_method lavida-980 --rows 4 --strategy fsdp2 --devices 8
    shirg plan --model my-lavida --footprint projector --no_activation_checkpointing

The step runs on tensors without memory, so this works on any machine, in seconds. What a device adds of its own is not
in it: a CUDA context, kernels' workspaces, the allocator's fragments. Leave a tenth free.
"""

import argparse
import json


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    from configuration_shirg.presets_shirg import PRESETS
    from modeling_shirg.training.footprints import FOOTPRINTS

    parser = argparse.ArgumentParser(
        prog="shirg plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder or Hub id, of which the config is read; by default LLaDA-8B's sizes")
    parser.add_argument("--prune_method", choices=sorted(PRESETS), help="by default the checkpoint's own, or shirg")
    parser.add_argument("--option", action="append", default=[], metavar="FIELD=VALUE", help="of the config")
    parser.add_argument("--footprint", default="shirg-extra", help=f"one of {', '.join(FOOTPRINTS)}")
    parser.add_argument("--rank", type=int, help="by default the footprint's")
    parser.add_argument("--rows", type=int, default=1, help="rows per forward on a device")
    parser.add_argument("--text_tokens", type=int, default=128, help="tokens of a row's text before the answer")
    parser.add_argument("--answer_tokens", type=int, default=32, help="tokens of an answer, filled up")
    parser.add_argument("--strategy", default="single", choices=("single", "ddp", "fsdp2"))
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"), help="of the model")
    parser.add_argument("--no_bf16", action="store_true", help="activations in the model's type, not in bfloat16")
    parser.add_argument("--no_activation_checkpointing", action="store_true", help="keep all activations")
    parser.add_argument("--json", action="store_true", help="last line: one JSON object, in bytes")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Plan and print."""
    from dataclasses import asdict

    import torch

    from modeling_shirg.training.footprints import named_footprint
    from modeling_shirg.training.memory_plan import Workload, plan_memory

    if min(args.rows, args.text_tokens, args.answer_tokens, args.devices) < 1:
        raise ValueError("rows, text_tokens, answer_tokens and devices must be at least 1.")
    config = _config(args)
    workload = Workload(
        rows=args.rows,
        text_tokens=args.text_tokens,
        answer_tokens=args.answer_tokens,
        dtype=getattr(torch, args.dtype),
        autocast=not args.no_bf16,
        activation_checkpointing=not args.no_activation_checkpointing,
    )
    plan = plan_memory(config, named_footprint(args.footprint, args.rank), workload, args.strategy, args.devices)
    image_tokens = config.num_image_tokens or "up to the largest mosaic's"
    print(
        f"Per device, {args.strategy} on {args.devices}: {config.prune_method} ({image_tokens} image tokens), "
        f"footprint {args.footprint}, {args.rows} rows of {args.text_tokens} + {args.answer_tokens} tokens"
    )
    print(plan.table())
    if args.json:
        print(json.dumps({**asdict(plan), "total": plan.total}))


def _config(args: argparse.Namespace):
    from configuration_shirg import ShirgLavidaConfig

    from .loading import parse_options

    options = parse_options(args.option)
    if args.model is None:
        return ShirgLavidaConfig.from_preset(args.prune_method or "shirg", **options)
    if args.prune_method is not None:
        options["prune_method"] = args.prune_method
    return ShirgLavidaConfig.from_pretrained(args.model, **options)


if __name__ == "__main__":
    main(parse_args())
