"""The cards of what a run made: its report put in order for a template, and in the Hub's own metadata."""

import yaml
from huggingface_hub import EvalResultEntry, ModelCard, eval_result_entries_to_yaml
from transformers.utils import logging

from configuration_shirg import GEOMETRIES

from .base_model import BaseModel
from .cards import eval_results, render
from .licences import licence_text
from .publication import EVAL_RESULTS
from .run_folder import publishable

logger = logging.get_logger(__name__)


def published_run(run: dict, base: BaseModel) -> dict:
    """The run's report with the base as it is published, and without this machine's paths."""
    told = {**run["base_model"], "name_or_path": base.name, "revision": base.revision}
    return {**publishable(run), "base_model": told}


def run_card(
    template: str,
    repo_id: str,
    run: dict,
    base: BaseModel,
    licence: str | None,
    metadata: dict,
    **facts,
) -> ModelCard:
    """The card of a run's adapter or merged model.

    Args:
        template: `"adapter"` or `"merged"`.
        repo_id: where it is published.
        run: the report that is published.
        base: the base model.
        licence: identifier of the licence; by default the base's.
        metadata: further metadata.
        facts: what else the template needs.
    """
    name = repo_id.split("/")[-1]
    metadata = {
        **metadata,
        **licence_metadata(licence, base.licence),
        "base_model": base.name if base.revision else None,
        "datasets": _hub_datasets(run["data"]) or None,
        "model_name": name,
        "eval_results": eval_results(run["evaluation"]),
    }
    return render(
        template,
        metadata,
        title=name,
        run=run,
        is_toy=run["config"]["image_size"] == GEOMETRIES["toy"]["image_size"],
        command=run["command"] if isinstance(run["command"], str) else " ".join(run["command"]),
        base=base,
        base_text=base_text(base),
        licence=licence_sentence(licence, base.licence, "The base"),
        source=repo_id,
        revision="main",
        **facts,
    )


def base_text(base: BaseModel) -> str:
    """The base in a sentence of a card."""
    if base.revision is None:
        return f"a local folder, `{base.name}`"
    return f"[{base.name}](https://huggingface.co/{base.name}) at commit `{base.revision}`"


def licence_metadata(licence: str | None, of_base: dict[str, str]) -> dict[str, str]:
    return {"license": licence} if licence else of_base


def licence_sentence(licence: str | None, of_base: dict[str, str], whose: str) -> str:
    stated = licence_text(of_base, whose)
    return stated if licence is None else f"`{licence}`, as its publisher says. {stated}"


def eval_results_file(run: dict) -> dict[str, bytes]:
    """The rows of the evaluation that were measured on a data set of the Hub, in the Hub's own format."""
    entries = [
        EvalResultEntry(
            dataset_id=row["dataset_id"],
            task_id=row["task"],
            value=row["value"],
            dataset_revision=row.get("dataset_revision"),
            notes=f"{row['metric']}, {row['n']:,} questions, prune_method {run['prune_method']}",
        )
        for row in run["evaluation"]
        if row.get("dataset_id")
    ]
    if not entries:
        return {}
    return {EVAL_RESULTS: yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False).encode()}


def _hub_datasets(data: list[dict]) -> list[str]:
    """Those of a run's sources that are data sets on the Hub."""
    return list(dict.fromkeys(source["dataset_id"] for source in data if source.get("dataset_id")))
