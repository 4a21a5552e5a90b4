"""Arguments of `shirg train`: what is trained from what, and the recipe on top of transformers' TrainingArguments.

They come as flags, or as one YAML or JSON file with flags behind it that win.
"""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.utils.import_utils import is_torch_bf16_gpu_available

from modeling_shirg.training.footprints import GROUPS
from modeling_shirg.training.settings_file import read_settings

_FILES = (".yaml", ".yml", ".json")
# One of them is set in each of several processes, by whatever started them.
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


@dataclass
class ModelArguments:
    """What is fine-tuned, and which of its weights."""

    model: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the base model; by default the bundled toy checkpoint."}
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the base model."})
    prune_method: str | None = field(
        default=None, metadata={"help": "System to train under; by default the checkpoint's own."}
    )
    option: list[str] = field(
        default_factory=list,
        metadata={"help": "Other fields of the config as FIELD=VALUE, such as text_weight=0.", "action": "extend"},
    )
    dtype: str = field(default="auto", metadata={"help": "Type of the frozen weights; trained ones are float32."})
    footprint: str = field(default="shirg-extra", metadata={"help": "Which weights are trained (footprints.py)."})
    rank: int | None = field(default=None, metadata={"help": "LoRA rank; by default the footprint's, 64."})
    alpha: float | None = field(default=None, metadata={"help": "LoRA alpha; by default twice the rank."})
    adapter: str | None = field(
        default=None,
        metadata={"help": "Start from this adapter of the same footprint, such as a run with stage=align."},
    )


@dataclass
class ShirgTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments with the recipe's defaults, and what the recipe adds.

    Raises:
        ValueError: arguments contradict each other; the message names both.
    """

    effective_batch_size: int = field(
        default=128,
        metadata={"help": "Rows per optimizer step over all devices; gradient accumulation follows from it."},
    )
    per_device_train_batch_size: int = field(default=1, metadata={"help": "Rows per forward on one device."})
    per_device_eval_batch_size: int = field(default=4, metadata={"help": "Rows per forward in validation."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "Passes over the data."})
    learning_rate: float = field(default=1.8e-5, metadata={"help": "Peak learning rate."})
    group_learning_rates: list[str] = field(
        default_factory=list,
        metadata={"help": f"Peak learning rates of module groups ({', '.join(GROUPS)}) as GROUP=RATE."},
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule after the warm-up."})
    warmup_steps: float = field(default=500, metadata={"help": "Steps of linear warm-up, or a share if below 1."})
    weight_decay: float = field(default=1e-4, metadata={"help": "AdamW's, on all but biases and norms."})
    bf16: bool | None = field(
        default=None,
        metadata={
            "help": "bfloat16 activations; by default wherever the accelerator has them.",
            "nargs": "?",
            "const": True,
        },
    )
    activation_checkpointing: bool = field(
        default=True, metadata={"help": "Recompute activations in the backward pass: slower, far less memory."}
    )
    token_dropout: float | None = field(
        default=None,
        metadata={"help": "Share of the selected tokens that is zeroed after projection; by default 0.1."},
    )
    answer_length: int | None = field(
        default=None,
        metadata={"help": "Answers are filled up to multiples of it; by default the model's max_new_tokens."},
    )
    fovea_sizes: list[int] = field(
        default_factory=list,
        metadata={"help": "Sides of the fovea in pixels, one drawn per step; by default the model's own alone."},
    )
    budgets: list[int] = field(
        default_factory=list,
        metadata={"help": "Numbers of selected tokens, one drawn per step; by default the model's own alone."},
    )
    train_selection: Literal["exact", "gumbel"] = field(
        default="exact",
        metadata={"help": "Top-K in training: exact, or Gumbel top-K at the config's selection_temperature."},
    )
    stage: Literal["diffusion", "align"] = field(
        default="diffusion",
        metadata={"help": "align: InfoNCE between projected tokens and text, to be followed by a diffusion run."},
    )
    align_temperature: float = field(default=0.07, metadata={"help": "Temperature of stage align."})
    early_stopping_patience: int = field(
        default=5, metadata={"help": "Validations without a better loss after which training stops; 0 never stops."}
    )
    loss_curve: bool = field(default=True, metadata={"help": "Draw loss.png at the end (needs matplotlib)."})
    check_gradients: bool = field(
        default=False, metadata={"help": "Run one step, print which tensors received gradients, and end."}
    )
    then_evaluate: bool = field(default=False, metadata={"help": "Answer the validation rows after training."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two lines of the log."})
    eval_strategy: str = field(default="steps", metadata={"help": "When to validate."})
    eval_steps: float | None = field(default=200, metadata={"help": "Steps between two validations."})
    save_steps: float = field(default=200, metadata={"help": "Steps between two checkpoints."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep; the best is one of them."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Keep the best by validation loss."})
    metric_for_best_model: str | None = field(default="loss", metadata={"help": "What best means."})
    report_to: None | str | list[str] = field(
        default="none", metadata={"help": "trackio, tensorboard, wandb, ...; log.jsonl is always written."}
    )
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Leave it off: it hides a lost run."})
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "A resumed run counts on towards early stopping."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Every trained weight is used in every step."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Leave it off: the collator reads rows."})
    dataloader_num_workers: int = field(default=2, metadata={"help": "Processes per device that read images."})
    dataloader_pin_memory: bool = field(
        default_factory=torch.accelerator.is_available, metadata={"help": "Pin batches in host memory."}
    )

    def __post_init__(self):
        if self.bf16 is None:
            self.bf16 = not self.use_cpu and not self.fp16 and is_torch_bf16_gpu_available()
        if self.eval_strategy == "no":
            self.without_validation()
        if self.ddp_backend is not None and not any(name in os.environ for name in _RANKS):
            raise ValueError(
                f"ddp_backend={self.ddp_backend!r} joins several processes, and this one was started alone: start it "
                "with torchrun or accelerate launch, or leave ddp_backend out."
            )
        super().__post_init__()
        self.label_names = ["labels"]
        self.accelerator_config.dispatch_batches = False
        if self.activation_checkpointing and self.activation_checkpointing_kwargs is None:
            self.activation_checkpointing_kwargs = {"use_reentrant": False}
        self._check_recipe()
        self._check_trackers()
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
        if not 0 < self.align_temperature < math.inf:
            raise ValueError(f"align_temperature must be above 0 and finite, got {self.align_temperature}.")
        if self.early_stopping_patience < 0:
            raise ValueError(f"early_stopping_patience must be 0 or more, got {self.early_stopping_patience}.")
        if not all(0 < rate < math.inf for rate in self.learning_rates.values()):
            raise ValueError(f"Learning rates must be above 0 and finite, got {self.learning_rates}.")
        for name in ("weight_decay", "max_grad_norm", "adam_epsilon"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more and finite, got {getattr(self, name)}.")
        if self.save_strategy == "steps" and self.save_steps >= 1 and self.save_steps % self.logging_steps:
            raise ValueError(
                f"save_steps={self.save_steps} must be a multiple of logging_steps={self.logging_steps}: otherwise a "
                "resumed run logs other means than one that was never stopped."
            )

    def _check_trackers(self) -> None:
        missing = sorted(set(self.report_to) - set(get_available_reporting_integrations()))
        if missing:
            raise ValueError(
                f"report_to={missing[0]!r} is not installed: pip install {missing[0]}. log.jsonl is written "
                "without it."
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
    """One object of each of the dataclasses `kinds`, from flags, or from a YAML or JSON file and flags that win.

    Args:
        argv: the words of the command line.
        kinds: dataclasses.
        **parser_options: of the parser.

    Raises:
        ValueError: the file names an argument that does not exist.
    """
    kinds = tuple(kinds)
    parser = HfArgumentParser(kinds, allow_abbrev=False, **parser_options)
    if argv and Path(argv[0]).suffix in _FILES:
        argv = [*_as_flags(Path(argv[0]), {each.name for kind in kinds for each in fields(kind)}), *argv[1:]]
    values = vars(parser.parse_args(argv))
    if not values.get("validation_data") and not values.get("validation_rows"):
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
            nearest = get_close_matches(name, known, n=1)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"{file}: there is no argument {name!r}.{hint}")
        if value is None or value == []:
            continue
        written = json.dumps(value) if isinstance(value, (dict, bool)) else value
        flags += [f"--{name}", *map(str, written if isinstance(written, list) else [written])]
    return flags
