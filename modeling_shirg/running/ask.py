"""The one way to ask: conversations with images become answers, and all that can be shown about them."""

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch.profiler import record_function
from transformers import BatchFeature
from transformers.generation.streamers import BaseStreamer

from configuration_shirg import ShirgLavidaConfig
from configuration_shirg.geometry_shirg import grid_side
from modeling_shirg.generation_shirg_lavida import ShirgGenerationOutput
from modeling_shirg.running.load import Loaded
from modeling_shirg.running.overlay import draw_overlay


def conversation(image: Any, question: str) -> list[dict[str, Any]]:
    """One user turn about an image, which may be anything that the image processor reads."""
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]


def check_length(model: Any, prompt: int, max_new_tokens: int) -> None:
    """Raises a `ValueError` for a prompt and an answer that are together longer than the model knows positions."""
    known = model.config.text_config.max_position_embeddings
    if prompt + max_new_tokens > known:
        raise ValueError(
            f"A prompt of {prompt} tokens and max_new_tokens={max_new_tokens} are more than the {known} positions "
            "that the model knows: ask less, or for less."
        )


@dataclass
class Answers:
    """The answers to a batch of conversations.

    Args:
        texts: an answer per conversation.
        inputs: model inputs, as the processor made them.
        outputs: output of `generate`, with the selection.
        config: the model's.
    """

    texts: list[str]
    inputs: BatchFeature
    outputs: ShirgGenerationOutput
    config: ShirgLavidaConfig

    @property
    def num_image_tokens(self) -> list[int]:
        """Number of image tokens that the language model reads in each conversation."""
        written_B = (self.inputs["input_ids"] == self.config.image_token_id).sum(-1)
        kept_IK = self.outputs.kept_indices
        if kept_IK is None:
            return written_B.tolist()
        images_B = (written_B * len(kept_IK) // written_B.sum()).tolist()
        unused_I = (kept_IK < 0).sum(-1).to(written_B.device)
        pairs = zip(written_B, unused_I.split(images_B), strict=True)
        return [int(written - unused.sum()) for written, unused in pairs]

    def kept_per_view(self, row: int = 0) -> list[list[int]]:
        """For each view of image `row`, raster indices of the patches that reach the language model."""
        config = self.config
        if not config.selects:
            views = int((self.inputs["view_boxes"][row] != 0).any(-1).sum())
            return [list(range(config.selected_grid**2))] * views
        patches = self._selected_patches
        kept = self._kept(row)
        if kept is None:
            kept = range(config.num_selected_views * patches)
        views = [[index % patches for index in kept if index // patches == view] for view in range(self._num_views)]
        whole = list(range(config.base_grid**2)) if config.scaffold else []
        return [whole, *views] if config.view_policy == "foveal" else views

    def overlay(self, image: Image.Image, row: int = 0) -> Image.Image:
        """The picture of what was looked at in `image`, the upright RGB image `row`."""
        boxes_N4 = None
        if self.config.selects:
            boxes_N4 = self.inputs["patch_boxes"][row, -self._num_views * self._selected_patches :].cpu().numpy()
        return draw_overlay(image, self.inputs["view_boxes"][row].cpu().numpy(), boxes_N4, self._kept(row))

    @property
    def _num_views(self) -> int:
        return self.config.num_selected_views

    @property
    def _selected_patches(self) -> int:
        """Patches of a view to select from, which a `fovea_size` at call time changes."""
        if "fovea_size" not in self.inputs:
            return self.config.selected_grid**2
        return grid_side(int(self.inputs["fovea_size"][0]), self.config.vision_config.patch_size) ** 2

    def _kept(self, row: int) -> list[int] | None:
        kept_IK = self.outputs.kept_indices
        return None if kept_IK is None else [index for index in kept_IK[row].tolist() if index >= 0]


@torch.no_grad()
def ask(
    loaded: Loaded,
    conversations: list[list[dict[str, Any]]],
    image_options: dict[str, Any] | None = None,
    streamer: BaseStreamer | None = None,
    **generation: Any,
) -> Answers:
    """Answer a batch of conversations.

    Args:
        loaded: model and processor.
        conversations: messages of text and images, as `conversation` makes them.
        image_options: call-time arguments of the image processor, such as `fovea_boxes` and `selection_budget`.
        streamer: gets the answer while it denoises; for one conversation.
        **generation: arguments of `generate`; `None` leaves the checkpoint's own.

    Raises:
        ValueError: prompt and answer are longer than the model knows positions, or an argument does not fit.
    """
    model, processor = loaded.model, loaded.processor
    with record_function("shirg.preprocess"):
        inputs = processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=image_options or {},
        ).to(model.device)
    given = {name: value for name, value in generation.items() if value is not None}
    prompt = inputs["input_ids"].shape[1]
    check_length(model, prompt, given.get("max_new_tokens", model.generation_config.max_new_tokens) or 0)
    outputs = model.generate(**inputs, streamer=streamer, output_selection=True, return_dict_in_generate=True, **given)
    texts = processor.post_process_image_text_to_text(outputs.sequences[:, prompt:])
    return Answers(texts, inputs, outputs, model.config)
