"""Generation by denoising: a response of fixed length starts as mask tokens and is filled block by block.

The prompt (image tokens included) is encoded once, alone, into a key/value cache: the response sees the prompt and all
of itself, the prompt never sees the response, so the cache stays valid for every step (LaViDa, arXiv:2505.16839).
`generate` has the order of the steps, denoising_shirg.py the arithmetic of one, prefix_cache_shirg.py the cache.

Shape suffixes: B batch, P prompt length, R response length, L block length, M positions that a step predicts, N tokens
of a pass, D hidden size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.profiler import record_function
from transformers import GenerationConfig, TextDiffusionStreamer
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import ModelOutput
from transformers.utils import cached_file, logging

from .adapters_shirg import HUB_ARGUMENTS
from .denoising_shirg import DenoisingStep, masked_positions, transfer_table
from .generation_config_shirg import ShirgGenerationConfig, overridden_fields
from .image_inputs_shirg import IMAGE_INPUTS
from .prefix_cache_shirg import PrefixCache, encode_prefix

logger = logging.get_logger(__name__)

# Token ids that come from the model when the call does not give them.
_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id")
# Speed only: on a CPU the LM head is twice as slow for 12 rows as for 16, so 4 to 15 rows are padded to 16.
_PRODUCT_ROWS, _FEW_ROWS = 16, 3


@dataclass
class ShirgGenerationOutput(ModelOutput):
    """What `generate` returns with `return_dict_in_generate=True`."""

    # Prompt and response ids, (B, P + R); the response alone, (B, R), where the prompt was given as embeddings only.
    sequences: torch.LongTensor | None = None
    # Number of denoising forwards; the prefix pass is not one.
    forwards: int | None = None
    # Masks of the first response per denoising forward, (B,).
    tokens_per_forward: torch.FloatTensor | None = None
    # The response after each forward, (forwards, B, R), with `output_history=True`.
    history: torch.LongTensor | None = None
    # Those of `ShirgImageOutput`, with `output_selection=True`.
    kept_indices: torch.LongTensor | None = None
    scores: torch.FloatTensor | None = None
    # Bytes of the prompt's keys and values in each layer; `None` without `use_cache`.
    prefix_bytes: list[int] | None = None
    # Number of prompt positions, without padding, that each row keeps in each layer, (layers, B).
    prefix_lengths: torch.LongTensor | None = None


@dataclass
class _Prompt:
    """The prompt of one call, and the positions of the response after it."""

    embeds_BPD: torch.Tensor
    mask_BP: torch.Tensor | None  # `None` where nothing is padded
    positions_BP: torch.Tensor
    response_positions_BR: torch.Tensor


class ShirgLavidaGenerationMixin:
    """`generate` for a bidirectional language model behind a vision prefix; a base before `PreTrainedModel`."""

    generation_config_class = ShirgGenerationConfig

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
            a. Compute logits for the block's masked positions, from a pass over the response on the prefix; without
               the cache, over prompt and response; with `dual_cache` after a block's first step, over the block.
            b. Predict a token and a confidence for each of these positions. Keep the most confident predictions: the
               schedule's count for this step, and all above `confidence_threshold`. With `stop_at_eos`, masks after an
               end-of-text become end-of-text.
            c. Record and stream the response.
        3. Return.

        A row gives the tokens that it gives alone, however it is padded.

        Args:
            input_ids: the prompt, with image placeholders already expanded, (B, P).
            attention_mask: 0 marks padding, on either side, (B, P).
            inputs_embeds: the prompt's embeddings, images included, (B, P, D); `input_ids` then only lend their ids to
                the returned sequences.
            position_ids: by default they count the prompt's real tokens from 0, (B, P). The response goes on after the
                largest of a row.
            generation_config: replaces the model's; token ids that it leaves at `None` still come from the model.
            streamer: gets the prompt, the draft after each forward if it is a `TextDiffusionStreamer`, and the
                response. Batch size 1 only.
            generator: source of randomness of `do_sample` and `remasking="random"`, or one per row; a row with its own
                generator gives what it gives alone.
            draft_ids: a response with gaps, (R,) or (B, R): mask ids are filled, all others stay. Sets
                `max_new_tokens`. Each row follows the schedule of its own number of masks.
            **kwargs: fields of `ShirgGenerationConfig`, which override it, and the image arguments of `forward`.

        Returns:
            Ids `(B, P + R)`, or `(B, R)` when only `inputs_embeds` were given; a `ShirgGenerationOutput` with
            `return_dict_in_generate=True`.
        """
        # 0. Prepare
        ids = {"input_ids": input_ids, "draft_ids": draft_ids, "inputs_embeds": inputs_embeds}
        _check_types(torch.Tensor, attention_mask=attention_mask, position_ids=position_ids, **ids)
        _check_types(BaseStreamer, streamer=streamer)
        images = {name: kwargs.pop(name) for name in IMAGE_INPUTS if name in kwargs}
        config = self._resolve_generation_config(generation_config, draft_ids, kwargs)
        embeds_BPD, image_outputs = self._embed_prompt(input_ids, inputs_embeds, images)
        if image_outputs is not None:
            attention_mask = image_outputs.visible(attention_mask)
        prompt = self._prepare_prompt(embeds_BPD, attention_mask, position_ids, config.max_new_tokens)
        response_BR = _start_response(draft_ids, len(embeds_BPD), config, embeds_BPD.device)
        if isinstance(generator, list) and len(generator) != len(embeds_BPD):
            raise ValueError(f"Got {len(generator)} generators for a batch of {len(embeds_BPD)}: give one per row.")
        denoise = DenoisingStep(config, generator)
        if streamer is not None:
            if len(embeds_BPD) > 1:
                raise ValueError(f"A streamer shows one response, got a batch of {len(embeds_BPD)}.")
            streamer.put(torch.empty(1, 0, dtype=torch.int64) if input_ids is None else input_ids.cpu())

        # 1. Encode the prompt
        with record_function("shirg.prefix"):
            prefix = self._encode_prefix(prompt, config) if config.use_cache else None

        # 2. Fill the response, block by block
        responses = [response_BR]  # before the first step, and after each
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
                    response_BR = denoise(response_BR, positions_BM, logits_BMV, counts_B, num_masked)  # 2.b
                if config.fills_by_schedule:  # no device sync: the schedule is known on the host
                    num_masked = [left - count for left, count in zip(num_masked, counts_B.tolist(), strict=True)]
                else:
                    num_masked = (response_BR[:, block] == config.mask_token_id).sum(-1).tolist()
                responses.append(response_BR)  # 2.c
                if isinstance(streamer, TextDiffusionStreamer):
                    streamer.put_draft(response_BR.cpu())

        # 3. Return
        if streamer is not None:
            streamer.put(response_BR.cpu())
            streamer.end()
        sequences = response_BR
        if input_ids is not None:
            sequences = torch.cat([input_ids.to(response_BR.device), response_BR], dim=-1)
        if not config.return_dict_in_generate:
            return sequences
        reported = image_outputs if config.output_selection else None
        forwards = len(responses) - 1
        return ShirgGenerationOutput(
            sequences=sequences,
            forwards=forwards,
            tokens_per_forward=(responses[0] == config.mask_token_id).sum(-1).float() / max(forwards, 1),
            history=torch.stack(responses)[1:] if config.output_history else None,
            kept_indices=None if reported is None else reported.kept_indices,
            scores=None if reported is None else reported.scores,
            prefix_bytes=None if prefix is None else prefix.prompt_bytes(),
            prefix_lengths=None if prefix is None else prefix.lengths_LB,
        )

    def _resolve_generation_config(
        self, generation_config: GenerationConfig | None, draft_ids: torch.Tensor | None, overrides: dict[str, Any]
    ) -> ShirgGenerationConfig:
        """The configuration of this call, complete with token ids and checked against the model."""
        size = self.model.get_input_embeddings().weight.shape[0]
        _check_types(GenerationConfig, generation_config=generation_config)
        stored = self.generation_config if generation_config is None else generation_config
        fields = overridden_fields(stored, overrides)
        if draft_ids is not None:
            _check_ids("draft_ids", draft_ids, size)
            fields["max_new_tokens"] = overrides.get("max_new_tokens") or draft_ids.shape[-1]
        for name in _SPECIAL_TOKENS:
            for source in (self.generation_config, self.config):
                if fields.get(name) is None:
                    fields[name] = getattr(source, name, None)
        config = ShirgGenerationConfig(**fields)
        if config.mask_token_id is None or config.mask_token_id >= size:
            raise ValueError(f"mask_token_id={config.mask_token_id} must be one of the model's {size} ids.")
        if config.suppress_tokens is None:
            never = (config.mask_token_id, getattr(self.config, "image_token_id", None))
            config.suppress_tokens = [token for token in never if token is not None and 0 <= token < size]
        if max(config.suppress_tokens, default=0) >= size or len(set(config.suppress_tokens)) == size:
            raise ValueError(f"suppress_tokens up to {max(config.suppress_tokens)} must be some of the {size} ids.")
        if config.stop_at_eos and not config.end_ids:
            raise ValueError("stop_at_eos=True needs an end-of-text token, got eos_token_id=None: give one.")
        return config

    def _embed_prompt(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, images: dict[str, Any]
    ) -> tuple[torch.Tensor, Any]:
        """The prompt's embeddings `(B, P, D)` and the model's report about its images, or `None`."""
        if input_ids is None and inputs_embeds is None:
            raise ValueError("generate needs input_ids or inputs_embeds.")
        if input_ids is not None:
            _check_ids("input_ids", input_ids, self.model.get_input_embeddings().weight.shape[0], dimensions=(2,))
        if inputs_embeds is None:
            return self.model.prepare_inputs_embeds(input_ids, **images)
        given = sorted(name for name, value in images.items() if value is not None)
        if given:
            raise ValueError(f"inputs_embeds hold the images already, got {', '.join(given)} as well.")
        if input_ids is not None and input_ids.shape != inputs_embeds.shape[:2]:
            raise ValueError(f"input_ids {tuple(input_ids.shape)} do not fit inputs_embeds {inputs_embeds.shape}.")
        return inputs_embeds, None

    def _prepare_prompt(
        self,
        embeds_BPD: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        response_length: int,
    ) -> _Prompt:
        """Positions count the real tokens of a row, so padding on either side changes nothing."""
        known = getattr(self.model.language_model.config, "max_position_embeddings", None)
        if known is not None and response_length > known:
            raise ValueError(
                f"max_new_tokens={response_length} is more than the {known} positions that the language model knows."
            )
        shape, device = embeds_BPD.shape[:2], embeds_BPD.device
        for name, value in (("attention_mask", attention_mask), ("position_ids", position_ids)):
            if value is not None and value.shape != shape:
                raise ValueError(f"{name} must have the prompt's shape {tuple(shape)}, got {tuple(value.shape)}.")
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
        length = int(last_B.max()) + 1 + response_length
        if known is not None and length > known:
            logger.warning_once(f"The answer may make no sense: {length} tokens, but {known} positions are known.")
        return _Prompt(embeds_BPD, None if mask_BP.all() else mask_BP, positions_BP, response_positions_BR)

    def _encode_prefix(self, prompt: _Prompt, config: ShirgGenerationConfig) -> PrefixCache:
        positions = prompt.positions_BP, prompt.response_positions_BR
        return encode_prefix(self.model.language_model, prompt.embeds_BPD, prompt.mask_BP, *positions, config)

    def _response_logits(
        self,
        prompt: _Prompt,
        prefix: PrefixCache | None,
        response_BR: torch.Tensor,
        positions_BM: torch.Tensor,
        tokens: slice,
    ) -> torch.Tensor:
        """Logits `(B, M, V)` at `positions_BM` of the response, from a pass over its `tokens`; the other tokens' keys
        and values are those of an earlier pass in the prefix cache."""
        embeds_BRD = self.model.get_input_embeddings()(response_BR)
        if prefix is None:
            length, mask_BP = response_BR.shape[1], prompt.mask_BP
            hidden_BND = self.model.language_model(
                inputs_embeds=torch.cat([prompt.embeds_BPD, embeds_BRD], dim=1),
                attention_mask=None if mask_BP is None else nn.functional.pad(mask_BP, (0, length), value=True),
                position_ids=torch.cat([prompt.positions_BP, prompt.response_positions_BR], dim=1),
                use_cache=False,
                is_causal=False,
            ).last_hidden_state[:, -length:]
        else:
            hidden_BND = prefix.run(self.model.language_model, embeds_BRD[:, tokens], tokens)
        index_BM1 = (positions_BM - tokens.start)[..., None].to(hidden_BND.device)
        hidden_BMD = hidden_BND.take_along_dim(index_BM1, dim=1)
        added = max(_PRODUCT_ROWS - index_BM1.shape[1], 0) if index_BM1.shape[1] > _FEW_ROWS else 0
        logits_BMV = self.lm_head(nn.functional.pad(hidden_BMD, (0, 0, 0, added)))[:, : index_BM1.shape[1]]
        return logits_BMV.to(response_BR.device)

    def adjust_generation_fn(
        self,
        generation_config: GenerationConfig | None,
        from_auto_class: bool,
        from_pipeline: str | None,
        pretrained_model_name_or_path: str | None,
        **kwargs,
    ) -> None:
        """Called by `from_pretrained` after the weights are loaded: reads generation_config.json, if there is one."""
        if generation_config is not None:
            self.generation_config = ShirgGenerationConfig(**generation_config.to_diff_dict())
        elif pretrained_model_name_or_path is not None:
            # A file that is there and cannot be read is an error.
            hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
            silent = {"_raise_exceptions_for_missing_entries": False}
            if cached_file(pretrained_model_name_or_path, "generation_config.json", **hub, **silent) is not None:
                self.generation_config = ShirgGenerationConfig.from_pretrained(pretrained_model_name_or_path, **hub)


def _check_types(kind: type, **arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"{name} must be a {kind.__name__}, got {value!r:.100}.")


def _check_ids(name: str, ids: torch.Tensor, size: int, dimensions: tuple[int, ...] = (1, 2)) -> None:
    if ids.ndim not in dimensions or ids.is_floating_point():
        raise ValueError(f"{name} must hold integer ids of {dimensions} axes, got {ids.dtype} {tuple(ids.shape)}.")
    if ids.numel() and (ids.min() < 0 or ids.max() >= size):
        raise ValueError(
            f"{name} hold ids from {ids.min()} to {ids.max()}, the model has 0 to {size - 1}: are they of its "
            "tokenizer?"
        )


def _start_response(
    draft_ids: torch.Tensor | None, batch_size: int, config: ShirgGenerationConfig, device: torch.device
) -> torch.LongTensor:
    """The response `(B, R)` before the first step: all masks, or a copy of the draft."""
    shape = (batch_size, config.max_new_tokens)
    if draft_ids is None:
        draft_ids = torch.tensor(config.mask_token_id)
    elif draft_ids.shape not in (shape, shape[1:]):
        raise ValueError(f"draft_ids must have the shape {shape[1:]} or {shape}, got {tuple(draft_ids.shape)}.")
    return draft_ids.to(device=device, dtype=torch.int64).expand(shape).clone()
