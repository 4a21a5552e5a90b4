"""Measure the bundled checkpoint on held-out scenes and write its model card.

    python -m shirg_scripts.card_tiny --model hub_card/shirg-lavida-tiny --images 600

The figures of the card come from this command alone: scenes of split `test`, whose seeds training never saw. Rendering
them takes matplotlib's fonts: pip install 'shirg-lavida[eval]'.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

FAMILY_TEXT = {
    "grid": "`grid`: a 3x3 grid with one character per cell; asks what is in a cell",
    "guard": "`guard`: one large shape; asks for its colour or for the shape",
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the checkpoint; its README.md is written")
    parser.add_argument("--images", type=int, default=600, help="held-out images per family, one question each")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Measure, then write figures.json and README.md into the folder."""
    from modeling_shirg.evaluation.calibrated_folder import with_calibration_section
    from modeling_shirg.evaluation.exact_match import measure
    from modeling_shirg.evaluation.synthetic import FAMILIES
    from modeling_shirg.publishing.cards import render

    from .loading import load

    loaded = load(str(args.model), device="cpu", dtype="float32")
    figures = [
        figure
        for family in FAMILIES
        for figure in measure(loaded.model, loaded.processor, family, "test", args.images)
    ]
    (args.model / "figures.json").write_text(json.dumps([asdict(figure) for figure in figures], indent=2) + "\n")
    card = render(
        "tiny",
        {"license": "apache-2.0"},
        figures=_table(figures),
        families="\n".join(f"- {text}" for text in FAMILY_TEXT.values()),
        parameters=f"{loaded.model.num_parameters():,}",
        image_tokens=loaded.model.config.num_image_tokens,
        images=args.images,
        source="hub_card/shirg-lavida-tiny",
        revision="main",
        image="grid.png",
        question="What is in cell 5?",
    )
    text = with_calibration_section(str(card), loaded.model.config.calibration)
    (args.model / "README.md").write_text(text)
    print(_table(figures))


def _table(figures) -> str:
    lines = [
        "| family | question | held-out questions | exact match (95% interval) | no image | majority answer |",
        "|---|---|---|---|---|---|",
    ]
    for figure in figures:
        lines.append(
            f"| {figure.family} | {figure.question} | {figure.count} | **{figure.accuracy:.1%}** "
            f"({figure.low:.1%} to {figure.high:.1%}) | {figure.no_image:.1%} | {figure.majority:.1%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main(parse_args())
