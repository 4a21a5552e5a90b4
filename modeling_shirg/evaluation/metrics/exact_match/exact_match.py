from modeling_shirg.evaluation.metrics import metric
from modeling_shirg.evaluation.metrics.answer_scores import exact_match


class ExactMatch(metric.AnswerMetric):
    """Share of the answers that are one of their golds; case and the amount of white space do not count."""

    score = staticmethod(exact_match)
