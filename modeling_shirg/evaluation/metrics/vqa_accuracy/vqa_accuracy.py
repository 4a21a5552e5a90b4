from modeling_shirg.evaluation.metrics import metric
from modeling_shirg.evaluation.metrics.vqa_scores import vqa_accuracy


class VqaAccuracy(metric.AnswerMetric):
    """VQA accuracy, 0..1, with the official normalisation, over the golds of several annotators.

    `compute(..., keep_unanimous=False)` normalises golds that all agree too, as TextVQA's evaluation does.
    """

    score = staticmethod(vqa_accuracy)
    citation = "Goyal et al., Making the V in VQA Matter (1612.00837)"
