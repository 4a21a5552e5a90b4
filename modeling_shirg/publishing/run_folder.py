"""The report of a training run, as a stranger may read it."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from modeling_shirg.adapters_shirg import RUN_FILE, Adapter

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


def open_run(folder: Path, allow_unfinished: bool = False) -> Adapter:
    """The adapter of a run folder, complete and with its whole report.

    Raises:
        ValueError: there is none, it lacks tensors or facts, or its run has not finished.
    """
    adapter = Adapter.open(str(folder))
    if adapter is None:
        raise ValueError(f"{folder} has no adapter_config.json: has its run written an adapter yet?")
    if adapter.run is None:
        raise ValueError(
            f"{folder} has no {RUN_FILE}, so nobody could say what it was trained on: give the folder of the whole "
            "run, not one of its checkpoints."
        )
    unfinished = adapter.run.get("status") != _FINISHED
    missing = [key for key in _REPORTED + (() if unfinished else _REPORTED_AT_THE_END) if key not in adapter.run]
    if missing:
        raise ValueError(f"{folder / RUN_FILE} lacks {', '.join(missing)}: was it written by `shirg train`?")
    if unfinished and not allow_unfinished:
        raise ValueError(
            f"The run of {folder} has status {adapter.run['status']!r}: let it finish, or give --allow_unfinished to "
            "publish what it has, with a card that says so."
        )
    adapter.check_complete()
    return replace(adapter, run={**dict.fromkeys(_REPORTED_AT_THE_END), **adapter.run})


def publishable(value: Any) -> Any:
    """The report without what is this machine's own: absolute paths are cut to their last part, tokens are hidden."""
    if isinstance(value, dict):
        return {key: publishable(part) for key, part in value.items()}
    if isinstance(value, list):
        return [publishable(part) for part in value]
    return _PATH.sub(r"\1", _TOKEN.sub(r"\1***", value)) if isinstance(value, str) else value
