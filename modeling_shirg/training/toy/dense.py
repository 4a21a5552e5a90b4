"""Stages `see` and `sharpen`: the vision tower learns to see, from rendered scenes.

Three losses at once. Dense: each patch names the marks that lie on it (two slots, left to right: small glyphs share a
patch), their colour and its own place. Aligned: image tokens, projected and pooled to the grid of the global view,
name every mark that lies on them and its colour; pooling samples some patches and skips others, so what lies on these
has to be told by their neighbours. Global: SigLIP's sigmoid loss (2303.15343, eq. 1) between the pooling head's image
embedding and a small text tower's embedding of what is in the view, so that the pooling probe's attention means
something.

Shape suffixes: V views, N patches, T image tokens, M marks of a scene, L words (`WORDS`), D vision width, C width of
the language model, P pixels per side.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase, SiglipTextConfig, SiglipTextModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from configuration_shirg import ShirgLavidaConfig
from modeling_shirg.backbone_shirg import ShirgLavidaProjector
from modeling_shirg.scenes import Mark, Scene, scene
from modeling_shirg.scenes.drawing import CHARACTERS, COLORS, SHAPES
from modeling_shirg.selection_shirg import pool_square
from modeling_shirg.vision_shirg import ShirgVisionTower

MARKS = (*CHARACTERS, *SHAPES)
NUM_SLOTS = 2
CAPTION_LENGTH = 48
_COLOR_NAMES = tuple(COLORS)
WORDS = (*MARKS, *_COLOR_NAMES)  # what image tokens can read as
_LABELS = {label: number + 1 for number, label in enumerate(MARKS)}
_COLORS = {color: number + 1 for number, color in enumerate(_COLOR_NAMES)}
_CAPTION_MARKS = 12
_OWNED_SHARE = 0.35
_FAMILIES = {"page": 0.45, "document": 0.25, "chart": 0.15, "entity_grid": 0.08, "guard": 0.07}
# Empty slots are most of a page; at full weight they would be most of the loss. A second glyph is rarer still.
_EMPTY_WEIGHTS = (0.2, 0.1)
_ABSENT_WEIGHT = 5.0  # of the alignment's "not on this token", a mean over very many
View = tuple[Image.Image, np.ndarray]


def draw_view(drawn: Scene, config: ShirgLavidaConfig, rng: np.random.Generator, foveal: bool) -> View:
    """A square as the tower gets it, and the boxes (M, 4) of the scene's marks in its pixels.

    A foveal view is a native crop, half of the time from the centre. Others are the whole scene or one of 2x2 tiles.
    """
    size, native = config.vision_config.image_size, drawn.image.size
    if foveal:
        size = config.fovea_size
        left, top = ((side - size) // 2 for side in native)
        if rng.random() < 0.5:
            left, top = (rng.integers(side - size + 1) for side in native)
        return _cut(drawn, native, left, top, size)
    if rng.random() < 0.6:
        return _cut(drawn, (2 * size, 2 * size), *(size * rng.integers(2, size=2)), size)
    return _cut(drawn, (size, size), 0, 0, size)


def _cut(drawn: Scene, whole: tuple[int, int], left: int, top: int, size: int) -> View:
    """The square of `size` at (left, top) of the scene resized to `whole`."""
    left, top = int(left), int(top)
    scale = np.array(whole * 2, np.float32) / np.array(drawn.image.size * 2, np.float32)
    boxes_M4 = np.array([mark.box for mark in drawn.marks], np.float32).reshape(-1, 4) * scale
    image = drawn.image.resize(whole, Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    return image, boxes_M4 - np.array([left, top, left, top], np.float32)


def token_boxes(view_boxes_V4: np.ndarray, view_grid: int) -> np.ndarray:
    """Boxes (T, 4) of the square parts of the views that pooled tokens stand for, in the unit of the views' boxes."""
    top, left = np.divmod(np.arange(view_grid * view_grid), view_grid)
    parts_T4 = np.stack([left, top, left + 1, top + 1], 1) / view_grid
    origins_V4 = np.tile(view_boxes_V4[:, :2], 2)
    extents_V4 = np.tile(view_boxes_V4[:, 2:] - view_boxes_V4[:, :2], 2)
    return (origins_V4[:, None] + parts_T4 * extents_V4[:, None]).reshape(-1, 4).astype(np.float32)


def mark_shares(boxes_M4: np.ndarray, boxes_T4: np.ndarray) -> np.ndarray:
    """Overlap of every token with every mark as a share of the smaller of the two, (T, M); boxes in the same unit."""
    tokens, marks = boxes_T4[:, None], boxes_M4[None]
    across = np.minimum(tokens[..., 2], marks[..., 2]) - np.maximum(tokens[..., 0], marks[..., 0])
    down = np.minimum(tokens[..., 3], marks[..., 3]) - np.maximum(tokens[..., 1], marks[..., 1])
    areas = [np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1) for boxes in (tokens, marks)]
    return across.clip(0) * down.clip(0) / np.minimum(*areas).clip(1e-6)


def owned_marks(boxes_M4: np.ndarray, boxes_T4: np.ndarray) -> np.ndarray:
    """Which marks lie on each token: they share more than 0.35 of the smaller; bool (T, M)."""
    return mark_shares(boxes_M4, boxes_T4) > _OWNED_SHARE


def patch_targets(marks: list[Mark], boxes_M4: np.ndarray, boxes_N4: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What lies on each patch of a view.

    Returns:
        slots int64 (N, 2), 1 + index into `MARKS` of the two marks that share most with the patch, left to right, or
        0; colors int64 (N,), 1 + index into the colours of the mark that shares most, or 0.
    """
    slots_N2, colors_N = np.zeros((len(boxes_N4), NUM_SLOTS), np.int64), np.zeros(len(boxes_N4), np.int64)
    middle_M = (boxes_M4[:, 0] + boxes_M4[:, 2]) / 2
    for patch_number, shares_M in enumerate(mark_shares(boxes_M4, boxes_N4)):
        chosen = [mark for mark in np.argsort(-shares_M, kind="stable")[:NUM_SLOTS] if shares_M[mark] > _OWNED_SHARE]
        if chosen:
            colors_N[patch_number] = _COLORS[marks[chosen[0]].color]
        for slot, mark in enumerate(sorted(chosen, key=lambda number: middle_M[number])):
            slots_N2[patch_number, slot] = _LABELS[marks[mark].label]
    return slots_N2, colors_N


def token_labels(marks: list[Mark], owned_TM: np.ndarray) -> np.ndarray:
    """Which of `WORDS` say what lies on each image token, bool (T, L): its marks and their colours."""
    labels_TL = np.zeros((len(owned_TM), len(WORDS)), bool)
    for number, mark in enumerate(marks):
        for word in (mark.label, mark.color):
            labels_TL[:, WORDS.index(word)] |= owned_TM[:, number]
    return labels_TL


def alignment_loss(logits_TL: torch.Tensor, labels_TL: torch.Tensor) -> torch.Tensor:
    """Image tokens should read as every word that is theirs and as no other; any leading dimensions."""
    present = (F.logsigmoid(logits_TL) * labels_TL).sum() / labels_TL.sum().clamp_min(1)
    absent = (F.logsigmoid(-logits_TL) * ~labels_TL).mean()
    return -present - _ABSENT_WEIGHT * absent


@dataclass
class ViewBatches:
    """Draws batches from numbers of training scenes: views with targets per patch and per image token, and a caption.

    Consecutive batches alternate between foveal views and views of the base size.
    """

    config: ShirgLavidaConfig
    tokenizer: PreTrainedTokenizerBase

    def __call__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """The batch of `DensePretrainingModel.forward`."""
        rows = [self._row(index, foveal=indices[0] // len(indices) % 2 == 0) for index in indices]
        captions = [row.pop("caption") for row in rows]
        options = {"padding": "max_length", "truncation": True, "max_length": CAPTION_LENGTH, "return_tensors": "pt"}
        batch = {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]}
        return batch | {"caption_ids": self.tokenizer(captions, **options).input_ids}

    def _row(self, index: int, foveal: bool) -> dict[str, Any]:
        rng = np.random.default_rng([3, index])
        drawn = scene(str(rng.choice(list(_FAMILIES), p=list(_FAMILIES.values()))), "train", index)
        image, boxes_M4 = draw_view(drawn, self.config, rng, foveal)
        size = image.width
        visible = (boxes_M4[:, 2:] > 0).all(1) & (boxes_M4[:, :2] < size).all(1)
        marks = [mark for mark, seen in zip(drawn.marks, visible, strict=True) if seen]
        boxes_M4, patch = boxes_M4[visible], self.config.vision_config.patch_size
        grid = size // patch
        boxes_N4 = token_boxes(np.array([[0, 0, grid * patch, grid * patch]]), grid)
        slots, colors = patch_targets(marks, boxes_M4, boxes_N4)
        # Each patch of the fovea is a token, those of other views are pooled.
        boxes_T4 = boxes_N4 if foveal else token_boxes(np.array([[0, 0, size, size]]), self.config.pooled_grid_size)
        named = [marks[number] for number in rng.permutation(len(marks))[:_CAPTION_MARKS]]
        return {
            "pixels": np.asarray(image, np.float32).transpose(2, 0, 1) / 127.5 - 1,
            "slots": slots,
            "colors": colors,
            "labels": token_labels(marks, owned_marks(boxes_M4, boxes_T4)),
            "caption": " ".join(f"{mark.color} {mark.label}" for mark in named),
        }


class DensePretrainingModel(nn.Module):
    """A vision tower and the projector, with the throw-away heads of stages `see` and `sharpen`."""

    def __init__(self, config: ShirgLavidaConfig, tokenizer: PreTrainedTokenizerBase):
        super().__init__()
        width = config.vision_config.hidden_size
        self.vision_tower = ShirgVisionTower(config)
        initialise_positions(self.vision_tower)
        self.projector = ShirgLavidaProjector(config)
        self.read_norm = LlamaRMSNorm(config.text_config.hidden_size)
        self.read_head = nn.Linear(config.text_config.hidden_size, len(WORDS), bias=False)
        self.mark_head = nn.Linear(width, NUM_SLOTS * (len(MARKS) + 1))
        self.color_head = nn.Linear(width, len(_COLOR_NAMES) + 1)
        self.place_head = nn.Linear(width, 2)
        sizes = {"hidden_size": width, "intermediate_size": 2 * width, "projection_size": width}
        sizes |= {"num_hidden_layers": 2, "num_attention_heads": config.vision_config.num_attention_heads}
        sizes |= {"vocab_size": len(tokenizer), "max_position_embeddings": CAPTION_LENGTH}
        ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
        self.text_tower = SiglipTextModel(SiglipTextConfig(**sizes, **ids))
        self.logit_scale = nn.Parameter(torch.tensor(2.3))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0))

    def forward(
        self,
        pixels: torch.Tensor,
        slots: torch.Tensor,
        colors: torch.Tensor,
        labels: torch.Tensor,
        caption_ids: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The loss of a batch of `ViewBatches`."""
        features_VND, _ = self.vision_tower(pixels)
        mark_logits = self.mark_head(features_VND).unflatten(-1, (NUM_SLOTS, -1)).float()
        color_logits = self.color_head(features_VND).float()
        weights = torch.where(slots > 0, 1.0, torch.tensor(_EMPTY_WEIGHTS, device=slots.device))
        dense = weighted_cross_entropy(mark_logits, slots, weights)
        dense = dense + 0.5 * weighted_cross_entropy(color_logits, colors, torch.where(colors > 0, 1.0, 0.2))
        grid = round(features_VND.shape[1] ** 0.5)
        corners_N2 = torch.from_numpy(token_boxes(np.array([[0, 0, 1, 1]]), grid))[:, :2].to(features_VND.device)
        places_VN2 = self.place_head(features_VND).float()
        place = F.mse_loss(places_VN2, (corners_N2 + 0.5 / grid).expand_as(places_VN2))
        sigmoid = self._sigmoid_loss(features_VND, caption_ids)
        tokens_VTC = pool_square(self.projector(features_VND), round(labels.shape[1] ** 0.5))
        aligned = alignment_loss(self.read_head(self.read_norm(tokens_VTC)).float(), labels)
        return {"loss": dense + place + 0.2 * sigmoid + aligned}

    def _sigmoid_loss(self, features_VND: torch.Tensor, caption_ids: torch.Tensor) -> torch.Tensor:
        vision_model = self.vision_tower.vision_model
        hidden_VND = features_VND
        for layer in vision_model.encoder.layers[self.vision_tower.num_kept_layers :]:
            hidden_VND = layer(hidden_VND, None)
        image_VD = F.normalize(vision_model.head(vision_model.post_layernorm(hidden_VND)).float(), dim=-1)
        text_VD = F.normalize(self.text_tower(caption_ids).pooler_output.float(), dim=-1)
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


def weighted_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean over `labels` of any shape; `logits` have the classes behind it."""
    losses = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()
