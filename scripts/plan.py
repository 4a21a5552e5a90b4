"""Print how much memory one device needs for a training run, before any weights are loaded.

    shirg plan                                                          # LLaDA-8B, preset shirg, one device
    shirg plan --prune_method lavida-980 --per_device_train_batch_size 4 --strategy fsdp2 --devices 8
    shirg plan --model my-lavida --footprint projector --activation_checkpointing false

What `shirg train` has too is called the same. The step runs on tensors without memory, so this works on any machine,
in seconds. What a device adds of its own is not in it: a CUDA context, kernels' workspaces, the allocator's fragments.
Leave a tenth free.
"""

import json
import sys
from typing import Any


def parse_args(argv: list[str] | None = None) -> Any:
    """Read the command line: one object of `PlanArguments`."""
    import argparse

    from modeling_shirg.training.arguments import parse_arguments
    from modeling_shirg.training.memory_plan import PlanArguments

    (args,) = parse_arguments(
        sys.argv[1:] if argv is None else argv,
        [PlanArguments],
        prog="shirg plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return args


def main(args: Any) -> None:
    """Plan and print."""
    from dataclasses import asdict

    from modeling_shirg.training.footprints import named_footprint
    from modeling_shirg.training.memory_plan import Workload, plan_memory

    config = _config(args)
    workload = Workload(
        rows=args.per_device_train_batch_size,
        text_tokens=args.text_tokens,
        answer_tokens=args.answer_length,
        dtype=_dtype(args, config),
        autocast=args.bf16,
        activation_checkpointing=args.activation_checkpointing,
    )
    footprint = named_footprint(args.footprint, args.rank, args.alpha)
    plan = plan_memory(config, footprint, workload, args.strategy, args.devices)
    image_tokens = config.num_image_tokens or "up to the largest mosaic's"
    print(
        f"Per device, {args.strategy} on {args.devices}: {config.prune_method} ({image_tokens} image tokens), "
        f"footprint {footprint.name}, rank {footprint.rank}, {workload.rows} rows of {workload.text_tokens} + "
        f"{workload.answer_tokens} tokens, weights in {str(workload.dtype).removeprefix('torch.')}"
    )
    print(plan.table())
    if args.json:
        print(json.dumps({**asdict(plan), "total": plan.total}))


def _config(args: Any):
    from configuration_shirg import ShirgLavidaConfig

    from .loading import parse_options

    options = parse_options(args.option)
    if args.model is None:
        return ShirgLavidaConfig.from_preset(args.prune_method or "shirg", **options)
    if args.prune_method is not None:
        options["prune_method"] = args.prune_method
    return ShirgLavidaConfig.from_pretrained(args.model, revision=args.revision, **options)


def _dtype(args: Any, config):
    """The type of the frozen weights; `auto` is the checkpoint's, and bfloat16 where there is none."""
    import torch

    from modeling_shirg.conversion import DTYPES

    if args.dtype != "auto":
        if args.dtype not in DTYPES:
            raise ValueError(f"Unknown dtype {args.dtype!r}. Known: auto, {', '.join(DTYPES)}.")
        return DTYPES[args.dtype]
    return torch.bfloat16 if args.model is None else config.dtype or torch.float32


if __name__ == "__main__":
    main(parse_args())
