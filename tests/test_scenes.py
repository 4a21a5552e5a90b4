"""The rendered scenes: what is said about them is what is drawn, and the benchmark is balanced as it says."""

import hashlib
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from configuration_shirg import ShirgLavidaConfig, ShirgLavidaImageProcessor
from modeling_shirg.evaluation.metrics.vqa_scores import normalize
from modeling_shirg.scenes import FAMILIES, SPLITS, Cell, benchmark, chart, document, scene, scene_seed
from modeling_shirg.scenes.benchmark import (
    PER_CELL,
    build_benchmark,
    majority_share,
    no_image_share,
    with_control,
)
from modeling_shirg.scenes.drawing import SHAPES
from modeling_shirg.scenes.entity_grid import ENTITY_SIZES, PLACES
from modeling_shirg.scenes.placement import EDGES, FOVEA, GLYPH_SIZES, SIDE, eccentricity, inside_fovea

_DIGEST = """
import hashlib
from modeling_shirg.scenes import FAMILIES, scene
digest = hashlib.sha256()
for family in FAMILIES:
    for index in range(5):
        drawn = scene(family, "test", index)
        digest.update(drawn.image.tobytes() + repr((drawn.marks, drawn.questions)).encode())
print(digest.hexdigest())
"""


def drawn_scenes(count: int = 25, split: str = "test", scale: float = 1.0):
    return [(family, scene(family, split, index, scale)) for family in FAMILIES for index in range(count)]


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
        labels = [mark.label for mark in drawn.marks]
        for question in drawn.questions:
            assert question.text == f"What is the value of {question.name}?"
            assert question.name in labels


def test_what_a_question_names_stands_in_it_or_is_the_cells_number():
    kinds = {"read_field", "read_value", "identify", "locate", "color", "shape"}
    for family, drawn in drawn_scenes():
        for question in drawn.questions:
            counts = family == "entity_grid" and question.kind == "count"
            assert (question.name is not None) == (question.kind in kinds or counts), (family, question)
            assert question.name is None or question.name in question.text.strip("?").split()


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
        assert EDGES[place] <= eccentricity(question.box, *drawn.image.size) < EDGES[place + 1]
        assert inside_fovea(question.box, *drawn.image.size, FOVEA) == (place < 2)


@pytest.mark.parametrize(("module", "family"), [(chart, "chart"), (document, "document")])
def test_a_cell_that_nothing_fits_is_named(module, family, monkeypatch):
    monkeypatch.setattr(module, "MOST_TRIES", 20)
    with pytest.raises(ValueError, match="glyph_px=300"):
        scene(family, "test", 0, cell=Cell(300, 0))


def test_grid_places_cross_the_slices_that_they_say():
    crossed = {"inside": 0, "border": 1, "corner": 2}
    for place, borders in crossed.items():
        for index in range(10):
            box = scene("entity_grid", "test", index, cell=Cell(29, place)).questions[0].box
            assert (box[0] < SIDE / 2 < box[2]) + (box[1] < SIDE / 2 < box[3]) == borders


def test_vqa_metrics_leave_every_answer_alone():
    drawn = [each for scale in (1.0, 2.0) for _, each in drawn_scenes(25, scale=scale)]
    answers = {question.answer for each in drawn for question in each.questions}
    assert len(answers) > 200
    assert {answer for answer in answers if normalize(answer) != answer.lower()} == set()


def test_codes_that_vqa_metrics_rewrite_are_drawn_again(monkeypatch):
    spelled = iter("THETENK3X")
    monkeypatch.setattr(document, "pick", lambda rng, options: next(spelled))
    assert document._code(np.random.default_rng(0), (3, 3)) == "K3X"


def test_no_two_scenes_share_a_seed():
    families = (*FAMILIES, "page")
    seeds = [scene_seed(family, split, index) for family in families for split in SPLITS for index in range(5)]
    assert len({tuple(seed) for seed in seeds}) == len(seeds) == 5 * 3 * 5


@pytest.mark.parametrize("place", PLACES)
def test_counted_shapes_are_at_their_place(place):
    answers = set()
    for index in range(30):
        drawn = scene("entity_grid", "test", index, cell=Cell(21, place), counting=True)
        (question,) = [question for question in drawn.questions if question.kind == "count"]
        label = question.text.split()[-1][:-1]
        cells = [_cell(mark.box) - 1 for mark in drawn.marks if mark.label == label]
        assert question.answer == str(len(cells)) and len(question.answer_marks[0]) == len(cells)
        cuts = [next(name for name, spots in PLACES.items() if cell in spots) for cell in cells]
        assert max(cuts, key=list(PLACES).index) == place
        assert question.glyph_px == 21
        answers.add(question.answer)
    assert answers == {"1", "2", "3", "4"}


def test_training_counts_as_the_benchmark_does():
    """Where neither a cell nor what is counted is given, up to four of one shape are there in a part of the grids."""
    scenes = [scene("entity_grid", "train", index) for index in range(200)]
    counts = Counter(drawn.questions[-1].answer for drawn in scenes)
    assert set(counts) >= {"0", "1", "2", "3", "4"} and min(counts[number] for number in "34") >= 8
    assert scene("entity_grid", "train", 3, counting=True).questions[-1].answer in "1234"


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
            bin_number = int(row["cell_place"])
            assert EDGES[bin_number] <= row["eccentricity"] < EDGES[bin_number + 1]
    if family == "guard":
        assert set(rows["answer_type"]) == {"number", "other"} and rows["multiple_choice_answer"] == rows["answer"]
        assert set(rows["question_type"]) == {"what color", "what shape", "how many"}
    else:
        placed = {cell: count for cell, count in counts.items() if cell[1]}
        assert set(placed.values()) == {3}
    assert len({*rows["question_id"]}) == len(rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_public_benchmark_is_large_enough(family):
    rows = benchmark._specs(family, "test", PER_CELL, 1.0)
    if family == "guard":
        assert len(rows) >= 4000
        return
    cells = Counter((row["cell_glyph_px"], row["cell_place"]) for row in rows if row["cell_place"])
    places = len(PLACES) if family == "entity_grid" else len(EDGES) - 1
    assert len(cells) == places * (len(ENTITY_SIZES) if family == "entity_grid" else len(GLYPH_SIZES))
    assert set(cells.values()) == {200}


def test_the_middle_of_a_grid_is_not_asked_for():
    kinds = Counter((row["cell_place"], row["kind"]) for row in benchmark._specs("entity_grid", "test", 6, 1.0))
    assert ("corner", "locate") not in kinds
    assert kinds[("border", "locate")] == kinds[("border", "count")] == kinds[("inside", "identify")] == 8


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


def test_counted_shapes_cross_slices_one_by_one():
    rows = build_benchmark("entity_grid", "validation", per_cell=3).filter(lambda row: row["kind"] == "count")
    assert {(row["cell_place"], row["crosses_slice"]) for row in rows} == {
        ("inside", False),
        ("border", True),
        ("corner", True),
    }


def test_several_processes_draw_the_same_rows():
    one, two = (build_benchmark("chart", "validation", per_cell=1, num_proc=count) for count in (None, 2))
    assert [row["image"].tobytes() for row in one] == [row["image"].tobytes() for row in two]
    assert one.remove_columns("image").to_list() == two.remove_columns("image").to_list()


def test_controls_take_away_what_they_say():
    rows = build_benchmark("document", split="validation", per_cell=1)
    blank = with_control(rows, "blank")
    assert blank["question"] == rows["question"] and blank["answer"] == rows["answer"]
    assert all(image.getextrema() == ((128, 128),) * 3 for image in blank["image"])
    shuffled = with_control(rows, "shuffled_question")
    assert list(shuffled["answer"]) == list(rows["answer"])
    assert with_control(rows, "none") is rows
    with pytest.raises(ValueError, match="'noise'.*blank"):
        with_control(rows, "noise")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_gets_a_question_that_is_not_its_own(family):
    rows = build_benchmark(family, split="validation", per_cell=2)
    shuffled = with_control(rows, "shuffled_question")
    assert set(shuffled["question"]) <= set(rows["question"])
    assert all(a != b for a, b in zip(shuffled["question"], rows["question"], strict=True))


def test_questions_are_not_shuffled_where_there_is_one():
    with pytest.raises(ValueError, match="No row has another question"):
        with_control(build_benchmark("guard", per_cell=1).select([2]), "shuffled_question")


def test_majority_is_per_kind():
    shares = majority_share(["2", "2", "red", "blue"], ["count", "count", "color", "color"])
    assert shares == {"count": 1.0, "color": 0.5}


def test_no_image_share_learns_from_other_rows():
    def rows(*texts):
        return [dict(zip(("kind", "question", "answer"), text.split(), strict=True)) for text in texts]

    known = rows("count q1 1", "count q1 2", "count q1 2", "count q2 3", "color q3 red")
    asked = rows("count q1 2", "count q1 1", "count q2 3", "count new 2", "color new red", "color q3 blue")
    assert no_image_share(known, asked) == {"count": 0.75, "color": 0.5}
    with pytest.raises(ValueError, match="'shape'"):
        no_image_share(known, rows("shape q4 star"))


def test_unknown_names_are_named():
    with pytest.raises(ValueError, match="'charts'.*chart"):
        scene("charts", "test", 0)
    with pytest.raises(ValueError, match="'validation' and 'test'"):
        build_benchmark("chart", split="train")
    with pytest.raises(ValueError, match="scene -1"):
        scene("chart", "test", -1)


def _is_inside(box, view) -> bool:
    return box[0] >= view[0] and box[1] >= view[1] and box[2] <= view[2] and box[3] <= view[3]


def _cell(box) -> int:
    column, row = int((box[0] + box[2]) / 2 // (SIDE / 3)), int((box[1] + box[3]) / 2 // (SIDE / 3))
    return 3 * row + column + 1


def test_a_benchmark_without_questions_is_refused():
    with pytest.raises(ValueError, match="per_cell 0: a benchmark has at least one question per cell"):
        build_benchmark("guard", per_cell=0)
