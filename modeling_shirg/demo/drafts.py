"""One question to one system, as a stream of drafts with the answer at the end."""

import queue
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import TextDiffusionStreamer

from configuration_shirg import ShirgLavidaConfig
from modeling_shirg.published_selections_shirg import METHODS
from modeling_shirg.running.ask import Answers, ask, conversation
from modeling_shirg.running.load import Loaded

# The response after a step: the text of each token, `None` where it is still masked, "" for filler.
Draft = list[str | None]
# (left, top, right, bottom) in pixels.
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Result:
    """The answer about `image`, its seconds, and notes on options that the system does not have."""

    answer: Answers
    image: Image.Image
    seconds: float
    notes: list[str]


class Asker:
    """Asks systems, which `load` loads by name; the last two stay loaded."""

    def __init__(self, load: Callable[[str], Loaded]):
        self._load = load
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()

    def system(self, name: str) -> Loaded:
        if name not in self._loaded:
            if len(self._loaded) > 1:
                self._loaded.popitem(last=False)
            self._loaded[name] = self._load(name)
        self._loaded.move_to_end(name)
        return self._loaded[name]

    def ask(
        self, name: str, image: Image.Image, text: str, options: dict, **generation: Any
    ) -> Iterator[Draft | Result]:
        """Drafts, then the result; `options` are those of `image_options`.

        Closing the iterator ends the generation at its next step. A question that is too long is a `ValueError`.
        """
        loaded, start = self.system(name), time.perf_counter()
        arguments, notes = image_options(loaded.model.config, **options)
        streamer = DraftQueue(loaded)
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(ask, loaded, [conversation(image, text)], arguments, streamer, **generation)
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
    """Call-time arguments of the image processor, and notes on options that the system does not have.

    The fovea looks at `box`; `budget` and `fovea` are relative to the system's own budget and side of the fovea.
    """
    arguments, notes = {}, []
    if box is not None and config.view_policy == "foveal":
        arguments["fovea_boxes"] = [box]
    elif box is not None:
        notes.append("it has no fovea, so the box was not used")
    if budget != 1 and config.selection_method in METHODS:
        views = config.num_selected_views
        arguments["selection_budget"] = views * max(1, round(budget * config.selection_budget / views))
    elif budget != 1:
        notes.append("it selects no tokens, so it has no budget")
    if fovea != 1 and config.view_policy == "foveal":
        patch = config.vision_config.patch_size
        arguments["fovea_size"] = patch * round(fovea * config.fovea_size / patch)
    elif fovea != 1:
        notes.append("it has no fovea, so its size was not used")
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
