"""Answer a question about an image.

    shirg ask photo.png "What is in the picture?"
    shirg ask page.png "What is the total?" --model me/my-lavida --prune_method shirg --overlay kept.png
    cat page.png | shirg ask - "What is the total?" --json

Without --model the checkpoint that comes with this package answers: a toy-scale model that reads small rendered scenes
only.
"""

import argparse
import json
import sys
from pathlib import Path


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    from .arguments import (
        add_answer_arguments,
        add_model_arguments,
        add_option_argument,
        add_quantize_argument,
        add_system_arguments,
    )

    parser = argparse.ArgumentParser(
        prog="shirg ask", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", help="a file, a URL, or - for standard input")
    parser.add_argument("question", help="the question, in plain words")
    add_model_arguments(parser)
    add_quantize_argument(parser)
    add_system_arguments(parser)
    add_option_argument(parser)
    parser.add_argument(
        "--fovea_box", type=float, nargs=4, metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"), help="look here"
    )
    add_answer_arguments(parser)
    parser.add_argument("--overlay", type=Path, metavar="OUT.png", help="write the picture of what was looked at")
    parser.add_argument("--stream", action="store_true", help="show the answer while it denoises")
    parser.add_argument("--json", action="store_true", help="last line: one JSON object")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Load, ask, answer."""
    from transformers import TextDiffusionStreamer
    from transformers.utils import logging

    from modeling_shirg.running.ask import answer_question, check_writable, read_image, save_picture
    from modeling_shirg.running.load import load, parse_options
    from modeling_shirg.running.timing import StageClock

    from .arguments import answer_arguments

    logging.disable_progress_bar()
    if args.overlay:
        check_writable(args.overlay, "--overlay")
    options = parse_options(args.option)
    clock = StageClock()
    with clock.stage("load"):
        loaded = load(
            args.model,
            args.prune_method,
            args.device,
            args.dtype,
            args.text_relevance,
            options,
            args.revision,
            quantize=args.quantize,
        )
    print(f"Model: {loaded.name}, system: {loaded.model.config.prune_method}", file=sys.stderr)
    if args.compile_config is not None:
        print("Compiling: the first answer of a length waits for the compiler.", file=sys.stderr)
    streamer = TextDiffusionStreamer(loaded.processor.tokenizer, skip_special_tokens=True) if args.stream else None
    image = read_image(loaded, sys.stdin.buffer.read() if args.image == "-" else args.image)
    answer = answer_question(
        loaded,
        image,
        args.question,
        clock,
        {"fovea_boxes": [args.fovea_box]} if args.fovea_box else None,
        streamer,
        **answer_arguments(args),
    )
    if args.overlay:
        save_picture(answer.overlay(), args.overlay)
    if args.json:
        print(json.dumps(_report(answer, clock.seconds)))
    elif not args.stream:  # the streamer has printed it already
        print(answer.text)


def _report(answer, seconds: dict[str, float]) -> dict:
    outputs = answer.outputs
    return {
        "answer": answer.text,
        "image_tokens": answer.num_image_tokens,
        "kept": answer.kept_per_view(),
        "forwards": outputs.forwards,
        "tokens_per_forward": round(outputs.tokens_per_forward.item(), 4),
        "prefix_bytes": outputs.prefix_bytes
        and {"total": sum(outputs.prefix_bytes), "per_layer": outputs.prefix_bytes},
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
    }


if __name__ == "__main__":
    main(parse_args())
