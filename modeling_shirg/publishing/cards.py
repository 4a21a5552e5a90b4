"""Model cards: the templates of hub_card/ filled from facts, the one place where a card is written."""

import re
from importlib.resources import files

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FunctionLoader, StrictUndefined

_TASK = "image-text-to-text"
# The metadata of every card of a model.
MODEL_TAGS = ("masked-diffusion", "vision-language", "visual-token-selection", "shirg", "custom_code")
MODEL_METADATA = {"library_name": "transformers", "pipeline_tag": _TASK, "tags": [*MODEL_TAGS]}


def render(template: str, metadata: dict, **facts) -> ModelCard:
    """The card of `hub_card/{template}_card_template.md`; a fact that the template needs and that is missing raises.

    Args:
        template: such as `"adapter"`.
        metadata: fields of the metadata besides, or instead of, those of `MODEL_METADATA`; `None` leaves one out.
        facts: what the template is filled with.
    """
    data = ModelCardData(**{**MODEL_METADATA, **metadata})
    environment = Environment(loader=FunctionLoader(_source), undefined=StrictUndefined)
    environment.filters["in_words"] = in_words
    text = environment.get_template(f"{template}_card_template.md").render(card_data=data.to_yaml(), **facts)
    return ModelCard(f"{text}\n")


def addressed(card: str, source: str, revision: str) -> str:
    """The card with these in its examples: the lines `source = "..."` and `revision = "..."` of its code."""
    for name, value in (("source", source), ("revision", revision)):
        card = re.sub(rf'^{name} = "[^"\n]*"', f'{name} = "{value}"', card, flags=re.MULTILINE)
    return card


def eval_results(evaluation: list[dict]) -> list[EvalResult] | None:
    """The rows of a run's evaluation for the metadata of a card; data that is not on the Hub stands by its name."""
    return [
        EvalResult(
            task_type=_TASK,
            dataset_type=row.get("dataset_id") or row["task"],
            dataset_name=row["task"],
            metric_type=row["metric"],
            metric_value=row["value"],
            metric_name=f"{row['metric']} ({row['n']:,} questions)",
        )
        for row in evaluation
    ] or None


def in_words(value) -> str:
    """A fact as a card shows it: numbers with separators, lists and tables in one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {in_words(part)}" for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(in_words, value))
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _source(name: str) -> str:
    return (files("shirg_hub_card") / name).read_text()
