"""The folder of one fine-tuning run: what it was asked for, how far it is, and what is read from it afterwards.

- `arguments.json`: what it was asked for, written before anything else; the same command continues the run.
- `run.json`: facts that the card of the run relies on; its `status` becomes `finished` as the last thing of all.
- `log.jsonl`: one line per log entry, the same whether the run was stopped or not.
- `skipped_rows.jsonl`: rows that could not be used, with why.
- `checkpoint-*`: the Trainer's; an unfinished run resumes from the last one that is complete.
- `adapter_config.json`, `adapter_model.safetensors`, the processor's files, `loss.png`: of the finished run.
"""

import json
import os
import platform
import shutil
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedConfig, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import CONFIG_NAME, cached_file, logging
from transformers.utils.hub import extract_commit_hash

from modeling_shirg.adapters_shirg import geometry_facts, system_overrides
from modeling_shirg.fingerprint_shirg import fingerprint
from modeling_shirg.running.files import write_lines
from modeling_shirg.training.arguments import DataArguments, ModelArguments
from modeling_shirg.training.footprints import Footprint, trainable_counts
from modeling_shirg.training.sources import read_specs
from modeling_shirg.training.trainer_arguments import ShirgTrainingArguments

logger = logging.get_logger(__name__)

ARGUMENTS_FILE, RUN_FILE, LOG_FILE = "arguments.json", "run.json", "log.jsonl"
SKIPPED_FILE, CURVE_FILE = "skipped_rows.jsonl", "loss.png"
_PACKAGES = ("shirg-lavida", "torch", "transformers", "peft", "accelerate", "datasets")
# What decides the trained weights; how they are computed and reported may change between two starts.
_DECIDING = (
    "seed stage align_temperature effective_batch_size num_train_epochs max_steps learning_rate group_learning_rates "
    "lr_scheduler_type lr_scheduler_kwargs warmup_steps weight_decay optim optim_args adam_beta1 adam_beta2 "
    "adam_epsilon max_grad_norm token_dropout answer_length fovea_sizes budgets train_selection eval_strategy "
    "eval_steps eval_delay load_best_model_at_end metric_for_best_model early_stopping_patience"
).split()


def run_settings(model: ModelArguments, data: DataArguments, training: ShirgTrainingArguments) -> dict[str, Any]:
    """What decides the result of a run, as JSON values; of `data_config` what the file lists."""
    settings = {**asdict(model), **asdict(data)}
    del settings["num_proc"]
    if data.data_config is not None:
        settings["data_config"] = [asdict(spec) for spec in read_specs(data.data, data.data_config)]
    deciding = list(_DECIDING)
    if training.load_best_model_at_end:  # only what is saved can be the best
        deciding += ["save_strategy", "save_steps"]
    if training.stage == "align":  # the rows of one forward are told apart
        deciding += ["per_device_train_batch_size", "per_device_eval_batch_size"]
    settings |= {name: getattr(training, name) for name in deciding}
    return json.loads(json.dumps(settings))


def is_finished(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the run in `folder` is finished; it may not have begun.

    Raises:
        ValueError: the folder holds a run with other settings, or something that is no run.
    """
    file = folder / ARGUMENTS_FILE
    if not file.exists():
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty and holds no {ARGUMENTS_FILE}, so it is no run: choose another.")
        return False
    before = json.loads(file.read_text())
    for name in before | settings:
        old, new = before.get(name), settings.get(name)
        if old != new:
            raise ValueError(
                f"{folder} holds a run with {name}={old!r}, this one asks for {name}={new!r}. Choose another "
                f"output_dir, or go back to {name}={old!r} to continue that run."
            )
    facts = folder / RUN_FILE
    return facts.exists() and json.loads(facts.read_text())["status"] == "finished"


def last_complete_checkpoint(folder: Path) -> str | None:
    """The checkpoint to resume from; half-written ones, of which the state file is not there or cut off, are removed.

    The Trainer writes the state file last.
    """
    while folder.exists() and (checkpoint := get_last_checkpoint(str(folder))) is not None:
        try:
            TrainerState.load_from_json(os.path.join(checkpoint, TRAINER_STATE_NAME))
        except (FileNotFoundError, ValueError):
            logger.warning("Removing the half-written checkpoint %s", checkpoint)
            shutil.rmtree(checkpoint)
        else:
            return checkpoint
    return None


class RunLog(TrainerCallback):
    """Keeps log.jsonl equal to the Trainer's history, with the `seconds` that training has taken over all starts."""

    def __init__(self, folder: Path):
        self.file = folder / LOG_FILE

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = time.monotonic() - (state.log_history[-1]["seconds"] if state.log_history else 0.0)

    def on_log(self, args, state, control, **kwargs):
        state.log_history[-1]["seconds"] = round(time.monotonic() - self.started, 3)
        if state.is_world_process_zero:
            write_lines(self.file, state.log_history)


def draw_losses(folder: Path, history: list[dict[str, Any]]) -> Path:
    """Draw the losses of the Trainer's `history` over steps; returns the picture's path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="mean loss of an answer token", title=folder.resolve().name)
    for name, label, style in (("loss", "training", "-"), ("eval_loss", "validation", "o-")):
        points = [(entry["step"], entry[name]) for entry in history if name in entry]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(folder / CURVE_FILE, dpi=120)
    return folder / CURVE_FILE


def starting_facts(
    model: PeftModel, base_config: PreTrainedConfig, footprint: Footprint, args: ShirgTrainingArguments
) -> dict[str, Any]:
    """What run.json says before the first step; `base_config` is the base model's config as it is stored."""
    config = model.get_base_model().config
    device = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else args.device.type
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
        "trainable": asdict(trainable_counts(model)),
        "metrics": {},
        "evaluation": [],
        "effective_batch": args.effective_batch_size,
        "seed": args.seed,
        "versions": {name: version(name) for name in _PACKAGES},
        "machine": {
            "platform": platform.platform(),
            "python": platform.python_version(),
            "device": device,
            "processes": args.world_size,
            "cpu_cores": os.cpu_count(),
            "bf16": args.bf16,
        },
    }


def base_commit(name_or_path: str, revision: str | None) -> str | None:
    """The commit on the Hub that the base model's files are of; `None` for a folder."""
    return extract_commit_hash(cached_file(name_or_path, CONFIG_NAME, revision=revision), None)


def closing_facts(state: TrainerState) -> dict[str, Any]:
    """What run.json says after the last step; a run may be shorter than the interval of its log."""
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    validation = {entry["step"]: entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry}
    best_step = state.best_global_step if validation else state.global_step
    return {
        "metrics": {
            "best_step": best_step,
            "eval_loss": validation.get(best_step),
            "train_loss": losses[-1] if losses else None,
        },
        "steps": state.global_step,
        "epochs": state.epoch,
        "seconds": state.log_history[-1]["seconds"],
    }
