from modeling_shirg.evaluation.metrics import metric
from modeling_shirg.evaluation.metrics.answer_scores import anls


class Anls(metric.AnswerMetric):
    """Average normalised Levenshtein similarity, 0..1, as DocVQA and InfographicVQA report it."""

    score = staticmethod(anls)
    citation = "Biten et al., Scene Text Visual Question Answering (1905.13648)"
