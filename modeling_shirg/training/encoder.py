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
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.nn import functional as F

from configuration_shirg.geometry_shirg import mosaic_length, mosaic_window, select_best_resolution
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
        ids, spans = self._text_ids(messages)
        image = sum(self._num_image_tokens(*size) for size in image_sizes)
        start, stop = spans[-1]
        return Lengths(prompt=start - len(image_sizes) + image, answer=stop - start, image=image)

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
        text_ids, spans = self._text_ids(messages)
        text = self.processor.apply_chat_template(messages, tokenize=False)
        inputs = self.processor(
            images=[images], text=[text], add_special_tokens=False, return_tensors="pt", **image_options
        )
        ids_L = inputs["input_ids"][0]
        learned = [any(start <= place < stop for start, stop in spans) for place in range(len(text_ids))]
        labels_L = self._expanded_labels(text_ids, learned, ids_L)
        start, stop = spans[-1]
        lengths = Lengths(
            prompt=len(ids_L) - (len(text_ids) - start),
            answer=stop - start,
            image=int((ids_L == self.processor.image_token_id).sum()),
        )
        self.check_length(lengths, name)
        fill = torch.full((self._fill(lengths),), self.processor.tokenizer.eos_token_id)
        return {
            **inputs,
            "input_ids": torch.cat([ids_L, fill])[None],
            "labels": torch.cat([labels_L, fill])[None],
            "attention_mask": F.pad(inputs["attention_mask"], (0, len(fill)), value=1),
            "question_mask": F.pad(inputs["question_mask"], (0, len(fill))),
        }

    def _fill(self, lengths: Lengths) -> int:
        """Number of end-of-text tokens after the last answer."""
        fill = -lengths.answer % self.answer_length
        return fill if self.max_length is None else min(fill, self.max_length - lengths.total)

    def _text_ids(self, messages: list[dict]) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of the conversation with one placeholder per image, and where each assistant turn starts and stops.

        A turn starts where the prompt for it, as at inference, ends.
        """
        for message in messages:
            self._check_text(message)
        ids = self._ids(messages)
        spans = []
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._ids(messages[:turn], add_generation_prompt=True)
            answered = self._ids(messages[: turn + 1])
            if ids[: len(prompt)] != prompt or ids[: len(answered)] != answered or len(answered) <= len(prompt):
                raise ValueError(
                    f"The chat template does not write turn {turn} as the prompt for it, followed by an answer: no "
                    "labels can be given. Its text must not depend on what follows."
                )
            spans.append((len(prompt), len(answered)))
        return ids, spans

    def _ids(self, messages: list[dict], add_generation_prompt: bool = False) -> list[int]:
        text = self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _check_text(self, message: dict) -> None:
        for block in message["content"]:
            found = [token for token in self._control_tokens if token in block.get("text", "")]
            if found:
                raise BadRow(f"the text of a turn holds the control token {found[0]}")

    def _expanded_labels(self, text_ids: list[int], learned: list[bool], ids_L: torch.Tensor) -> torch.Tensor:
        """Labels (L,) for ids whose placeholders were multiplied."""
        is_image_L = ids_L == self.processor.image_token_id
        is_text = [index != self.processor.image_token_id for index in text_ids]
        assert ids_L[~is_image_L].tolist() == [index for index, keep in zip(text_ids, is_text, strict=True) if keep]
        labels_L = torch.full_like(ids_L, IGNORED)
        learned_text = torch.tensor([keep for keep, text in zip(learned, is_text, strict=True) if text])
        labels_L[~is_image_L] = torch.where(learned_text, ids_L[~is_image_L], IGNORED)
        return labels_L

    def _num_image_tokens(self, width: int, height: int) -> int:
        image_processor = self.processor.image_processor
        if self.processor.num_image_tokens is not None:
            more = 0 if self.max_budget is None else self.max_budget - image_processor.selection_budget
            return self.processor.num_image_tokens + more
        base, pinpoints = image_processor.size.height, image_processor.image_grid_pinpoints
        canvas = select_best_resolution(width, height, pinpoints)
        window = mosaic_window(width, height, canvas, base, image_processor.mosaic_grid_size)
        return mosaic_length(window, image_processor.mosaic_grid_size)
