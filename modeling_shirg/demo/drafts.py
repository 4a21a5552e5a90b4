"""One question to one system, as a stream of drafts with the answer at the end, and how both are shown."""

import queue
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from html import escape
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw
from transformers import TextDiffusionStreamer

from configuration_shirg import ShirgLavidaConfig
from modeling_shirg.running.ask import Answers, ask, conversation
from modeling_shirg.running.load import Loaded
from modeling_shirg.running.overlay import draw_scores, enlarged, enlargement

# The response after a step: the text of each token, `None` where it is still masked, "" for filler.
Draft = list[str | None]
# (left, top, right, bottom) in pixels.
Box = tuple[float, float, float, float]


class Result(NamedTuple):
    """The answer about `image`, its seconds, and notes on options that the system does not have."""

    answer: Answers
    image: Image.Image
    seconds: float
    notes: list[str]


class Asker:
    """Asks systems, which `load` loads by name; the last two stay loaded."""

    def __init__(self, load: Callable[[str], Loaded]):
        self._load = load
        self._loaded: dict[str, Loaded] = {}

    def system(self, name: str) -> Loaded:
        if name not in self._loaded:
            for oldest in [*self._loaded][:-1]:
                del self._loaded[oldest]
            self._loaded[name] = self._load(name)
        self._loaded[name] = self._loaded.pop(name)
        return self._loaded[name]

    def ask(self, name: str, image: Image.Image, text: str, **options: Any) -> Iterator[Draft | Result]:
        """Each `Draft`, then the `Result`; `options` are those of `image_options`.

        Closing the iterator ends the generation at its next step. A question that is too long is a `ValueError`.
        """
        loaded, start = self.system(name), time.perf_counter()
        arguments, notes = image_options(loaded.model.config, **options)
        streamer = DraftQueue(loaded)
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(ask, loaded, [conversation(image, text)], arguments, streamer)
            future.add_done_callback(lambda _: streamer.drafts.put(None))
            try:
                while (draft := streamer.drafts.get()) is not None:
                    yield draft
            finally:
                streamer.abandoned = True
        yield Result(future.result(), image, time.perf_counter() - start, notes)


def image_options(
    config: ShirgLavidaConfig, box: Box | None = None, budget: float = 1, fovea: float = 1
) -> tuple[dict[str, Any], list[str]]:
    """Call-time arguments of the image processor for the fovea's box and for shares of the system's own budget and
    fovea side, and notes on options that the system does not have."""
    arguments, notes, views, patch = {}, [], config.num_selected_views, config.vision_config.patch_size
    if config.view_policy == "foveal":
        arguments = {} if box is None else {"fovea_boxes": [box]}
        arguments |= {} if fovea == 1 else {"fovea_size": patch * round(fovea * config.fovea_size / patch)}
    elif box is not None or fovea != 1:
        notes.append("it has no fovea, so its box and size were not used")
    if budget != 1 and config.chooses:
        arguments["selection_budget"] = views * max(1, round(budget * config.selection_budget / views))
    elif budget != 1:
        notes.append("it selects no tokens, so it has no budget")
    return arguments, notes


class DraftQueue(TextDiffusionStreamer):
    """Puts the drafts of an answer into a queue; once `abandoned`, the next draft raises an `InterruptedError`."""

    def __init__(self, loaded: Loaded):
        self.tokenizer = loaded.processor.tokenizer
        self.mask = loaded.model.config.mask_token_id
        self.special = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        self.drafts: queue.Queue[Draft | None] = queue.Queue()
        self.abandoned = False

    def put_draft(self, value: torch.Tensor, **kwargs: Any) -> None:
        if self.abandoned:
            raise InterruptedError("nobody waits for this answer any more")
        tokens = value[0].tolist()
        texts = ["" if token in self.special else self.tokenizer.decode([token]) for token in tokens]
        self.drafts.put([None if token == self.mask else text for token, text in zip(tokens, texts, strict=True)])

    def put(self, value: torch.Tensor) -> None:
        """The prompt, and the response, whose last draft was put already."""

    def end(self) -> None:
        """Nothing is held back."""


def draft_html(draft: Draft, before: Draft | None, step: int) -> str:
    """A draft with masks as blocks; tokens that the last step filled in are marked."""
    cells = []
    for token, was in zip(draft, before or [None] * len(draft), strict=True):
        kind = "mask" if token is None else "fresh" if was is None else "token"
        cells.append(f'<span class="{kind}">{"&nbsp;" if token is None else escape(token) or "&middot;"}</span>')
    return f'<div class="draft" data-step="{step}">{"".join(cells)}</div><div class="facts">step {step}</div>'


def result_html(result: Result) -> str:
    """The answer, and one line about its cost."""
    answer = result.answer
    parts = [f"{answer.num_image_tokens[0]} image tokens"]
    if answer.outputs.kept_indices is not None:
        kept, scores = int((answer.outputs.kept_indices[0] >= 0).sum()), answer.outputs.scores
        parts.append(f"{kept} patches kept" if scores is None else f"{kept} of {scores.shape[1]} patches kept")
    facts = " · ".join([*parts, f"{answer.outputs.forwards} steps", f"{result.seconds:.2f} s", *result.notes])
    return f'<div class="answer">{escape(answer.texts[0]) or "(empty)"}</div><div class="facts">{facts}</div>'


def pictures(result: Result) -> list[tuple[Image.Image, str]]:
    """The views with their kept patches, and scores where patches have some, each with a caption."""
    answer, scores = result.answer, result.answer.outputs.scores
    shown = [(answer.overlay(result.image), "views" if answer.outputs.kept_indices is None else "kept patches")]
    if scores is not None:
        boxes_N4 = answer.inputs["patch_boxes"][0, -scores.shape[1] :].cpu().numpy()
        shown.append((draw_scores(result.image, boxes_N4, scores[0].cpu().numpy()), "yellow: high score"))
    return shown


def with_box(image: Image.Image, box: Box | None) -> Image.Image:
    """The image, enlarged if small, with a box in pixels of `image`."""
    marked, scale = enlarged(image).copy(), enlargement(image)
    if box is not None:
        width = max(2, max(marked.size) // 200)
        ImageDraw.Draw(marked).rectangle([edge * scale for edge in box], outline="#e11d48", width=width)
    return marked
