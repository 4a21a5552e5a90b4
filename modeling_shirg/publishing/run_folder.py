"""The report of a training run, as a stranger may read it."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from modeling_shirg.adapters_shirg import RUN_FILE, Adapter, read_run
from modeling_shirg.training.run_log import LOG_FILE, read_log
from modeling_shirg.training.toy.stage import is_complete

# What a card is written from; the second are known when a run ends.
_REPORTED = (
    "base_model",
    "prune_method",
    "config_overrides",
    "config",
    "footprint",
    "trainable",
    "data",
    "metrics",
    "evaluation",
    "effective_batch",
    "seed",
    "versions",
    "machine",
    "command",
    "status",
)
_REPORTED_AT_THE_END = ("steps", "epochs", "seconds")
_FINISHED = "finished"
# What follows a flag such as --hub_token, and what a token of the Hub looks like.
_TOKEN = re.compile(r"(--?\w*token[= ]+|\bhf_)[^\s'\",]+", flags=re.IGNORECASE)
# An absolute path inside a text, but no URL and no fraction.
_PATH = re.compile(r"(?<![\w./~-])~?/(?!/)(?:[^\s'\",:=/]+/)*([^\s'\",:=/]+)/?")


def open_run(folder: Path, checkpoint: str | None = None) -> Adapter:
    """The adapter of a run folder, complete and with its whole report.

    Args:
        folder: of the run.
        checkpoint: name of one of its checkpoints, to take that one's adapter; the run need not have finished then.

    Raises:
        ValueError: there is none, it lacks tensors or facts, or its run has not finished.
    """
    if not (folder / RUN_FILE).is_file():
        raise ValueError(
            f"{folder} has no {RUN_FILE}, so nobody could say what it was trained on: give the folder of the whole "
            "run, and --checkpoint NAME for one of its checkpoints."
        )
    run = read_run(str(folder / RUN_FILE))
    missing = [key for key in _REPORTED if key not in run]
    if checkpoint is not None:
        adapter, run = _checkpoint(folder, checkpoint, run)
    elif run.get("status") == _FINISHED:
        adapter, missing = Adapter.open(str(folder)), missing + [key for key in _REPORTED_AT_THE_END if key not in run]
    else:
        raise ValueError(
            f"The run of {folder} has status {run.get('status')!r}. The command that started it continues it; to "
            f"publish it as it is, name one of its checkpoints: --checkpoint NAME. {_complete_checkpoints(folder)}"
        )
    if missing:
        raise ValueError(f"{folder / RUN_FILE} lacks {', '.join(missing)}: was it written by `shirg train`?")
    if adapter is None:
        raise ValueError(f"{folder / (checkpoint or '')} has no adapter_config.json, so there is no adapter.")
    adapter = replace(adapter, run=run)
    adapter.check_complete()
    return adapter


def _checkpoint(folder: Path, checkpoint: str, run: dict) -> tuple[Adapter | None, dict]:
    """The adapter of a checkpoint, and the run's report with the figures of its step."""
    place = folder / Path(checkpoint).name
    if not is_complete(place):
        raise ValueError(f"{folder} has no complete {place.name}. {_complete_checkpoints(folder)}")
    state = json.loads((place / TRAINER_STATE_NAME).read_text())
    step, history = state["global_step"], state["log_history"]
    seconds = [entry["seconds"] for entry in read_log(folder / LOG_FILE) if entry["step"] <= step]
    figures = {
        "checkpoint": place.name,
        "steps": step,
        "epochs": state["epoch"],
        "seconds": seconds[-1] if seconds else None,
        "metrics": {"eval_loss": _last(history, "eval_loss", step), "train_loss": _last(history, "loss", step)},
        "evaluation": [],  # of other weights
    }
    return Adapter.open(str(place)), run | figures


def _last(history: list[dict], name: str, step: int) -> float | None:
    """What was logged at a step, if it was."""
    return next((entry[name] for entry in history if entry["step"] == step and name in entry), None)


def _complete_checkpoints(folder: Path) -> str:
    found = [each.name for each in folder.glob("checkpoint-*") if is_complete(each)]
    return f"Complete ones: {', '.join(sorted(found, key=lambda name: (len(name), name))) or 'none'}."


def publishable(value: Any) -> Any:
    """The report without what is this machine's own: absolute paths are cut to their last part, tokens are hidden."""
    if isinstance(value, dict):
        return {key: publishable(part) for key, part in value.items()}
    if isinstance(value, list):
        return [publishable(part) for part in value]
    return _PATH.sub(r"\1", _TOKEN.sub(r"\1***", value)) if isinstance(value, str) else value
