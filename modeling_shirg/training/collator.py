"""Rows become a batch for `model.forward`, in the DataLoader's workers: augmentation, views, tokens, masks, padding.

What a row contributes does not depend on its batch: it is encoded alone, its draws are keyed by the row (draws.py),
and the batch only pads it on the right. Padding has attention 0, label -100 and mask noise 1.0, which masks nothing.

Shape suffixes: B rows, I images, L tokens, K selected tokens, N patches that tokens are chosen from.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from configuration_shirg.geometry_shirg import grid_side
from modeling_shirg.objective_shirg import IGNORED
from modeling_shirg.training.augment import augmented
from modeling_shirg.training.draws import RowDraws, RowKey, StepKey
from modeling_shirg.training.encoder import RowEncoder

# What has a value per token besides `input_ids`, and the value at padding.
_PADDING = {"labels": IGNORED, "attention_mask": 0, "mask_noise": 1.0, "question_mask": 0}
# What `anyres` gives in different numbers per image; boxes of zero area fill up, as in the image processor.
_BOXES = ("patch_boxes", "view_boxes")


class RowCollator:
    """Collates items of `TrainingRows`.

    Returns a dict with `input_ids`, `labels`, `attention_mask` int64 (B, L), `mask_noise` float32 (B, L),
    `diffusion_time` float32 (B,), what the processor returns for the images, and where asked for

    - `dropped_tokens`, bool (I, K): true at the selected tokens that are zeroed after projection;
    - `selection_noise`, float32 (I, N): Gumbel noise for the scores of the patches that tokens are chosen from;
    - `selection_budget`, int64 (I,): where the step's budget is not the processor's.

    Args:
        processor: the model's `ShirgLavidaProcessor`.
        draws: the run's draws.
        answer_length: see `RowEncoder`.
        max_length: see `RowEncoder`.
        token_dropout: share of the selected tokens of each image that is dropped, exactly `round(share * K)`.
        gumbel: draw `selection_noise`.
        budgets: the number of selected tokens of each step is one of these; empty: the processor's.
        fovea_sizes: the fovea's side of each step is one of these, in pixels; empty: the processor's.
        step_rows: rows of one optimiser step over all processes and accumulated batches. All of these share a budget
            and a fovea size, however they are split.
        augment: change the images (augment.py).

    Raises:
        ValueError: an option needs a preset that selects tokens or has a fovea; at call time, a row is longer than
            `max_length`, or the rows are not consecutive rows of one step.
    """

    def __init__(
        self,
        processor,
        draws: RowDraws,
        *,
        answer_length: int,
        max_length: int | None = None,
        token_dropout: float = 0.0,
        gumbel: bool = False,
        budgets: Sequence[int] = (),
        fovea_sizes: Sequence[int] = (),
        step_rows: int = 1,
        augment: bool = False,
    ):
        self.encoder = RowEncoder(processor, answer_length, max_length, max(budgets, default=None))
        self.image_processor = processor.image_processor
        self.pad_token_id = processor.tokenizer.pad_token_id
        self.draws = draws
        self.token_dropout = token_dropout
        self.gumbel = gumbel
        self.budgets = tuple(budgets)
        self.fovea_sizes = tuple(fovea_sizes)
        self.step_rows = step_rows
        self.augment = augment
        self._check()

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        options = self._step_options(items)
        return self._padded([self._encoded(item, options) for item in items])

    def _check(self) -> None:
        if not 0 <= self.token_dropout < 1:
            raise ValueError(f"token_dropout must be at least 0 and below 1, got {self.token_dropout}.")
        if self.step_rows < 1:
            raise ValueError(f"step_rows must be at least 1, got {self.step_rows}.")
        wanted = {"token_dropout": self.token_dropout, "gumbel": self.gumbel, "budgets": self.budgets}
        if self.image_processor.selection_budget is None and any(wanted.values()):
            names = [name for name, value in wanted.items() if value]
            raise ValueError(f"{' and '.join(names)} need a preset that selects tokens; this one keeps all of them.")
        if self.fovea_sizes and self.image_processor.fovea_size is None:
            raise ValueError(
                f"fovea_sizes={list(self.fovea_sizes)} need a preset with a fovea; this one has the view policy "
                f"{self.image_processor.view_policy!r}."
            )

    def _step_options(self, items: list[dict[str, Any]]) -> dict[str, int]:
        """Arguments of the image processor for all rows of the step that these rows belong to."""
        if not self.budgets and not self.fovea_sizes:
            return {}
        steps = {StepKey(item["counted_from"], item["position"] // self.step_rows) for item in items}
        if len(steps) > 1:
            places = [item["position"] for item in items]
            raise ValueError(
                f"The rows at places {places} belong to several steps of {self.step_rows} rows, but "
                "budgets and fovea sizes are drawn per step. Read the rows in order (train_sampling_strategy="
                "'sequential'; the data set shuffles itself) and set dataloader_drop_last."
            )
        (step,) = steps
        options = {}
        if self.budgets:
            options["selection_budget"] = self.draws.budget(step, self.budgets)
        if self.fovea_sizes:
            options["fovea_size"] = self.draws.fovea_size(step, self.fovea_sizes)
        return options

    def _encoded(self, item: dict[str, Any], options: dict[str, int]) -> dict[str, torch.Tensor]:
        """One row with its draws."""
        key = RowKey(item["epoch"], item["row"], item["repeat"])
        images, boxes = item["images"], item["fovea_boxes"]
        if self.augment:
            images = [
                augmented(image, self.draws.augmentation(key, index)) for index, image in enumerate(item["images"])
            ]
            boxes = [_scaled(*args) for args in zip(boxes, item["images"], images, strict=True)]
        if any(box is not None for box in boxes) and self.image_processor.view_policy == "foveal":
            options = {**options, "fovea_boxes": boxes}
        row = self.encoder.encode(item["messages"], images, f"Row {item['name']}", **options)
        places = range(len(images))
        row["diffusion_time"] = torch.tensor([self.draws.diffusion_time(key)])
        row["mask_noise"] = torch.from_numpy(self.draws.mask_noise(key, row["input_ids"].shape[1]))[None]
        if self.token_dropout:
            budget = options.get("selection_budget", self.image_processor.selection_budget)
            dropped = [self.draws.dropped_tokens(key, image, budget, self.token_dropout) for image in places]
            row["dropped_tokens"] = torch.from_numpy(np.stack(dropped))
        if self.gumbel:
            count = self._num_candidates(row)
            noise = [self.draws.selection_noise(key, image, count) for image in places]
            row["selection_noise"] = torch.from_numpy(np.stack(noise))
        return row

    def _num_candidates(self, row: dict[str, torch.Tensor]) -> int:
        """Number of patches of an image that tokens are chosen from: the fovea's, or those of all views."""
        if "fovea_pixel_values" in row:
            return grid_side(row["fovea_pixel_values"].shape[-1], self.image_processor.patch_size) ** 2
        return row["patch_boxes"].shape[1]

    def _padded(self, rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        padding = {**_PADDING, "input_ids": self.pad_token_id}
        batch = {}
        for name in rows[0]:
            values = [row[name] for row in rows]
            if name in padding:
                values = _filled_up(values, padding[name])
            elif name in _BOXES:
                values = [boxes.transpose(1, 2) for boxes in values]
                values = [boxes.transpose(1, 2) for boxes in _filled_up(values, 0)]
            batch[name] = torch.cat(values)
        return batch


def _filled_up(values: list[torch.Tensor], filling: float) -> list[torch.Tensor]:
    """The tensors with their last axis as long as the longest."""
    longest = max(value.shape[-1] for value in values)
    return [F.pad(value, (0, longest - value.shape[-1]), value=filling) for value in values]


def _scaled(box: Sequence[float] | None, before: Image.Image, after: Image.Image) -> list[float] | None:
    """The box (left, top, right, bottom) in the scaled image."""
    if box is None:
        return None
    across, down = after.width / before.width, after.height / before.height
    left, top, right, bottom = box
    return [left * across, top * down, right * across, bottom * down]
