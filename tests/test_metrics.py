"""Scores of answers: hand-computed cases, other implementations, and `evaluate.load` on a folder without a network."""

import random

import evaluate
import pytest

from modeling_shirg.evaluation.metrics import METRICS, metric_folder
from modeling_shirg.evaluation.metrics.answer_scores import anls, exact_match, relaxed_accuracy, token_f1
from modeling_shirg.evaluation.metrics.cider_scores import cider
from modeling_shirg.evaluation.metrics.vqa_scores import gold_texts, normalize, vqa_accuracy

# Score, prediction, golds, its value; golds that are one text stand for a list of it alone.
CASES = [
    (relaxed_accuracy, "2014", "2010", 1.0),  # 0.2% off
    (relaxed_accuracy, "105", "100", 1.0),
    (relaxed_accuracy, "105.1", "100", 0.0),
    (relaxed_accuracy, "-105", "-100", 1.0),
    (relaxed_accuracy, "1,000", "1000", 0.0),  # not a number, and not the same text
    (relaxed_accuracy, "1,000", "1,000", 1.0),
    (relaxed_accuracy, "50%", "0.5", 1.0),
    (relaxed_accuracy, "50", "50%", 0.0),
    (relaxed_accuracy, "50 %", "50%", 1.0),
    (relaxed_accuracy, "0", "0", 1.0),
    (relaxed_accuracy, "0.0", "0", 0.0),  # a gold of 0 is compared as text
    (relaxed_accuracy, "Yes", "yes", 1.0),
    (relaxed_accuracy, "nan", "NaN", 1.0),  # not numbers
    (anls, "ab  cd", "ab cd", 1.0),
    (anls, "abcd", "abef", 0.5),  # exactly a half counts
    (anls, "abcd", "aefg", 0.0),
    (anls, "abc", ["xyz", "abd"], 2 / 3),
    (vqa_accuracy, "Red.", ["red"] * 10, 1.0),
    (vqa_accuracy, "red", ["red"] + ["blue"] * 9, 0.3),  # nine annotators see 1 match, the one who said it sees none
    (vqa_accuracy, "red", ["red"] * 3 + ["blue"] * 7, 0.9),
    (vqa_accuracy, "red", ["red"] * 4 + ["blue"] * 6, 1.0),
    (vqa_accuracy, "green", ["red"] * 3 + ["blue"] * 7, 0.0),
    (vqa_accuracy, "2", ["two"] * 5 + ["2"] * 5, 1.0),  # golds that differ are normalised
    (vqa_accuracy, "none", ["none"] * 10, 0.0),  # golds that agree are not
    (vqa_accuracy, "none", ["none"] * 9 + ["0"], 1.0),
    (exact_match, "  Two\n cars ", "two cars", 1.0),
    (exact_match, "two cars", "two red cars", 0.0),
    (exact_match, "car", ["bus", "car"], 1.0),
    (token_f1, "two cars", "two red cars", 0.8),
    (token_f1, "red red car", "red car", 0.8),
    (token_f1, "car", ["bus", "car"], 1.0),
    (token_f1, "", "bus", 0.0),
    (token_f1, "", [""], 1.0),
]


@pytest.mark.parametrize(("score", "prediction", "golds", "value"), CASES)
def test_a_score_by_hand(score, prediction, golds, value):
    assert score(prediction, [golds] if isinstance(golds, str) else golds) == pytest.approx(value)


def test_anls_agrees_with_the_package_anls_but_at_exactly_a_half():
    from anls import anls_score

    rng = random.Random(0)
    halves = 0
    for _ in range(2000):
        text, *golds = ["".join(rng.choices("abC 1", k=rng.randint(0, 6))) for _ in range(rng.randint(2, 4))]
        ours, theirs = anls(text, golds), anls_score(text, golds)
        if ours == 0.5:
            assert theirs == 0.0
            halves += 1
        else:
            assert ours == pytest.approx(theirs)
    assert 20 < halves < 1000


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("A", ""),
        ("none", "0"),
        ("Two", "2"),
        ("a red car", "red car"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("1,000", "1000"),
        ("1,000-2", "10002"),  # a comma in a number takes every other mark along
        ("red,blue", "red blue"),
        ("red, blue", "red blue"),
        ("3.5", "3.5"),
        ("5.", "5"),
        ("U.S.", "us"),
        ("what\nnow\t", "what now"),
    ],
)
def test_vqa_normalisation(text, normal):
    assert normalize(text) == normal


def test_golds_of_a_row_are_its_texts():
    people = [{"answer": "Two cars" if i % 2 else " 2 cars", "answer_id": i + 1} for i in range(10)]
    assert gold_texts(people)[:2] == [" 2 cars", "Two cars"]
    assert vqa_accuracy("2 cars", gold_texts(people)) == 1.0


def test_cider_agrees_with_pycocoevalcap():
    from pycocoevalcap.cider.cider import Cider

    rng = random.Random(0)
    texts = [" ".join(rng.choices("a b c d e f".split(), k=rng.randint(0, 6))) for _ in range(400)]
    predictions, golds = texts[:100], [texts[100 + 3 * i : 101 + 3 * i + rng.randint(0, 2)] for i in range(100)]
    expected_mean, expected = Cider().compute_score(
        dict(enumerate(golds)), {i: [p] for i, p in enumerate(predictions)}
    )
    ours = cider(predictions, golds)
    assert ours == pytest.approx(list(expected), abs=1e-9)
    assert sum(ours) / len(ours) == pytest.approx(expected_mean)


_EXPECTED = {
    "relaxed_accuracy": 2 / 3,
    "anls": (1 + 0.75 + 0) / 3,
    "vqa_accuracy": 1 / 3 / 3,  # one other gold agrees, of the three it takes
    "exact_match": 1 / 3,
    "token_f1": 1 / 3,
    "cider": 2.5 / 3,
}


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_loads_from_its_folder_and_is_a_mean(name):
    metric = evaluate.load(metric_folder(name))
    assert metric.name == name and metric.description
    golds = [["red", "red"], ["2010", "2010"], ["x", "x"]]
    assert metric.compute(predictions=["red", "2014", "y"], references=golds) == pytest.approx({name: _EXPECTED[name]})


def test_a_metric_takes_single_golds_batches_and_options():
    metric = evaluate.load(metric_folder("anls"))
    assert metric.compute(predictions=["abcd", "x"], references=["abce", "x"]) == {"anls": 0.875}
    metric.add_batch(predictions=["abcd"], references=[["abce", "abcd"]])
    metric.add(prediction="x", reference=["y"])
    assert metric.compute() == {"anls": 0.5}
    row = {"predictions": ["none"], "references": [["none"] * 10], "keep_unanimous": False}
    assert evaluate.load(metric_folder("vqa_accuracy")).compute(**row) == {"vqa_accuracy": 1.0}
