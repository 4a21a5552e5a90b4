"""Rendered scenes as rows: a training run that downloads nothing."""

from typing import Any

import numpy as np

from modeling_shirg.evaluation import scenes, synthetic

SPLITS = ("train", "validation")
DEFAULT_ROWS = 10_000
# The only family without text.
TEXTLESS_FAMILY = "guard"
# The benchmark's families, and the grid that the bundled checkpoint learned.
FAMILIES = (*scenes.FAMILIES, "grid")


class SceneTable:
    """Scenes of one family, one question about each; row i is scene i of the split, in every run.

    Args:
        family: one of `FAMILIES`.
        split: `"train"` or `"validation"`; the scenes of `"test"` are for evaluation alone.
        rows: how many.
        scale: of the benchmark's families, 1 for the toy geometry's views and 2 for the full geometry's.
    """

    def __init__(self, family: str, split: str, rows: int, scale: float = 1.0):
        if family not in FAMILIES:
            raise ValueError(f"There is no family {family!r} of scenes; synthetic:FAMILY takes {', '.join(FAMILIES)}.")
        if split not in SPLITS:
            raise ValueError(f"Scenes to train on have the splits {' and '.join(SPLITS)}, got {split!r}.")
        if scale != 1 and family not in scenes.FAMILIES:
            raise ValueError(f"Scenes of family {family!r} have one size, got scale={scale}.")
        self.family = family
        self.split = split
        self.rows = rows
        self.scale = scale

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, questions = self._drawn(index)
        asked = np.random.default_rng([index, *self.family.encode()]).integers(len(questions))
        question, answer = questions[int(asked)]
        return {"image": image, "question": question, "answer": answer}

    def _drawn(self, index: int) -> tuple[Any, list[tuple[str, str]]]:
        if self.family not in scenes.FAMILIES:
            drawn = synthetic.scene(self.family, self.split, index)
            return drawn.image, drawn.questions
        drawn = scenes.scene(self.family, self.split, index, self.scale)
        return drawn.image, [(question.text, question.answer) for question in drawn.questions]
