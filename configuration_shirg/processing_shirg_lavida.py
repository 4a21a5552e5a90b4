"""Processor of SHIRG-LaViDa: image processor, tokenizer, and the placeholders that tie them together.

Every image takes as many placeholders as it gives image tokens, a number that is known before the model runs. The
processor also finds the question of each image, and writes the question in SigLIP's own ids where the checkpoint has
SigLIP's text tower, so that no model file needs a tokenizer.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .configuration_shirg_lavida import ShirgLavidaConfig
from .geometry_shirg import mosaic_length
from .image_processing_shirg_lavida import ShirgLavidaImageProcessor

_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
# Name of the second tokenizer, and of its sub-folder in a saved processor.
_RELEVANCE_TOKENIZER = "relevance_tokenizer"
# Fills the row of an image without a question in `relevance_input_ids`. No tokenizer has this id.
_NO_QUESTION = -1
_ROLES = ("system", "user", "assistant")
_HEADER_START, _HEADER_END, _TURN_END = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"

# LaViDa's prompt. `None` in remote code, which is copied without this file: the template is then the checkpoint's.
_TEMPLATE_FILE = Path(__file__).with_name("chat_template.jinja")
CHAT_TEMPLATE = _TEMPLATE_FILE.read_text(encoding="utf-8") if _TEMPLATE_FILE.is_file() else None

# Arguments of the tokenizer that a call may replace.
_TEXT_DEFAULTS = {"padding": True, "return_token_type_ids": False}


class ShirgLavidaProcessor(ProcessorMixin):
    r"""Turns prompts and images into model inputs.

    Besides `input_ids`, `attention_mask` and what `ShirgLavidaImageProcessor` returns there is `question_mask`, int64
    (images, L), one row per image in reading order over the batch: 1 at the text tokens of the turn that holds the
    image, between `<|end_header_id|>` and `<|eot_id|>`; in a prompt without these the whole prompt is the turn.
    Special tokens, image tokens, padding and tokens of whitespace only are 0.

    With a `relevance_tokenizer` there is also `relevance_input_ids`, int64 (images, `relevance_length`): the question
    of each image in SigLIP's own ids, padded or truncated; -1 everywhere for an image without a question.

    Prompts are padded to the longest of the batch by default, on the tokenizer's `padding_side`.
    """

    relevance_length = None
    _relevance_tokenizer = None

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,  # LLaDA's, with `image_token` added as a special token
        chat_template=None,  # by default LaViDa's prompt
        image_token="<image>",
        num_image_tokens=None,  # the config's; `None` where the number follows from the image's size
        relevance_tokenizer=None,  # SigLIP's, for text_relevance="siglip"
        relevance_length=None,  # length of the text tower, given with the `relevance_tokenizer`
        **kwargs,
    ):
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE, **kwargs)
        self.image_token = image_token
        self.image_token_id = _single_token_id(tokenizer, image_token)
        self.num_image_tokens = num_image_tokens
        if relevance_tokenizer is not None:
            self._relevance_tokenizer = relevance_tokenizer
            self.relevance_length = relevance_length

    @property
    def relevance_tokenizer(self):
        return self._relevance_tokenizer

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Parts of every processor. The parent takes any parameter with `tokenizer` in its name for a required one."""
        return [name for name in super().get_attributes() if name != _RELEVANCE_TOKENIZER]

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        """The saved fields, with the second tokenizer where they name its length."""
        fields, unused = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if fields.get("relevance_length") is not None:
            hub = _hub_arguments(kwargs)
            hub["subfolder"] = os.path.join(hub.get("subfolder") or "", _RELEVANCE_TOKENIZER)
            fields[_RELEVANCE_TOKENIZER] = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **hub)
        return fields, unused

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs) -> list[str]:
        """Save everything that `from_pretrained` needs, the second tokenizer in a sub-folder."""
        if self.relevance_tokenizer is None:
            return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        self.relevance_tokenizer.save_pretrained(os.path.join(save_directory, _RELEVANCE_TOKENIZER))
        if push_to_hub:  # the parent uploads only what it wrote itself
            repo_id = kwargs.pop("repo_id", os.path.basename(os.path.normpath(save_directory)))
            self.push_to_hub(repo_id, **kwargs)
        return super().save_pretrained(save_directory)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load a processor; with `prune_method` or other fields of `ShirgLavidaConfig`, the one of that config."""
        options = {name: kwargs.pop(name) for name in ShirgLavidaConfig.__annotations__ if name in kwargs}
        hub = _hub_arguments(kwargs)
        processor = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        if not options:
            return processor
        config = ShirgLavidaConfig.from_pretrained(pretrained_model_name_or_path, **hub, **options)
        return cls.from_config(config, processor.tokenizer, processor.chat_template, processor.relevance_tokenizer)

    @classmethod
    def from_config(
        cls, config, tokenizer, chat_template: str | None = None, relevance_tokenizer=None
    ) -> "ShirgLavidaProcessor":
        """The processor whose inputs a model with this `ShirgLavidaConfig` expects.

        Raises:
            ValueError: a tokenizer does not fit the config.
        """
        tower, ids = config.relevance_text_config, 0 if relevance_tokenizer is None else len(relevance_tokenizer)
        if ids == 0 and config.text_relevance == "siglip" and config.chooses:
            raise ValueError("text_relevance='siglip' needs SigLIP's own tokenizer: pass relevance_tokenizer.")
        if ids > (0 if tower is None else tower.vocab_size):
            known = (
                "no relevance_text_config" if tower is None else f"relevance_text_config.vocab_size={tower.vocab_size}"
            )
            raise ValueError(f"The relevance_tokenizer has {ids} ids, and the config has {known}.")
        processor = cls(
            ShirgLavidaImageProcessor.from_config(config),
            tokenizer,
            chat_template=chat_template,
            num_image_tokens=config.num_image_tokens,
            relevance_tokenizer=relevance_tokenizer,
            relevance_length=None if relevance_tokenizer is None else tower.max_position_embeddings,
        )
        if processor.image_token_id != config.image_token_id:
            raise ValueError(
                f"The tokenizer's id of {processor.image_token!r} is {processor.image_token_id}, but "
                f"config.image_token_id is {config.image_token_id}: use the checkpoint's own tokenizer."
            )
        return processor

    def __call__(self, images: Any = None, text: str | list[str] | None = None, **kwargs) -> BatchFeature:
        """Model inputs for prompts and images.

        `images` is one image, a flat list in reading order over the batch, or one list per prompt; `read_image` says
        what an image may be. A prompt has one `image_token` per image. `kwargs` are arguments of the tokenizer and of
        the image processor, such as `return_tensors`, `fovea_boxes` and `selection_budget`.

        Raises:
            ValueError: the numbers of images and of placeholders differ, or truncation cuts image tokens.
        """
        if isinstance(images, list) and all(isinstance(row, list) and not row for row in images):
            images = None
        defaults = {name: value for name, value in _TEXT_DEFAULTS.items() if name not in kwargs}
        text_kwargs = {**defaults, **kwargs.pop("text_kwargs", {})}
        inputs = super().__call__(images=images, text=text, text_kwargs=text_kwargs, **kwargs)
        if images is not None and "input_ids" in inputs:
            lengths = [self._num_tokens_of(inputs, index) for index in range(len(inputs["image_sizes"]))]
            questions = self._questions(_as_rows(inputs["input_ids"]), lengths)
            inputs["question_mask"] = _typed_as(inputs["input_ids"], [mask_L for _, mask_L in questions])
            if self.relevance_tokenizer is not None:
                inputs["relevance_input_ids"] = _typed_as(inputs["input_ids"], self._relevance_ids(questions))
        return inputs

    def apply_chat_template(self, conversation: Any, *args, **kwargs) -> Any:
        is_batch = isinstance(conversation, list) and conversation and isinstance(conversation[0], list)
        for messages in conversation if is_batch else [conversation]:
            _check_messages(messages)
        return super().apply_chat_template(conversation, *args, **kwargs)

    def validate_inputs(self, images=None, text=None, **kwargs):
        """As the parent's, and prompt by prompt where images come as one list per prompt."""
        super().validate_inputs(images=images, text=text, **kwargs)
        "".join(text or []).encode()  # a lone surrogate is an error here, and no text for the tokenizer
        if text is not None and isinstance(images, list) and all(isinstance(row, list) for row in images):
            placeholders, given = [prompt.count(self.image_token) for prompt in text], list(map(len, images))
            if placeholders != given:
                raise ValueError(f"The prompts have {placeholders} {self.image_token} tokens for {given} images.")

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        return self.image_token * self._num_tokens_of(image_inputs, image_idx)

    def _num_tokens_of(self, image_inputs: dict, index: int) -> int:
        if "selection_budget" in image_inputs:
            budget = int(image_inputs["selection_budget"][index])
            return self.num_image_tokens - self.image_processor.selection_budget + budget
        if self.num_image_tokens is not None:
            return self.num_image_tokens
        window = [int(value) for value in image_inputs["mosaic_windows"][index]]
        return mosaic_length(window, self.image_processor.mosaic_grid_size)

    def post_process_image_text_to_text(self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs):
        """Generated ids, shape (B, L) or (L,), as texts without surrounding whitespace.

        A sequence that still holds its prompt (a chat header or an image token) keeps its whitespace, so that the
        decoded prompt can be found in it and cut off, as pipelines do.
        """
        rows = _as_rows(generated_outputs)
        prompt_ids = {self.image_token_id, self.tokenizer.convert_tokens_to_ids(_HEADER_START)}
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=skip_special_tokens, **kwargs)
        return [text.strip() if prompt_ids.isdisjoint(row) else text for text, row in zip(texts, rows, strict=True)]

    def _questions(self, rows: list[list[int]], lengths: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each image the ids of its prompt and its question mask, both (L,); `lengths` are its image tokens."""
        words = [index for index in set().union(*rows) - self._special_ids() if self.tokenizer.decode([index]).strip()]
        header_end, turn_end = (self.tokenizer.convert_tokens_to_ids(token) for token in (_HEADER_END, _TURN_END))
        remaining, questions = iter(lengths), []
        for ids_L in map(np.array, rows):
            is_text_L = np.isin(ids_L, words)
            placeholders, seen = np.flatnonzero(ids_L == self.image_token_id), 0
            while seen < len(placeholders):
                image = placeholders[seen]
                seen += next(remaining)
                start = max(np.flatnonzero(ids_L[:image] == header_end), default=-1) + 1
                stop = image + min(np.flatnonzero(ids_L[image:] == turn_end), default=len(ids_L))
                mask_L = np.zeros(len(ids_L), dtype=np.int64)
                mask_L[start:stop] = is_text_L[start:stop]
                questions.append((ids_L, mask_L))
        return questions

    def _relevance_ids(self, questions: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        """The question of each image as one line, in SigLIP's ids, int64 (T,) each; all `_NO_QUESTION` without one."""
        options = {"padding": "max_length", "truncation": True, "max_length": self.relevance_length}
        special, rows = list(self._special_ids()), []
        for ids_L, mask_L in questions:
            inside_L = np.maximum.accumulate(mask_L) * np.maximum.accumulate(mask_L[::-1])[::-1]
            kept = ids_L[(inside_L > 0) & ~np.isin(ids_L, special)]
            text = " ".join(self.tokenizer.decode(kept.tolist()).split())
            empty = [_NO_QUESTION] * self.relevance_length
            rows.append(np.array(self.relevance_tokenizer(text, **options)["input_ids"] if text else empty))
        return rows

    def _special_ids(self) -> set[int]:
        special = {self.image_token_id, *self.tokenizer.all_special_ids}
        return special | {index for index, token in self.tokenizer.added_tokens_decoder.items() if token.special}


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ValueError(f"A conversation is a list of at least one message, got {messages!r:.100}.")
    for index, message in enumerate(messages):
        role, content = (message.get(name) if isinstance(message, dict) else None for name in ("role", "content"))
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if role not in _ROLES or not isinstance(parts, (list, tuple)) or not all(map(_is_part, parts)):
            raise ValueError(
                f"messages[{index}] needs a role, one of {', '.join(_ROLES)}, and a content, a text or a list of "
                f"{{'type': 'text', 'text': ...}} and {{'type': 'image', ...}}, got {message!r:.200}."
            )


def _is_part(part: Any) -> bool:
    kind, text = (part.get("type"), part.get("text")) if isinstance(part, dict) else (None, None)
    return kind == "image" or (kind == "text" and isinstance(text, str))


def _hub_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}


def _single_token_id(tokenizer, token: str) -> int:
    ids = tokenizer.encode(token, add_special_tokens=False)
    if len(ids) != 1 or tokenizer.convert_ids_to_tokens(ids[0]) != token:
        raise ValueError(
            f"The tokenizer reads {token!r} as the ids {ids}: tokenizer.add_tokens([{token!r}], special_tokens=True)."
        )
    return ids[0]


def _typed_as(like: Any, rows: list[np.ndarray]) -> Any:
    """Rows in the type of `like`: a tensor, an array, or lists where they may differ in length."""
    if isinstance(like, torch.Tensor):
        return torch.from_numpy(np.stack(rows))
    return np.stack(rows) if isinstance(like, np.ndarray) else [row.tolist() for row in rows]


def _as_rows(ids: Any) -> list[list[int]]:
    """Token ids of shape (B, L) or (L,) as lists."""
    rows = ids.tolist() if isinstance(ids, (torch.Tensor, np.ndarray)) else ids
    return [rows] if isinstance(rows[0], int) else [torch.as_tensor(row).tolist() for row in rows]
