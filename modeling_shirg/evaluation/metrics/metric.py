"""Base class of the metrics of `evaluate`: texts in, one mean out."""

from collections.abc import Callable, Sequence
from statistics import mean

import evaluate
from datasets import Features, List, Value

INPUTS = """
Args:
    predictions: list of texts, one answer per question.
    references: the golds of each question, a list of lists of texts; a list of texts where each has one.
"""


class AnswerMetric(evaluate.Metric):
    """The mean of a score per question under the metric's own name. A subclass says which score."""

    score: Callable[..., float]
    citation = ""

    def _info(self) -> evaluate.MetricInfo:
        text = Value("string")
        features = [Features({"predictions": text, "references": golds}) for golds in (List(text), text)]
        return evaluate.MetricInfo(type(self).__doc__, self.citation, features, INPUTS)

    def _compute(self, predictions: Sequence[str], references: Sequence, **options) -> dict[str, float]:
        golds = [[gold] if isinstance(gold, str) else list(gold) for gold in references]
        return {self.name: mean(self.scores(predictions, golds, **options))}

    def scores(self, predictions: Sequence[str], references: Sequence[Sequence[str]], **options) -> list[float]:
        """One score per question."""
        score = type(self).score
        return [score(*pair, **options) for pair in zip(predictions, references, strict=True)]
