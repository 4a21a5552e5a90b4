"""Draw the example images that come with the package, from scenes that no training saw.

python -m modeling_shirg.training.toy.draw_examples hub_card/examples
"""

import sys
from pathlib import Path

from modeling_shirg.scenes import Cell, scene

# Name: family, and what is fixed of its first scene; the first question is the one that the package asks.
EXAMPLES = {
    "chart.png": ("chart", {"cell": Cell(21, 1)}),
    "document.png": ("document", {"cell": Cell(21, 0)}),
    "grid.png": ("entity_grid", {"cell": Cell(29, "corner")}),
    "shapes.png": ("guard", {"shapes": (3, 3)}),
}


if __name__ == "__main__":
    for name, (family, fixed) in EXAMPLES.items():
        drawn = scene(family, "validation", 0, **fixed)
        drawn.image.save(Path(sys.argv[1], name))
