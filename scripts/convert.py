"""Convert an original LaViDa checkpoint (on LLaDA) to a folder that loads everywhere.

    shirg convert lavida-ckpts/lavida-llada-hd my-lavida --dtype bfloat16
    shirg convert lavida-ckpts/lavida-llada-hd my-lavida --vision_base google/siglip-so400m-patch14-384
    shirg convert lavida-ckpts/lavida-llada-lowres my-lavida --pooled_grid_size 0

SRC and --vision_base are folders or Hub ids with safetensors. --vision_base gives back the last layer and the pooling
head that LaViDa deleted from its SigLIP; presets that score patches need them. --text_tower takes its text tower and
tokenizer too, for `shirg ask --text_relevance siglip`. Tensors go from file to file one shard at a time: the whole
model is never in memory. OUT is a new folder, or an empty one; it appears when it is complete, and nothing is
ever replaced.

--pooled_grid_size is for checkpoints that look at a single view (image_aspect_ratio pad or square). Whether the
original pools that view is an environment variable, so no checkpoint says it. It pools by default (27x27 tokens to
14x14); its low-resolution evaluation, eval/run_coco_lowres.sh, sets NOT_ALWASY_DO_2DPOOL=1 and does not: that is 0.
"""

import argparse
from pathlib import Path


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    from .argument_types import preset_name
    from .arguments import CommandParser

    parser = CommandParser("shirg convert", __doc__)
    parser.add_argument("source", metavar="SRC", help="folder or Hub id of the original checkpoint")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write: new, or empty")
    parser.add_argument("--vision_base", metavar="FOLDER_OR_ID", help="the SigLIP it was made from")
    parser.add_argument("--text_tower", action="store_true", help="take the text tower of --vision_base too")
    parser.add_argument(
        "--prune_method",
        type=preset_name,
        default="lavida",
        metavar="NAME",
        help="preset of the config (default: lavida)",
    )
    parser.add_argument("--dtype", help="of the weights: float32, bfloat16 or float16; by default as they are stored")
    parser.add_argument(
        "--pooled_grid_size", type=int, metavar="N", help="single-view checkpoints: tokens per side, 0 for no pooling"
    )
    parser.add_argument("--max_shard_size", default="5GB", help="size of a weight file (default: 5GB)")
    parser.add_argument("--revision", help="branch, tag or commit of SRC on the Hub")
    parser.add_argument("--vision_base_revision", help="branch, tag or commit of --vision_base on the Hub")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Convert, then say what was written."""
    from modeling_shirg.conversion import convert_checkpoint

    options = vars(args)
    for name, revision in (("source", options.pop("revision")), ("vision_base", options.pop("vision_base_revision"))):
        if revision is not None:
            options[name] = f"{options[name]}@{revision}"
    facts = convert_checkpoint(**options)
    base, shards = facts["vision_base"], facts["shards"]
    graft = "" if base is None else f", last vision layer and pooling head from {base}"
    print(
        f"{args.out}: {facts['parameters']:,} parameters, {facts['bytes'] / 1e9:.3g} GB {facts['dtype']} in {shards} "
        f"file{'s' if shards > 1 else ''}, preset {facts['prune_method']}{graft}"
        f"{', with its text tower' if facts['text_tower'] else ''}"
    )
