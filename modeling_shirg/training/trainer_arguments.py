"""The recipe on top of transformers' TrainingArguments, and how arguments are read: from flags, or from a file."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from transformers import HfArgumentParser, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.utils.import_utils import is_torch_bf16_gpu_available

from configuration_shirg.presets_shirg import did_you_mean
from modeling_shirg.training.arguments import RecipeArguments, read_settings
from modeling_shirg.training.footprints import GROUPS

_FILES = (".yaml", ".yml", ".json")


@dataclass
class ShirgTrainingArguments(RecipeArguments, TrainingArguments):
    """transformers' TrainingArguments with the recipe's defaults, and what the recipe adds.

    Raises:
        ValueError: arguments contradict each other; the message names both.
    """

    dataloader_pin_memory: bool = field(
        default_factory=torch.accelerator.is_available, metadata={"help": "Pin batches in host memory."}
    )

    def __post_init__(self):
        if self.bf16 is None:
            self.bf16 = not self.use_cpu and not self.fp16 and is_torch_bf16_gpu_available()
        if self.eval_strategy == "no":
            self.without_validation()
        super().__post_init__()
        self.label_names = ["labels"]
        self.remove_unused_columns = False  # the collator reads rows
        self.ddp_find_unused_parameters = False  # every trained weight is used in every step
        self.logging_nan_inf_filter = False  # it hides a lost run
        self.restore_callback_states_from_checkpoint = True  # a resumed run counts on towards early stopping
        if self.activation_checkpointing and self.activation_checkpointing_kwargs is None:
            self.activation_checkpointing_kwargs = {"use_reentrant": False}
        self._check_recipe()
        self._accumulate()

    @property
    def learning_rates(self) -> dict[str, float]:
        """Peak learning rate of every module group."""
        rates = dict.fromkeys(GROUPS, self.learning_rate)
        for entry in self.group_learning_rates:
            group, equals, rate = entry.partition("=")
            if group not in GROUPS or not equals:
                raise ValueError(f"group_learning_rates: {entry!r} is not GROUP=RATE with one of {', '.join(GROUPS)}.")
            rates[group] = float(rate)
        return rates

    def without_validation(self) -> None:
        """Train without validation rows: no best checkpoint, no early stopping, the last weights are kept."""
        self.eval_strategy = IntervalStrategy.NO
        self.load_best_model_at_end = self.do_eval = False
        self.metric_for_best_model = None
        self.early_stopping_patience = 0

    def only_check(self, folder: str, steps: int) -> None:
        """Train `steps` steps of one forward per device in `folder`, at full speed, and keep nothing."""
        self.output_dir = folder
        self.effective_batch_size = self.train_batch_size * self.world_size
        self.gradient_accumulation_steps = 1
        self.max_steps, self.warmup_steps = steps, 0
        self.save_strategy = SaveStrategy.NO
        self.report_to = []
        self.without_validation()

    def _check_recipe(self) -> None:
        if self.token_dropout is not None and not 0 <= self.token_dropout < 1:
            raise ValueError(f"token_dropout is a share, 0 or more and below 1, got {self.token_dropout}.")
        if self.n_gpu > 1:
            raise ValueError(
                f"One process would train on {self.n_gpu} devices: start one per device with `torchrun "
                f"--nproc_per_node {self.n_gpu} -m shirg_scripts.cli train ...`, or show it one "
                "device (CUDA_VISIBLE_DEVICES=0)."
            )
        for name, low in {"align_temperature": 1e-6, "early_stopping_patience": 0}.items():
            if not getattr(self, name) >= low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}.")
        if not all(0 < rate < math.inf for rate in self.learning_rates.values()):
            raise ValueError(f"Learning rates must be above 0 and finite, got {self.learning_rates}.")
        if self.save_strategy == "steps" and self.save_steps >= 1 and self.save_steps % self.logging_steps:
            raise ValueError(
                f"save_steps={self.save_steps} must be a multiple of logging_steps={self.logging_steps}: otherwise a "
                "resumed run logs other means than one that was never stopped."
            )

    def _accumulate(self) -> None:
        """Sets the gradient accumulation that gives the effective batch on this many devices."""
        together = self.train_batch_size * self.world_size
        steps, rest = divmod(self.effective_batch_size, together)
        if rest or steps < 1:
            raise ValueError(
                f"effective_batch_size={self.effective_batch_size} must be a multiple of "
                f"per_device_train_batch_size={self.per_device_train_batch_size} on {self.world_size} devices."
            )
        if self.gradient_accumulation_steps not in (1, steps):
            raise ValueError(
                f"gradient_accumulation_steps={self.gradient_accumulation_steps} follows from effective_batch_size="
                f"{self.effective_batch_size}, which is {steps} here: set the effective batch alone."
            )
        self.gradient_accumulation_steps = steps


def parse_arguments(argv: list[str], kinds: Iterable[type], **parser_options: Any) -> tuple:
    """One object of each of the dataclasses `kinds`, from flags, or from a YAML or JSON file and flags that win."""
    kinds = tuple(kinds)
    parser = HfArgumentParser(kinds, allow_abbrev=False, **parser_options)
    if argv and Path(argv[0]).suffix in _FILES:
        argv = [*_as_flags(Path(argv[0]), {each.name for kind in kinds for each in fields(kind)}), *argv[1:]]
    values = vars(parser.parse_args(argv))
    if "validation_data" in values and not values["validation_data"] and not values["validation_rows"]:
        values["eval_strategy"] = "no"
    return parser.parse_dict(values)


def _as_flags(file: Path, known: set[str]) -> list[str]:
    """The arguments of a file, as they would be written on the command line."""
    values = read_settings(file)
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold arguments by name, got {type(values).__name__}.")
    flags = []
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{file}: there is no argument {name!r}.{did_you_mean(name, known)}")
        if value is None or value == []:
            continue
        written = json.dumps(value) if isinstance(value, (dict, bool)) else value
        flags += [f"--{name}", *map(str, written if isinstance(written, list) else [written])]
    return flags
