"""The folder of one fine-tuning run: what it was asked for, how far it is, and what is read from it afterwards.

- `arguments.json`: what it was asked for, written before anything else; the same command continues the run.
- `run.json`: facts and figures (run_facts.py); its `status` becomes `finished` as the last thing of all.
- `log.jsonl`: one line per log entry; a resumed run continues it (run_log.py).
- `skipped_rows.jsonl`: rows that could not be used, with why.
- `checkpoint-*`: the Trainer's; an unfinished run resumes from the last one that is complete.
- `adapter_config.json`, `adapter_model.safetensors`, the processor's files, `loss.png`: of the finished run.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modeling_shirg.training.arguments import DataArguments, ModelArguments
from modeling_shirg.training.data.specs import read_specs
from modeling_shirg.training.trainer_arguments import ShirgTrainingArguments

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
    "eval_strategy",
    "eval_steps",
    "eval_delay",
    "load_best_model_at_end",
    "metric_for_best_model",
    "early_stopping_patience",
)
# Only what is saved can be the best.
_DECIDING_THE_BEST = ("save_strategy", "save_steps")
# In stage align, the rows of one forward are told apart.
_DECIDING_ALIGNMENT = ("per_device_train_batch_size", "per_device_eval_batch_size")
# Of the arguments about data, those that do not decide what is read.
_NOT_DECIDING = ("num_proc",)


def run_settings(model: ModelArguments, data: DataArguments, training: ShirgTrainingArguments) -> dict[str, Any]:
    """What decides the result of a run, as JSON values; of `data_config` what the file lists.

    Args:
        model: of this run.
        data: of this run.
        training: of this run.
    """
    settings = {**asdict(model), **asdict(data)}
    settings = {name: value for name, value in settings.items() if name not in _NOT_DECIDING}
    if data.data_config is not None:
        settings["data_config"] = [asdict(spec) for spec in read_specs(data.data, data.data_config, "--data")]
    deciding = _DECIDING
    if training.load_best_model_at_end:
        deciding += _DECIDING_THE_BEST
    if training.stage == "align":
        deciding += _DECIDING_ALIGNMENT
    settings |= {name: getattr(training, name) for name in deciding}
    if data.streaming:
        settings |= _order_of_a_stream(training)
    return json.loads(json.dumps(settings))


def _order_of_a_stream(training: ShirgTrainingArguments) -> dict[str, int]:
    """What decides the order of a stream's rows: workers read parts of it, and take turns batch by batch."""
    workers = max(training.dataloader_num_workers, 1)
    order = {"dataloader_num_workers": workers}
    if workers > 1:
        order["per_device_train_batch_size times processes"] = training.train_batch_size * training.world_size
    return order


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
        if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            old, new = _changed(old, new)
        if old != new:
            raise ValueError(
                f"{folder} holds a run with {name}={old!r}, this one asks for {name}={new!r}. Choose another "
                f"output_dir, or go back to {name}={old!r} to continue that run."
            )
    return read_facts(folder).get("status") == "finished"


def _changed(old: list, new: list) -> tuple[list, list]:
    """The entries in which two lists differ."""
    pairs = [pair for pair in zip(old, new, strict=True) if pair[0] != pair[1]]
    return [one for one, _ in pairs], [other for _, other in pairs]


def read_facts(folder: Path) -> dict[str, Any]:
    """What run.json holds; nothing before it was first written."""
    file = folder / RUN_FILE
    return json.loads(file.read_text()) if file.exists() else {}
