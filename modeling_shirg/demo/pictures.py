"""What the page shows of an answer: drafts as HTML, and pictures of views, kept patches and scores."""

from html import escape
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from modeling_shirg.running.overlay import draw_scores, enlarged, enlargement

from .asker import Draft, Result

# (left, top, right, bottom)
Box = tuple[float, float, float, float]
_BOX_COLOR = "#e11d48"


def draft_html(draft: Draft, before: Draft | None, step: int) -> str:
    """A draft, its masks as blocks, what the last step filled in marked."""
    old = before.tokens if before is not None else [None] * len(draft.tokens)
    cells = [_cell(token, was) for token, was in zip(draft.tokens, old, strict=True)]
    return f'<div class="draft" data-step="{step}">{"".join(cells)}</div>'


def _cell(token: str | None, before: str | None) -> str:
    if token is None:
        return '<span class="mask">&nbsp;</span>'
    fresh = " fresh" if before is None else ""
    if not token:
        return f'<span class="filler{fresh}">&middot;</span>'
    return f'<span class="token{fresh}">{escape(token)}</span>'


def answer_html(text: str) -> str:
    """The finished answer."""
    return f'<div class="answer">{escape(text) or "(an empty answer)"}</div>'


def facts(result: Result) -> str:
    """One line about what the answer cost."""
    outputs, config, kept_IK = result.answer.outputs, result.answer.config, result.answer.outputs.kept_indices
    parts = [f"{result.answer.num_image_tokens[0]} image tokens"]
    if kept_IK is not None:
        every = config.num_selected_views * config.selected_grid**2
        parts.append(f"{int((kept_IK[0] >= 0).sum())} of {every} patches kept")
    parts += [f"{outputs.forwards} steps", f"{result.seconds:.2f} s", *(f"*{note}*" for note in result.notes)]
    return " · ".join(parts)


def pictures(result: Result, image_processor: Any) -> list[tuple[Image.Image, str]]:
    """What was looked at, what was scored, and the views as the model got them, each with a caption."""
    answer = result.answer
    shown = [(answer.overlay(result.image), "views" if answer.outputs.kept_indices is None else "kept")]
    scores = answer.outputs.scores
    if scores is not None:
        boxes_N4 = answer.inputs["patch_boxes"][0, -scores.shape[1] :].cpu().numpy()
        shown.append((draw_scores(result.image, boxes_N4, scores[0].cpu().numpy()), "scores"))
    for name, field in (("view", "pixel_values"), ("fovea", "fovea_pixel_values")):
        views = answer.inputs.get(field, ())
        for number, view_3SS in enumerate(views, start=1):
            view = _pixels(view_3SS.float().cpu().numpy(), image_processor)
            label = f"{name} {number}" if len(views) > 1 else name
            shown.append((view, f"{label}: {view.width} px"))
    return shown


def _pixels(view_3SS: np.ndarray, image_processor: Any) -> Image.Image:
    mean, std = (np.reshape(getattr(image_processor, name), (3, 1, 1)) for name in ("image_mean", "image_std"))
    values = (view_3SS * std + mean) / image_processor.rescale_factor
    return Image.fromarray(np.moveaxis(values.round().clip(0, 255).astype(np.uint8), 0, -1))


def with_box(image: Image.Image, box: Box | None) -> Image.Image:
    """The image, enlarged if small, with a box in pixels of `image`."""
    marked, scale = enlarged(image).copy(), enlargement(image)
    if box is not None:
        width = max(2, max(marked.size) // 200)
        ImageDraw.Draw(marked).rectangle([edge * scale for edge in box], outline=_BOX_COLOR, width=width)
    return marked


def box_of(corner: tuple[float, float], opposite: tuple[float, float]) -> Box:
    """The box of two opposite corners."""
    (x0, y0), (x1, y1) = corner, opposite
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)
