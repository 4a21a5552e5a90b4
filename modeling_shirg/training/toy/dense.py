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

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset
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


class SceneView(NamedTuple):
    """Part of a scene at the size that the tower gets: RGB (P, P), and the marks' boxes (M, 4) in its pixels."""

    image: Image.Image
    boxes_M4: np.ndarray


def base_view(drawn: Scene, size: int) -> SceneView:
    """The whole scene squashed to `size`."""
    return _resized(drawn, size)


def tile_view(drawn: Scene, size: int, rng: np.random.Generator) -> SceneView:
    """One of the 2x2 tiles of the scene resized to twice `size`."""
    whole = _resized(drawn, 2 * size)
    return _cut(whole, *(size * rng.integers(2, size=2)), size)


def fovea_view(drawn: Scene, size: int, rng: np.random.Generator) -> SceneView:
    """A native crop: every other time from the centre, where inference looks, else from anywhere."""
    width, height = drawn.image.size
    left, top = (width - size) // 2, (height - size) // 2
    if rng.random() < 0.5:
        left, top = rng.integers(width - size + 1), rng.integers(height - size + 1)
    whole = SceneView(drawn.image, np.array([mark.box for mark in drawn.marks], np.float32).reshape(-1, 4))
    return _cut(whole, left, top, size)


def mark_shares(boxes_M4: np.ndarray, cells_N4: np.ndarray) -> np.ndarray:
    """Overlap of every cell with every mark as a share of the smaller of the two, (N, M); boxes in the same unit."""
    cells, marks = cells_N4[:, None], boxes_M4[None]
    across = np.minimum(cells[..., 2], marks[..., 2]) - np.maximum(cells[..., 0], marks[..., 0])
    down = np.minimum(cells[..., 3], marks[..., 3]) - np.maximum(cells[..., 1], marks[..., 1])
    areas = [np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1) for boxes in (cells, marks)]
    return across.clip(0) * down.clip(0) / np.minimum(*areas).clip(1e-6)


def owned_marks(shares_NM: np.ndarray) -> np.ndarray:
    """Whether a mark lies on a cell: they share at least 0.35 of the smaller; bool (N, M)."""
    return shares_NM > _OWNED_SHARE


def patch_targets(marks: list[Mark], boxes_M4: np.ndarray, grid: int, patch: int) -> tuple[np.ndarray, np.ndarray]:
    """What lies on each patch of a view.

    Returns:
        slots int64 (N, 2), 1 + index into `MARKS` of the two marks that share most with the patch, left to right, or
        0; colors int64 (N,), 1 + index into the colours of the mark that shares most, or 0.
    """
    slots_N2, colors_N = np.zeros((grid * grid, NUM_SLOTS), np.int64), np.zeros(grid * grid, np.int64)
    if not marks:
        return slots_N2, colors_N
    shares_NM = mark_shares(boxes_M4, _cells(grid, patch))
    middle_M = (boxes_M4[:, 0] + boxes_M4[:, 2]) / 2
    for patch_number in np.nonzero(owned_marks(shares_NM).any(1))[0]:
        shares_M = shares_NM[patch_number]
        chosen = [mark for mark in np.argsort(-shares_M, kind="stable")[:NUM_SLOTS] if shares_M[mark] > _OWNED_SHARE]
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


class ViewDataset(Dataset):
    """Views of rendered scenes with targets per patch and per image token, and a caption.

    Batches of `batch_size` rows, taken in order, alternate between foveal views and base-size views.
    """

    def __init__(self, config: ShirgLavidaConfig, tokenizer, split: str, indices: range, batch_size: int):
        self.config, self.patch = config, config.vision_config.patch_size
        self.tokenizer, self.split, self.indices, self.batch_size = tokenizer, split, indices, batch_size

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> dict:
        index = self.indices[item]
        rng = np.random.default_rng([3, index])
        drawn = scene(str(rng.choice(list(_FAMILIES), p=list(_FAMILIES.values()))), self.split, index)
        view = self._view(drawn, rng, use_fovea=item // self.batch_size % 2 == 0)
        size = view.image.width
        visible = (view.boxes_M4[:, 2:] > 0).all(1) & (view.boxes_M4[:, :2] < size).all(1)
        marks = [mark for mark, seen in zip(drawn.marks, visible, strict=True) if seen]
        boxes_M4 = view.boxes_M4[visible]
        slots, colors = patch_targets(marks, boxes_M4, size // self.patch, self.patch)
        grid, side = size // self.patch, self.patch
        if size != self.config.fovea_size:  # pooled; each patch of the fovea is a token
            grid, side = self.config.pooled_grid_size, size / self.config.pooled_grid_size
        owned_TM = owned_marks(mark_shares(boxes_M4.reshape(-1, 4), _cells(grid, side)))
        named = [marks[number] for number in rng.permutation(len(marks))[:_CAPTION_MARKS]]
        return {
            "pixels": np.asarray(view.image, np.float32).transpose(2, 0, 1) / 127.5 - 1,
            "slots": slots,
            "colors": colors,
            "labels": token_labels(marks, owned_TM),
            "caption": " ".join(f"{mark.color} {mark.label}" for mark in named),
        }

    def _view(self, drawn: Scene, rng: np.random.Generator, use_fovea: bool) -> SceneView:
        if use_fovea:
            return fovea_view(drawn, self.config.fovea_size, rng)
        size = self.config.vision_config.image_size
        return tile_view(drawn, size, rng) if rng.random() < 0.6 else base_view(drawn, size)

    def collate(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """One batch of one view size."""
        options = {"padding": "max_length", "truncation": True, "max_length": CAPTION_LENGTH, "return_tensors": "pt"}
        captions = self.tokenizer([row["caption"] for row in rows], **options)
        keys = ("pixels", "slots", "colors", "labels")
        stacked = {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in keys}
        return stacked | {"caption_ids": captions.input_ids}


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
        """Loss, and the share of marks that patches name right, for a batch of `ViewDataset.collate`."""
        features_VND, _ = self.vision_tower(pixels)
        mark_logits = self.mark_head(features_VND).unflatten(-1, (NUM_SLOTS, -1)).float()
        color_logits = self.color_head(features_VND).float()
        weights = torch.where(slots > 0, 1.0, torch.tensor(_EMPTY_WEIGHTS, device=slots.device))
        dense = _weighted_cross_entropy(mark_logits, slots, weights)
        dense = dense + 0.5 * _weighted_cross_entropy(color_logits, colors, torch.where(colors > 0, 1.0, 0.2))
        places = self.place_head(features_VND).float()
        place = F.mse_loss(places, _places(features_VND).expand_as(places))
        sigmoid = self._sigmoid_loss(features_VND, caption_ids)
        tokens_VTC = pool_square(self.projector(features_VND), round(labels.shape[1] ** 0.5))
        aligned = alignment_loss(self.read_head(self.read_norm(tokens_VTC)).float(), labels)
        right = (mark_logits.argmax(-1) == slots) & (slots > 0)
        return {
            "loss": dense + place + 0.2 * sigmoid + aligned,
            "sigmoid": sigmoid,
            "aligned": aligned,
            "mark_accuracy": right.sum() / (slots > 0).sum(),
        }

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


def _resized(drawn: Scene, size: int) -> SceneView:
    scale = size / np.array([drawn.image.width, drawn.image.height] * 2, np.float32)
    boxes_M4 = np.array([mark.box for mark in drawn.marks], np.float32).reshape(-1, 4)
    return SceneView(drawn.image.resize((size, size), Image.Resampling.BICUBIC), boxes_M4 * scale)


def _cut(whole: SceneView, left: int, top: int, size: int) -> SceneView:
    left, top = int(left), int(top)
    image = whole.image.crop((left, top, left + size, top + size))
    return SceneView(image, whole.boxes_M4 - np.array([left, top, left, top], np.float32))


def _cells(grid: int, side: float) -> np.ndarray:
    """Boxes (grid * grid, 4) of a view's patches or tokens in its pixels, raster order."""
    top, left = np.array(np.divmod(np.arange(grid * grid), grid), np.float32) * side
    return np.stack([left, top, left + side, top + side], 1)


def _places(features_VND: torch.Tensor) -> torch.Tensor:
    """Centre (x, y) in 0..1 of every patch of a square view, shape (1, N, 2)."""
    grid = int(features_VND.shape[1] ** 0.5)
    ticks = (torch.arange(grid, device=features_VND.device) + 0.5) / grid
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    return torch.stack([x, y], -1).reshape(1, -1, 2)


def _weighted_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    losses = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()
