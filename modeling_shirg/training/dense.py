"""Stage 0: the vision tower learns to see, from rendered pages.

Two losses at once. Dense: each patch names the mark it lies on, the mark's colour and its own place. Global: SigLIP's
sigmoid loss (2303.15343, eq. 1) between the pooling head's image embedding and a small text tower's embedding of what
is on the page, so that the pooling probe's attention means something.

Shape suffixes: V views, N patches, D vision width, T caption tokens, P pixels per side.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase, SiglipTextConfig, SiglipTextModel

from configuration_shirg.image_processing_shirg_lavida import ShirgLavidaImageProcessor
from modeling_shirg.evaluation.synthetic import CHARACTERS, COLORS, SHAPES, Mark, scene
from modeling_shirg.vision_shirg import ShirgVisionTower

MARKS = (*CHARACTERS, *SHAPES)
_COLOR_NAMES = tuple(COLORS)
BACKGROUND_WEIGHT = 0.2
CAPTION_MARKS = 12
CAPTION_LENGTH = 48


def patch_owners(marks: list[Mark], boxes_N4: np.ndarray, width: int, height: int) -> np.ndarray:
    """The mark that each patch lies on: its index in `marks`, or -1 for background; int64 (N,).

    A patch belongs to the mark that it shares most with, if that is at least 0.35 of the smaller of the two.
    """
    scale = np.array([width, height, width, height], np.float32)
    patches = (boxes_N4 * scale)[:, None]
    patch_x, patch_y, patch_w, patch_h = patches[..., 0], patches[..., 1], patches[..., 2], patches[..., 3]
    x0, y0, x1, y1 = np.array([mark.box for mark in marks], np.float32).T
    across = np.clip(np.minimum(patch_x + patch_w, x1) - np.maximum(patch_x, x0), 0, None)
    down = np.clip(np.minimum(patch_y + patch_h, y1) - np.maximum(patch_y, y0), 0, None)
    share_NM = across * down / np.minimum(patch_w * patch_h, np.maximum((x1 - x0) * (y1 - y0), 1.0))
    return np.where(share_NM.max(1) > 0.35, share_NM.argmax(1), -1)


def patch_targets(marks: list[Mark], owners_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What each patch lies on: index into `MARKS` and into the colours, 1-based, 0 for background; int64 (N,) each."""
    labels = np.array([MARKS.index(mark.label) + 1 for mark in marks] + [0])
    colors = np.array([_COLOR_NAMES.index(mark.color) + 1 for mark in marks] + [0])
    return labels[owners_N], colors[owners_N]


class PageDataset(Dataset):
    """Views of rendered pages (and of the question families' images) with per-patch targets and a caption.

    A batch holds one view size, since the two views differ in theirs: batches of `batch_size` rows, taken in order,
    alternate between them.
    """

    def __init__(
        self,
        image_processor: ShirgLavidaImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        split: str,
        indices: range,
        batch_size: int,
    ):
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.split = split
        self.indices = indices
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> dict:
        index = self.indices[item]
        rng = np.random.default_rng([3, index])
        family = str(rng.choice(["page", "grid", "guard"], p=[0.7, 0.15, 0.15]))
        page = scene(family, self.split, index)
        features = self.image_processor([page.image], return_tensors="np")
        owners = patch_owners(page.marks, features["patch_boxes"][0], *page.image.size)
        labels, colors = patch_targets(page.marks, owners)
        chosen = rng.permutation(len(page.marks))[:CAPTION_MARKS]
        caption = " ".join(f"{page.marks[i].color} {page.marks[i].label}" for i in chosen)
        return {
            "base_view": features["pixel_values"][0],
            "fovea_view": features["fovea_pixel_values"][0],
            "labels": labels,
            "colors": colors,
            "caption": caption,
            "use_fovea": item // self.batch_size % 2 == 0,
        }

    def collate(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """One batch of one view size: the first row decides which."""
        use_fovea = rows[0]["use_fovea"]
        pixels = np.stack([row["fovea_view" if use_fovea else "base_view"] for row in rows])
        fovea_patches = (rows[0]["fovea_view"].shape[-1] // self.image_processor.patch_size) ** 2
        part = slice(-fovea_patches, None) if use_fovea else slice(None, -fovea_patches)
        captions = self.tokenizer(
            [row["caption"] for row in rows],
            padding="max_length",
            truncation=True,
            max_length=CAPTION_LENGTH,
            return_tensors="pt",
        )
        return {
            "pixels_V3PP": torch.from_numpy(pixels),
            "labels": torch.from_numpy(np.stack([row["labels"][part] for row in rows])),
            "colors": torch.from_numpy(np.stack([row["colors"][part] for row in rows])),
            "caption_ids": captions.input_ids,
        }


class DensePretrainingModel(nn.Module):
    """A vision tower with the throw-away heads of stage 0."""

    def __init__(self, config, tokenizer: PreTrainedTokenizerBase):
        super().__init__()
        width = config.vision_config.hidden_size
        self.vision_tower = ShirgVisionTower(config)
        initialise_positions(self.vision_tower)
        self.mark_head = nn.Linear(width, len(MARKS) + 1)
        self.color_head = nn.Linear(width, len(_COLOR_NAMES) + 1)
        self.place_head = nn.Linear(width, 2)
        self.text_tower = SiglipTextModel(
            SiglipTextConfig(
                bos_token_id=None,
                eos_token_id=None,
                pad_token_id=None,
                vocab_size=len(tokenizer),
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=2,
                num_attention_heads=config.vision_config.num_attention_heads,
                max_position_embeddings=CAPTION_LENGTH,
                projection_size=width,
            )
        )
        self.logit_scale = nn.Parameter(torch.tensor(2.3))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0))

    def forward(
        self, pixels_V3PP: torch.Tensor, labels: torch.Tensor, colors: torch.Tensor, caption_ids: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Loss, and the share of foreground patches whose mark is named right."""
        features_VND, _ = self.vision_tower(pixels_V3PP)
        mark_logits, color_logits = self.mark_head(features_VND), self.color_head(features_VND)
        foreground = labels > 0
        weights = torch.where(foreground, 1.0, BACKGROUND_WEIGHT)
        dense = _weighted_cross_entropy(mark_logits, labels, weights)
        dense = dense + 0.5 * _weighted_cross_entropy(color_logits, colors, weights)
        place = F.mse_loss(self.place_head(features_VND), _places(features_VND).expand(len(features_VND), -1, -1))
        loss = dense + place + 0.2 * self._sigmoid_loss(features_VND, caption_ids)
        return {
            "loss": loss,
            "mark_accuracy": ((mark_logits.argmax(-1) == labels) & foreground).sum() / foreground.sum(),
            "color_accuracy": ((color_logits.argmax(-1) == colors) & foreground).sum() / foreground.sum(),
        }

    def _sigmoid_loss(self, features_VND: torch.Tensor, caption_ids: torch.Tensor) -> torch.Tensor:
        vision_model = self.vision_tower.vision_model
        hidden_VND = features_VND
        for layer in vision_model.encoder.layers[self.vision_tower.num_kept_layers :]:
            hidden_VND = layer(hidden_VND, None)
        image_VD = F.normalize(vision_model.head(vision_model.post_layernorm(hidden_VND)), dim=-1)
        text_VD = F.normalize(self.text_tower(caption_ids).pooler_output, dim=-1)
        logits_VV = self.logit_scale.exp() * image_VD @ text_VD.T + self.logit_bias
        signs_VV = 2 * torch.eye(len(logits_VV), device=logits_VV.device) - 1
        return -F.logsigmoid(signs_VV * logits_VV).sum(-1).mean()


def initialise_positions(tower: ShirgVisionTower) -> None:
    """2-D sine-cosine position tables (a quarter of the width each for sin x, cos x, sin y, cos y), place in 0..1."""
    tables = [(tower.vision_model.embeddings.position_embedding, tower.base_grid)]
    tables.append((tower.foveal_position_embedding, tower.foveal_position_embedding.grid))
    for table, grid in tables:
        quarter = table.embedding_dim // 4
        frequencies = 2 ** torch.linspace(0, 4.5, quarter)
        places_G = (torch.arange(grid) + 0.5) / grid
        angles_GQ = torch.pi * places_G[:, None] * frequencies
        waves_GH = torch.cat([angles_GQ.sin(), angles_GQ.cos()], dim=1)
        rows, columns = waves_GH.repeat_interleave(grid, 0), waves_GH.repeat(grid, 1)
        with torch.no_grad():
            table.weight.copy_(0.5 * torch.cat([columns, rows], dim=1))


def _places(features_VND: torch.Tensor) -> torch.Tensor:
    """Centre (x, y) in 0..1 of every patch of a square view, shape (1, N, 2)."""
    grid = int(features_VND.shape[1] ** 0.5)
    ticks = (torch.arange(grid, device=features_VND.device) + 0.5) / grid
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    return torch.stack([x, y], -1).reshape(1, -1, 2)


def _weighted_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()
