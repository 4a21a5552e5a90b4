"""Draw the example images that come with the package, from scenes that no training saw.

    python -m shirg_scripts.draw_examples --out hub_card/examples

They are rendered by modeling_shirg/evaluation/synthetic.py and need matplotlib's fonts:
pip install 'shirg-lavida[eval]'.
"""

import argparse
from pathlib import Path

EXAMPLES = {"grid.png": ("grid", 3), "large.png": ("grid", 20), "shape.png": ("guard", 2)}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the images")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Write the images."""
    from modeling_shirg.evaluation.synthetic import scene

    args.out.mkdir(parents=True, exist_ok=True)
    for name, (family, index) in EXAMPLES.items():
        scene(family, "validation", index).image.save(args.out / name)


if __name__ == "__main__":
    main(parse_args())
