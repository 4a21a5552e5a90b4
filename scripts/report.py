"""Write pages and slides about what `shirg evaluate` or `shirg study` left, every figure from its files.

    shirg report runs/synthetic
    shirg report runs/study                    # a study may be running: what is missing is said to be
    shirg report runs/study --no_examples      # loads no checkpoint

There are then in the folder: REPORT.md, REPORT.html and DECK.html (nine slides; print it for a PDF), the last two in
one file each; figures/ and examples/. Of a study the tables and results.json are made anew from its entries.
"""

import argparse
from pathlib import Path


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="shirg report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of an evaluation or of a study")
    parser.add_argument("--no_examples", action="store_true", help="show no single answers; loads no checkpoint")
    parser.add_argument("--device", default="auto", help="where examples are answered once more for their overlays")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Open the run, draw the examples, write pages and slides."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise ValueError("Reports are drawn with matplotlib: pip install 'shirg-lavida[eval]'.")
    from modeling_shirg.evaluation.report.blocks import Paragraph
    from modeling_shirg.evaluation.report.deck import write_deck
    from modeling_shirg.evaluation.report.pages import warnings, write_pages
    from modeling_shirg.evaluation.report.source import open_source

    from .report_examples import draw_examples

    source = open_source(args.run)
    if args.no_examples:
        examples = [Paragraph("Left out by --no_examples.")]
    else:
        examples = draw_examples(source, args.device)
    files = [*write_pages(source, examples), write_deck(source, examples)]
    for line in warnings(source):
        print(line)
    print("\n".join(map(str, files)))


if __name__ == "__main__":
    main(parse_args())
