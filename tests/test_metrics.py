"""Scores of answers: hand-computed cases, other implementations, and `evaluate.load` on a folder without a network."""

import random

import evaluate
import pytest

from modeling_shirg.evaluation.metrics import METRICS, metric_folder
from modeling_shirg.evaluation.metrics.answer_scores import anls, exact_match, relaxed_accuracy, token_f1
from modeling_shirg.evaluation.metrics.cider_scores import cider
from modeling_shirg.evaluation.metrics.vqa_scores import normalize, vqa_accuracy


@pytest.mark.parametrize(
    ("prediction", "gold", "score"),
    [
        ("2014", "2010", 1.0),  # 0.2% off
        ("105", "100", 1.0),
        ("105.1", "100", 0.0),
        ("-105", "-100", 1.0),
        ("1,000", "1000", 0.0),  # not a number, and not the same text
        ("1,000", "1,000", 1.0),
        ("50%", "0.5", 1.0),
        ("50", "50%", 0.0),
        ("50 %", "50%", 1.0),
        ("0", "0", 1.0),
        ("0.0", "0", 0.0),  # a gold of 0 is compared as text
        ("Yes", "yes", 1.0),
        ("nan", "NaN", 1.0),  # not numbers
    ],
)
def test_relaxed_accuracy(prediction, gold, score):
    assert relaxed_accuracy(prediction, [gold]) == score


@pytest.mark.parametrize(
    ("prediction", "golds", "score"),
    [
        ("abcd", ["abcd"], 1.0),
        ("ab  cd", ["ab cd"], 1.0),
        ("abcd", ["abce"], 0.75),
        ("abcd", ["abef"], 0.5),  # exactly a half counts
        ("abcd", ["aefg"], 0.0),
        ("abc", ["abd", "abc"], 1.0),
        ("abc", ["xyz", "abd"], 2 / 3),
        ("", ["abc"], 0.0),
    ],
)
def test_anls(prediction, golds, score):
    assert anls(prediction, golds) == pytest.approx(score)


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


@pytest.mark.parametrize(
    ("prediction", "golds", "score"),
    [
        ("red", ["red"] * 10, 1.0),
        ("Red.", ["red"] * 10, 1.0),
        ("red", ["red"] + ["blue"] * 9, 0.3),  # nine annotators see 1 match, the one who said it sees none
        ("red", ["red"] * 3 + ["blue"] * 7, 0.9),
        ("red", ["red"] * 4 + ["blue"] * 6, 1.0),
        ("green", ["red"] * 3 + ["blue"] * 7, 0.0),
        ("2", ["two"] * 5 + ["2"] * 5, 1.0),  # golds that differ are normalised
        ("none", ["none"] * 10, 0.0),  # golds that agree are not
        ("none", ["none"] * 9 + ["0"], 1.0),
    ],
)
def test_vqa_accuracy(prediction, golds, score):
    assert vqa_accuracy(prediction, golds) == pytest.approx(score)


@pytest.mark.parametrize(
    ("prediction", "golds", "match", "f1"),
    [
        ("K3", ["k3"], 1.0, 1.0),
        ("  two\n cars ", ["two cars"], 1.0, 1.0),
        ("two cars", ["two red cars"], 0.0, 0.8),
        ("red red car", ["red car"], 0.0, 0.8),
        ("car", ["bus", "car"], 1.0, 1.0),
        ("", ["bus"], 0.0, 0.0),
        ("", [""], 1.0, 1.0),
    ],
)
def test_exact_match_and_token_f1(prediction, golds, match, f1):
    assert exact_match(prediction, golds) == match
    assert token_f1(prediction, golds) == pytest.approx(f1)


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
    vqa = evaluate.load(metric_folder("vqa_accuracy"))
    row = {"predictions": ["none"], "references": [["none"] * 10]}
    assert vqa.compute(**row) == {"vqa_accuracy": 0.0}
    assert vqa.compute(**row, keep_unanimous=False) == {"vqa_accuracy": 1.0}
