"""Pure view geometry: which pixels of an image a view looks at, and where each of its patches lies.

Boxes are (left, top, right, bottom) in pixels of the upright original image unless a docstring says otherwise. No model, no
tensor library but numpy.
"""


def grid_side(size: int, patch_size: int) -> int:
    """Patches per side of a square view; a remainder of pixels at the right and the bottom is not looked at."""
    return size // patch_size
