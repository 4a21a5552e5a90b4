"""Write pages and slides about a run of `shirg evaluate` or `shirg study`, every figure from its files.

    shirg report runs/synthetic
    shirg report runs/study                    # of a running study, the finished parts
    shirg report runs/study --no_examples      # loads no checkpoint

There are then in the folder: REPORT.md, REPORT.html and DECK.html (at most nine slides; print it for a PDF), the last
two in one file each; figures/ and examples/. A study's results.json is made anew from its answers.
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
    from modeling_shirg.evaluation.report.examples import draw_examples, pick_examples
    from modeling_shirg.evaluation.report.pages import write_pages
    from modeling_shirg.evaluation.report.reported import open_report

    report = open_report(args.run)
    picks = [] if args.no_examples else pick_examples(report.main)
    told = [{"caption": pick.caption, "file": None} for pick in picks]
    try:
        files = draw_examples(args.run, picks, args.device) if picks else []
        told = [{"caption": pick.caption, "file": file} for pick, file in zip(picks, files, strict=True)]
    except (ValueError, OSError) as error:
        told.insert(0, {"caption": f"No overlays: {error}", "file": None})
    print("\n".join(map(str, write_pages(report, told))))


if __name__ == "__main__":
    main(parse_args())
