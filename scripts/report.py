"""Write a page and slides about a run of `shirg evaluate` or `shirg study`, every figure from its files.

    shirg report runs/synthetic
    shirg report runs/study                    # of a running study, the finished parts
    shirg report runs/study --no_examples      # loads no checkpoint

There are then in the folder: REPORT.md with figures/ and examples/, and DECK.html, at most nine slides in one file
(print it for a PDF). A study's results.json is made anew from its answers.
"""

import argparse
from pathlib import Path


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    from .arguments import CommandParser

    parser = CommandParser("shirg report", __doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of an evaluation or of a study")
    parser.add_argument("--no_examples", action="store_true", help="show no single answers; loads no checkpoint")
    parser.add_argument("--device", default="auto", help="where examples are answered once more for their overlays")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Open the run, draw the examples, write page and slides."""
    from modeling_shirg.evaluation.report.examples import draw_examples, pick_examples
    from modeling_shirg.evaluation.report.pages import write_pages
    from modeling_shirg.evaluation.report.reported import open_report

    report = open_report(args.run)
    picks = [] if args.no_examples else pick_examples(report.tables[0])
    told = [{"caption": pick.caption, "file": None, "neither": pick.kind.startswith("neither")} for pick in picks]
    try:
        for example, file in zip(told, draw_examples(args.run, picks, args.device) if picks else [], strict=True):
            example["file"] = file
    except (ValueError, OSError) as error:
        told.insert(0, {"caption": f"No overlays: {error}", "file": None})
    print("\n".join(map(str, write_pages(report, told))))
