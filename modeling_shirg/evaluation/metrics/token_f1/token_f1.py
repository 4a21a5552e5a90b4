from modeling_shirg.evaluation.metrics import metric
from modeling_shirg.evaluation.metrics.answer_scores import token_f1


class TokenF1(metric.AnswerMetric):
    """Mean F1 over words, 0..1, each answer against its best gold."""

    score = staticmethod(token_f1)
