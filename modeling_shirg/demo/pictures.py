"""The page's view of an answer: drafts as HTML, and pictures of views, kept patches and scores."""

from html import escape
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from modeling_shirg.running.overlay import draw_scores, enlarged, enlargement

from .drafts import Box, Draft, Result


def draft_html(draft: Draft, before: Draft | None, step: int) -> str:
    """A draft with masks as blocks; tokens that the last step filled in are marked."""
    cells = []
    for token, was in zip(draft, before or [None] * len(draft), strict=True):
        kind = "mask" if token is None else "token" if token else "filler"
        fresh = " fresh" if token is not None and was is None else ""
        text = {"mask": "&nbsp;", "filler": "&middot;"}.get(kind) or escape(token)
        cells.append(f'<span class="{kind}{fresh}">{text}</span>')
    return f'<div class="draft" data-step="{step}">{"".join(cells)}</div>'


def facts(result: Result) -> str:
    """One line about the cost of an answer."""
    answer = result.answer
    parts = [f"{answer.num_image_tokens[0]} image tokens"]
    if answer.outputs.kept_indices is not None:
        kept, scores = int((answer.outputs.kept_indices[0] >= 0).sum()), answer.outputs.scores
        parts.append(f"{kept} patches kept" if scores is None else f"{kept} of {scores.shape[1]} patches kept")
    parts += [f"{answer.outputs.forwards} steps", f"{result.seconds:.2f} s", *(f"*{note}*" for note in result.notes)]
    return " · ".join(parts)


def pictures(result: Result, image_processor: Any) -> list[tuple[Image.Image, str]]:
    """Kept patches, scores, and the views as the model got them, each with a caption."""
    answer, scores = result.answer, result.answer.outputs.scores
    shown = [(answer.overlay(result.image), "views" if answer.outputs.kept_indices is None else "kept")]
    if scores is not None:
        boxes_N4 = answer.inputs["patch_boxes"][0, -scores.shape[1] :].cpu().numpy()
        shown.append((draw_scores(result.image, boxes_N4, scores[0].cpu().numpy()), "scores"))
    mean, std = (np.reshape(getattr(image_processor, name), (3, 1, 1)) for name in ("image_mean", "image_std"))
    for name, field in (("view", "pixel_values"), ("fovea", "fovea_pixel_values")):
        views = answer.inputs.get(field, ())
        for number, view_3SS in enumerate(views, start=1):
            pixels_3SS = (view_3SS.float().cpu().numpy() * std + mean) / image_processor.rescale_factor
            view = Image.fromarray(np.moveaxis(pixels_3SS.round().clip(0, 255).astype(np.uint8), 0, -1))
            label = f"{name} {number}" if len(views) > 1 else name
            shown.append((view, f"{label}: {view.width} px"))
    return shown


def with_box(image: Image.Image, box: Box | None) -> Image.Image:
    """The image, enlarged if small, with a box in pixels of `image`."""
    marked, scale = enlarged(image).copy(), enlargement(image)
    if box is not None:
        width = max(2, max(marked.size) // 200)
        ImageDraw.Draw(marked).rectangle([edge * scale for edge in box], outline="#e11d48", width=width)
    return marked


def box_of(corner: tuple[float, float], opposite: tuple[float, float]) -> Box:
    """The box of two opposite corners."""
    (x0, y0), (x1, y1) = corner, opposite
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)
