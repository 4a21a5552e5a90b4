"""run.json: what a run was, in facts that its card and whoever loads its adapter rely on."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedConfig
from transformers.utils import CONFIG_NAME, cached_file
from transformers.utils.hub import extract_commit_hash

from modeling_shirg.adapters_shirg import geometry_facts, system_overrides
from modeling_shirg.fingerprint_shirg import fingerprint
from modeling_shirg.training.footprints import Footprint, trainable_counts
from modeling_shirg.training.run_log import read_log
from modeling_shirg.training.trainer_arguments import ShirgTrainingArguments

_PACKAGES = ("shirg-lavida", "torch", "transformers", "peft", "accelerate", "datasets")


def starting_facts(
    model: PeftModel,
    base_config: PreTrainedConfig,
    footprint: Footprint,
    data: Sequence[dict[str, Any]],
    args: ShirgTrainingArguments,
    command: str,
) -> dict[str, Any]:
    """Facts that are known before the first step.

    Args:
        model: with the adapter, not yet trained; its PEFT config names the base's commit.
        base_config: the base model's config as it is stored.
        footprint: what is trained.
        data: what the rows report about their sources.
        args: the recipe.
        command: how the run was started.
    """
    config, counts = model.get_base_model().config, trainable_counts(model)
    return {
        "status": "running",
        "base_model": {
            "name_or_path": config.name_or_path,
            "revision": model.peft_config["default"].revision,
            "fingerprint": fingerprint(model.get_base_model()),
        },
        "prune_method": config.prune_method,
        "config_overrides": system_overrides(config, base_config),
        "config": geometry_facts(config),
        "stage": args.stage,
        "footprint": {"name": footprint.name, "rank": footprint.rank, "alpha": footprint.alpha},
        "trainable": counts.to_dict(),
        "data": list(data),
        "metrics": {},
        "evaluation": [],
        "effective_batch": args.effective_batch_size,
        "seed": args.seed,
        "versions": {name: version(name) for name in _PACKAGES},
        "machine": _machine(args),
        "command": command,
    }


def base_commit(name_or_path: str, revision: str | None) -> str | None:
    """The commit on the Hub that the base model's files are of; `None` for a folder."""
    return extract_commit_hash(cached_file(name_or_path, CONFIG_NAME, revision=revision), None)


def closing_facts(state: Any, log_file: Path) -> dict[str, Any]:
    """Facts that are known after the last step.

    Args:
        state: the Trainer's.
        log_file: the run's log.
    """
    log = read_log(log_file)
    losses = [entry["loss"] for entry in log if "loss" in entry]
    best = {entry["step"]: entry["eval_loss"] for entry in log if "eval_loss" in entry}
    best_step = state.best_global_step if best else state.global_step
    train_loss = losses[-1] if losses else None  # a run may be shorter than the interval of its log
    return {
        "metrics": {"best_step": best_step, "eval_loss": best.get(best_step), "train_loss": train_loss},
        "steps": state.global_step,
        "epochs": state.epoch,
        "seconds": log[-1]["seconds"],
    }


def _machine(args: ShirgTrainingArguments) -> dict[str, Any]:
    device = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else args.device.type
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "device": device,
        "processes": args.world_size,
        "cpu_cores": os.cpu_count(),
        "bf16": args.bf16,
    }
