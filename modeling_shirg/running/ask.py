"""One question about one image, answered and timed: what `shirg ask` and `shirg compare` share."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers.generation.streamers import BaseStreamer

from modeling_shirg.generation_shirg_lavida import visible_attention
from modeling_shirg.running.load import Loaded
from modeling_shirg.running.overlay import draw_overlay
from modeling_shirg.running.timing import StageClock
from modeling_shirg.serving.limits import check_length

# What pictures of the command line are written as.
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pdf")


@dataclass
class Answer:
    """An answer, and all that can be shown about it.

    `images` and `outputs` are what the model returned; `inputs` what the processor made of `image`.
    """

    text: str
    image: Image.Image
    inputs: Any
    images: Any
    outputs: Any
    config: Any

    @property
    def num_image_tokens(self) -> int:
        """Number of image tokens that the language model read."""
        used = self.images.used_tokens
        return len(self.images.image_tokens[0]) if used is None else int(used[0].sum())

    def kept_per_view(self) -> list[list[int]]:
        """For each view, base views first, the raster indices of the patches that reach the language model."""
        config, num_patches = self.config, self.config.selected_grid**2
        if not config.selects:
            return [list(range(num_patches))] * len(self.inputs["pixel_values"])
        kept = self._kept()
        every = list(range(config.num_selected_views * num_patches)) if kept is None else kept
        views = [
            [index - view * num_patches for index in every if index // num_patches == view]
            for view in range(config.num_selected_views)
        ]
        whole = list(range(config.base_grid**2)) if config.scaffold else []
        return [whole, *views] if config.view_policy == "foveal" else views

    def overlay(self) -> Image.Image:
        """The picture of what was looked at."""
        boxes_N4 = None
        if self.config.selects:
            num_patches = self.config.num_selected_views * self.config.selected_grid**2
            boxes_N4 = self.inputs["patch_boxes"][0, -num_patches:].cpu().numpy()
        return draw_overlay(self.image, self.inputs["view_boxes"][0].cpu().numpy(), boxes_N4, self._kept())

    def _kept(self) -> list[int] | None:
        if self.images.kept_indices is None:
            return None
        return [index for index in self.images.kept_indices[0].tolist() if index >= 0]


def read_image(loaded: Loaded, source: Any) -> Image.Image:
    """The upright RGB image at a path, URL or in bytes."""
    image_processor = loaded.processor.image_processor
    return image_processor.process_image(image_processor.fetch_images(source))


@torch.no_grad()
def answer_question(
    loaded: Loaded,
    image: Image.Image,
    question: str,
    clock: StageClock,
    image_options: dict[str, Any] | None = None,
    streamer: BaseStreamer | None = None,
    **generation: Any,
) -> Answer:
    """Ask, with the stages on `clock`.

    Args:
        loaded: model and processor.
        image: upright RGB.
        question: in plain words.
        clock: gets the `STAGES` that there are.
        image_options: call-time arguments of the image processor, such as `fovea_boxes` and `selection_budget`.
        streamer: gets the answer while it denoises.
        **generation: arguments of `generate`; `None` leaves the checkpoint's own.

    Raises:
        ValueError: prompt and answer are longer than the model knows positions, or an argument does not fit.
    """
    model, processor = loaded.model, loaded.processor
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    with clock.watch(model), clock.stage("rest"):
        with clock.stage("preprocess"):
            inputs = processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs=image_options or {},
            ).to(model.device)
        asked = generation.get("max_new_tokens") or model.generation_config.max_new_tokens or 0
        check_length(model, inputs["input_ids"].shape[1], asked)
        embeds, images = model.model.prepare_inputs_embeds(
            inputs["input_ids"],
            inputs["pixel_values"],
            inputs.get("fovea_pixel_values"),
            inputs["question_mask"],
            inputs.get("mosaic_windows"),
            inputs.get("relevance_input_ids"),
            inputs["patch_boxes"],
            inputs.get("selection_budget"),
        )
        outputs = model.generate(
            inputs_embeds=embeds,
            attention_mask=visible_attention(inputs["attention_mask"], images),
            streamer=streamer,
            return_dict_in_generate=True,
            **{name: value for name, value in generation.items() if value is not None},
        )
        text = processor.post_process_image_text_to_text(outputs.sequences)[0]
    return Answer(text, image, inputs, images, outputs, model.config)


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture in one step: what was at `path` stays if it fails, and no part of the new one is left."""
    draft = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        picture.save(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def check_writable(path: Path, flag: str) -> None:
    """Raises a `ValueError` unless a picture can be written to `path`; to be called before any work."""
    if path.suffix.lower() not in _PICTURES:
        raise ValueError(f"{flag} {path}: write it to a picture file, one of {', '.join(_PICTURES)}.")
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise ValueError(f"{flag} {path}: no file can be written there; is {path.resolve().parent} a folder?")
