"""Scores of answers: plain functions per question, and the same as `evaluate.Metric`s in folders that load offline.

evaluate.load(metric_folder("anls")).compute(predictions=["a"], references=[["a", "b"]])
"""

from pathlib import Path

METRICS = ("relaxed_accuracy", "anls", "vqa_accuracy", "exact_match", "token_f1", "cider")


def metric_folder(name: str) -> str:
    """The folder that `evaluate.load` takes for a metric of `METRICS`."""
    if name not in METRICS:
        raise ValueError(f"No metric {name!r}: there are {METRICS}.")
    return str(Path(__file__).parent / name)
