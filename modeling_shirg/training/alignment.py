"""Stage `align`: projected image tokens meet the text that belongs to them, before the diffusion stage.

InfoNCE (2010.00747) in the language model's input space: the mean of a row's image tokens and the mean embedding of
its answer are one pair, the other rows of the same forward on the same device are the negatives, but for those with
the same answer. A row of which all others are such has a loss of 0 and teaches nothing, which is said.

Shape suffixes: B rows, L tokens, C language model width.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers.utils import ModelOutput, logging

from modeling_shirg import ShirgLavidaForConditionalGeneration
from modeling_shirg.objective_shirg import IGNORED
from modeling_shirg.training.trainer import ShirgTrainer
from modeling_shirg.vision_shirg import full_precision

logger = logging.get_logger(__name__)

# Inputs of the diffusion loss that say nothing about images.
_DIFFUSION = ("attention_mask", "diffusion_time", "mask_noise", "image_sizes", "view_boxes")


@dataclass
class AlignmentOutput(ModelOutput):
    """Loss of the batch, and of each row, (B,)."""

    loss: torch.FloatTensor | None = None
    row_losses: torch.FloatTensor | None = None


class ShirgLavidaForAlignment(ShirgLavidaForConditionalGeneration):
    """The same weights under the same names; `forward` stops before the language model."""

    def forward(
        self, input_ids: torch.LongTensor, labels: torch.LongTensor, temperature: float, **inputs: torch.Tensor
    ) -> AlignmentOutput:
        """The loss of a batch, in both directions.

        Args:
            input_ids: as for diffusion, (B, L).
            labels: the answers, (B, L); their end-of-text tokens do not count as text.
            temperature: of the softmax over the batch.
            **inputs: others of the diffusion loss, of which those of the images are used.
        """
        views = {name: value for name, value in inputs.items() if name not in _DIFFUSION}
        embeds_BLC, _ = self.model.prepare_inputs_embeds(input_ids, **views)
        is_text_BL = (labels != IGNORED) & (labels != self.config.eos_token_id)
        images_BC = _mean(embeds_BLC, input_ids == self.config.image_token_id)
        texts_BC = _mean(self.get_input_embeddings()(labels.clamp_min(0)), is_text_BL)
        same_BB = same_text(labels, is_text_BL)
        if same_BB.all(-1).any():
            logger.warning_once(
                f"All {len(labels)} rows of a forward have the same answer, so there is nothing to tell apart: their "
                "loss is 0. Take more rows per forward (per_device_train_batch_size), or data with more answers."
            )
        losses_B = contrastive_losses(images_BC, texts_BC, same_BB, temperature)
        return AlignmentOutput(loss=losses_B.mean(), row_losses=losses_B)


class AlignmentTrainer(ShirgTrainer):
    """Trainer of stage `align`: every row weighs alike."""

    def num_items(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Rows."""
        return torch.tensor(len(inputs["labels"]), device=inputs["labels"].device)

    def row_losses(self, outputs: AlignmentOutput, inputs: dict[str, torch.Tensor]):
        """Each row's loss, and 1."""
        return outputs.row_losses, torch.ones_like(outputs.row_losses)

    def _prepare_inputs(self, inputs: dict[str, torch.Tensor]) -> dict:
        return {**super()._prepare_inputs(inputs), "temperature": self.args.align_temperature}


def contrastive_losses(
    images_BC: torch.Tensor, texts_BC: torch.Tensor, same_BB: torch.BoolTensor, temperature: float
) -> torch.FloatTensor:
    """InfoNCE of each row, the mean of both directions, float32 (B,).

    Args:
        images_BC: one vector per image.
        texts_BC: one vector per text.
        same_BB: rows with the same text, which are no negatives of each other.
        temperature: of the softmax.
    """
    with full_precision(images_BC):
        cosines_BB = F.normalize(images_BC.float(), dim=-1) @ F.normalize(texts_BC.float(), dim=-1).T
    own_BB = torch.eye(len(cosines_BB), dtype=torch.bool, device=cosines_BB.device)
    logits_BB = (cosines_BB / temperature).masked_fill(same_BB & ~own_BB, -torch.inf)
    own_B = torch.arange(len(logits_BB), device=logits_BB.device)
    to_text, to_image = (F.cross_entropy(each, own_B, reduction="none") for each in (logits_BB, logits_BB.T))
    return (to_text + to_image) / 2


def same_text(labels_BL: torch.LongTensor, is_text_BL: torch.BoolTensor) -> torch.BoolTensor:
    """Which rows have the same text wherever it stands in them, bool (B, B)."""
    texts = [tuple(row[keep].tolist()) for row, keep in zip(labels_BL, is_text_BL, strict=True)]
    return torch.tensor([[one == other for other in texts] for one in texts], device=labels_BL.device)


def _mean(values_BLC: torch.Tensor, chosen_BL: torch.BoolTensor) -> torch.Tensor:
    """The mean of each row's chosen vectors, (B, C)."""
    weights_BL1 = chosen_BL[..., None].to(values_BLC.dtype)
    return (values_BLC * weights_BL1).sum(1) / weights_BL1.sum(1).clamp_min(1)
