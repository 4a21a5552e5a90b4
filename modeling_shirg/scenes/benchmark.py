"""The synthetic benchmark: fixed splits of the four families as `datasets`, balanced over size and eccentricity.

    document, chart    every glyph size x every eccentricity bin; chart also asks for the largest column's name and a
                       difference, placed freely
    entity_grid        every entity size x inside a slice / on a border / on the four-corner point, kinds in turn
    guard              20 cells, VQAv2's schema: ten answers

A row is a pure function of (family, split, position): every machine builds the same benchmark.
"""

from collections import Counter
from collections.abc import Sequence

from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from configuration_shirg.geometry_shirg import fovea_box, tile_boxes
from configuration_shirg.presets_shirg import GEOMETRIES
from modeling_shirg.scenes import FAMILIES, Cell, Question, Scene, scene, scene_seed
from modeling_shirg.scenes.entity_grid import ENTITY_SIZES, PLACES
from modeling_shirg.scenes.placement import EDGES, GLYPH_SIZES, eccentricity, inside_fovea

PER_CELL = 200
# The answer to "which cell" is always the middle one at the corner point, so "locate" is not asked there.
_GRID_KINDS = {place: ("identify", "locate", "count") for place in ("inside", "border")}
_GRID_KINDS["corner"] = ("identify", "count")
_GUARD_KINDS = ("color", "shape", "count", "color", "shape")


def _columns(names: str) -> dict[str, Value]:
    return {name: Value(kind) for name, kind in (column.split() for column in names.split(","))}


_SPEC = _columns(
    "family string, split string, index int64, kind string, cell_glyph_px float64, cell_place string, scale float64"
)
_ROW = {
    "image": Image(),
    **_columns("question_id string, question string, answer string"),
    "answers": List(_columns("answer string, answer_confidence string, answer_id int64")),
    "seed": List(Value("int64"), length=3),
    "box": List(Value("float64"), length=4),
    **_columns("glyph_px float64, glyph_px_global float64, glyph_px_fovea float64, eccentricity float64"),
    **_columns("in_fovea bool, crosses_slice bool"),
}
# Further columns of VQAv2, for the guard.
_VQA = _columns("question_type string, answer_type string, multiple_choice_answer string, image_id int64")


def build_benchmark(family: str, split: str = "test", per_cell: int = PER_CELL, scale: float = 1.0) -> Dataset:
    """All rows of one family.

    Args:
        family: one of the four.
        split: `"validation"` or `"test"`; training draws its own scenes.
        per_cell: questions per cell; the public benchmark has `PER_CELL`.
        scale: 1 for the toy geometry's views, 2 for the full geometry's.

    Columns beside VQAv2's: cell_glyph_px and cell_place (null and "" for questions without a cell), seed of the scene,
    box of the evidence in pixels, glyph_px of the evidence in the image, in the squashed global view and in the fovea
    (null if partly outside), eccentricity 0..1, in_fovea, crosses_slice.
    """
    if family not in FAMILIES:
        raise ValueError(f"No family {family!r}: there are {list(FAMILIES)}.")
    if split == "train":
        raise ValueError("The benchmark has the splits 'validation' and 'test'; training draws scenes of its own.")
    if per_cell < 1:
        raise ValueError(f"per_cell {per_cell}: a benchmark has at least one question per cell.")
    cells, columns = cells_of(family), {**_SPEC, **_ROW, **(_VQA if family == "guard" else {})}
    rows = []
    for index in range(per_cell * len(cells)):  # cells take turns: any first rows of the benchmark are balanced too
        turn, number = divmod(index, len(cells))
        kinds, size, place = cells[number]
        rows.append(
            dict(zip(_SPEC, (family, split, index, kinds[turn % len(kinds)], size, place, scale), strict=True))
        )
    specs = Dataset.from_list(rows, features=Features(_SPEC))
    return specs.map(_draw, features=Features(columns), desc=f"Drawing {family}")


def with_control(benchmark: Dataset, control: str) -> Dataset:
    """The benchmark with grey images ("blank"), or each image with another row's question ("shuffled_question")."""
    if control == "blank":
        return benchmark.map(lambda row: {"image": blank_image(row["image"])})
    if control == "shuffled_question":
        return benchmark.remove_columns("question").add_column("question", _other_questions(benchmark))
    raise ValueError(f"No control {control!r}: there are 'blank' and 'shuffled_question'.")


def blank_image(image: PILImage.Image) -> PILImage.Image:
    """A grey image of the same size."""
    return PILImage.new("RGB", image.size, (128, 128, 128))


def majority_share(answers: Sequence[str], kinds: Sequence[str]) -> float:
    """Share of the questions with the most frequent answer of their kind."""
    most: dict[str, int] = {}
    for (kind, _), count in Counter(zip(kinds, answers, strict=True)).items():
        most[kind] = max(most.get(kind, 0), count)
    return sum(most.values()) / len(answers)


def cells_of(family: str) -> list[tuple[Sequence[str], float | None, str]]:
    """(kinds of question in turn, glyph size, place) of every cell."""
    if family == "guard":
        return [((kind,), None, "") for kind in _GUARD_KINDS] * 4
    if family == "entity_grid":
        return [(_GRID_KINDS[place], size, place) for size in ENTITY_SIZES for place in PLACES]
    kind = "read_field" if family == "document" else "read_value"
    cells = [((kind,), size, str(place)) for size in GLYPH_SIZES for place in range(len(EDGES) - 1)]
    unplaced = ("name_maximum", "difference") if family == "chart" else ()
    return cells + [((kind,), None, "") for kind in unplaced]


def _draw(spec: dict) -> dict:
    fixed = {}
    if spec["cell_place"]:
        place = int(spec["cell_place"]) if spec["cell_place"].isdigit() else spec["cell_place"]
        fixed["cell"] = Cell(spec["cell_glyph_px"], place)
    if spec["family"] == "entity_grid":
        fixed["counting"] = spec["kind"] == "count"
    drawn = scene(spec["family"], spec["split"], spec["index"], spec["scale"], **fixed)
    question = next(question for question in drawn.questions if question.kind == spec["kind"])
    golds = [{"answer": question.answer, "answer_confidence": "yes", "answer_id": number} for number in range(1, 11)]
    row = {
        "image": drawn.image,
        "question_id": f"{spec['family']}-{spec['split']}-{spec['index']}",
        "question": question.text,
        "answer": question.answer,
        "answers": golds,
        "seed": scene_seed(spec["family"], spec["split"], spec["index"]),
    }
    if spec["family"] == "guard":
        row |= {
            "question_type": " ".join(question.text.lower().split()[:2]),
            "answer_type": "number" if question.kind == "count" else "other",
            "multiple_choice_answer": question.answer,
            "image_id": spec["index"],
        }
    return row | _measures(drawn, question, spec["scale"])


def _measures(drawn: Scene, question: Question, scale: float) -> dict:
    """Place and size of the evidence in the views of the geometry."""
    width, height = drawn.image.size
    base, fovea, canvas = (round(GEOMETRIES["toy"][side] * scale) for side in ("image_size", "fovea_size", "canvas"))
    _, top, _, bottom = fovea_box(width, height, fovea)
    in_fovea = inside_fovea(question.box, width, height, fovea)
    tiles = tile_boxes(width, height, (canvas, canvas), base)
    counted = [drawn.marks[mark].box for mark in question.answer_marks[0]] if question.kind == "count" else []
    whole = [((tiles[:, :2] <= box[:2]) & (tiles[:, 2:] >= box[2:])).all(1).any() for box in counted or [question.box]]
    return {
        "box": list(question.box),
        "glyph_px": question.glyph_px,
        "glyph_px_global": question.glyph_px * base / height,
        "glyph_px_fovea": question.glyph_px * fovea / (bottom - top) if in_fovea else None,
        "eccentricity": eccentricity(question.box, width, height),
        "in_fovea": in_fovea,
        "crosses_slice": not all(whole),
    }


def _other_questions(benchmark: Dataset) -> list[str]:
    """For every row a question of another row, with another text and another answer, of the same kind if possible."""
    rows, others = list(zip(*(benchmark[name] for name in ("kind", "question", "answer")), strict=True)), []
    for number, (kind, question, answer) in enumerate(rows):
        following = rows[number + 1 :] + rows[:number]
        differing = (row for alike in (True, False) for row in following if (row[0] == kind) is alike)
        other = next((row[1] for row in differing if row[1] != question and row[2] != answer), None)
        if other is None:
            raise ValueError(f"No row has another question and answer than {question!r}: {answer!r}.")
        others.append(other)
    return others
