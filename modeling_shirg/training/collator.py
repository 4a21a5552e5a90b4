"""Rows become a batch for `model.forward`, in the DataLoader's workers: augmentation, views, tokens, masks, padding.

What a row contributes does not depend on its batch: it is encoded alone, its draws are keyed by the row (draws.py),
and the batch only pads it on the right. Padding has attention 0, label -100 and mask noise 1.0, which masks nothing.

Shape suffixes: B rows, I images, L tokens, K selected tokens, N patches that tokens are chosen from.
"""

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from configuration_shirg.geometry_shirg import grid_side
from modeling_shirg.objective_shirg import IGNORED
from modeling_shirg.training.augment import augmented
from modeling_shirg.training.draws import RowDraws, RowKey, StepKey
from modeling_shirg.training.encoder import RowEncoder
from modeling_shirg.training.reading import BadRow

# What has a value per token besides `input_ids`, and the value at padding.
_PADDING = {"labels": IGNORED, "attention_mask": 0, "mask_noise": 1.0, "question_mask": 0}
# What `anyres` gives in different numbers per image; boxes of zero area fill up, as in the image processor.
_BOXES = ("patch_boxes", "view_boxes")


class RowCollator:
    """Collates items of `TrainingRows`; validation rows get only the draws of the diffusion loss.

    Returns a dict with `input_ids`, `labels`, `attention_mask` int64 (B, L), `mask_noise` float32 (B, L),
    `diffusion_time` float32 (B,), what the processor returns for the images, and where `draws` asks for them

    - `dropped_tokens`, bool (I, K): true at the selected tokens that are zeroed after projection;
    - `selection_noise`, float32 (I, N): Gumbel noise for the scores of the patches that tokens are chosen from;
    - `selection_budget`, int64 (I,): where the step's budget is not the processor's.

    Args:
        encoder: encodes one row.
        draws: the run's draws.
        step_rows: rows of one optimizer step over all processes and accumulated batches. All of these share a budget
            and a fovea size, however they are split.

    Raises:
        ValueError: a draw needs a preset that selects tokens or has a fovea; at call time, a row is too long, or the
            rows are not consecutive rows of one step.
    """

    def __init__(self, encoder: RowEncoder, draws: RowDraws, step_rows: int = 1):
        self.encoder, self.draws, self.step_rows = encoder, draws, step_rows
        self.plain_draws = RowDraws(draws.seed)
        self.image_processor = encoder.processor.image_processor
        wanted = {"token_dropout": draws.token_dropout, "gumbel": draws.gumbel, "budgets": draws.budgets}
        if self.image_processor.selection_budget is None and any(wanted.values()):
            names = [name for name, value in wanted.items() if value]
            raise ValueError(f"{' and '.join(names)} need a preset that selects tokens; this one keeps all of them.")
        if draws.fovea_sizes and self.image_processor.fovea_size is None:
            raise ValueError(
                f"fovea_sizes={list(draws.fovea_sizes)} need a preset with a fovea; this one has the view policy "
                f"{self.image_processor.view_policy!r}."
            )

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        draws = self.draws if items[0]["is_training"] else self.plain_draws
        options = {}
        if draws.budgets or draws.fovea_sizes:
            steps = {StepKey(item["epoch"], item["position"] // self.step_rows) for item in items}
            if len(steps) > 1:
                raise ValueError(
                    f"The rows at places {[item['position'] for item in items]} belong to several steps of "
                    f"{self.step_rows} rows, but budgets and fovea sizes are drawn per step. Read the rows in order: "
                    "the data set shuffles itself."
                )
            options = draws.step_options(*steps)
        return self._padded([self._encoded(item, draws, options) for item in items])

    def _encoded(self, item: dict[str, Any], draws: RowDraws, options: dict[str, Any]) -> dict[str, torch.Tensor]:
        """One row with its draws."""
        key = RowKey(item["epoch"], item["row"], item["repeat"])
        images, boxes = item["images"], item["fovea_boxes"]
        if draws.augment:
            before = images
            images = [augmented(image, draws.augmentation(key, number)) for number, image in enumerate(before)]
            boxes = [
                None if box is None else (np.array(box) * np.tile(np.divide(new.size, old.size), 2)).tolist()
                for box, old, new in zip(boxes, before, images, strict=True)
            ]
        if any(box is not None for box in boxes) and self.image_processor.view_policy == "foveal":
            options = {**options, "fovea_boxes": boxes}
        try:
            row = self.encoder.encode(item["messages"], images, **options)
        except BadRow as bad:
            raise ValueError(f"Row {item['name']} cannot be used: {bad}. Mend or remove it.") from None
        row["diffusion_time"] = torch.tensor([draws.diffusion_time(key)])
        row["mask_noise"] = torch.from_numpy(draws.mask_noise(key, row["input_ids"].shape[1]))[None]
        if draws.token_dropout:
            budget = options.get("selection_budget", self.image_processor.selection_budget)
            dropped = [draws.dropped_tokens(key, image, budget) for image in range(len(images))]
            row["dropped_tokens"] = torch.from_numpy(np.stack(dropped))
        if draws.gumbel:
            count = self._num_candidates(row)
            noise = [draws.selection_noise(key, image, count) for image in range(len(images))]
            row["selection_noise"] = torch.from_numpy(np.stack(noise))
        return row

    def _num_candidates(self, row: dict[str, torch.Tensor]) -> int:
        """Number of patches of an image that tokens are chosen from: the fovea's, or those of all views."""
        if "fovea_pixel_values" in row:
            return grid_side(row["fovea_pixel_values"].shape[-1], self.image_processor.patch_size) ** 2
        return row["patch_boxes"].shape[1]

    def _padded(self, rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        padding = {**_PADDING, "input_ids": self.encoder.processor.tokenizer.pad_token_id}
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
