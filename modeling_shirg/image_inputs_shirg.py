"""What the processor hands to the model about images, in one bundle, and what the model makes of it.

Shape suffixes: I images, V base views of one image, P pixels per side, L prompt tokens, T image tokens of one image or
SigLIP's ids of one question, N patches that tokens are selected from, K kept patches.
"""

from dataclasses import dataclass, fields

import torch
from transformers.utils import ModelOutput


@dataclass
class ImageInputs:
    """The image arguments of `forward`, `generate` and `get_image_features`.

    The processor returns all of them but `selection_noise` and `dropped_tokens`, which are for training.
    """

    # Base-size views of all images in reading order, (I * V, 3, P, P).
    pixel_values: torch.Tensor | None = None
    # Foveal views, for view policy `foveal`, (I, 3, P', P').
    fovea_pixel_values: torch.Tensor | None = None
    # 1 at the tokens of each image's question, (I, L); without it selection ignores the text.
    question_mask: torch.Tensor | None = None
    # Where each image lies in the mosaic of its tiles, for preset `lavida`, (I, 6).
    mosaic_windows: torch.Tensor | None = None
    # Each image's question in SigLIP's ids, for `text_relevance="siglip"`, (I, T); a row of -1 is no question.
    relevance_input_ids: torch.LongTensor | None = None
    # Boxes of all patches, for the coordinate embedding, (I, patches, 4).
    patch_boxes: torch.Tensor | None = None
    # Selected tokens of each image of this call, equal for all images, (I,); default: the config's.
    selection_budget: torch.LongTensor | None = None
    # Pixels per side of the foveal views of this call, equal for all images, (I,); default: the config's. Another size
    # interpolates the foveal positions and keeps the budget.
    fovea_size: torch.LongTensor | None = None
    # Reports of the processor, which the model does not read.
    image_sizes: torch.Tensor | None = None
    view_boxes: torch.Tensor | None = None
    # Gumbel noise that is added to score / `selection_temperature` before the top-K, (I, N).
    selection_noise: torch.Tensor | None = None
    # True at selected tokens that are zeroed after projection, (I, K).
    dropped_tokens: torch.BoolTensor | None = None

    @classmethod
    def collect(cls, arguments: dict[str, torch.Tensor | None]) -> "ImageInputs":
        """The bundle of these keyword arguments; an unknown name is a `TypeError`."""
        unknown = sorted(set(arguments) - set(IMAGE_INPUTS))
        if unknown:
            raise TypeError(f"Unknown argument {', '.join(unknown)}. Image arguments: {', '.join(IMAGE_INPUTS)}.")
        return cls(**arguments)

    def shared(self, name: str) -> int | None:
        """The value of a per-image argument that must be equal for all images; `None` if it was not given."""
        values = getattr(self, name)
        if values is None:
            return None
        if not isinstance(values, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, as processor(..., {name}=...) returns it, got {values!r}.")
        distinct = sorted(set(values.flatten().tolist()))
        if len(distinct) != 1:
            raise ValueError(f"All images of a batch need the same {name}, got {distinct}.")
        return distinct[0]


IMAGE_INPUTS = tuple(field.name for field in fields(ImageInputs))


@dataclass
class ShirgImageOutput(ModelOutput):
    """Image tokens and how they were chosen."""

    # What the language model reads in place of each image's placeholders, base views first, then the fovea: I tensors
    # (T, C). T differs between images only where a mosaic is cut to the image.
    image_tokens: tuple[torch.FloatTensor, ...] | None = None
    # Raster indices of the kept patches, ascending, (I, K); -1 where `adaptive` uses less than its budget; `None`
    # where no patch is kept as such.
    kept_indices: torch.LongTensor | None = None
    # The score of every patch, float32 (I, N); `None` for methods without a score.
    scores: torch.FloatTensor | None = None
    # False at image tokens that stand for nothing, (I, T); `None` where all are used. Only `adaptive` leaves some.
    used_tokens: torch.BoolTensor | None = None
    # False at the placeholders of unused tokens, which attention must not see, (B, L).
    visible_mask: torch.BoolTensor | None = None

    def visible(self, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        """The prompt's attention mask without the unused image tokens."""
        if self.visible_mask is None:
            return attention_mask
        if attention_mask is None:
            return self.visible_mask.long()
        if attention_mask.ndim != 2:
            raise ValueError(
                "A selection that leaves image tokens unused needs a 2D attention_mask, got one of shape "
                f"{tuple(attention_mask.shape)}."
            )
        return attention_mask * self.visible_mask.to(attention_mask)
