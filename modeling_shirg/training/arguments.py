"""Arguments of `shirg train`, without its libraries: `shirg train --help` reads this file alone.

`HfArgumentParser` reads them as flags; ShirgTrainingArguments joins `RecipeArguments` with transformers' own.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml


def _argument(default: Any, about: str, **more: Any) -> Any:
    """A field of a dataclass with its help text; `more` are further arguments of argparse."""
    value = {"default_factory": list} if default == [] else {"default": default}
    return field(**value, metadata={"help": about, **more})


@dataclass
class ModelArguments:
    """What is fine-tuned, and which of its weights."""

    model: str | None = _argument(None, "Folder or Hub id of the base model; by default the bundled toy checkpoint.")
    revision: str | None = _argument(None, "Branch, tag or commit of the base model.")
    prune_method: str | None = _argument(None, "System to train under; by default the checkpoint's own.")
    option: list[str] = _argument(
        [], "Other fields of the config as FIELD=VALUE, such as text_weight=0.", action="extend"
    )
    dtype: str = _argument("auto", "Type of the frozen weights; trained ones are float32.")
    footprint: str = _argument("shirg-extra", "Which weights are trained (footprints.py).")
    rank: int | None = _argument(None, "LoRA rank; by default the footprint's, 64.")
    alpha: float | None = _argument(None, "LoRA alpha; by default twice the rank.")
    adapter: str | None = _argument(
        None, "Start from this adapter of the same footprint, such as a run with stage=align."
    )


@dataclass
class DataArguments:
    """What to train on."""

    data: list[str] = _argument(
        [],
        "Sources: NAME[:PLACE][,FIELD=VALUE...] or a file or folder. NAME is plain, lcs, chartqa, docvqa, "
        "infographicvqa, textvqa, vqav2 or synthetic; docs/train.md has the fields. Examples: chartqa,weight=2  "
        "synthetic:entity_grid,rows=5000  lcs:/data/LLaVA-Pretrain  my/rows.jsonl,images=my/images.zip",
        nargs="+",
    )
    data_config: str | None = _argument(
        None, "A YAML or JSON file with a list `data` of such sources, instead of --data."
    )
    ocr_share: float | None = _argument(
        None, "Share of the rows that come from text-dense sources; by default as it falls."
    )
    epoch_rows: int | None = _argument(
        None, "Rows of an epoch; by default as many as the weights allow without repeating a row."
    )
    augment: bool = _argument(False, "Change the images a little: scale, blur, contrast; never flipped.")
    max_bad_share: float = _argument(0.01, "More than this share of unusable rows in a source is an error.")
    validation_data: list[str] = _argument(
        [], "Sources of the validation loss, their split `validation` unless they say.", nargs="+"
    )
    validation_rows: int = _argument(
        0,
        "At most so many rows of the validation data; without --validation_data so many rows of the "
        "training data are held out (of synthetic sources: scenes of their own). 0: all, or no validation.",
    )
    num_proc: int = _argument(1, "Processes that check the rows before training.")

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

    effective_batch_size: int = _argument(
        128, "Rows per optimizer step over all devices; gradient accumulation follows from it."
    )
    per_device_train_batch_size: int = _argument(1, "Rows per forward on one device.")
    per_device_eval_batch_size: int = _argument(4, "Rows per forward in validation.")
    num_train_epochs: float = _argument(3.0, "Passes over the data.")
    learning_rate: float = _argument(1.8e-5, "Peak learning rate.")
    group_learning_rates: list[str] = _argument(
        [], "Peak learning rates as GROUP=RATE, of projector, vision, positions, coordinates or language."
    )
    lr_scheduler_type: str = _argument("cosine", "Schedule after the warm-up.")
    warmup_steps: float = _argument(500, "Steps of linear warm-up, or a share if below 1.")
    weight_decay: float = _argument(1e-4, "AdamW's, on all but biases and norms.")
    bf16: bool | None = _argument(
        None, "bfloat16 activations; by default wherever the accelerator has them.", nargs="?", const=True
    )
    activation_checkpointing: bool = _argument(
        True, "Recompute activations in the backward pass: slower, far less memory."
    )
    token_dropout: float | None = _argument(
        None, "Share of the selected tokens that is zeroed after projection; by default 0.1."
    )
    answer_length: int | None = _argument(
        None, "Answers are filled up to multiples of it; by default the model's max_new_tokens."
    )
    fovea_sizes: list[int] = _argument(
        [], "Sides of the fovea in pixels, one drawn per step; by default the model's own alone."
    )
    budgets: list[int] = _argument(
        [], "Numbers of selected tokens, one drawn per step; by default the model's own alone."
    )
    train_selection: Literal["exact", "gumbel"] = _argument(
        "exact", "Top-K in training: exact, or Gumbel top-K at the config's selection_temperature."
    )
    stage: Literal["diffusion", "align"] = _argument(
        "diffusion", "align: InfoNCE between projected tokens and text, to be followed by a diffusion run."
    )
    align_temperature: float = _argument(0.07, "Temperature of stage align.")
    early_stopping_patience: int = _argument(
        5, "Validations without a better loss after which training stops; 0 never stops."
    )
    loss_curve: bool = _argument(True, "Draw loss.png at the end (needs matplotlib).")
    check_gradients: bool = _argument(False, "Run one step, print which tensors received gradients, and end.")
    then_evaluate: bool = _argument(False, "Answer the validation rows after training.")
    logging_steps: float = _argument(10, "Steps between two lines of the log.")
    eval_strategy: str = _argument("steps", "When to validate.")
    eval_steps: float | None = _argument(200, "Steps between two validations.")
    save_steps: float = _argument(200, "Steps between two checkpoints.")
    save_total_limit: int | None = _argument(2, "Checkpoints to keep; the best is one of them.")
    load_best_model_at_end: bool = _argument(True, "Keep the best by validation loss.")
    metric_for_best_model: str | None = _argument("loss", "What best means.")
    report_to: None | str | list[str] = _argument(
        "none", "trackio, tensorboard, wandb, ...; log.jsonl is always written."
    )
    dataloader_num_workers: int = _argument(2, "Processes per device that read images.")


def read_settings(file: Path) -> Any:
    """What a JSON or YAML file holds; a `ValueError` if it is not there or is no text of that kind."""
    try:
        text = file.read_text(encoding="utf-8")
        return json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
