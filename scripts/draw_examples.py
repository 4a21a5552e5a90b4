"""Draw the example images that come with the package, from scenes that no training saw.

    python -m shirg_scripts.draw_examples --out hub_card/examples

They are rendered by modeling_shirg/evaluation/scenes, their questions printed, and need matplotlib's fonts:
pip install 'shirg-lavida[eval]'.
"""

import argparse
from pathlib import Path

# Name: family, and what is fixed of its first scene; the first question is the one that the package asks.
EXAMPLES = {
    "chart.png": ("chart", {"cell": (21, 1)}),
    "document.png": ("document", {"cell": (21, 0)}),
    "grid.png": ("entity_grid", {"cell": (29, "corner")}),
    "shapes.png": ("guard", {"shapes": (3, 3)}),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the images")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Write the images."""
    from modeling_shirg.scenes import Cell, scene

    args.out.mkdir(parents=True, exist_ok=True)
    for name, (family, fixed) in EXAMPLES.items():
        cell = {"cell": Cell(*fixed["cell"])} if "cell" in fixed else {}
        drawn = scene(family, "validation", 0, **{**fixed, **cell})
        drawn.image.save(args.out / name)
        print(f"{name}: {drawn.questions[0].text} {drawn.questions[0].answer}")


if __name__ == "__main__":
    main(parse_args())
