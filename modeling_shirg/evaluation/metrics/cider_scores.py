"""CIDEr (1411.5726) by the COCO tools (extra `eval`), over words that white space separates.

It is made for captions: on one-word answers an exact match scores 2.5 of 10, so it is a labelled secondary column.
"""

from collections.abc import Sequence

from modeling_shirg.evaluation.metrics.answer_scores import checked_golds


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """The score of every prediction, 0..10; the rarity of a phrase counts over the golds of all questions."""
    from pycocoevalcap.cider.cider import Cider  # only with the extra

    golds = {number: [gold.lower() for gold in checked_golds(row)] for number, row in enumerate(references)}
    given = {number: [prediction.lower()] for number, prediction in enumerate(predictions)}
    return [float(score) for score in Cider().compute_score(golds, given)[1]]
