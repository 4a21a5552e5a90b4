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
from contextlib import nullcontext
from pathlib import Path

from .argument_types import image_file
from .arguments import (
    CommandParser,
    add_answer_arguments,
    add_model_arguments,
    add_option_argument,
    add_quantize_argument,
    add_system_arguments,
    answer_arguments,
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandParser("shirg ask", __doc__)
    parser.add_argument("image", type=image_file, help="a file, a URL, or - for standard input")
    parser.add_argument("question", help="the question, in plain words")
    add_model_arguments(parser)
    add_quantize_argument(parser)
    add_system_arguments(parser)
    add_option_argument(parser)
    edges = ("LEFT", "TOP", "RIGHT", "BOTTOM")
    parser.add_argument("--fovea_box", type=float, nargs=4, metavar=edges, help="look here, in pixels of the image")
    parser.add_argument("--fovea_size", type=int, metavar="PIXELS", help="side of the fovea; by default the system's")
    add_answer_arguments(parser)
    parser.add_argument("--overlay", type=Path, metavar="OUT.png", help="write the picture of what was looked at")
    parser.add_argument("--stream", action="store_true", help="on a terminal, show the answer while it denoises")
    parser.add_argument("--json", action="store_true", help="last line: one JSON object, with the seconds of stages")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Read, load, ask, answer."""
    from transformers import TextDiffusionStreamer

    from configuration_shirg.image_reading_shirg import read_image
    from modeling_shirg.running.ask import ask, conversation
    from modeling_shirg.running.files import check_writable, save_picture
    from modeling_shirg.running.load import load, parse_options
    from modeling_shirg.running.timing import stage_seconds

    if args.overlay:
        check_writable(args.overlay, "--overlay")
    options = parse_options(args.option)
    image = read_image(sys.stdin.buffer.read() if args.image == "-" else args.image)
    given = (args.model, args.prune_method, args.device, args.dtype, args.text_relevance, options, args.revision)
    loaded = load(*given, args.quantize)
    print(f"Model: {loaded.name}, system: {loaded.model.config.prune_method}", file=sys.stderr)
    if args.compile_config is not None:
        print("Compiling: the first answer of a length waits for the compiler.", file=sys.stderr)
    streams = args.stream and sys.stdout.isatty()
    streamer = TextDiffusionStreamer(loaded.processor.tokenizer, skip_special_tokens=True) if streams else None
    views = {"fovea_boxes": args.fovea_box and [args.fovea_box], "fovea_size": args.fovea_size}
    views = {name: value for name, value in views.items() if value is not None}
    with stage_seconds() if args.json else nullcontext() as seconds:
        answers = ask(loaded, [conversation(image, args.question)], views, streamer, **answer_arguments(args))
    if args.overlay:
        save_picture(answers.overlay(image), args.overlay)
    if args.json:
        print(json.dumps(_report(answers, seconds)))
    elif not streams:
        print(answers.texts[0])


def _report(answers, seconds: dict[str, float]) -> dict:
    outputs = answers.outputs
    held = outputs.prefix_bytes
    return {
        "answer": answers.texts[0],
        "image_tokens": answers.num_image_tokens[0],
        "kept": answers.kept_per_view(),
        "forwards": outputs.forwards,
        "tokens_per_forward": round(outputs.tokens_per_forward.item(), 4),
        "prefix_bytes": None if held is None else {"total": sum(held), "per_layer": held},
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
    }
