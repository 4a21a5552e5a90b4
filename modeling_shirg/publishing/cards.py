"""Model cards: the templates of hub_card/ filled from facts, the one place where a card is written."""

import re
from importlib.resources import files
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FunctionLoader, StrictUndefined, UndefinedError

from .checkpoint import Checkpoint

MODEL_TAGS = ("masked-diffusion", "vision-language", "visual-token-selection", "shirg", "custom_code")
_TASK = "image-text-to-text"


def render(
    template: str, base: Checkpoint, licence: str | None, source: str, metadata: dict[str, Any] | None = None, **facts
) -> ModelCard:
    """The card of `hub_card/{template}_card_template.md`; a fact that the template reads and that is missing raises.

    Args:
        template: such as `"adapter"`.
        base: the checkpoint that the weights come from.
        licence: identifier of the publisher's choice; by default `base` hands on its own.
        source: folder or repository in the card's example code.
        metadata: metadata fields beside those of every model card, or in their place; `None` leaves a field out.
        facts: further variables of the template.
    """
    data = {
        **({"license": licence} if licence else base.licence),
        "base_model": base.name if base.revision else None,
        "library_name": "transformers",
        "pipeline_tag": _TASK,
        "tags": [*MODEL_TAGS],
        **(metadata or {}),
    }
    example = {"revision": "main", "image": "photo.png", "question": "Describe the image in detail."}
    shared = {"base": base, "licence": licence, "source": source, "title": source.split("/")[-1]}
    environment = Environment(loader=FunctionLoader(_template_text), undefined=StrictUndefined)
    facts = {**example, **shared, **facts, "card_data": ModelCardData(**data).to_yaml()}
    try:
        return ModelCard(environment.get_template(f"{template}_card_template.md").render(facts) + "\n")
    except UndefinedError as error:
        raise ValueError(f"The card cannot be written, a fact is missing in {source}: {error}") from None


def eval_results(evaluation: list[dict]) -> list[EvalResult] | None:
    """Rows of a run's evaluation for a card's metadata; a data set without a Hub id goes by the task's name."""
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


def addressed(card: str, source: str, revision: str) -> str:
    """The card with its example code's lines `source = "..."` and `revision = "..."` set to these values."""
    for name, value in (("source", source), ("revision", revision)):
        card = re.sub(rf'^{name} = "[^"\n]*"', f'{name} = "{value}"', card, flags=re.MULTILINE)
    return card


def _template_text(name: str) -> str:
    return (files("shirg_hub_card") / name).read_text(encoding="utf-8")
