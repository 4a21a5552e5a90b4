"""What the metrics of `evaluate` have in common: texts in, one mean out."""

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
        one, several = Value("string"), List(Value("string"))
        return evaluate.MetricInfo(
            description=type(self).__doc__,
            citation=self.citation,
            inputs_description=INPUTS,
            features=[Features({"predictions": one, "references": golds}) for golds in (several, one)],
        )

    def _compute(self, predictions: Sequence[str], references: Sequence, **options) -> dict[str, float]:
        return {self.name: mean(self.scores(predictions, with_golds(references), **options))}

    def scores(self, predictions: Sequence[str], references: Sequence[Sequence[str]], **options) -> list[float]:
        """One score per question."""
        score = type(self).score
        return [score(*pair, **options) for pair in zip(predictions, references, strict=True)]


def with_golds(references: Sequence) -> list[list[str]]:
    """Lists of golds, also where each question came with a single one."""
    return [[gold] if isinstance(gold, str) else list(gold) for gold in references]
