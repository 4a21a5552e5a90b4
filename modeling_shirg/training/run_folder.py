"""The folder of one fine-tuning run: what it was asked for, how far it is, and what is read from it afterwards.

- `arguments.json`: what it was asked for, written before anything else; the same command continues the run.
- `run.json`: facts and figures (run_facts.py); its `status` becomes `finished` as the last thing of all.
- `log.jsonl`: one line per log entry; a resumed run continues it (run_log.py).
- `skipped_rows.jsonl`: rows that could not be used, with why.
- `checkpoint-*`: the Trainer's; an unfinished run resumes from the last one that is complete.
- `adapter_config.json`, `adapter_model.safetensors`, the processor's files, `loss.png`: of the finished run.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modeling_shirg.training.arguments import ModelArguments, ShirgTrainingArguments

ARGUMENTS_FILE = "arguments.json"
RUN_FILE = "run.json"
SKIPPED_FILE = "skipped_rows.jsonl"

# What decides the trained weights; how they are computed and reported may change between two starts.
_DECIDING = (
    "seed",
    "stage",
    "align_temperature",
    "effective_batch_size",
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "group_learning_rates",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "weight_decay",
    "optim",
    "optim_args",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "token_dropout",
    "answer_length",
    "fovea_sizes",
    "budgets",
    "train_selection",
    "early_stopping_patience",
    "eval_steps",
)
# Of the arguments about data, those that do not decide what is read.
_NOT_DECIDING = ("num_proc",)


def run_settings(model: ModelArguments, data: Any, training: ShirgTrainingArguments) -> dict[str, Any]:
    """What decides the result of a run, as JSON values.

    Args:
        model: of this run.
        data: of this run, a dataclass.
        training: of this run.
    """
    settings = {**asdict(model), **asdict(data)}
    settings = {name: value for name, value in settings.items() if name not in _NOT_DECIDING}
    settings |= {name: getattr(training, name) for name in _DECIDING}
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
    return read_facts(folder).get("status") == "finished"


def read_facts(folder: Path) -> dict[str, Any]:
    """What run.json holds; nothing before it was first written."""
    file = folder / RUN_FILE
    return json.loads(file.read_text()) if file.exists() else {}


def write_json(file: Path, values: Any) -> None:
    """Replace a file in one step: whoever reads sees the old one or the new one, never a half."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.tmp")
    try:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def write_skipped(folder: Path, skipped: list[dict[str, Any]]) -> None:
    """Write the rows that could not be used."""
    lines = "".join(json.dumps(row) + "\n" for row in skipped)
    (folder / SKIPPED_FILE).write_text(lines, encoding="utf-8")
