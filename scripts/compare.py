"""Put every system side by side on one image: answer, image tokens, seconds and the picture of what was kept.

    shirg compare photo.png "What is written on the sign?" --out sheet.png
    shirg compare page.png "What is the total?" --model me/my-lavida --prune_method shirg lavida-980 --out sheet.png
    shirg compare photo.png "What is written on the sign?" --quality --prefix_kv 0.5 --out sheet.png

Systems run one after the other on the same weights, which were trained for one of them: the sheet shows what each
system looks at, not which system is best after training. Seconds are of one answer, the second of the first system;
`shirg bench` repeats and interleaves.

--quality adds, for every system that selects: the Gini coefficient of the scores; the mean relevance of the kept
tokens over that of a random draw; the share of kept tokens with a kept neighbour (coherence); the share of 4x4 blocks
of patches with a kept one; and how features at an interpolated grid correlate with those of the same view at the base
grid. Where a system has no such figure, the table has "-".
"""

import argparse
import json
import sys
from pathlib import Path

from .argument_types import image_file
from .arguments import (
    CommandParser,
    add_answer_arguments,
    add_model_arguments,
    add_option_argument,
    add_quantize_argument,
    add_systems_argument,
    answer_arguments,
)

_HEADINGS = {
    "gini": "gini",
    "relevance_over_random": "relevance",
    "coherence": "coherence",
    "block_coverage": "4x4 blocks",
    "grid_correlation": "grid corr.",
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandParser("shirg compare", __doc__)
    parser.add_argument("image", type=image_file, help="a file or a URL")
    parser.add_argument("question", help="the question, in plain words")
    add_systems_argument(parser)
    add_model_arguments(parser)
    add_quantize_argument(parser)
    add_option_argument(parser)
    add_answer_arguments(parser)
    parser.add_argument("--quality", action="store_true", help="add figures about what each system selects")
    parser.add_argument("--out", type=Path, required=True, metavar="SHEET.png", help="write the sheet here")
    parser.add_argument("--json", action="store_true", help="last line: one JSON object")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Ask with every system, print a table, draw the sheet."""
    from tqdm.auto import tqdm

    from configuration_shirg.image_reading_shirg import read_image
    from modeling_shirg.evaluation.selection_quality import system_quality
    from modeling_shirg.running.ask import ask, conversation
    from modeling_shirg.running.files import check_writable, save_picture
    from modeling_shirg.running.load import load, parse_options
    from modeling_shirg.running.overlay import captioned, sheet
    from modeling_shirg.running.timing import wall_seconds

    check_writable(args.out, "--out")
    options, image = parse_options(args.option), read_image(args.image)
    print(_line("system", "tokens", "seconds", list(_HEADINGS.values()) if args.quality else [], "answer"))
    cells, rows = [], {}
    for name in tqdm(args.systems, desc="Systems", file=sys.stderr):
        loaded = load(args.model, name, args.device, args.dtype, None, options, args.revision, args.quantize)
        for _ in range(1 if rows else 2):
            start = wall_seconds()
            answers = ask(loaded, [conversation(image, args.question)], **answer_arguments(args))
        row = {"answer": answers.texts[0], "image_tokens": answers.num_image_tokens[0]}
        held = answers.outputs.prefix_bytes
        row |= {"seconds": round(wall_seconds() - start, 4), "prefix_bytes": None if held is None else sum(held)}
        if args.quality:
            figures = system_quality(loaded.model, answers.inputs)
            row["quality"] = {figure: figures.get(figure) for figure in _HEADINGS}
        figures = ["-" if value is None else f"{value:.3f}" for value in row.get("quality", {}).values()]
        tqdm.write(_line(name, row["image_tokens"], f"{row['seconds']:.2f}", figures, row["answer"]))
        cost = f"{row['image_tokens']} image tokens, {row['seconds']:.2f} s"
        cells.append(captioned(answers.overlay(image), name, cost, row["answer"]))
        rows[name] = row
    save_picture(sheet(cells), args.out)
    if args.json:
        print(json.dumps({"systems": rows, "sheet": str(args.out)}))


def _line(system: str, tokens: int | str, seconds: str, figures: list[str], answer: str) -> str:
    """One line of the table."""
    return " ".join([f"{system:<16}", f"{tokens:>6}", f"{seconds:>8}", *(f"{text:>10}" for text in figures), answer])
