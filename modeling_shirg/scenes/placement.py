"""The cells (glyph size, eccentricity) of a question's evidence, which the benchmark fills equally.

Eccentricity is the Chebyshev distance of the evidence's centre from the image's, 0 at the centre and 1 at the border.
The foveal crop takes the middle half of each side of a benchmark image, so `EDGES[:3]` are the bins inside it.
"""

from dataclasses import dataclass

from configuration_shirg.geometry_shirg import fovea_box
from configuration_shirg.presets_shirg import GEOMETRIES
from modeling_shirg.scenes.drawing import Box

FOVEA = GEOMETRIES["toy"]["fovea_size"]
SIDE = 2 * FOVEA  # of a benchmark image at scale 1, for the toy geometry; scale 2 is the full geometry's
MOST_TRIES = 20_000  # to draw a plan that fits; a cell that is possible takes hundreds at most
GLYPH_SIZES = (8, 11, 15, 21, 29)
EDGES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Cell:
    """Cap height of the evidence at scale 1; an eccentricity bin, or a key of `entity_grid.PLACES`."""

    glyph_px: float
    place: int | str


def eccentricity(box: Box, width: int, height: int) -> float:
    """Chebyshev distance of the box's centre from the image's centre, in half sides."""
    x, y = (box[0] + box[2]) / width - 1, (box[1] + box[3]) / height - 1
    return max(abs(x), abs(y))


def inside_fovea(box: Box, width: int, height: int, fovea: float) -> bool:
    """Whether the box lies wholly inside the centre crop of `fovea` pixels."""
    left, top, right, bottom = fovea_box(width, height, round(fovea))
    return box[0] >= left and box[1] >= top and box[2] <= right and box[3] <= bottom


def in_cell(box: Box, width: int, height: int, bin_number: int, fovea: float) -> bool:
    """Whether the box is in that bin and, like the bin, wholly inside or wholly outside the fovea."""
    if not EDGES[bin_number] <= eccentricity(box, width, height) < EDGES[bin_number + 1]:
        return False
    if EDGES[bin_number + 1] <= 0.5:
        return inside_fovea(box, width, height, fovea)
    left, top, right, bottom = fovea_box(width, height, round(fovea))
    return not (box[0] < right and box[1] < bottom and box[2] > left and box[3] > top)
