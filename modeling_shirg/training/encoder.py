"""A conversation about images becomes token ids and labels, through the processor's own chat template.

Every assistant turn is learned: its text and its end-of-turn token carry labels, everything else is -100. A generated
answer has a fixed length, so the last turn of a row is filled with end-of-text tokens, which are real tokens with
labels, up to a multiple of `answer_length`. LaViDa fills each row up to the longest of its batch instead
(modeling_shirg/objective_shirg.py), where what a row teaches depends on its neighbours. The collator adds padding.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.nn import functional as F

from configuration_shirg.geometry_shirg import mosaic_length, mosaic_window
from modeling_shirg.objective_shirg import IGNORED
from modeling_shirg.training.reading import BadRow


class Lengths(NamedTuple):
    """Tokens of a row: all but its last answer, that answer with its end-of-turn, and how many of all are images'."""

    prompt: int
    answer: int
    image: int


class _Text(NamedTuple):
    """The prompt for the last answer, labels of its ids without placeholders, and the ids of that answer.

    The answer is encoded apart from the prompt, as it is generated: a tokenizer may merge across the seam.
    """

    prompt: str
    prompt_labels: list[int]
    answer_ids: list[int]


class RowEncoder:
    """Encodes rows one by one, each without regard to any other.

    Args:
        processor: the model's `ShirgLavidaProcessor`.
        answer_length: the last answer of a row, with its end-of-turn token, is filled with end-of-text tokens to a
            multiple of this. The `max_new_tokens` that the model is to generate is the right choice; 1 fills nothing.
        max_length: the most tokens of a row, the language model's `max_position_embeddings`; `None` is no limit. The
            filling stops there.
        max_budget: the largest number of selected tokens per image that the run draws; by default the processor's.
    """

    def __init__(self, processor, answer_length: int, max_length: int | None = None, max_budget: int | None = None):
        if answer_length < 1:
            raise ValueError(f"answer_length must be at least 1, got {answer_length}.")
        self.processor, self.answer_length = processor, answer_length
        self.max_length, self.max_budget = max_length, max_budget
        tokenizer = processor.tokenizer
        added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._control_tokens = sorted({*tokenizer.all_special_tokens, *added})

    def lengths(self, messages: list[dict], image_sizes: Sequence[tuple[int, int]]) -> Lengths:
        """How long a row becomes, from its text and the (width, height) of its images.

        Raises:
            BadRow: the text holds a control token, or the row is longer than `max_length`.
        """
        text = self._text_of(messages)
        image = sum(self._num_image_tokens(*size) for size in image_sizes)
        return self._checked(Lengths(len(text.prompt_labels) + image, len(text.answer_ids), image))

    def encode(self, messages: list[dict], images: list[Image.Image], **image_options: Any) -> dict[str, torch.Tensor]:
        """Model inputs of one row: `input_ids` and `labels` (1, L), the rest as the processor returns it.

        Args:
            messages: chat turns, `{"type": "image"}` in the content of a turn for each of `images` in order.
            images: upright RGB.
            **image_options: call-time arguments of the image processor, such as `selection_budget`.

        Raises:
            BadRow: as of `lengths`.
            ValueError: the chat template writes an answer differently once it is followed by something.
        """
        text = self._text_of(messages)
        inputs = self.processor(
            images=[images], text=[text.prompt], add_special_tokens=False, return_tensors="pt", **image_options
        )
        prompt_L = inputs["input_ids"][0]
        is_image_L = prompt_L == self.processor.image_token_id
        self._checked(Lengths(len(prompt_L), len(text.answer_ids), int(is_image_L.sum())))
        labels_L = torch.full_like(prompt_L, IGNORED)
        labels_L[~is_image_L] = torch.tensor(text.prompt_labels)
        fill = -len(text.answer_ids) % self.answer_length
        if self.max_length is not None:
            fill = min(fill, self.max_length - len(prompt_L) - len(text.answer_ids))
        answer = torch.tensor([*text.answer_ids, *[self.processor.tokenizer.eos_token_id] * fill])
        return {
            **inputs,
            "input_ids": torch.cat([prompt_L, answer])[None],
            "labels": torch.cat([labels_L, answer])[None],
            "attention_mask": F.pad(inputs["attention_mask"], (0, len(answer)), value=1),
            "question_mask": F.pad(inputs["question_mask"], (0, len(answer))),
        }

    def _checked(self, lengths: Lengths) -> Lengths:
        total = lengths.prompt + lengths.answer
        if self.max_length is not None and total > self.max_length:
            raise BadRow(
                f"too long: {lengths.prompt} tokens before its last answer ({lengths.image} of them the image's) and "
                f"{lengths.answer} in it, {total} in all, more than the limit of {self.max_length}"
            )
        return lengths

    def _text_of(self, messages: list[dict]) -> _Text:
        """The prompt for the last answer as it is at inference, that answer, and what of the prompt is learned."""
        texts = [block.get("text", "") for message in messages for block in message["content"]]
        found = [token for token in self._control_tokens if any(token in text for text in texts)]
        if found:
            raise BadRow(f"the text of a turn holds the control token {found[0]}")
        *before, _ = messages
        prompt, whole = self._written(before, add_generation_prompt=True), self._written(messages)
        spans = [
            (self._written(messages[:turn], add_generation_prompt=True), self._written(messages[: turn + 1]))
            for turn, message in enumerate(before)
            if message["role"] == "assistant"
        ]
        written = [*(text for span in spans for text in span), prompt, whole]
        if not all(long.startswith(short) for short, long in pairwise(written)):
            raise ValueError(
                "The chat template does not write an answer as the prompt for it, followed by the answer: no labels "
                "can be given. Its text must not depend on what follows."
            )
        encoded = self._ids(prompt, return_offsets_mapping=True)
        labels = [
            index if any(len(start) <= first and last <= len(stop) for start, stop in spans) else IGNORED
            for index, (first, last) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            if index != self.processor.image_token_id
        ]
        return _Text(prompt, labels, self._ids(whole[len(prompt) :])["input_ids"])

    def _written(self, messages: list[dict], **options: bool) -> str:
        return self.processor.apply_chat_template(messages, tokenize=False, **options)

    def _ids(self, text: str, **options: bool):
        return self.processor.tokenizer(text, add_special_tokens=False, **options)

    def _num_image_tokens(self, width: int, height: int) -> int:
        image_processor = self.processor.image_processor
        if self.processor.num_image_tokens is not None:
            more = 0 if self.max_budget is None else self.max_budget - image_processor.selection_budget
            return self.processor.num_image_tokens + more
        base, pinpoints = image_processor.size.height, image_processor.image_grid_pinpoints
        window = mosaic_window(width, height, pinpoints, base, image_processor.mosaic_grid_size)
        return mosaic_length(window, image_processor.mosaic_grid_size)
