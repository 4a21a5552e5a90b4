"""Generation by denoising: a response of fixed length starts as mask tokens and is filled block by block.

The prompt (image tokens included) is encoded once, alone, into a key/value cache: the response sees the prompt and all
of itself, the prompt never sees the response, so the cache stays valid for every step (LaViDa, arXiv:2505.16839). Each
step predicts every masked position of the current block and keeps the most confident predictions; the rest stays
masked (LLaDA, arXiv:2502.09992). The order of business, and what each step may touch, is in
`ShirgLavidaGenerationMixin.generate`; how many tokens a step fills and which, in denoising_shirg.py.

Shape suffixes: B batch, P prompt length, R response length, L block length, M positions that a step predicts, D hidden
size, V vocabulary, S = P + R, N denoising steps of a block.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import record_function
from transformers import GenerationConfig, TextDiffusionStreamer
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import ModelOutput
from transformers.utils import cached_file, logging

from .denoising_shirg import (
    CONFIDENCES,
    MaskedDiffusionSampler,
    RowNoise,
    confident_counts,
    end_answers,
    masked_positions,
    select_positions,
    transfer_table,
)
from .generation_config_shirg import GENERATION_DEFAULTS, ShirgGenerationConfig, overridden_fields
from .image_inputs_shirg import IMAGE_INPUTS
from .prefix_cache_shirg import (
    PREFIX_DTYPES,
    PrefixCache,
    compiled_layers,
    encode_compressed,
    encode_whole,
    run_layers,
)

logger = logging.get_logger(__name__)

# Token ids that come from the model when the call does not give them.
_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id")
# Speed only: on a CPU the LM head is twice as slow for 12 rows as for 16, so 4 to 15 rows are padded to 16.
_PRODUCT_ROWS, _FEW_ROWS = 16, 3
# Image arguments of training.
_TRAINING_INPUTS = ("selection_noise", "dropped_tokens")


@dataclass
class ShirgGenerationOutput(ModelOutput):
    """
    Args:
        sequences (`torch.LongTensor` of shape `(B, P + R)`): prompt and response ids; `(B, R)`, the response alone,
            when the prompt was given as `inputs_embeds` only.
        forwards (`int`): number of denoising forwards; the prefix pass is not one.
        tokens_per_forward (`torch.FloatTensor` of shape `(B,)`): tokens that were filled in, per denoising forward.
            Without a draft that is `R / forwards`.
        history (`torch.LongTensor` of shape `(forwards, B, R)`, *optional*): the response after each forward.
        kept_indices, scores (*optional*): of the image tokens, as the model's selection reports them, with
            `output_selection=True`.
        prefix_bytes (`list[int]`, *optional*): bytes of the prompt's keys and values in each layer; with
            `use_cache=True`.
        prefix_lengths (`torch.LongTensor` of shape `(layers, B)`, *optional*): how many positions of its prompt each
            row keeps in each layer, padding not counted; with `use_cache=True`.
    """

    sequences: torch.LongTensor | None = None
    forwards: int | None = None
    tokens_per_forward: torch.FloatTensor | None = None
    history: torch.LongTensor | None = None
    kept_indices: Any = None
    scores: Any = None
    prefix_bytes: list[int] | None = None
    prefix_lengths: torch.LongTensor | None = None


@dataclass
class _Prompt:
    """What stays fixed during one call. `mask_BP` is `None` when nothing is padded: attention then needs no mask."""

    embeds_BPD: torch.Tensor
    mask_BP: torch.Tensor | None
    positions_BP: torch.Tensor
    response_positions_BR: torch.Tensor


@dataclass
class _Prefix:
    """The encoded prompt, and what every step over the response needs beside it: each layer's mask, the rotation of
    the response's positions, and `run_layers`, compiled or not."""

    cache: PrefixCache
    lengths_LB: torch.Tensor
    masks: list[torch.Tensor | None]
    rotary: tuple[torch.Tensor, torch.Tensor]
    run: Callable[..., torch.Tensor]


class ShirgLavidaGenerationMixin:
    """`generate` for a bidirectional language model behind a vision prefix.

    The model provides `model.prepare_inputs_embeds(input_ids, **vision_kwargs) -> (inputs_embeds_BPD, image_outputs)`,
    where `image_outputs` is `None` or has `kept_indices` and `scores`; `model.language_model`, which takes `is_causal`
    and is bidirectional; `model.get_input_embeddings()`; `lm_head`; and a `forward` that names every argument
    `generate` may get.
    """

    generation_config_class = ShirgGenerationConfig

    def __init_subclass__(cls, **kwargs) -> None:
        """`PreTrainedModel` names the stock class and comes first in the usual order of bases."""
        super().__init_subclass__(**kwargs)
        if cls.generation_config_class is GenerationConfig:
            cls.generation_config_class = ShirgGenerationConfig

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        generation_config: GenerationConfig | None = None,
        streamer: BaseStreamer | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        draft_ids: torch.LongTensor | None = None,
        **kwargs,
    ) -> torch.LongTensor | ShirgGenerationOutput:
        """Fills a response of `max_new_tokens` masks after the prompt.

        0. Prepare: the configuration, the prompt's embeddings and positions, the response (masks, or the draft).
        1. Encode the prompt alone into the prefix cache, without logits. Evict and store it by `prefix_kv` and
           `prefix_dtype`.
        2. For each block, from left to right, until its steps are spent or nothing in it is masked:
            a. Run the response on the prefix (or, without the cache, prompt and response together; or, with
               `dual_cache` after a block's first step, the block alone) and compute logits for the block's masked
               positions alone.
            b. Predict a token and a confidence for each masked position of the block.
            c. Keep the most confident predictions, as many as the row's schedule says for this step, and those above
               `confidence_threshold`. With `stop_at_eos`, masks after an end-of-text become end-of-text.
            d. Record and stream the response.
        3. Return.

        A row gives the tokens that it gives alone, however it is padded. Without `stop_at_eos` there is no handling
        of the end-of-text token.

        Args:
            input_ids (`(B, P)`): the prompt, with image placeholders already expanded.
            attention_mask (`(B, P)`, *optional*): 0 marks padding, on either side. `None` is all ones.
            inputs_embeds (`(B, P, D)`, *optional*): the prompt's embeddings, images included, instead of computing
                them; `input_ids` then only lend their ids to the returned sequences.
            position_ids (`(B, P)`, *optional*): by default they count the prompt's real tokens from 0. The response
                goes on after the largest of a row.
            generation_config: replaces the model's; token ids that it leaves at `None` still come from the model.
            streamer (*optional*): gets the prompt, the draft after each forward if it is a `TextDiffusionStreamer`,
                and the response. Batch size 1 only.
            generator (*optional*): source of randomness of `do_sample` and `remasking="random"`, or one per row; a row
                with its own generator gives what it gives alone.
            draft_ids (`(R,)` or `(B, R)`, *optional*): a response with gaps: mask ids are filled, all others stay.
                Sets `max_new_tokens`. Each row follows the schedule of its own number of masks.
            **kwargs: fields of `ShirgGenerationConfig`, which override it, and the vision arguments of `forward`.

        Returns:
            Ids `(B, P + R)`, or `(B, R)` when only `inputs_embeds` were given; a `ShirgGenerationOutput` with
            `return_dict_in_generate=True`.

        Raises:
            ValueError: unknown arguments, or shapes and values that do not fit; the message names them.
        """
        # 0. Prepare
        vision_kwargs = self._vision_kwargs({k: v for k, v in kwargs.items() if k not in GENERATION_DEFAULTS})
        overrides = {k: v for k, v in kwargs.items() if k in GENERATION_DEFAULTS}
        config = self._resolve_generation_config(generation_config, draft_ids, overrides)
        self._check_length(config.max_new_tokens)
        embeds_BPD, image_outputs = self._embed_prompt(input_ids, inputs_embeds, vision_kwargs)
        if image_outputs is not None:
            attention_mask = image_outputs.visible(attention_mask)
        prompt = _prepare_prompt(embeds_BPD, attention_mask, position_ids, config.max_new_tokens)
        batch_size, device = embeds_BPD.shape[0], embeds_BPD.device
        self._warn_of_length(int(prompt.response_positions_BR.max()) + 1)
        response_BR = self._start_response(draft_ids, batch_size, config, device)
        num_masks_B = (response_BR == config.mask_token_id).sum(-1)
        sampler = _prepare_sampler(config, generator, batch_size, device)
        _start_stream(streamer, input_ids, batch_size)

        # 1. Encode the prompt
        with record_function("shirg.prefix"):
            prefix = self._encode_prefix(prompt, config) if config.use_cache else None

        # 2. Fill the response, block by block
        history = []
        whole = slice(0, config.max_new_tokens)
        for start in range(0, config.max_new_tokens, config.tokens_per_block):
            block = slice(start, start + config.tokens_per_block)
            num_masked = (response_BR[:, block] == config.mask_token_id).sum(-1).tolist()
            counts_BN = transfer_table(num_masked, config.steps_per_block, config.schedule, config.shift)
            for step, counts_B in enumerate(counts_BN.unbind(-1)):
                if not any(num_masked):
                    break
                masked_BL = response_BR[:, block] == config.mask_token_id
                positions_BM = start + masked_positions(masked_BL, max(num_masked))
                tokens = block if config.dual_cache and step > 0 else whole
                with record_function("shirg.denoise"):
                    logits_BMV = self._response_logits(prompt, prefix, response_BR, positions_BM, tokens)  # 2.a
                tokens_BM, confidence_BM = sampler(logits_BMV, num_masked)  # 2.b
                response_BR = _fill(response_BR, positions_BM, tokens_BM, confidence_BM, counts_B, config)  # 2.c
                if config.fills_by_schedule:  # no device sync: the schedule is known on the host
                    num_masked = [left - count for left, count in zip(num_masked, counts_B.tolist(), strict=True)]
                else:
                    num_masked = (response_BR[:, block] == config.mask_token_id).sum(-1).tolist()
                history.append(response_BR)  # 2.d
                if isinstance(streamer, TextDiffusionStreamer):
                    streamer.put_draft(history[-1].cpu())

        # 3. Return
        if streamer is not None:
            streamer.put(response_BR.cpu())
            streamer.end()
        sequences = response_BR if input_ids is None else torch.cat([input_ids.to(device), response_BR], dim=-1)
        if not config.return_dict_in_generate:
            return sequences
        report_images = config.output_selection and image_outputs is not None
        return ShirgGenerationOutput(
            sequences=sequences,
            forwards=len(history),
            tokens_per_forward=num_masks_B.float() / max(len(history), 1),
            history=_stack_history(history, response_BR) if config.output_history else None,
            kept_indices=image_outputs.kept_indices if report_images else None,
            scores=image_outputs.scores if report_images else None,
            prefix_bytes=None if prefix is None else prefix.cache.prompt_bytes(),
            prefix_lengths=None if prefix is None else prefix.lengths_LB,
        )

    def _resolve_generation_config(
        self, generation_config: GenerationConfig | None, draft_ids: torch.Tensor | None, overrides: dict[str, Any]
    ) -> ShirgGenerationConfig:
        """The configuration of this call, complete with token ids."""
        if not isinstance(generation_config, (GenerationConfig, type(None))):
            raise ValueError(
                f"generation_config must be a ShirgGenerationConfig, got {generation_config!r:.100}: give its fields "
                "by their names instead, such as generate(..., steps=4)."
            )
        stored = self.generation_config if generation_config is None else generation_config
        fields = overridden_fields(stored, overrides)
        if draft_ids is not None:
            fields["max_new_tokens"] = _draft_length(draft_ids, overrides.get("max_new_tokens"))
        for name in _SPECIAL_TOKENS:
            if fields.get(name) is None:
                fields[name] = self._model_token(name)
        if fields["mask_token_id"] is None:
            raise ValueError(
                "Generation starts from mask tokens, but neither the generation config nor the model config has a "
                "mask_token_id."
            )
        config = ShirgGenerationConfig(**fields)
        table_VD = self.model.get_input_embeddings().weight
        size = table_VD.shape[0]
        if config.mask_token_id >= size:
            raise ValueError(f"mask_token_id={config.mask_token_id} must be one of the model's {size} ids.")
        if config.suppress_tokens is None:
            config.suppress_tokens = self._default_suppress_tokens(config.mask_token_id)
        if len(set(config.suppress_tokens)) >= size:
            raise ValueError(f"suppress_tokens names all {size} ids: nothing could be generated.")
        if config.stop_at_eos and config.eos_token_id is None:
            raise ValueError(
                "stop_at_eos=True needs an end-of-text token, but neither the generation config nor the model config "
                "has an eos_token_id."
            )
        return config

    def _known_positions(self) -> int | None:
        return getattr(self.model.language_model.config, "max_position_embeddings", None)

    def _check_length(self, length: int) -> None:
        """Raises a `ValueError` for a response that is longer than everything the language model was trained on."""
        trained = self._known_positions()
        if trained is not None and length > trained:
            raise ValueError(
                f"max_new_tokens={length} is more than the {trained} positions that the language model knows "
                "(text_config.max_position_embeddings): ask for fewer."
            )

    def _warn_of_length(self, length: int) -> None:
        trained = self._known_positions()
        if trained is not None and length > trained:
            logger.warning_once(
                f"Prompt and response are {length} tokens long; the language model knows {trained} positions, so the "
                "answer may make no sense."
            )

    def _vision_kwargs(self, model_kwargs: dict[str, Any]) -> dict[str, Any]:
        """Those of the model's arguments that the prompt is made of. The others that `forward` names are the
        processor's reports about the views; whatever it does not name is an error."""
        unknown = sorted(set(model_kwargs) - set(IMAGE_INPUTS))
        unknown += sorted(name for name in _TRAINING_INPUTS if model_kwargs.get(name) is not None)
        if unknown:
            raise ValueError(
                f"generate got the unknown argument {', '.join(map(repr, unknown))}. Generation arguments: "
                f"{', '.join(GENERATION_DEFAULTS)}. Image arguments: {', '.join(IMAGE_INPUTS)}."
            )
        return {name: value for name, value in model_kwargs.items() if value is not None and name in IMAGE_INPUTS}

    def _model_token(self, name: str) -> Any:
        """A special token: the model's generation config, then its config."""
        stored = getattr(self.generation_config, name, None)
        return getattr(self.config, name, None) if stored is None else stored

    def _default_suppress_tokens(self, mask_token_id: int | None) -> list[int]:
        """The mask, which would never be filled, and the image placeholder, which is no text."""
        size = self.model.get_input_embeddings().weight.shape[0]
        ids = (mask_token_id, getattr(self.config, "image_token_id", None))
        return sorted({token for token in ids if token is not None and 0 <= token < size})

    def _embed_prompt(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, vision_kwargs: dict[str, Any]
    ) -> tuple[torch.Tensor, Any]:
        """The prompt's embeddings `(B, P, D)` and what the model reports about its images, or `None`."""
        if input_ids is None and inputs_embeds is None:
            raise ValueError("generate needs input_ids or inputs_embeds.")
        table_VD = self.model.get_input_embeddings().weight
        if input_ids is not None:
            _check_ids("input_ids", input_ids, len(table_VD))
        if inputs_embeds is None:
            return self.model.prepare_inputs_embeds(input_ids, **vision_kwargs)
        if vision_kwargs:
            raise ValueError(f"inputs_embeds hold the images already, got {', '.join(sorted(vision_kwargs))} as well.")
        if not isinstance(inputs_embeds, torch.Tensor) or inputs_embeds.shape[2:] != table_VD.shape[1:]:
            width, held = table_VD.shape[1], _described(inputs_embeds)
            raise ValueError(f"inputs_embeds must be a tensor of shape (B, P, {width}), got {held}.")
        if input_ids is not None and input_ids.shape != inputs_embeds.shape[:2]:
            raise ValueError(
                f"input_ids {tuple(input_ids.shape)} do not fit inputs_embeds {tuple(inputs_embeds.shape)}."
            )
        return inputs_embeds, None

    def _start_response(
        self, draft_ids: torch.Tensor | None, batch_size: int, config: ShirgGenerationConfig, device: torch.device
    ) -> torch.LongTensor:
        """The response `(B, R)` before the first step: all masks, or a copy of the draft."""
        shape = (batch_size, config.max_new_tokens)
        if draft_ids is None:
            return torch.full(shape, config.mask_token_id, dtype=torch.int64, device=device)
        if draft_ids.ndim == 2 and draft_ids.shape[0] != batch_size:
            raise ValueError(f"draft_ids {tuple(draft_ids.shape)} do not fit a prompt batch of {batch_size}.")
        _check_ids("draft_ids", draft_ids.expand(shape), self.model.get_input_embeddings().weight.shape[0])
        return draft_ids.to(device=device, dtype=torch.int64).expand(shape).clone()

    def _encode_prefix(self, prompt: _Prompt, config: ShirgGenerationConfig) -> _Prefix:
        """The prompt's keys and values, whole or smaller, and what goes with them."""
        language_model = self.model.language_model
        given = (language_model, prompt.embeds_BPD, prompt.mask_BP, prompt.positions_BP, config.max_new_tokens)
        if config.evicted_ratio is None and config.prefix_dtype is None:
            cache, lengths_LB = encode_whole(*given)
        else:
            dtype = None if config.prefix_dtype is None else PREFIX_DTYPES[config.prefix_dtype]
            cache, lengths_LB = encode_compressed(*given, config.evicted_ratio, dtype)
        response_like_BRD = prompt.embeds_BPD[:, :1].expand(-1, config.max_new_tokens, -1)
        masks = cache.attention_masks(language_model, response_like_BRD)
        rotary = language_model.rotary_emb(response_like_BRD, position_ids=prompt.response_positions_BR)
        run = run_layers if config.compile_config is None else compiled_layers(config.compile_config)
        return _Prefix(cache, lengths_LB, masks, rotary, run)

    def _response_logits(
        self,
        prompt: _Prompt,
        prefix: _Prefix | None,
        response_BR: torch.Tensor,
        positions_BM: torch.Tensor,
        tokens: slice,
    ) -> torch.Tensor:
        """Logits `(B, M, V)` at `positions_BM` of the response, from a forward over its `tokens`; the others' keys and
        values are those that the prefix cache has from before."""
        embeds_BRD = self.model.get_input_embeddings()(response_BR)
        if prefix is None:
            length = response_BR.shape[1]
            hidden_BND = self.model.language_model(
                inputs_embeds=torch.cat([prompt.embeds_BPD, embeds_BRD], dim=1),
                attention_mask=_append_ones(prompt.mask_BP, length),
                position_ids=torch.cat([prompt.positions_BP, prompt.response_positions_BR], dim=1),
                use_cache=False,
                is_causal=False,
            ).last_hidden_state[:, -length:]
        else:
            prefix.cache.write_at(tokens.start)
            rotary = tuple(table[:, tokens] for table in prefix.rotary)
            masks = [mask if mask is None or mask.ndim == 2 else mask[:, :, tokens] for mask in prefix.masks]
            hidden_BND = prefix.run(self.model.language_model, embeds_BRD[:, tokens], rotary, masks, prefix.cache)
        index_BM1 = (positions_BM - tokens.start)[..., None].to(hidden_BND.device)
        return self._logits(hidden_BND.take_along_dim(index_BM1, dim=1)).to(response_BR.device)

    def _logits(self, hidden_BMD: torch.Tensor) -> torch.Tensor:
        """Logits `(B, M, V)`. A product of 12 rows takes a CPU twice as long as one of 16: rows are added."""
        length = hidden_BMD.shape[1]
        added = max(_PRODUCT_ROWS - length, 0) if length > _FEW_ROWS else 0
        return self.lm_head(torch.nn.functional.pad(hidden_BMD, (0, 0, 0, added)))[:, :length]

    def adjust_generation_fn(
        self,
        generation_config: GenerationConfig | None,
        from_auto_class: bool,
        from_pipeline: str | None,
        pretrained_model_name_or_path: str | None,
        cache_dir: str | None,
        force_download: bool,
        proxies: dict | None,
        local_files_only: bool,
        token: str | bool | None,
        revision: str,
        subfolder: str,
        trust_remote_code: bool | None = None,
        **kwargs,
    ) -> None:
        """Called by `from_pretrained` after the weights are loaded: reads generation_config.json, if there is one."""
        if generation_config is not None:
            self.generation_config = ShirgGenerationConfig(**generation_config.to_diff_dict())
            return
        if pretrained_model_name_or_path is None:
            return
        hub = {
            "cache_dir": cache_dir,
            "force_download": force_download,
            "proxies": proxies,
            "local_files_only": local_files_only,
            "token": token,
            "revision": revision,
            "subfolder": subfolder,
        }
        # A file that is there and cannot be read is an error.
        silent = {"_raise_exceptions_for_missing_entries": False}
        if cached_file(pretrained_model_name_or_path, "generation_config.json", **hub, **silent) is None:
            logger.info("No generation_config.json found: using the default generation config.")
            return
        self.generation_config = ShirgGenerationConfig.from_pretrained(
            pretrained_model_name_or_path, **hub, _from_auto=from_auto_class, _from_pipeline=from_pipeline
        )


def _check_ids(name: str, ids_BL: Any, size: int) -> None:
    """Raises a `ValueError` unless these are rows of ids of a model that has `size` of them."""
    if not isinstance(ids_BL, torch.Tensor) or ids_BL.ndim != 2 or ids_BL.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name} must be a tensor of integer ids with two dimensions, got {_described(ids_BL)}.")
    if ids_BL.numel() and (ids_BL.min() < 0 or ids_BL.max() >= size):
        raise ValueError(
            f"{name} hold ids from {ids_BL.min()} to {ids_BL.max()}, the model has 0 to {size - 1}: are they of its "
            "tokenizer?"
        )


def _described(value: Any) -> str:
    """What stands where a tensor of another kind should be."""
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"{value!r:.100}"


def _draft_length(draft_ids: torch.Tensor, max_new_tokens: int | None) -> int:
    if not isinstance(draft_ids, torch.Tensor):
        raise ValueError(f"draft_ids must be a tensor of ids, got a {type(draft_ids).__name__}.")
    if draft_ids.ndim not in (1, 2):
        raise ValueError(f"draft_ids must have the shape (R,) or (B, R), got {tuple(draft_ids.shape)}.")
    length = draft_ids.shape[-1]
    if max_new_tokens is not None and max_new_tokens != length:
        raise ValueError(f"draft_ids of length {length} and max_new_tokens={max_new_tokens} contradict each other.")
    return length


def _prepare_prompt(
    embeds_BPD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    response_length: int,
) -> _Prompt:
    """Positions count the real tokens of a row, so padding on either side changes nothing."""
    shape, device = embeds_BPD.shape[:2], embeds_BPD.device
    for name, value in (("attention_mask", attention_mask), ("position_ids", position_ids)):
        if value is not None and (not isinstance(value, torch.Tensor) or value.shape != shape):
            raise ValueError(f"{name} must have the prompt's shape {tuple(shape)}, got {_described(value)}.")
    mask_BP = torch.ones(shape, dtype=torch.bool, device=device)
    if attention_mask is not None:
        mask_BP = attention_mask.to(device=device, dtype=torch.bool)
    if not mask_BP.any(-1).all():
        raise ValueError("attention_mask has a row without a single real token: a prompt needs at least one.")
    if position_ids is None:
        position_ids = (mask_BP.long().cumsum(-1) - 1).clamp(min=0)
    positions_BP = position_ids.to(device)
    last_B = positions_BP.masked_fill(~mask_BP, -1).amax(-1)
    response_positions_BR = last_B[:, None] + 1 + torch.arange(response_length, device=device)
    return _Prompt(embeds_BPD, None if mask_BP.all() else mask_BP, positions_BP, response_positions_BR)


def _prepare_sampler(
    config: ShirgGenerationConfig,
    generator: torch.Generator | list[torch.Generator] | None,
    batch_size: int,
    device: torch.device,
) -> MaskedDiffusionSampler:
    random = config.do_sample or CONFIDENCES[config.remasking] is None
    noise = RowNoise(generator, batch_size, device) if random else None
    return MaskedDiffusionSampler(config.remasking, config.sampling_temperature, config.suppress_tokens, noise)


def _fill(
    response_BR: torch.LongTensor,
    positions_BM: torch.LongTensor,
    tokens_BM: torch.LongTensor,
    confidence_BM: torch.Tensor,
    counts_B: torch.LongTensor,
    config: ShirgGenerationConfig,
) -> torch.LongTensor:
    """The response after a step: `counts_B` of the predicted tokens in their places, more where they are sure."""
    counts_B = counts_B.to(response_BR.device)
    if config.confidence_threshold is not None:
        counts_B = counts_B.maximum(confident_counts(confidence_BM, config.confidence_threshold))
    keep_BM = select_positions(confidence_BM, counts_B)
    tokens_BM = torch.where(keep_BM, tokens_BM, response_BR.gather(-1, positions_BM))
    response_BR = response_BR.scatter(-1, positions_BM, tokens_BM)
    return end_answers(response_BR, config.mask_token_id, config.end_ids) if config.stop_at_eos else response_BR


def _start_stream(streamer: BaseStreamer | None, input_ids: torch.Tensor | None, batch_size: int) -> None:
    """Hands the prompt to the streamer, which expects one before it takes anything for an answer."""
    if streamer is None:
        return
    if not isinstance(streamer, BaseStreamer):
        raise ValueError(f"streamer must be a BaseStreamer, such as TextDiffusionStreamer, got {streamer!r:.100}.")
    if batch_size > 1:
        raise ValueError(f"A streamer shows one response, got a batch of {batch_size}.")
    streamer.put(torch.empty(batch_size, 0, dtype=torch.int64) if input_ids is None else input_ids.cpu())


def _append_ones(mask_BP: torch.Tensor | None, length: int) -> torch.Tensor | None:
    return None if mask_BP is None else torch.nn.functional.pad(mask_BP, (0, length), value=True)


def _stack_history(history: list[torch.Tensor], response_BR: torch.Tensor) -> torch.LongTensor:
    return torch.stack(history) if history else response_BR.new_empty((0, *response_BR.shape))


__all__ = ["ShirgGenerationOutput", "ShirgLavidaGenerationMixin"]
