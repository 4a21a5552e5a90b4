"""Processor of SHIRG-LaViDa: image processor, tokenizer, and the placeholders that tie them together.

Every image takes as many placeholders as it gives image tokens: `num_image_tokens`, a property of the config, or,
where a mosaic of tiles is cut to the image, a number that follows from the image's size. Both are known before the
model runs. The processor also says which text tokens are "the question" of each image, and writes the question in
SigLIP's own ids where the checkpoint has SigLIP's text tower, so that no model file needs a tokenizer.
"""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessorMixin
from transformers.tokenization_utils_base import TextInput

from .configuration_shirg_lavida import ShirgLavidaConfig
from .conversation_shirg import check_conversations, check_texts
from .geometry_shirg import mosaic_length
from .image_processing_shirg_lavida import ShirgLavidaImageProcessor

_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
# The second tokenizer's name and its sub-folder in a saved processor.
_RELEVANCE_TOKENIZER = "relevance_tokenizer"
# An id that no tokenizer has: a row of it in `relevance_input_ids` is an image without a question.
_NO_QUESTION = -1
_HEADER_START, _HEADER_END, _TURN_END = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"

SYSTEM_PROMPT = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)

# LaViDa's prompt. The original writes "\n" after <image> and drops that token again; this template never writes it.
CHAT_TEMPLATE = (
    """\
{{- bos_token }}
{%- if messages[0]['role'] != 'system' %}
    {{- '<|start_header_id|>system<|end_header_id|>\\n\\n"""
    + SYSTEM_PROMPT
    + """<|eot_id|>' }}
{%- endif %}
{%- for message in messages %}
    {%- set turn = namespace(text='') %}
    {%- if message['content'] is string %}
        {%- set turn.text = message['content'] %}
    {%- else %}
        {%- for block in message['content'] %}
            {%- if block['type'] == 'image' %}
                {%- set turn.text = turn.text + '<image>' %}
            {%- elif block['type'] == 'text' %}
                {%- set turn.text = turn.text + block['text'] %}
            {%- else %}
                {{- raise_exception("Content blocks are of type 'image' or 'text', got '" ~ block['type'] ~ "'.") }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}
            {{- (turn.text | trim) + '<|eot_id|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- (turn.text | trim) + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
)

# Arguments of the tokenizer that a call may replace.
_TEXT_DEFAULTS = {"padding": True, "return_token_type_ids": False}


class ShirgLavidaProcessor(ProcessorMixin):
    r"""Turns prompts and images into model inputs.

    Prompts are padded to the longest of the batch by default, on the tokenizer's `padding_side`.

    Besides `input_ids`, `attention_mask` and what `ShirgLavidaImageProcessor` returns there is `question_mask`, int64
    (images, L), one row per image in reading order over the batch: 1 at the text tokens of the turn that holds the
    image, between `<|end_header_id|>` and `<|eot_id|>`; in a prompt without these the whole prompt is the turn.
    Special tokens, image tokens, padding and tokens of whitespace only are 0.

    With a `relevance_tokenizer` there is also `relevance_input_ids`, int64 (images, `relevance_length`): the question
    of each image, decoded and tokenized again by SigLIP's own tokenizer and its rules (lower case), padded or
    truncated to the text tower's length; -1 in every place for an image without a question.

    Args:
        image_processor (`ShirgLavidaImageProcessor`): cuts the views.
        tokenizer (`PreTrainedTokenizerBase`): LLaDA's, with `image_token` added as a special token.
        chat_template (`str`, *optional*): defaults to LaViDa's prompt, `CHAT_TEMPLATE`.
        image_token (`str`, defaults to `"<image>"`): the placeholder, one per image in a prompt.
        num_image_tokens (`int`, *optional*): placeholders that one image takes in `input_ids`,
            `config.num_image_tokens`; `None` where they follow from the image's size (`mosaic_grid_size` of the image
            processor).
        relevance_tokenizer (`PreTrainedTokenizerBase`, *optional*): SigLIP's, for `text_relevance="siglip"`; it is
            saved in a sub-folder of that name.
        relevance_length (`int`, *optional*): length of the text tower, which SigLIP pads every text to; given with the
            `relevance_tokenizer` and only then.

    Raises:
        ValueError: the tokenizer has no `image_token`, or the `relevance_tokenizer` lacks length or padding; at call
            time, the numbers of images and of placeholders in the prompts differ, or truncation cuts image tokens.
    """

    relevance_length = None
    _relevance_tokenizer = None

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        chat_template=None,
        image_token="<image>",
        num_image_tokens=None,
        relevance_tokenizer=None,
        relevance_length=None,
        **kwargs,
    ):
        has_mosaic = image_processor is not None and image_processor.mosaic_grid_size is not None
        if has_mosaic and num_image_tokens is not None:
            raise ValueError(
                f"num_image_tokens must be None with a mosaic_grid_size, got {num_image_tokens}: image tokens then "
                "follow from the image's size."
            )
        if not has_mosaic and (num_image_tokens is None or num_image_tokens < 1):
            raise ValueError(
                f"num_image_tokens must be the config's, at least 1, got {num_image_tokens}. "
                "ShirgLavidaProcessor.from_config(config, tokenizer) sets it."
            )
        template = CHAT_TEMPLATE if chat_template is None else chat_template
        super().__init__(image_processor, tokenizer, chat_template=template, **kwargs)
        self.image_token = image_token
        self.image_token_id = _single_token_id(tokenizer, image_token)
        self.num_image_tokens = num_image_tokens
        if (relevance_tokenizer is None) != (relevance_length is None):
            raise ValueError(
                f"relevance_tokenizer and relevance_length belong together, got {relevance_tokenizer!r} and "
                f"{relevance_length}. ShirgLavidaProcessor.from_config(config, tokenizer, relevance_tokenizer=...) "
                "sets both."
            )
        if relevance_tokenizer is not None:
            if relevance_tokenizer.pad_token is None:
                raise ValueError("The relevance_tokenizer has no pad_token: SigLIP pads every text to one length.")
            self._relevance_tokenizer = relevance_tokenizer
            self.relevance_length = relevance_length

    @property
    def relevance_tokenizer(self):
        """SigLIP's own tokenizer, or `None`."""
        return self._relevance_tokenizer

    @classmethod
    def get_attributes(cls) -> list[str]:
        """The parts that every processor has: the parent takes any parameter with `tokenizer` in its name for one."""
        return [name for name in super().get_attributes() if name != _RELEVANCE_TOKENIZER]

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        """The saved fields, with the second tokenizer where they name its length."""
        fields, unused = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if fields.get("relevance_length") is not None:
            hub = {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}
            folder = os.path.join(hub.pop("subfolder", None) or "", _RELEVANCE_TOKENIZER)
            fields[_RELEVANCE_TOKENIZER] = AutoTokenizer.from_pretrained(
                pretrained_model_name_or_path, subfolder=folder, **hub
            )
        return fields, unused

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs) -> list[str]:
        """Save everything that `from_pretrained` needs, the second tokenizer in a sub-folder."""
        if self.relevance_tokenizer is None:
            return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        self.relevance_tokenizer.save_pretrained(os.path.join(save_directory, _RELEVANCE_TOKENIZER))
        if push_to_hub:  # the parent uploads what it wrote itself, which the second tokenizer is not
            repo_id = kwargs.pop("repo_id", os.path.basename(os.path.normpath(save_directory)))
            self.push_to_hub(repo_id, **kwargs)
        return super().save_pretrained(save_directory)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load a processor.

        `prune_method` and any other field of `ShirgLavidaConfig`, such as `selection_budget`, are taken as the model's
        `from_pretrained` takes them: the processor is the one that belongs to that config.
        """
        options = {name: kwargs.pop(name) for name in ShirgLavidaConfig.__annotations__ if name in kwargs}
        hub = {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}
        try:
            processor = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except OSError:
            # Says so if this is an original LaViDa checkpoint, which has no processor.
            ShirgLavidaConfig.from_pretrained(pretrained_model_name_or_path, **hub)
            raise
        if not options:
            return processor
        config = ShirgLavidaConfig.from_pretrained(pretrained_model_name_or_path, **hub, **options)
        return cls.from_config(
            config, processor.tokenizer, processor.chat_template, relevance_tokenizer=processor.relevance_tokenizer
        )

    @classmethod
    def from_config(
        cls, config, tokenizer, chat_template: str | None = None, relevance_tokenizer=None
    ) -> "ShirgLavidaProcessor":
        """The processor whose inputs a model with this `ShirgLavidaConfig` expects.

        Raises:
            ValueError: the tokenizer's id of `<image>` is not `config.image_token_id`; or the config scores patches by
                SigLIP's text tower and there is no `relevance_tokenizer`, or there is one that has no such tower or
                more ids than it.
        """
        relevance_length = _relevance_length(config, relevance_tokenizer)
        processor = cls(
            ShirgLavidaImageProcessor.from_config(config),
            tokenizer,
            chat_template=chat_template,
            num_image_tokens=config.num_image_tokens,
            relevance_tokenizer=relevance_tokenizer,
            relevance_length=relevance_length,
        )
        if processor.image_token_id != config.image_token_id:
            raise ValueError(
                f"The tokenizer's id of {processor.image_token!r} is {processor.image_token_id}, but "
                f"config.image_token_id is {config.image_token_id}. Use the tokenizer of this checkpoint, "
                "or set image_token_id in the config."
            )
        return processor

    def __call__(
        self, images: ImageInput | None = None, text: TextInput | list[TextInput] | None = None, **kwargs
    ) -> BatchFeature:
        """Model inputs for prompts and images.

        Args:
            images: one image, a flat list in reading order over the batch, or one list per prompt. See
                `ShirgLavidaImageProcessor` for what an image may be.
            text: one prompt or a list of prompts with one `image_token` per image.
            **kwargs: arguments of the tokenizer and of the image processor, such as `return_tensors` and
                `fovea_boxes` and `selection_budget`.

        Raises:
            ValueError: a prompt is no text, or has not as many `image_token`s as it has images.
        """
        check_texts(text)
        if isinstance(images, (list, tuple)) and _count_images(images) == 0:
            images = None
        defaults = {name: value for name, value in _TEXT_DEFAULTS.items() if name not in kwargs}
        text_kwargs = {**defaults, **kwargs.pop("text_kwargs", {})}
        inputs = super().__call__(images=images, text=text, text_kwargs=text_kwargs, **kwargs)
        if images is not None and "input_ids" in inputs:
            lengths = [self._num_tokens_of(inputs, index) for index in range(len(inputs["image_sizes"]))]
            questions = self._questions(_as_rows(inputs["input_ids"]), lengths)
            masks = [mask_L for _, mask_L in questions]
            inputs["question_mask"] = _typed_as(inputs["input_ids"], masks)
            if self.relevance_tokenizer is not None:
                inputs["relevance_input_ids"] = _typed_as(inputs["input_ids"], self._relevance_ids(questions))
        return inputs

    def apply_chat_template(self, conversation: Any, *args, **kwargs) -> Any:
        """As the parent's, for messages of text and images; anything else is a `ValueError` that says where."""
        check_conversations(conversation)
        return super().apply_chat_template(conversation, *args, **kwargs)

    def validate_inputs(self, images=None, text=None, **kwargs):
        """Checks that images and placeholders match: prompt by prompt where images come as one list per prompt."""
        super().validate_inputs(images=images, text=text, **kwargs)
        if text is None or not isinstance(images, (list, tuple)):
            return
        if not all(isinstance(of_prompt, (list, tuple)) for of_prompt in images):
            return
        if len(images) != len(text):
            raise ValueError(f"Got {len(images)} lists of images for {len(text)} prompts: pass one list per prompt.")
        for index, (prompt, of_prompt) in enumerate(zip(text, images, strict=True)):
            placeholders = prompt.count(self.image_token)
            if placeholders != len(of_prompt):
                raise ValueError(
                    f"Prompt {index} has {placeholders} {self.image_token} tokens for {len(of_prompt)} images."
                )

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """The placeholders of one image."""
        return self.image_token * self._num_tokens_of(image_inputs, image_idx)

    def _num_tokens_of(self, image_inputs: dict, index: int) -> int:
        """Number of image tokens of image `index`."""
        if "selection_budget" in image_inputs:
            budget = int(image_inputs["selection_budget"][index])
            return self.num_image_tokens - self.image_processor.selection_budget + budget
        if self.num_image_tokens is not None:
            return self.num_image_tokens
        window = [int(value) for value in image_inputs["mosaic_windows"][index]]
        return mosaic_length(window, self.image_processor.mosaic_grid_size)

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs
    ) -> list[str]:
        """Generated ids, shape (B, L) or (L,), as text without surrounding whitespace.

        A sequence that still holds its prompt (a chat header or an image token) keeps its whitespace, so that the
        decoded prompt can be found in it and cut off, as pipelines do.
        """
        rows = _as_rows(generated_outputs)
        header = self.tokenizer.convert_tokens_to_ids(_HEADER_START)
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=skip_special_tokens, **kwargs)
        has_prompt = [self.image_token_id in row or header in row for row in rows]
        return [text if keep else text.strip() for text, keep in zip(texts, has_prompt, strict=True)]

    @property
    def model_input_names(self) -> list[str]:
        """What the processor may return to a model."""
        names = [name for name in super().model_input_names if name != "token_type_ids"]
        if self.relevance_tokenizer is not None:
            names.append("relevance_input_ids")
        return [*names, "question_mask"]

    def _questions(self, rows: list[list[int]], lengths: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each image the ids of its prompt and its question mask, both (L,).

        `lengths` are the numbers of image tokens of all images in reading order.
        """
        textual = self._textual_ids({token for row in rows for token in row})
        remaining = iter(lengths)
        return [
            (ids_L, mask_L)
            for ids_L in map(np.array, rows)
            for mask_L in self._question_masks_of_prompt(ids_L, textual, remaining)
        ]

    def _relevance_ids(self, questions: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        """The question of each image in SigLIP's own ids, int64 (T,) each; all `_NO_QUESTION` without one."""
        rows = []
        for text in self._question_texts(questions):
            ids = [_NO_QUESTION] * self.relevance_length
            if text:
                ids = self.relevance_tokenizer(
                    text, padding="max_length", truncation=True, max_length=self.relevance_length
                )["input_ids"]
            rows.append(np.array(ids, dtype=np.int64))
        return rows

    def _question_texts(self, questions: list[tuple[np.ndarray, np.ndarray]]) -> Iterator[str]:
        """Each question as one line: from the first to the last token of its mask, with the whitespace that the mask
        leaves out and without special tokens."""
        special = list(self._special_ids())
        for ids_L, mask_L in questions:
            places = np.flatnonzero(mask_L)
            span = ids_L[places[0] : places[-1] + 1] if len(places) else ids_L[:0]
            yield " ".join(self.tokenizer.decode(span[~np.isin(span, special)].tolist()).split())

    def _special_ids(self) -> set[int]:
        special = {self.image_token_id, *self.tokenizer.all_special_ids}
        return special | {index for index, token in self.tokenizer.added_tokens_decoder.items() if token.special}

    def _textual_ids(self, token_ids: set[int]) -> np.ndarray:
        """Those of `token_ids` that are neither special nor whitespace only."""
        return np.array(
            [index for index in token_ids - self._special_ids() if self.tokenizer.decode([index]).strip()],
            dtype=np.int64,
        )

    def _question_masks_of_prompt(
        self, ids_L: np.ndarray, textual: np.ndarray, lengths: Iterator[int]
    ) -> list[np.ndarray]:
        """One int64 mask of shape (L,) per image of one prompt; takes as many `lengths` as the prompt has images."""
        header_ends, turn_ends = (
            np.flatnonzero(ids_L == self.tokenizer.convert_tokens_to_ids(token)) for token in (_HEADER_END, _TURN_END)
        )
        is_text_L = np.isin(ids_L, textual)
        masks = []
        placeholders = np.flatnonzero(ids_L == self.image_token_id)
        seen = 0
        while seen < len(placeholders):
            image_start = placeholders[seen]
            seen += next(lengths)
            start = max(header_ends[header_ends < image_start], default=-1) + 1
            stop = min(turn_ends[turn_ends > image_start], default=len(ids_L))
            mask_L = np.zeros(len(ids_L), dtype=np.int64)
            mask_L[start:stop] = is_text_L[start:stop]
            masks.append(mask_L)
        return masks


def _relevance_length(config, relevance_tokenizer) -> int | None:
    """Length of the text tower that a `relevance_tokenizer` writes for, after checking that the two fit."""
    tower = config.relevance_text_config
    if relevance_tokenizer is None:
        if config.text_relevance == "siglip" and config.chooses:
            raise ValueError(
                "text_relevance='siglip' needs SigLIP's own tokenizer beside the language model's: pass "
                "relevance_tokenizer, or load the processor that was saved with the checkpoint."
            )
        return None
    if tower is None:
        raise ValueError(
            "Got a relevance_tokenizer, but the config has no relevance_text_config: no text tower reads its ids."
        )
    if len(relevance_tokenizer) > tower.vocab_size:
        raise ValueError(
            f"The relevance_tokenizer has {len(relevance_tokenizer)} ids, but relevance_text_config.vocab_size is "
            f"{tower.vocab_size}. Use the tokenizer of the SigLIP that the text tower is from."
        )
    return tower.max_position_embeddings


def _single_token_id(tokenizer, token: str) -> int:
    ids = tokenizer.encode(token, add_special_tokens=False)
    if len(ids) != 1 or tokenizer.convert_ids_to_tokens(ids[0]) != token:
        raise ValueError(
            f"The tokenizer has no token {token!r} (it reads it as the ids {ids}). Add it with "
            f"tokenizer.add_tokens([{token!r}], special_tokens=True) and set image_token_id in the config to its id."
        )
    return ids[0]


def _count_images(images: Any) -> int:
    if isinstance(images, (list, tuple)):
        return sum(_count_images(image) for image in images)
    return 1


def _typed_as(like: Any, rows: list[np.ndarray]) -> Any:
    """Rows in the type of `like`: a tensor, an array, or lists where they may differ in length."""
    if isinstance(like, torch.Tensor):
        return torch.from_numpy(np.stack(rows))
    return np.stack(rows) if isinstance(like, np.ndarray) else [row.tolist() for row in rows]


def _as_rows(ids: Any) -> list[list[int]]:
    """Token ids of shape (B, L) or (L,) as lists."""
    rows = ids.tolist() if isinstance(ids, (torch.Tensor, np.ndarray)) else list(ids)
    if rows and not isinstance(rows[0], (list, tuple, torch.Tensor, np.ndarray)):
        return [rows]
    return [row.tolist() if isinstance(row, (torch.Tensor, np.ndarray)) else list(row) for row in rows]
