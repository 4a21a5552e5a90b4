"""The synthetic benchmark: fixed splits of the four families as `datasets`, balanced over size and eccentricity.

    document, chart    every glyph size x every eccentricity bin, `per_cell` questions each; chart also asks `per_cell`
                       times each for the largest column's name and for a difference, placed freely
    entity_grid        every entity size x inside a slice / on a border / on the four-corner point, `per_cell` each
    guard              20 x `per_cell` questions, VQAv2's schema: ten answers

A row is a pure function of (family, split, position), so every machine builds the same benchmark, in parallel.
"""

from collections import Counter

import numpy as np
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from modeling_shirg.evaluation.scenes import FAMILIES, Cell, Question, Scene, scene
from modeling_shirg.evaluation.scenes.entity_grid import ENTITY_SIZES, PLACES
from modeling_shirg.evaluation.scenes.placement import FOVEA, GLYPH_SIZES, NUM_BINS, eccentricity, inside_fovea

PER_CELL = 200
CONTROLS = ("none", "blank", "shuffled_question")
_GRID_KINDS = ("identify", "locate", "count")
_BASE_VIEW = 192  # of the toy geometry at scale 1
_GOLDS = 10

_SPEC = {
    "family": Value("string"),
    "split": Value("string"),
    "index": Value("int64"),
    "kind": Value("string"),
    "cell_glyph_px": Value("float64"),
    "cell_place": Value("string"),
    "scale": Value("float64"),
}
_ROW = {
    "image": Image(),
    "question_id": Value("string"),
    "question": Value("string"),
    "answer": Value("string"),
    "answers": List({"answer": Value("string"), "answer_confidence": Value("string"), "answer_id": Value("int64")}),
    "box": List(Value("float64"), length=4),
    "glyph_px": Value("float64"),
    "glyph_px_global": Value("float64"),
    "glyph_px_fovea": Value("float64"),
    "eccentricity": Value("float64"),
    "in_fovea": Value("bool"),
    "crosses_slice": Value("bool"),
}


def build_benchmark(
    family: str, split: str = "test", per_cell: int = PER_CELL, scale: float = 1.0, num_proc: int | None = None
) -> Dataset:
    """All rows of one family.

    Args:
        family: one of the four.
        split: `"validation"` or `"test"`; training draws its own scenes.
        per_cell: questions per cell; the public benchmark has `PER_CELL`.
        scale: 1 for the toy geometry's views, 2 for the full geometry's.
        num_proc: processes that draw.

    Columns: image, question_id, question, answer, answers (ten equal ones), family, split, index, kind, cell_glyph_px
    and cell_place (null and "" where nothing was fixed), box of the evidence in pixels, glyph_px of the evidence in
    the image, in the squashed global view and in the fovea, eccentricity 0..1, in_fovea, crosses_slice.
    """
    specs = Dataset.from_list(_specs(family, split, per_cell, scale), features=Features(_SPEC))
    return specs.map(_draw, features=Features({**_SPEC, **_ROW}), num_proc=num_proc, desc=f"Drawing {family}")


def with_control(benchmark: Dataset, control: str) -> Dataset:
    """The benchmark with what would give the answer taken away; questions, answers and order stay comparable.

    `"blank"` replaces every image by a grey one of its size. `"shuffled_question"` asks each image the question of
    another row, of the same kind, and keeps the answer that was right for the row's own question.
    """
    if control not in CONTROLS:
        raise ValueError(f"No control {control!r}: there are {CONTROLS}.")
    if control == "blank":
        return benchmark.map(lambda row: {"image": PILImage.new("RGB", row["image"].size, (128, 128, 128))})
    if control == "shuffled_question":
        return benchmark.remove_columns("question").add_column("question", _rotated(benchmark))
    return benchmark


def majority_share(answers: list[str], kinds: list[str]) -> dict[str, float]:
    """Per kind of question, the share that its most frequent answer alone gets right."""
    by_kind: dict[str, Counter] = {}
    for answer, kind in zip(answers, kinds, strict=True):
        by_kind.setdefault(kind, Counter())[answer] += 1
    return {kind: counts.most_common(1)[0][1] / counts.total() for kind, counts in by_kind.items()}


def _specs(family: str, split: str, per_cell: int, scale: float) -> list[dict]:
    """What each row is made to be; cells take turns, so that any first rows of the benchmark are balanced too."""
    if family not in FAMILIES:
        raise ValueError(f"No family {family!r}: there are {list(FAMILIES)}.")
    if split == "train":
        raise ValueError("The benchmark has the splits 'validation' and 'test'; training draws scenes of its own.")
    kinds: list[tuple[str, float | None, str]] = []
    if family in ("document", "chart"):
        kind = "read_field" if family == "document" else "read_value"
        kinds = [(kind, size, str(place)) for size in GLYPH_SIZES for place in range(NUM_BINS)]
    if family == "chart":
        kinds += [("name_maximum", None, ""), ("difference", None, "")]
    if family == "entity_grid":
        kinds = [("", size, place) for size in ENTITY_SIZES for place in PLACES]
    if family == "guard":
        kinds = [(kind, None, "") for kind in ("color", "shape", "count", "color", "shape")] * 4
    rows = []
    for index in range(per_cell * len(kinds)):
        turn, number = divmod(index, len(kinds))
        kind, size, place = kinds[number]
        rows.append(
            {
                "family": family,
                "split": split,
                "index": index,
                "kind": kind or _GRID_KINDS[turn % len(_GRID_KINDS)],
                "cell_glyph_px": size,
                "cell_place": place,
                "scale": scale,
            }
        )
    return rows


def _draw(spec: dict) -> dict:
    fixed = {}
    if spec["cell_place"]:
        place = int(spec["cell_place"]) if spec["cell_place"].isdigit() else spec["cell_place"]
        fixed["cell"] = Cell(spec["cell_glyph_px"], place)
    drawn = scene(spec["family"], spec["split"], spec["index"], spec["scale"], **fixed)
    question = next(question for question in drawn.questions if question.kind == spec["kind"])
    row = {
        "image": drawn.image,
        "question_id": f"{spec['family']}-{spec['split']}-{spec['index']}",
        "question": question.text,
        "answer": question.answer,
        "answers": [
            {"answer": question.answer, "answer_confidence": "yes", "answer_id": number + 1}
            for number in range(_GOLDS)
        ],
    }
    return row | _measures(drawn, question, spec["scale"])


def _measures(drawn: Scene, question: Question, scale: float) -> dict:
    width, height = drawn.image.size
    left, top, right, bottom = question.box
    in_fovea = inside_fovea(question.box, width, height, FOVEA * scale)
    return {
        "box": list(question.box),
        "glyph_px": question.glyph_px,
        "glyph_px_global": question.glyph_px * _BASE_VIEW * scale / height,
        "glyph_px_fovea": question.glyph_px if in_fovea else None,
        "eccentricity": eccentricity(question.box, width, height),
        "in_fovea": in_fovea,
        "crosses_slice": left < width / 2 < right or top < height / 2 < bottom,
    }


def _rotated(benchmark: Dataset) -> list[str]:
    """Every row gets the next question of its kind whose answer is another one."""
    questions = list(benchmark["question"])
    answers, kinds = np.array(benchmark["answer"]), np.array(benchmark["kind"])
    rotated = list(questions)
    for kind in np.unique(kinds):
        rows = np.nonzero(kinds == kind)[0]
        for place, row in enumerate(rows):
            others = np.roll(rows, -place - 1)[:-1]
            different = [other for other in others[:50] if answers[other] != answers[row]]
            rotated[row] = questions[(different or [row])[0]]
    return rotated
