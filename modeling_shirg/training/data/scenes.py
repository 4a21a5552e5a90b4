"""Rendered scenes as rows: a training run that downloads nothing."""

from typing import Any

import numpy as np

from modeling_shirg.scenes import FAMILIES, scene

SPLITS = ("train", "validation")
DEFAULT_ROWS = 10_000
# The only family without text.
TEXTLESS_FAMILY = "guard"


class SceneTable:
    """Scenes of one family, one question about each; row i is scene i of the split, in every run.

    Args:
        family: a key of `FAMILIES`.
        split: `"train"` or `"validation"`; the scenes of `"test"` are for evaluation alone.
        rows: how many.
        scale: 1 for the toy geometry's views and 2 for the full geometry's.
    """

    def __init__(self, family: str, split: str, rows: int, scale: float = 1.0):
        if family not in FAMILIES:
            raise ValueError(f"There is no family {family!r} of scenes; synthetic:FAMILY takes {', '.join(FAMILIES)}.")
        if split not in SPLITS:
            raise ValueError(f"Scenes to train on have the splits {' and '.join(SPLITS)}, got {split!r}.")
        self.family = family
        self.split = split
        self.rows = rows
        self.scale = scale

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        drawn = scene(self.family, self.split, index, self.scale)
        asked = np.random.default_rng([index, *self.family.encode()]).integers(len(drawn.questions))
        question = drawn.questions[int(asked)]
        return {"image": drawn.image, "question": question.text, "answer": question.answer}
