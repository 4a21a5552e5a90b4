"""The rendered scenes: marks and answers are those of the pixels, and the benchmark is balanced."""

import subprocess
import sys

import numpy as np
import pytest

from configuration_shirg import ShirgLavidaConfig, ShirgLavidaImageProcessor
from modeling_shirg.evaluation.metrics.vqa_scores import normalize
from modeling_shirg.scenes import FAMILIES, Cell, scene
from modeling_shirg.scenes.benchmark import PER_CELL, build_benchmark, cells_of, with_control
from modeling_shirg.scenes.drawing import SHAPES
from modeling_shirg.scenes.placement import EDGES, FOVEA, GLYPH_SIZES, SIDE, eccentricity, inside_fovea

_DIGEST = """
import hashlib
from modeling_shirg.scenes import FAMILIES, scene
scenes = [scene(family, "test", index) for family in FAMILIES for index in range(5)]
drawn = [each.image.tobytes() + repr((each.marks, each.questions)).encode() for each in scenes]
print(hashlib.sha256(b"".join(drawn)).hexdigest())
"""


def drawn_scenes(count: int = 25, split: str = "test", scale: float = 1.0):
    return [(family, scene(family, split, index, scale)) for family in FAMILIES for index in range(count)]


def test_two_processes_draw_the_same_scenes():
    one, two = (subprocess.run([sys.executable, "-c", _DIGEST], capture_output=True, check=True) for _ in range(2))
    assert one.stdout == two.stdout and len(one.stdout) == 65


def test_every_mark_lies_on_the_page_and_has_ink():
    for _, drawn in drawn_scenes():
        pixels = np.asarray(drawn.image).astype(int)
        background = pixels.reshape(-1, 3)[np.abs(pixels.reshape(-1, 3) - np.median(pixels, (0, 1))).sum(1).argmin()]
        for mark in drawn.marks:
            left, top, right, bottom = (round(edge) for edge in mark.box)
            assert 0 <= left < right <= drawn.image.width and 0 <= top < bottom <= drawn.image.height, mark
            ink = np.abs(pixels[top:bottom, left:right] - background).sum(-1) > 60
            assert ink.mean() > 0.1, mark


def test_answers_are_spelled_by_marks_and_names_stand_in_the_question():
    spelled_kinds = {"read_field", "read_value", "name_maximum"}
    named_kinds = {"read_field", "read_value", "identify", "locate", "color", "shape"}
    for family, drawn in drawn_scenes():
        for question in drawn.questions:
            if question.kind in spelled_kinds:
                spelled = "".join(drawn.marks[mark].label for (mark,) in question.answer_marks)
                assert spelled == question.answer, (family, question)
            counts = family == "entity_grid" and question.kind == "count"
            assert (question.name is not None) == (question.kind in named_kinds or counts), (family, question)
            assert question.name is None or question.name in question.text.strip("?").split()


def _chart_answer(drawn, question, word: str) -> str:
    values = {q.text.split()[-1][:-1]: int(q.answer) for q in drawn.questions if q.kind == "read_value"}
    if question.kind == "name_maximum":
        return max(values, key=values.get)
    one, other = question.text[:-1].split(" between ")[1].split(" and ")
    return str(abs(values[one] - values[other]))


def _grid_answer(drawn, question, word: str) -> str:
    by_cell = {_cell(mark.box): mark.label for mark in drawn.marks}
    if question.kind == "identify":
        return by_cell[int(word)]
    if question.kind == "locate":
        return next(str(cell) for cell, label in by_cell.items() if label == word)
    assert word in SHAPES
    return str(sum(label == word for label in by_cell.values()))


def _guard_answer(drawn, question, word: str) -> str:
    colors = {mark.label: mark.color for mark in drawn.marks}
    assert len(set(colors.values())) == len(colors) == len(drawn.marks)
    if question.kind == "shape":
        return next(label for label, color in colors.items() if color == word)
    return colors[word] if question.kind == "color" else str(len(drawn.marks))


@pytest.mark.parametrize(
    ("family", "answer"), [("chart", _chart_answer), ("entity_grid", _grid_answer), ("guard", _guard_answer)]
)
def test_answers_follow_from_the_marks(family, answer):
    for index in range(25):
        drawn = scene(family, "test", index)
        for question in drawn.questions:
            if question.kind != "read_value":
                assert question.answer == answer(drawn, question, question.text.split()[-1][:-1]), question


@pytest.mark.parametrize("family", ["document", "chart"])
@pytest.mark.parametrize("place", range(4))
def test_a_cell_is_met(family, place):
    for index in range(10):
        drawn = scene(family, "test", index, cell=Cell(GLYPH_SIZES[index % 5], place))
        question = drawn.questions[0]
        assert question.glyph_px == GLYPH_SIZES[index % 5]
        assert EDGES[place] <= eccentricity(question.box, *drawn.image.size) < EDGES[place + 1]
        assert inside_fovea(question.box, *drawn.image.size, FOVEA) == (place < 2)


def test_vqa_metrics_leave_every_answer_alone():
    drawn = [each for scale in (1.0, 2.0) for _, each in drawn_scenes(25, scale=scale)]
    answers = {question.answer for each in drawn for question in each.questions}
    assert len(answers) > 200
    assert {answer for answer in answers if normalize(answer) != answer.lower()} == set()


@pytest.mark.parametrize(("family", "cells"), [("document", 20), ("chart", 22), ("entity_grid", 12), ("guard", 20)])
def test_benchmark_is_balanced_and_described(family, cells):
    rows = build_benchmark(family, per_cell=3)
    assert len(rows) == 3 * cells == 3 * len(cells_of(family)) and PER_CELL * len(cells_of("guard")) == 4000
    counts: dict = {}
    for row in rows.remove_columns("image"):
        cell = (row["cell_glyph_px"], row["cell_place"])
        counts[cell] = counts.get(cell, 0) + 1
        assert [(gold["answer"], gold["answer_id"]) for gold in row["answers"]] == [
            (row["answer"], number) for number in range(1, 11)
        ]
        assert (row["glyph_px_fovea"] is not None) == row["in_fovea"]
        if family in ("document", "chart") and row["cell_place"]:
            place = int(row["cell_place"])
            assert row["in_fovea"] == (place < 2) and row["glyph_px"] == row["cell_glyph_px"]
            assert EDGES[place] <= row["eccentricity"] < EDGES[place + 1]
    if family == "guard":
        assert set(rows["answer_type"]) == {"number", "other"} and rows["multiple_choice_answer"] == rows["answer"]
        assert set(rows["question_type"]) == {"what color", "what shape", "how many"}
    else:
        placed = {cell: count for cell, count in counts.items() if cell[1]}
        assert set(placed.values()) == {3}
    assert len({*rows["question_id"]}) == len(rows)


@pytest.mark.parametrize("geometry", ["toy", "full"])
def test_what_a_row_says_of_the_views_is_what_the_processor_cuts(geometry):
    scale, families = {"toy": (1.0, FAMILIES), "full": (2.0, ["document"])}[geometry]
    seen = set()
    for family in families:
        rows = build_benchmark(family, "validation", per_cell=1, scale=scale)
        foveal, tiled = (
            ShirgLavidaImageProcessor.from_config(ShirgLavidaConfig.from_preset(preset, geometry=geometry))
            for preset in ("shirg", "lavida-980")
        )
        for row in rows:
            fovea = foveal([row["image"]], return_tensors="np")
            left, top, right, bottom = fovea["view_boxes"][0, 1].tolist()
            assert row["in_fovea"] == _is_inside(row["box"], (left, top, right, bottom))
            assert row["glyph_px_global"] == pytest.approx(
                row["glyph_px"] * fovea["pixel_values"].shape[-1] / row["image"].height
            )
            if row["in_fovea"]:
                zoom = fovea["fovea_pixel_values"].shape[-1] / (bottom - top)
                assert row["glyph_px_fovea"] == pytest.approx(row["glyph_px"] * zoom)
            if row["kind"] != "count":
                tiles = tiled([row["image"]], return_tensors="np")["view_boxes"][0, 1:].tolist()
                assert row["crosses_slice"] == (not any(_is_inside(row["box"], tile) for tile in tiles))
            seen.add((row["in_fovea"], row["crosses_slice"]))
    assert len(seen) >= 3


@pytest.mark.parametrize("family", FAMILIES)
def test_controls_take_away_what_they_say(family):
    rows = build_benchmark(family, split="validation", per_cell=2)
    blank, shuffled = (with_control(rows, name) for name in ("blank", "shuffled_question"))
    assert all(image.getextrema() == ((128, 128),) * 3 for image in blank["image"])
    assert list(blank["question"]) == list(rows["question"])
    assert list(blank["answer"]) == list(shuffled["answer"]) == list(rows["answer"])
    assert set(shuffled["question"]) <= set(rows["question"])
    assert all(a != b for a, b in zip(shuffled["question"], rows["question"], strict=True))


def _is_inside(box, view) -> bool:
    return box[0] >= view[0] and box[1] >= view[1] and box[2] <= view[2] and box[3] <= view[3]


def _cell(box) -> int:
    column, row = int((box[0] + box[2]) / 2 // (SIDE / 3)), int((box[1] + box[3]) / 2 // (SIDE / 3))
    return 3 * row + column + 1
