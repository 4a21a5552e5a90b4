"""SHIRG-LaViDa: a masked-diffusion vision-language model with selection of visual tokens under a fixed budget.

backbone_shirg.py leads from views to prompt embeddings, generation_shirg_lavida.py from the prompt to an answer. This
file holds the forward pass and the training loss.

Shape suffixes: B prompts, L prompt tokens, C language model width, M masked answer tokens.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import is_flash_attention_requested

from .backbone_shirg import ShirgLavidaModel, ShirgLavidaPreTrainedModel
from .configuration_shirg_lavida import ShirgLavidaConfig
from .generation_shirg_lavida import ShirgLavidaGenerationMixin
from .objective_shirg import additive_mask, complementary_masks, diffusion_loss, prefix_lm_mask
from .prefix_cache_shirg import CACHE_ARGUMENT


@dataclass
class ShirgLavidaOutput(CausalLMOutputWithPast):
    """The output of transformers' causal language models, with what training and selection report.

    With labels `logits` is `(M, vocab_size)`, at the masked positions in row-major order.
    """

    # Which answer tokens were masked, in the first use of every example and in the second, (2 * B, L), with labels.
    masked_positions: torch.BoolTensor | None = None
    # Those of `ShirgImageOutput`, with `output_selection=True`.
    kept_indices: torch.LongTensor | None = None
    scores: torch.FloatTensor | None = None


class ShirgLavidaForConditionalGeneration(ShirgLavidaGenerationMixin, ShirgLavidaPreTrainedModel):
    """SHIRG-LaViDa with its language modelling head; `generate` denoises an answer."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    # The loss is a mean of this batch; the Trainer must not rescale it.
    accepts_loss_kwargs = False

    def __init__(self, config: ShirgLavidaConfig):
        super().__init__(config)
        self.model = ShirgLavidaModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        """The language modelling head."""
        return self.lm_head

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        use_cache: bool = False,
        labels: torch.LongTensor | None = None,
        diffusion_time: torch.Tensor | None = None,
        mask_noise: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_selection: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        **image_inputs: torch.Tensor | None,
    ) -> ShirgLavidaOutput:
        """One bidirectional forward over prompts (and the response tokens at their end, if there are any).

        Args:
            input_ids: prompt ids with placeholders, (B, L); or give `inputs_embeds` (B, L, C), images included.
            attention_mask: 1 at real tokens, (B, L), padding left or right. Or a 4D mask of who sees whom, (B, heads
                or 1, L, keys): true where seen, or floating-point, added to the scores; give position_ids with it.
            position_ids: (B, L); by default they count the real tokens of each row.
            past_key_values, cache: a cache to read and extend, under the name of older and of newer transformers.
            use_cache: return a cache.
            labels: the answers' ids, (B, L), -100 elsewhere. Every example is used twice, with complementary masks on
                its answer, and the loss is returned (objective_shirg.py).
            diffusion_time: with labels, the time t in 0..1 of each example, (B,); drawn uniformly by default.
            mask_noise: with labels, the draws in 0..1 that decide what is masked, (B, L); drawn by default.
            logits_to_keep: compute logits of the last so many positions, or of these positions; 0 means all.
            output_selection: return the kept indices and the scores.
            output_hidden_states, output_attentions: return the language model's; attentions need eager attention.
            image_inputs: what the processor returns about the images, see `ImageInputs`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        cache = past_key_values if cache is None else cache
        images = None
        if inputs_embeds is None:
            inputs_embeds, images = self.model.prepare_inputs_embeds(input_ids, **image_inputs)
            attention_mask = attention_mask if images is None else images.visible(attention_mask)
        elif any(value is not None for value in image_inputs.values()):
            raise ValueError("inputs_embeds hold the images already: give image arguments with input_ids only.")
        if position_ids is None and cache is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
        masked_positions = None
        if labels is not None:
            if cache is not None or use_cache:
                raise ValueError("labels are for training on whole sequences: give no cache or use_cache.")
            if diffusion_time is None:
                diffusion_time = torch.rand(len(labels), device=labels.device)
            masked_positions, inputs_embeds, attention_mask, position_ids = self._mask_answers(
                labels, diffusion_time, mask_noise, inputs_embeds, attention_mask, position_ids
            )
        if attention_mask is not None and attention_mask.ndim == 4:
            attention_mask = self._prepared_mask(attention_mask, inputs_embeds)
        outputs = self.model.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{CACHE_ARGUMENT: cache},
            use_cache=use_cache,
            is_causal=False,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        if labels is None:
            loss = None
            logits = self.lm_head(_kept_positions(outputs.last_hidden_state, logits_to_keep))
        else:
            logits = self.lm_head(outputs.last_hidden_state[masked_positions])
            loss = diffusion_loss(logits, labels, masked_positions, diffusion_time, self.config.loss_weighting)
        return ShirgLavidaOutput(
            loss=loss,
            logits=logits,
            masked_positions=masked_positions,
            **{CACHE_ARGUMENT: outputs.get(CACHE_ARGUMENT)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            kept_indices=images.kept_indices if output_selection and images is not None else None,
            scores=images.scores if output_selection and images is not None else None,
        )

    def _mask_answers(
        self,
        labels: torch.LongTensor,
        diffusion_time: torch.Tensor,
        mask_noise: torch.Tensor | None,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.LongTensor | None,
    ) -> tuple[torch.BoolTensor, torch.Tensor, torch.Tensor | None, torch.LongTensor | None]:
        """Both uses of every example, 2B rows: masked positions, embeddings, attention mask and positions."""
        if labels.shape != inputs_embeds.shape[:2]:
            raise ValueError(f"labels {tuple(labels.shape)} do not fit prompts of {tuple(inputs_embeds.shape[:2])}.")
        if mask_noise is None:
            mask_noise = torch.rand(labels.shape, device=labels.device)
        masked_2BL = complementary_masks(labels, diffusion_time, mask_noise, self.config.infill_token_id)
        if not masked_2BL.any():
            raise ValueError("labels hold no token to predict: every one is -100 or the infill token.")
        # Through the module, not its weight, which may be a shard.
        mask_C = self.get_input_embeddings()(labels.new_tensor(self.config.mask_token_id)).to(inputs_embeds.dtype)
        inputs_embeds = torch.where(masked_2BL[..., None], mask_C, inputs_embeds.repeat(2, 1, 1))
        if self.config.prefix_lm_loss:
            if attention_mask is not None and attention_mask.ndim != 2:
                got = f"{attention_mask.ndim}D"
                raise ValueError(f"prefix_lm_loss=True makes a 4D mask itself: give attention_mask (B, L), got {got}.")
            attention_mask = prefix_lm_mask(labels, attention_mask)
        if attention_mask is not None:
            attention_mask = attention_mask.expand(len(labels), *attention_mask.shape[1:])
            attention_mask = torch.cat([attention_mask, attention_mask])
        position_ids = None if position_ids is None else position_ids.repeat(2, 1)
        return masked_2BL, inputs_embeds, attention_mask, position_ids

    def _prepared_mask(self, mask_BHLL: torch.Tensor, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """A 4D attention mask as what is added to the scores, which eager attention and SDPA read alike."""
        language_config = self.model.language_model.config
        if is_flash_attention_requested(language_config):
            raise ValueError(
                f"attn_implementation={language_config._attn_implementation!r} takes no 4D attention mask, which "
                "prefix_lm_loss=True makes too: load the model with attn_implementation='sdpa' or 'eager'."
            )
        if mask_BHLL.is_floating_point():
            return mask_BHLL
        if mask_BHLL.dtype != torch.bool:
            raise ValueError(f"A 4D attention_mask must be bool or floating-point, got {mask_BHLL.dtype}.")
        return additive_mask(mask_BHLL, inputs_embeds)


def _kept_positions(hidden_BLC: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """The last `logits_to_keep` positions, or these positions; 0 is all (transformers' own is of 5.22)."""
    return hidden_BLC[:, slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep]
