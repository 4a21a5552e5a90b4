"""The folder of one training stage: what it was asked for, whether it is finished, and what the next stage reads.

    stage.json                   {"finished": ..., "settings": ...}: written first, replaced as the last thing
    config.json, tokenizer.json  of the model, written before training
    checkpoint-*                 the Trainer's; an unfinished stage resumes from the last one that is complete
    model.safetensors            the trained weights

Settings are what decides the weights; how they are computed (workers, device, torch.compile) may change between two
runs. They include those of the stages before, under names that start with the stage's (its folder's) name, so that a
stage cannot be reused behind another start than its own.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from configuration_shirg import ShirgLavidaConfig
from modeling_shirg.running.files import write_json
from modeling_shirg.training.toy.tokenizer import load_tokenizer

logger = logging.get_logger(__name__)

STAGE_FILE = "stage.json"
WEIGHTS_FILE = "model.safetensors"


def stage_settings(folder: Path, previous: Path | None, seed: int, **own) -> dict:
    """The settings of stage `folder` that starts from the finished stage `previous`; JSON values only."""
    inherited = {} if previous is None else finished_settings(previous)
    return inherited | {"seed": seed} | {f"{folder.name}_{name}": value for name, value in own.items()}


def open_stage(folder: Path, settings: dict) -> bool:
    """Whether stage `folder` is finished already; a new folder gets its `settings` written.

    Raises:
        ValueError: the folder was made with other settings, or holds a training and no record of its settings.
    """
    if not (folder / STAGE_FILE).exists():
        if (folder / WEIGHTS_FILE).exists() or any(folder.glob("checkpoint-*")):
            raise ValueError(
                f"{folder} holds a training but no {STAGE_FILE}, so its settings are unknown: it cannot be reused. "
                "Choose another output_dir, or remove the folder."
            )
        write_json(folder / STAGE_FILE, {"finished": False, "settings": settings})
        return False
    record = json.loads((folder / STAGE_FILE).read_text())
    for name in record["settings"] | settings:
        old, new = record["settings"].get(name), settings.get(name)
        if old != new:
            raise ValueError(
                f"{folder} was made with {name}={old!r}, this run asks for {name}={new!r}. "
                f"Choose another output_dir, or go back to {name}={old!r}."
            )
    if record["finished"]:
        logger.info("Stage %s: finished before, skipped", folder.name)
    return record["finished"]


def save_start(folder: Path, config: ShirgLavidaConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write config and tokenizer, before training: calls with padding leave their mark on what a tokenizer saves."""
    config.to_json_file(folder / "config.json")
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))


def close_stage(folder: Path) -> None:
    """Mark the stage finished; the weights are there."""
    settings = json.loads((folder / STAGE_FILE).read_text())["settings"]
    write_json(folder / STAGE_FILE, {"finished": True, "settings": settings})


def read_stage(folder: Path) -> tuple[ShirgLavidaConfig, PreTrainedTokenizerBase, dict[str, torch.Tensor]]:
    """Config, tokenizer and weights of the finished stage `folder`."""
    finished_settings(folder)
    config = ShirgLavidaConfig.from_json_file(folder / "config.json")
    return config, load_tokenizer(folder / "tokenizer.json"), load_file(folder / WEIGHTS_FILE)


def finished_settings(folder: Path) -> dict:
    """What decided the weights of the finished stage `folder`, of the stages before it too.

    Raises:
        ValueError: it is not finished.
    """
    file = folder / STAGE_FILE
    record = json.loads(file.read_text()) if file.exists() else {"finished": False}
    if not record["finished"]:
        raise ValueError(f"{folder} is not a finished stage: train it first, with the same output_dir.")
    return record["settings"]
