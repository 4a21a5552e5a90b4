"""CIDEr (1411.5726) as the COCO tools compute it, over words that white space separates.

It is made for captions. On one-word answers an exact match scores 2.5 of 10, and a data set of one answer scores 0, so
it stands in tables as a labelled secondary column. The tools' own tokenizer needs Java; none is used here.
"""

import math
from collections import Counter
from collections.abc import Sequence

from modeling_shirg.evaluation.metrics.answer_scores import checked_golds

_LONGEST = 4
_SIGMA = 6.0

Words = tuple[str, ...]
Vectors = list[dict[Words, float]]


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """The score of every prediction, 0..10; how rare a phrase is counts over all `references`.

    Args:
        predictions: one answer per question.
        references: the golds of each question.
    """
    golds = [[_phrases(gold) for gold in checked_golds(row)] for row in references]
    documents = Counter(phrase for row in golds for phrase in set().union(*row))
    scores = []
    for prediction, row in zip(predictions, golds, strict=True):
        phrases = _phrases(prediction)
        similarities = [_similarity(phrases, gold, documents, len(golds)) for gold in row]
        scores.append(10 * sum(similarities) / len(similarities))
    return scores


def _phrases(text: str) -> Counter[Words]:
    """How often each run of one to four words occurs."""
    words = text.lower().split()
    return Counter(
        tuple(words[i : i + length]) for length in range(1, _LONGEST + 1) for i in range(len(words) - length + 1)
    )


def _similarity(prediction: Counter[Words], gold: Counter[Words], documents: Counter[Words], count: int) -> float:
    """Mean over the phrase lengths of the clipped cosine of the weighted counts, less for answers of other length."""
    # The tools take the number of word pairs for the length.
    pairs = [sum(n for phrase, n in phrases.items() if len(phrase) == 2) for phrases in (prediction, gold)]
    penalty = math.exp(-((pairs[0] - pairs[1]) ** 2) / (2 * _SIGMA**2))
    vectors = [_vectors(phrases, documents, count) for phrases in (prediction, gold)]
    return penalty * sum(_cosine(one, other) for one, other in zip(*vectors, strict=True)) / _LONGEST


def _vectors(phrases: Counter[Words], documents: Counter[Words], count: int) -> Vectors:
    """Per phrase length, count times log of how many questions there are over how many have the phrase."""
    vectors: Vectors = [{} for _ in range(_LONGEST)]
    for phrase, occurrences in phrases.items():
        vectors[len(phrase) - 1][phrase] = occurrences * math.log(count / max(1, documents[phrase]))
    return vectors


def _cosine(one: dict[Words, float], other: dict[Words, float]) -> float:
    lengths = math.hypot(*one.values()) * math.hypot(*other.values())
    shared = sum(min(weight, other[phrase]) * other[phrase] for phrase, weight in one.items() if phrase in other)
    return shared / lengths if lengths else shared
