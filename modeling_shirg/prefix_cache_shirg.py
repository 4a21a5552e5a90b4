"""The prompt's keys and values, which every denoising step reads, and how they are made smaller.

A layer holds them in one buffer with room for the response behind them: a step writes its own keys and values over
those of the step before. Keys are stored rotated; padding is not stored.

PrefixKV's eviction (arXiv:2412.03409) drops, once after the pass over the prompt, the positions that received least
attention. One threshold decides for all layers, so a layer with spread-out attention keeps more positions. Every row
of a batch is decided alone; a layer holds as many keys as its longest row and masks the rest.

Shape suffixes: B batch, L layers, P prompt length, K keys that a layer holds, R response length, N tokens of a pass,
H query heads, G key heads, C queries of a chunk, E head width, D hidden size.
"""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

# Types that `prefix_dtype` names.
PREFIX_DTYPES = {None: None, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}
# Tokens at either end of a prompt that every layer keeps.
_PROTECTED_FIRST, _PROTECTED_LAST = 4, 1
# Queries whose attention is held at once, for all heads of one row.
_QUERY_CHUNK = 128
# The cache's name among the arguments and outputs of transformers: `past_key_values` before 5.24, `cache` since.
CACHE_ARGUMENT = "cache" if "cache" in inspect.signature(create_bidirectional_mask).parameters else "past_key_values"


class PrefixLayer(CacheLayerMixin):
    """One layer's keys and values of a prompt, and room behind them for those of the response.

    A layer that stores a narrower type restores the prompt at each `update` and does not keep the response: only one
    layer at a time is whole. int8 has a float32 scale per channel for keys and per position for values (as KIVI,
    arXiv:2402.02750): the error is at most 1/254 of the largest value that shares the scale.

    Args:
        room: length of the response.
        stored: a narrower type to store; `None` is the model's.
    """

    is_compileable = True

    def __init__(self, keys_BGKE: torch.Tensor, values_BGKE: torch.Tensor, room: int, stored: torch.dtype | None):
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys_BGKE.dtype, keys_BGKE.device, True
        self.prompt_length, self.room, self.stored = keys_BGKE.shape[-2], room, stored
        # Where in the response the tokens of the next `update` begin.
        self.start = 0
        if stored is None:
            self.keys, self.values = (F.pad(states, (0, 0, 0, room)) for states in (keys_BGKE, values_BGKE))
        else:
            self.keys, self.key_scales = _narrow(keys_BGKE, stored, dim=-2)
            self.values, self.value_scales = _narrow(values_BGKE, stored, dim=-1)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing is left to do: the constructor stores the prompt."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (B, G, K + R, E) of the prompt and the response, with the given ones in their place."""
        if self.stored is not None:
            keys = _restore(self.keys, self.key_scales, self.dtype)
            values = _restore(self.values, self.value_scales, self.dtype)
            return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)
        first = self.prompt_length + self.start
        self.keys[:, :, first : first + key_states.shape[-2]] = key_states
        self.values[:, :, first : first + value_states.shape[-2]] = value_states
        return self.keys, self.values

    def prompt(self) -> list[torch.Tensor]:
        """The stored tensors of the prompt: keys, values and, in int8, their scales."""
        parts = [self.keys[:, :, : self.prompt_length], self.values[:, :, : self.prompt_length]]
        return parts if self.stored != torch.int8 else [*parts, self.key_scales, self.value_scales]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that response tokens see, from the first on."""
        return self.prompt_length + self.room, 0

    def get_seq_length(self) -> int:
        """Number of the prompt's keys."""
        return self.prompt_length

    def get_max_length(self) -> int:
        """Number of keys that the layer has room for."""
        return self.prompt_length + self.room


class PrefixCache(Cache):
    """A prompt's keys and values, and what every pass over the response needs: each layer's mask (`None` where all
    keys are seen), cosine and sine of the response's positions. `lengths_LB` counts what each row keeps in a layer."""

    def __init__(
        self,
        layers: list[PrefixLayer],
        masks: list[torch.Tensor | None],
        rotary: tuple[torch.Tensor, torch.Tensor],
        lengths_LB: torch.LongTensor,
    ):
        super().__init__(layers=layers)
        self.masks, self.rotary, self.lengths_LB = masks, rotary, lengths_LB
        self.run_layers = run_layers  # or the compiled function

    def run(self, language_model: nn.Module, embeds_BND: torch.Tensor, tokens: slice) -> torch.Tensor:
        """Final hidden states (B, N, D) of the response's `tokens`, which see the prompt, each other, and the other
        tokens of the response as they were in their last pass."""
        for layer in self.layers:
            layer.start = tokens.start
        rotary = tuple(table[:, tokens] for table in self.rotary)
        masks = [mask if mask is None or mask.ndim == 2 else mask[:, :, tokens] for mask in self.masks]
        return self.run_layers(language_model, embeds_BND, rotary, masks, self)

    def prompt_bytes(self) -> list[int]:
        """Bytes of the prompt's keys and values in each layer, with the scales of int8 and without the room."""
        return [sum(part.nbytes for part in layer.prompt()) for layer in self.layers]


def encode_prefix(
    language_model: nn.Module,
    embeds_BPD: torch.Tensor,
    mask_BP: torch.Tensor | None,
    position_ids_BP: torch.LongTensor,
    position_ids_BR: torch.LongTensor,
    config: GenerationConfig,
) -> PrefixCache:
    """The prompt's keys and values from one pass over the prompt, without padding.

    Args:
        mask_BP: true at real tokens; `None` where nothing is padded.
        position_ids_BP, position_ids_BR: of the prompt and of the response.
        config: a `ShirgGenerationConfig`.
    """
    ratio, dtype = config.prefix_kv, PREFIX_DTYPES[config.prefix_dtype]
    num_layers, evicts = len(language_model.layers), ratio not in (None, 1)
    real_BP = torch.ones(embeds_BPD.shape[:2], dtype=torch.bool) if mask_BP is None else mask_BP.cpu()
    if evicts:
        for length in real_BP.sum(-1).tolist():  # raises before any work
            prefix_budget(ratio, num_layers, length)
    cache, hidden_BPD, scores_LBP = DynamicCache(config=language_model.config), embeds_BPD, []
    mask = create_bidirectional_mask(language_model.config, embeds_BPD, mask_BP, **{CACHE_ARGUMENT: None})
    rotary = language_model.rotary_emb(embeds_BPD, position_ids=position_ids_BP)
    for layer in language_model.layers:
        input_BPD = hidden_BPD
        hidden_BPD = layer(input_BPD, attention_mask=mask, position_embeddings=rotary, **_cached(cache))
        if evicts:
            keys_BGPE = cache.layers[len(scores_LBP)].keys
            scores_LBP.append(attention_mass(layer, input_BPD, rotary, keys_BGPE, real_BP))
    kept_LBP = real_BP.repeat(num_layers, 1, 1)
    for number, scores_LP in enumerate(zip(*scores_LBP, strict=True)):
        kept_LBP[:, number, real_BP[number]] = kept_positions(torch.stack(scores_LP), ratio)
    layers, masks, room = [], [], position_ids_BR.shape[1]
    response_like_BRD = embeds_BPD[:, :1].expand(-1, room, -1)
    for layer, kept_BP in zip(cache.layers, kept_LBP, strict=True):
        index_BK, mask_BK = _survivors(kept_BP.to(layer.keys.device))
        states = [states.take_along_dim(index_BK[:, None, :, None], dim=2) for states in (layer.keys, layer.values)]
        layer.keys = layer.values = None  # their memory is free for the next layer's
        layers.append(PrefixLayer(*states, room, dtype))
        mask_BK = F.pad(mask_BK, (0, room), value=True)
        past = {CACHE_ARGUMENT: Cache(layers=layers[-1:])}
        masks.append(create_bidirectional_mask(language_model.config, response_like_BRD, mask_BK, **past))
    rotary = language_model.rotary_emb(response_like_BRD, position_ids=position_ids_BR)
    cache = PrefixCache(layers, masks, rotary, kept_LBP.sum(-1))
    if config.compile_config is not None:
        cache.run_layers = torch.compile(run_layers, **config.compile_config.to_dict())
    return cache


def run_layers(
    language_model: nn.Module,
    embeds_BND: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    masks: list[torch.Tensor | None],
    cache: Cache,
) -> torch.Tensor:
    """Final hidden states (B, N, D) of new tokens, by the modules of a stock `LlamaModel`. The model's own forward
    takes one mask for all layers, and makes mask and rotation again at every call."""
    hidden_BND = embeds_BND
    for layer, mask in zip(language_model.layers, masks, strict=True):
        hidden_BND = layer(hidden_BND, attention_mask=mask, position_embeddings=rotary, **_cached(cache))
    return language_model.norm(hidden_BND)


def _cached(cache: Cache) -> dict[str, Any]:
    return {CACHE_ARGUMENT: cache, "use_cache": True, "is_causal": False}


@torch.no_grad()
def attention_mass(
    layer: nn.Module,
    hidden_BPD: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    keys_BGPE: torch.Tensor,
    real_BP: torch.Tensor,
) -> list[torch.Tensor]:
    """The attention that each real token of a row receives from the row's real tokens: mean over heads of the column
    sums, float32. The layer's queries are computed again from its input, because fast kernels return no attention."""
    attention = layer.self_attn
    queries_BPHE = attention.q_proj(layer.input_layernorm(hidden_BPD)).unflatten(-1, (-1, attention.head_dim))
    queries_BHPE = queries_BPHE.transpose(1, 2).to(keys_BGPE.device)
    cosine, sine = (table.to(keys_BGPE.device) for table in rotary)
    queries_BHPE, _ = apply_rotary_pos_emb(queries_BHPE, queries_BHPE, cosine, sine)
    real_BP = real_BP.to(keys_BGPE.device)
    return [
        _column_sums(queries_HPE[:, real_P], keys_GPE[:, real_P], attention.scaling).cpu()
        for queries_HPE, keys_GPE, real_P in zip(queries_BHPE, keys_BGPE, real_BP, strict=True)
    ]


def _column_sums(queries_HPE: torch.Tensor, keys_GPE: torch.Tensor, scaling: float) -> torch.Tensor:
    keys_HEP = keys_GPE.float().repeat_interleave(len(queries_HPE) // len(keys_GPE), dim=0).transpose(1, 2)
    sums_P = keys_HEP.new_zeros(keys_HEP.shape[-1])
    # In bfloat16, which autocast would choose, scores tie at the cut.
    with torch.autocast(keys_HEP.device.type, enabled=False):
        for queries_HCE in queries_HPE.split(_QUERY_CHUNK, dim=1):
            attention_HCP = (queries_HCE.float() @ keys_HEP * scaling).softmax(dim=-1)
            sums_P += attention_HCP.sum(dim=1).mean(dim=0)
    return sums_P


def kept_positions(scores_LP: torch.Tensor, ratio: float) -> torch.Tensor:
    """PrefixKV's choice for one row, bool (L, P): True for `prefix_budget(ratio, L, P)` positions in all.

    A layer sorts its positions by score; the mass of a position is the share of the layer's scores that lies before it
    in this order. The layer keeps its protected positions and those with a mass below the threshold. The threshold is
    the largest within the budget, found by sorting the masses of all layers (the paper bisects). Equal scores are
    ordered by position; equal masses by rank in the layer, then by layer, so that the count is exact.
    """
    num_layers, length = scores_LP.shape
    budget = prefix_budget(ratio, num_layers, length)
    # Float64 on the CPU: the masses of a long tail differ by less than float32 resolves next to 1.
    sorted_LP, order_LP = scores_LP.double().cpu().sort(dim=-1, descending=True, stable=True)
    before_LP = sorted_LP.cumsum(-1) / sorted_LP.sum(-1, keepdim=True)
    before_LP = F.pad(before_LP[:, :-1], (1, 0))
    protected_LP = (order_LP < _PROTECTED_FIRST) | (order_LP >= length - _PROTECTED_LAST)
    before_LP = before_LP.masked_fill(protected_LP, -1)
    chosen = before_LP.T.flatten().sort(stable=True).indices[:budget]
    ranks, layers = chosen // num_layers, chosen % num_layers
    kept_LP = torch.zeros(num_layers, length, dtype=torch.bool)
    kept_LP[layers, order_LP[layers, ranks]] = True
    return kept_LP


def prefix_budget(ratio: float, num_layers: int, length: int) -> int:
    """How many of the `num_layers * length` keys of a prompt are kept: `ratio` of them, rounded down."""
    total = num_layers * length
    budget = int(ratio * total + 1e-6)  # 0.29 * 100 is 28.999999999999996
    protected = min(length, _PROTECTED_FIRST + _PROTECTED_LAST)
    if budget < num_layers * protected:
        raise ValueError(
            f"prefix_kv={ratio} keeps {budget} of the {total} keys of a prompt of {length} tokens in {num_layers} "
            f"layers, but the {protected} protected ones of each layer (the first {_PROTECTED_FIRST} and the last "
            f"{_PROTECTED_LAST}) are {num_layers * protected}: it must be at least {protected}/{length}."
        )
    return budget


def _survivors(kept_BP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of one layer's keys (B, K), and true at those to be seen. A row that keeps fewer than K repeats its
    last one, which changes no scale of int8."""
    counts_B1 = kept_BP.sum(-1, keepdim=True)
    slots_K = torch.arange(int(counts_B1.max()), device=kept_BP.device)
    order_BP = kept_BP.int().argsort(dim=-1, descending=True, stable=True)
    return order_BP.gather(-1, slots_K.minimum(counts_B1 - 1)), slots_K < counts_B1


def _narrow(states: torch.Tensor, dtype: torch.dtype, dim: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The states as `dtype`, and the scales of int8, which are shared along `dim`."""
    if dtype.is_floating_point:
        largest = states.abs().amax()
        if largest > torch.finfo(dtype).max:
            raise ValueError(
                f"prefix_dtype={str(dtype).removeprefix('torch.')!r} ends at {torch.finfo(dtype).max}, but the "
                f"prompt's keys and values reach {largest.item():.3g}: use 'bfloat16'."
            )
        return states.to(dtype), None
    scales = states.float().abs().amax(dim, keepdim=True) / 127
    steps = states.float() / scales.masked_fill(scales == 0, 1)
    return steps.round().to(dtype), scales


def _restore(stored: torch.Tensor, scales: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    return (stored if scales is None else stored * scales).to(dtype)
