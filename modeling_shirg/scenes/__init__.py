"""Rendered scenes with known answers, four families: training data and benchmark of the toy-scale study.

A scene is a pure function of (family, split, index) and of the arguments that the caller fixes; no two splits share a
seed. Fonts are matplotlib's.
"""

import numpy as np

from modeling_shirg.scenes.chart import draw_chart
from modeling_shirg.scenes.document import draw_document
from modeling_shirg.scenes.drawing import Mark, Question, Scene
from modeling_shirg.scenes.entity_grid import draw_entity_grid
from modeling_shirg.scenes.guard import draw_guard
from modeling_shirg.scenes.page import draw_page
from modeling_shirg.scenes.placement import SIDE, Cell

FAMILIES = {"chart": draw_chart, "document": draw_document, "entity_grid": draw_entity_grid, "guard": draw_guard}
_PAINTERS = {**FAMILIES, "page": draw_page}
SPLITS = ("train", "validation", "test")
# Scenes at scale 1 are for toy models, which learn to read one digit or one character.
TOY = {"document": {"rows": (3, 8), "code_length": (1, 1), "pitch": 30.0}, "chart": {"values": (1, 9)}}

__all__ = ["FAMILIES", "SPLITS", "TOY", "Cell", "Mark", "Question", "Scene", "scene", "scene_seed"]


def scene_seed(family: str, split: str, index: int) -> list[int]:
    """The seed of one scene's generator; no two scenes share it. An unknown scene is a `ValueError`."""
    if family not in _PAINTERS or split not in SPLITS or index < 0:
        raise ValueError(
            f"No scene {index} of family {family!r} in split {split!r}: families are {list(_PAINTERS)}, splits "
            f"{SPLITS}, indices count from 0."
        )
    return [SPLITS.index(split), list(_PAINTERS).index(family), index]


def scene(family: str, split: str, index: int, scale: float = 1.0, **fixed) -> Scene:
    """Scene number `index` of `family` in `split`; arguments that no drawing can meet are a `ValueError`.

    Args:
        family: a key of `FAMILIES`, or `"page"`, which asks nothing.
        split: one of `SPLITS`. Scenes of `"train"` have sides of 384 to 512 pixels at scale 1, the others are square.
        index: at least 0.
        scale: 1 fits the toy geometry's views, 2 the full geometry's.
        fixed: further arguments of the family's function, `cell` for example; by default those of `TOY` at scale 1.
    """
    rng = np.random.default_rng(scene_seed(family, split, index))
    width, height = rng.integers(384, 513, size=2) if split == "train" else (SIDE, SIDE)
    if scale == 1:
        fixed = {**TOY.get(family, {}), **fixed}
    return _PAINTERS[family](rng, round(int(width) * scale), round(int(height) * scale), scale, **fixed)
