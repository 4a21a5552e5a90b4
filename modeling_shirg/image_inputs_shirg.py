"""What the processor hands to the model about images, in one bundle, and what the model makes of it.

Shape suffixes: I images, V base views of one image, P pixels per side, L prompt tokens, T image tokens of one image or
SigLIP's ids of one question, N patches that tokens are selected from, K kept patches.
"""

from dataclasses import dataclass, fields

import torch
from transformers.utils import ModelOutput


@dataclass
class ImageInputs:
    """The image arguments of `forward`, `generate` and `get_image_features`; the processor returns all of them but the
    last two.

    Args:
        pixel_values (`(I * V, 3, P, P)`): base-size views of all images in reading order.
        fovea_pixel_values (`(I, 3, P', P')`): foveal views, for view policy `foveal`.
        question_mask (`(I, L)`): 1 at the tokens of each image's question; without it selection ignores the text.
        mosaic_windows (`(I, 6)`): where each image lies in the mosaic of its tiles, for preset `lavida`.
        relevance_input_ids (`(I, T)`): each image's question in SigLIP's own ids, for `text_relevance="siglip"`; a row
            of -1 is no question.
        patch_boxes (`(I, patches, 4)`): boxes of all patches, for the coordinate embedding.
        selection_budget (`(I,)`): number of selected tokens of this call, equal for all images; default: the config's.
        fovea_size (`(I,)`): side in pixels of the foveal views of this call, equal for all images; default: the
            config's. Other sizes interpolate the foveal positions and keep the budget.
        image_sizes, view_boxes: reports of the processor that the model does not read.
        selection_noise (`(I, N)`): for training, Gumbel noise that is added to score / `selection_temperature` before
            the top-K.
        dropped_tokens (`(I, K)`): for training, selected tokens that are zeroed after projection.
    """

    pixel_values: torch.Tensor | None = None
    fovea_pixel_values: torch.Tensor | None = None
    question_mask: torch.Tensor | None = None
    mosaic_windows: torch.Tensor | None = None
    relevance_input_ids: torch.LongTensor | None = None
    patch_boxes: torch.Tensor | None = None
    selection_budget: torch.LongTensor | None = None
    fovea_size: torch.LongTensor | None = None
    image_sizes: torch.Tensor | None = None
    view_boxes: torch.Tensor | None = None
    selection_noise: torch.Tensor | None = None
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
    """Image tokens and how they were chosen.

    Args:
        image_tokens (`tuple` of I `torch.FloatTensor` of shape `(T, C)`): what the language model reads in place of
            each image's placeholders, base views first, then the fovea. T differs between images only where a mosaic
            is cut to the image.
        kept_indices (`torch.LongTensor` of shape `(I, K)`, *optional*): raster indices of the kept patches, ascending;
            -1 where `adaptive` uses less than its budget; `None` where no patch is kept as such.
        scores (`torch.FloatTensor` of shape `(I, N)`, *optional*): the score of every patch, float32; `None` for
            methods without a score.
        probabilities (`torch.FloatTensor` of shape `(I, N)`, *optional*): `softmax(scores / selection_temperature)`.
        used_tokens (`torch.BoolTensor` of shape `(I, T)`, *optional*): `False` at image tokens that stand for nothing;
            `None` where all are used. Only `adaptive` leaves tokens unused.
        visible_mask (`torch.BoolTensor` of shape `(B, L)`, *optional*): `False` at the placeholders of unused tokens,
            which attention must not see.
    """

    image_tokens: tuple[torch.FloatTensor, ...] | None = None
    kept_indices: torch.LongTensor | None = None
    scores: torch.FloatTensor | None = None
    probabilities: torch.FloatTensor | None = None
    used_tokens: torch.BoolTensor | None = None
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
