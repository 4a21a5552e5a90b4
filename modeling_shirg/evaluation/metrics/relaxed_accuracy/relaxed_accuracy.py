from modeling_shirg.evaluation.metrics import metric
from modeling_shirg.evaluation.metrics.answer_scores import relaxed_accuracy


class RelaxedAccuracy(metric.AnswerMetric):
    """ChartQA's relaxed accuracy, 0..1: numbers within 5% of the gold, other answers equal to it in any case."""

    score = staticmethod(relaxed_accuracy)
    citation = "Masry et al., ChartQA (2203.10244)"
