"""Arguments of `shirg train`, without its libraries: `shirg train --help` reads this file alone.

`HfArgumentParser` reads them as flags; ShirgTrainingArguments joins `RecipeArguments` with transformers' own.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml


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
class DataArguments:
    """What to train on."""

    data: list[str] = field(
        default_factory=list,
        metadata={
            "nargs": "+",
            "help": "Sources: NAME[:PLACE][,FIELD=VALUE...] or a file or folder. NAME is plain, lcs, chartqa, docvqa, "
            "infographicvqa, textvqa, vqav2 or synthetic; docs/train.md has the fields. Examples: chartqa,weight=2  "
            "synthetic:entity_grid,rows=5000  lcs:/data/LLaVA-Pretrain  my/rows.jsonl,images=my/images.zip",
        },
    )
    data_config: str | None = field(
        default=None, metadata={"help": "A YAML or JSON file with a list `data` of such sources, instead of --data."}
    )
    ocr_share: float | None = field(
        default=None, metadata={"help": "Share of the rows that come from text-dense sources; by default as it falls."}
    )
    epoch_rows: int | None = field(
        default=None,
        metadata={"help": "Rows of an epoch; by default as many as the weights allow without repeating a row."},
    )
    augment: bool = field(
        default=False, metadata={"help": "Change the images a little: scale, blur, contrast; never flipped."}
    )
    max_bad_share: float = field(
        default=0.01, metadata={"help": "More than this share of unusable rows in a source is an error."}
    )
    validation_data: list[str] = field(
        default_factory=list,
        metadata={"nargs": "+", "help": "Sources of the validation loss, their split `validation` unless they say."},
    )
    validation_rows: int = field(
        default=0,
        metadata={
            "help": "At most so many rows of the validation data; without --validation_data so many rows of the "
            "training data are held out (of synthetic sources: scenes of their own). 0: all, or no validation."
        },
    )
    num_proc: int = field(default=1, metadata={"help": "Processes that check the rows before training."})

    def __post_init__(self):
        if not 0 <= self.max_bad_share < 1:
            raise ValueError(f"max_bad_share must be at least 0 and below 1, got {self.max_bad_share}.")
        if self.ocr_share is not None and not 0 < self.ocr_share < 1:
            raise ValueError(f"ocr_share must lie between 0 and 1, got {self.ocr_share}.")
        for name, low in {"epoch_rows": 1, "validation_rows": 0, "num_proc": 1}.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"{name} must be at least {low}, got {value}.")


@dataclass
class RecipeArguments:
    """How it is trained."""

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
        metadata={
            "help": "Peak learning rates as GROUP=RATE, of projector, vision, positions, coordinates or language."
        },
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
    dataloader_num_workers: int = field(default=2, metadata={"help": "Processes per device that read images."})


def read_settings(file: Path) -> Any:
    """What a JSON or YAML file holds; a `ValueError` if it is not there or is no text of that kind."""
    try:
        text = file.read_text(encoding="utf-8")
        return json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
