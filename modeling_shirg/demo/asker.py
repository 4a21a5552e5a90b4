"""One question to one system, as a stream of drafts with the answer at the end."""

import queue
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from transformers import TextDiffusionStreamer

from modeling_shirg.published_selections_shirg import METHODS
from modeling_shirg.running.ask import Answers, ask, conversation


@dataclass(frozen=True)
class PageQuestion:
    """What is asked.

    Args:
        image: upright RGB.
        text: in plain words.
        box: (left, top, right, bottom) of where to look, in pixels; `None` leaves the place to the system.
        budget: share of the system's own number of selected tokens, in (0, 1].
        generation: arguments of `generate`.
    """

    image: Image.Image
    text: str
    box: tuple[float, ...] | None = None
    budget: float = 1.0
    generation: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Draft:
    """The response after a step: the text of each token, `None` where it is still masked, "" for filler."""

    tokens: list[str | None]


@dataclass(frozen=True)
class Result:
    """The answer about `image`, its seconds, and notes on unused parts of the question."""

    answer: Answers
    image: Image.Image
    seconds: float
    notes: list[str]


class Asker:
    """Asks systems, of which it keeps the last two loaded.

    Args:
        load: from a preset's name to model and processor, as `modeling_shirg.running.load.load` returns them.
    """

    def __init__(self, load: Callable[[str], Any]):
        self._load = load
        self._loaded: OrderedDict[str, Any] = OrderedDict()

    def system(self, name: str) -> Any:
        """Model and processor of a preset."""
        if name not in self._loaded:
            if len(self._loaded) > 1:
                self._loaded.popitem(last=False)
            self._loaded[name] = self._load(name)
        self._loaded.move_to_end(name)
        return self._loaded[name]

    def ask(self, name: str, question: PageQuestion) -> Iterator[Draft | Result]:
        """Drafts, then the result. Closing the iterator ends the generation at its next step.

        Raises:
            ValueError: something of the question does not fit the system; it may be too long.
        """
        loaded = self.system(name)
        options, notes = image_options(loaded.model.config, question)
        streamer, started = _Drafts(loaded), time.perf_counter()
        conversations = [conversation(question.image, question.text)]
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(ask, loaded, conversations, options, streamer, **question.generation)
            future.add_done_callback(lambda _: streamer.queue.put(None))
            try:
                while (draft := streamer.queue.get()) is not None:
                    yield draft
            finally:
                streamer.abandoned = True
        yield Result(future.result(), question.image, time.perf_counter() - started, notes)


def image_options(config: Any, question: PageQuestion) -> tuple[dict[str, Any], list[str]]:
    """Call-time arguments of the image processor, and notes on what this system has no use for."""
    options, notes = {}, []
    if question.box is not None and config.view_policy == "foveal":
        options["fovea_boxes"] = [question.box]
    elif question.box is not None:
        notes.append("it has no fovea, so the box was not used")
    if question.budget != 1 and config.selection_method in METHODS:
        views = config.num_selected_views
        options["selection_budget"] = views * max(1, round(question.budget * config.selection_budget / views))
    elif question.budget != 1:
        notes.append("it selects no tokens, so it has no budget")
    return options, notes


class _Drafts(TextDiffusionStreamer):
    """Puts drafts into a queue instead of printing them."""

    def __init__(self, loaded: Any):
        tokenizer = loaded.processor.tokenizer
        self.tokenizer = tokenizer
        self.mask = loaded.model.config.mask_token_id
        self.special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        self.queue: queue.Queue[Draft | None] = queue.Queue()
        self.abandoned = False

    def put_draft(self, value: torch.Tensor, **kwargs: Any) -> None:
        if self.abandoned:
            raise InterruptedError("nobody waits for this answer any more")
        self.queue.put(Draft([self._text(token) for token in value[0].tolist()]))

    def put(self, value: torch.Tensor) -> None:
        """The prompt, and the response, whose last draft was put already."""

    def end(self) -> None:
        """Nothing is held back."""

    def _text(self, token: int) -> str | None:
        if token == self.mask:
            return None
        return "" if token in self.special else self.tokenizer.decode([token])
