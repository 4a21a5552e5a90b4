"""Scores of one answer, 0..1, each the best over its golds: exact match, token F1, relaxed accuracy, ANLS."""

import math
from collections import Counter
from collections.abc import Callable, Sequence

RELAXED_TOLERANCE = 0.05
ANLS_THRESHOLD = 0.5


def exact_match(prediction: str, golds: Sequence[str]) -> float:
    """1 if the prediction is a gold; case and the amount of white space do not count."""
    return _best(golds, lambda gold: float(_plain(prediction) == _plain(gold)))


def token_f1(prediction: str, golds: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over words, which are what white space separates; case does not count."""
    return _best(golds, lambda gold: _f1(_plain(prediction).split(), _plain(gold).split()))


def relaxed_accuracy(prediction: str, golds: Sequence[str]) -> float:
    """ChartQA's score: a number within 5% of the gold, or the gold's text in any case.

    Numbers are those that `float` reads ("1,000" is text), percentages a hundredth; a gold of 0 is compared as text.
    """
    return _best(golds, lambda gold: float(_is_relaxed_match(prediction, gold)))


def anls(prediction: str, golds: Sequence[str]) -> float:
    """DocVQA's average normalised Levenshtein similarity of one answer: 1 - edits / length, 0 below a half.

    A similarity of exactly a half counts, as in lmms-eval; the package `anls` gives 0 for it.
    """
    return _best(golds, lambda gold: _similarity(_plain(prediction), _plain(gold)))


def levenshtein(one: str, other: str) -> int:
    """Least number of characters to insert, delete or replace that turns one text into the other."""
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(other, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def checked_golds(golds: Sequence[str]) -> Sequence[str]:
    """`golds`, if they are at least one text and not a text themselves."""
    if isinstance(golds, str) or not golds:
        raise ValueError(f"Golds are a list of at least one text, got {golds!r}.")
    return golds


def _best(golds: Sequence[str], score: Callable[[str], float]) -> float:
    return max(score(gold) for gold in checked_golds(golds))


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _f1(predicted: list[str], wanted: list[str]) -> float:
    if not predicted or not wanted:
        return float(predicted == wanted)
    shared = (Counter(predicted) & Counter(wanted)).total()
    return 2 * shared / (len(predicted) + len(wanted))


def _is_relaxed_match(prediction: str, gold: str) -> bool:
    value, target = _number(prediction), _number(gold)
    if value is None or not target:
        return prediction.strip().lower() == gold.strip().lower()
    return abs(value - target) / abs(target) <= RELAXED_TOLERANCE


def _number(text: str) -> float | None:
    """The finite number that `text` writes, `None` if it is something else."""
    text = text.strip()
    is_percentage = text.endswith("%")
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        return None
    if not math.isfinite(value):
        return None
    return value / 100 if is_percentage else value


def _similarity(one: str, other: str) -> float:
    longest = max(len(one), len(other))
    similarity = 1 - levenshtein(one, other) / longest if longest else 1.0
    return similarity if similarity >= ANLS_THRESHOLD else 0.0
