"""The rendered scenes: what is said about them is what is drawn, and the benchmark is balanced as it says."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from modeling_shirg.evaluation.scenes import FAMILIES, Cell, scene
from modeling_shirg.evaluation.scenes.benchmark import build_benchmark, majority_share, with_control
from modeling_shirg.evaluation.scenes.drawing import SHAPES
from modeling_shirg.evaluation.scenes.placement import EDGES, FOVEA, GLYPH_SIZES, SIDE, eccentricity

_DIGEST = """
import hashlib
from modeling_shirg.evaluation.scenes import FAMILIES, scene
digest = hashlib.sha256()
for family in FAMILIES:
    for index in range(5):
        drawn = scene(family, "test", index)
        digest.update(drawn.image.tobytes() + repr((drawn.marks, drawn.questions)).encode())
print(digest.hexdigest())
"""


def drawn_scenes(count: int = 25, split: str = "test"):
    return [(family, scene(family, split, index)) for family in FAMILIES for index in range(count)]


def test_another_process_draws_the_same_scenes():
    digest = hashlib.sha256()
    for family in FAMILIES:
        for index in range(5):
            drawn = scene(family, "test", index)
            digest.update(drawn.image.tobytes() + repr((drawn.marks, drawn.questions)).encode())
    other = subprocess.run([sys.executable, "-c", _DIGEST], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest.hexdigest()


@pytest.mark.parametrize("family", FAMILIES)
def test_splits_and_indices_differ(family):
    images = {
        scene(family, split, index).image.tobytes() for split in ("train", "validation", "test") for index in (0, 1)
    }
    assert len(images) == 6


def test_every_mark_lies_on_the_page_and_has_ink():
    for _, drawn in drawn_scenes():
        pixels = np.asarray(drawn.image).astype(int)
        background = pixels.reshape(-1, 3)[np.abs(pixels.reshape(-1, 3) - np.median(pixels, (0, 1))).sum(1).argmin()]
        for mark in drawn.marks:
            left, top, right, bottom = (round(edge) for edge in mark.box)
            assert 0 <= left < right <= drawn.image.width and 0 <= top < bottom <= drawn.image.height, mark
            ink = np.abs(pixels[top:bottom, left:right] - background).sum(-1) > 60
            assert ink.mean() > 0.1, mark


def test_capitals_are_as_high_as_the_glyph_size_says():
    for size in GLYPH_SIZES:
        for index in range(5):
            drawn = scene("document", "test", index, cell=Cell(size, index % 4))
            question = drawn.questions[0]
            assert question.glyph_px == size
            marks = [drawn.marks[mark] for (mark,) in question.answer_marks]
            heights = [
                mark.box[3] - mark.box[1] for mark in marks if mark.label not in "JQ"
            ]  # these go below the line
            assert heights == pytest.approx([size] * len(heights), abs=1.5)


def test_read_answers_are_spelled_by_their_marks():
    kinds = {"read_field", "read_value", "name_maximum"}
    for family, drawn in drawn_scenes():
        for question in drawn.questions:
            if question.kind in kinds:
                spelled = "".join(drawn.marks[mark].label for (mark,) in question.answer_marks)
                assert spelled == question.answer, (family, question)


def test_keys_are_in_the_question_and_unique():
    for index in range(25):
        drawn = scene("document", "test", index)
        texts = [question.text for question in drawn.questions]
        assert len(set(texts)) == len(texts)
        for question in drawn.questions:
            (key,) = question.key_marks
            assert f" {drawn.marks[key].label}?" in question.text


def test_chart_answers_follow_from_the_labels():
    for index in range(25):
        drawn = scene("chart", "test", index)
        values = {q.text.split()[-1][:-1]: int(q.answer) for q in drawn.questions if q.kind == "read_value"}
        (largest,) = [q for q in drawn.questions if q.kind == "name_maximum"]
        (difference,) = [q for q in drawn.questions if q.kind == "difference"]
        assert values[largest.answer] == max(values.values())
        one, other = difference.text[:-1].split(" between ")[1].split(" and ")
        assert int(difference.answer) == abs(values[one] - values[other])


def test_grid_answers_follow_from_the_marks():
    for index in range(25):
        drawn = scene("entity_grid", "test", index)
        by_cell = {_cell(mark.box): mark.label for mark in drawn.marks}
        for question in drawn.questions:
            if question.kind == "identify":
                assert by_cell[int(question.text.split()[-1][:-1])] == question.answer
            elif question.kind == "locate":
                assert by_cell[int(question.answer)] == question.text.split()[-1][:-1]
            else:
                counted = question.text.split()[-1][:-1]
                assert counted in SHAPES
                assert int(question.answer) == sum(mark.label == counted for mark in drawn.marks)


def test_guard_answers_follow_from_the_marks():
    for index in range(25):
        drawn = scene("guard", "test", index)
        colors = {mark.label: mark.color for mark in drawn.marks}
        assert len(set(colors.values())) == len(colors) == len(drawn.marks)
        for question in drawn.questions:
            word = question.text.split()[-1][:-1]
            if question.kind == "color":
                assert question.answer == colors[word]
            elif question.kind == "shape":
                assert colors[question.answer] == word
            else:
                assert int(question.answer) == len(drawn.marks)


@pytest.mark.parametrize("family", ["document", "chart"])
@pytest.mark.parametrize("place", range(4))
def test_a_cell_is_met(family, place):
    for index in range(10):
        drawn = scene(family, "test", index, cell=Cell(GLYPH_SIZES[index % 5], place))
        question = drawn.questions[0]
        assert question.glyph_px == GLYPH_SIZES[index % 5]
        # Placed by the line's box; the ink's centre differs from it by a few pixels.
        assert EDGES[place] - 0.03 <= eccentricity(question.box, *drawn.image.size) <= EDGES[place + 1] + 0.03


def test_grid_places_cross_the_slices_that_they_say():
    crossed = {"inside": 0, "border": 1, "corner": 2}
    for place, borders in crossed.items():
        for index in range(10):
            box = scene("entity_grid", "test", index, cell=Cell(29, place)).questions[0].box
            assert (box[0] < SIDE / 2 < box[2]) + (box[1] < SIDE / 2 < box[3]) == borders


def test_no_answer_is_an_article():
    answers = {question.answer.lower() for _, drawn in drawn_scenes() for question in drawn.questions}
    assert not answers & {"a", "an", "the", "none"}


@pytest.mark.parametrize(("family", "cells"), [("document", 20), ("chart", 22), ("entity_grid", 12), ("guard", 20)])
def test_benchmark_is_balanced_and_described(family, cells):
    rows = build_benchmark(family, per_cell=3)
    assert len(rows) == 3 * cells
    counts: dict = {}
    for row in rows.remove_columns("image"):
        cell = (row["cell_glyph_px"], row["cell_place"])
        counts[cell] = counts.get(cell, 0) + 1
        assert len({gold["answer_id"] for gold in row["answers"]}) == 10
        assert {gold["answer"] for gold in row["answers"]} == {row["answer"]}
        assert (row["glyph_px_fovea"] is not None) == row["in_fovea"]
        if family in ("document", "chart") and row["cell_place"]:
            assert row["in_fovea"] == (int(row["cell_place"]) < 2)
            assert row["glyph_px"] == row["cell_glyph_px"]
            left, top, right, bottom = row["box"]
            edge = (SIDE - FOVEA) / 2
            inside = left >= edge and top >= edge and right <= SIDE - edge and bottom <= SIDE - edge
            assert inside == row["in_fovea"]
    if family != "guard":
        placed = {cell: count for cell, count in counts.items() if cell[1]}
        assert set(placed.values()) == {3}
    assert len({*rows["question_id"]}) == len(rows)


def test_controls_take_away_what_they_say():
    rows = build_benchmark("document", split="validation", per_cell=1)
    blank = with_control(rows, "blank")
    assert blank["question"] == rows["question"] and blank["answer"] == rows["answer"]
    assert all(image.getextrema() == ((128, 128),) * 3 for image in blank["image"])
    shuffled = with_control(rows, "shuffled_question")
    assert list(shuffled["answer"]) == list(rows["answer"])
    assert sum(a != b for a, b in zip(shuffled["question"], rows["question"], strict=True)) > len(rows) / 2


def test_majority_is_per_kind():
    shares = majority_share(["2", "2", "red", "blue"], ["count", "count", "color", "color"])
    assert shares == {"count": 1.0, "color": 0.5}


def test_unknown_names_are_named():
    with pytest.raises(ValueError, match="'charts'.*chart"):
        scene("charts", "test", 0)
    with pytest.raises(ValueError, match="'validation' and 'test'"):
        build_benchmark("chart", split="train")


def _cell(box) -> int:
    column, row = int((box[0] + box[2]) / 2 // (SIDE / 3)), int((box[1] + box[3]) / 2 // (SIDE / 3))
    return 3 * row + column + 1
