"""A conversation about images becomes token ids and labels, through the processor's own chat template.

Every assistant turn is learned: its text and its end-of-turn token carry labels, everything else is -100. An answer
that is generated has a fixed length and short ones are filled with end-of-text tokens, so the last turn of a row is
filled with end-of-text tokens, which are real tokens with labels, up to a multiple of `answer_length`. LaViDa fills
each row up to the longest of its batch instead (modeling_shirg/objective_shirg.py), where what a row teaches depends
on its neighbours. Padding proper is added later, by the collator: it is masked in attention and has no label.
"""

import hashlib
import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.nn import functional as F

from configuration_shirg.geometry_shirg import mosaic_length, mosaic_window
from modeling_shirg.objective_shirg import IGNORED
from modeling_shirg.training.data.bad_rows import BadRow


class Lengths(NamedTuple):
    """Tokens of a row: all but its last answer, that answer with its end-of-turn, and how many of all are images'."""

    prompt: int
    answer: int
    image: int

    @property
    def total(self) -> int:
        """All tokens of the row, without the end-of-text tokens that fill it."""
        return self.prompt + self.answer


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
        if processor.tokenizer.eos_token_id is None:
            raise ValueError("The tokenizer has no end-of-text token (eos_token), which fills up short answers.")
        self.processor = processor
        self.answer_length = answer_length
        self.max_length = max_length
        self.max_budget = max_budget
        tokenizer = processor.tokenizer
        added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._control_tokens = sorted({*tokenizer.all_special_tokens, *added})

    def fingerprint(self) -> str:
        """What the lengths of a row depend on, as one short string: the same in every process."""
        tokenizer, image_processor = self.processor.tokenizer, self.processor.image_processor
        parts = [
            tokenizer.backend_tokenizer.to_str(),
            self.processor.chat_template,
            self.processor.num_image_tokens,
            image_processor.to_json_string(),
            self.max_budget,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def lengths(self, messages: list[dict], image_sizes: Sequence[tuple[int, int]]) -> Lengths:
        """How long a row becomes, from its text and the (width, height) of its images.

        Raises:
            BadRow: the text holds a control token.
        """
        text = self._text_of(messages)
        image = sum(self._num_image_tokens(*size) for size in image_sizes)
        return Lengths(prompt=len(text.prompt_labels) + image, answer=len(text.answer_ids), image=image)

    def is_too_long(self, lengths: Lengths) -> bool:
        """Whether a row exceeds `max_length`."""
        return self.max_length is not None and lengths.total > self.max_length

    def check_length(self, lengths: Lengths, name: str) -> None:
        """Raises a `ValueError` that names the row's lengths and the limit if it is too long."""
        if self.is_too_long(lengths):
            raise ValueError(
                f"{name} has {lengths.prompt} tokens before its last answer ({lengths.image} of them the image's) and "
                f"{lengths.answer} in it, {lengths.total} in all: more than the limit of {self.max_length}. Shorten "
                "or remove it, or leave such rows out with --skip_long."
            )

    def encode(
        self, messages: list[dict], images: list[Image.Image], name: str, **image_options: Any
    ) -> dict[str, torch.Tensor]:
        """Model inputs of one row: `input_ids` and `labels` (1, L), the rest as the processor returns it.

        Args:
            messages: chat turns, `{"type": "image"}` in the content of a turn for each of `images` in order.
            images: upright RGB.
            name: what messages call the row.
            **image_options: call-time arguments of the image processor, such as `selection_budget`.

        Raises:
            ValueError: the row is longer than `max_length`, or the chat template writes an answer differently once it
                is followed by something.
        """
        text = self._text_of(messages)
        inputs = self.processor(
            images=[images], text=[text.prompt], add_special_tokens=False, return_tensors="pt", **image_options
        )
        prompt_L = inputs["input_ids"][0]
        is_image_L = prompt_L == self.processor.image_token_id
        lengths = Lengths(prompt=len(prompt_L), answer=len(text.answer_ids), image=int(is_image_L.sum()))
        self.check_length(lengths, name)
        labels_L = torch.full_like(prompt_L, IGNORED)
        labels_L[~is_image_L] = torch.tensor(text.prompt_labels)
        fill = [self.processor.tokenizer.eos_token_id] * self._fill(lengths)
        answer = torch.tensor([*text.answer_ids, *fill])
        return {
            **inputs,
            "input_ids": torch.cat([prompt_L, answer])[None],
            "labels": torch.cat([labels_L, answer])[None],
            "attention_mask": F.pad(inputs["attention_mask"], (0, len(answer)), value=1),
            "question_mask": F.pad(inputs["question_mask"], (0, len(answer))),
        }

    def _fill(self, lengths: Lengths) -> int:
        """Number of end-of-text tokens after the last answer."""
        fill = -lengths.answer % self.answer_length
        return fill if self.max_length is None else min(fill, self.max_length - lengths.total)

    def _text_of(self, messages: list[dict]) -> "_Text":
        """The prompt for the last answer as it is at inference, that answer, and what of the prompt is learned."""
        for message in messages:
            self._check_text(message)
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
        learned = [(len(start), len(stop)) for start, stop in spans]
        return _Text(prompt, self._prompt_labels(prompt, learned), self._ids(whole[len(prompt) :])["input_ids"])

    def _prompt_labels(self, prompt: str, learned: list[tuple[int, int]]) -> list[int]:
        """Labels of the prompt's ids without its placeholders: those of the characters in `learned`."""
        encoded = self._ids(prompt, return_offsets_mapping=True)
        return [
            index if any(start <= first and last <= stop for start, stop in learned) else IGNORED
            for index, (first, last) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            if index != self.processor.image_token_id
        ]

    def _written(self, messages: list[dict], **options: bool) -> str:
        return self.processor.apply_chat_template(messages, tokenize=False, **options)

    def _ids(self, text: str, **options: bool):
        return self.processor.tokenizer(text, add_special_tokens=False, **options)

    def _check_text(self, message: dict) -> None:
        for block in message["content"]:
            found = [token for token in self._control_tokens if token in block.get("text", "")]
            if found:
                raise BadRow(f"the text of a turn holds the control token {found[0]}")

    def _num_image_tokens(self, width: int, height: int) -> int:
        image_processor = self.processor.image_processor
        if self.processor.num_image_tokens is not None:
            more = 0 if self.max_budget is None else self.max_budget - image_processor.selection_budget
            return self.processor.num_image_tokens + more
        base, pinpoints = image_processor.size.height, image_processor.image_grid_pinpoints
        window = mosaic_window(width, height, pinpoints, base, image_processor.mosaic_grid_size)
        return mosaic_length(window, image_processor.mosaic_grid_size)
