from modeling_shirg.evaluation.metrics import cider_scores, metric


class Cider(metric.AnswerMetric):
    """CIDEr, 0..10: a secondary column, for on one-word answers even a perfect system scores 2.5.

    The mean over a data set; one question alone scores 0, because rarity is counted over the questions.
    """

    citation = "Vedantam et al., CIDEr (1411.5726)"

    def scores(self, predictions, references):
        """One score per question."""
        return cider_scores.cider(predictions, references)
