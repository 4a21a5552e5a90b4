"""The prompt's keys and values, which every denoising step reads, and how they are made smaller.

A layer holds them in one buffer with room for the response behind them: a step writes its own keys and values over
those of the step before, and nothing is copied. Keys are stored rotated.

PrefixKV's eviction (arXiv:2412.03409) drops, once after the pass over the prompt, the positions that received least
attention. One threshold decides for all layers, so a layer with spread-out attention keeps more positions. Survivors
keep their positions. Every row of a batch is decided alone; a layer holds as many keys as its longest row
and masks the rest. `prefix_dtype` stores the keys and values in fewer bits.

transformers' `StaticCache` would show a layer's whole buffer to the prompt, and its `QuantizedCache` mixes the
response into the stored prefix and cannot crop it out again.

Shape suffixes: B batch, L layers, P prompt length, K keys that a layer holds, R response length, N tokens of a pass,
H query heads, G key heads, C queries of a chunk, E head width, D hidden size.
"""

import inspect
import json
from collections.abc import Callable

import torch
from torch import nn
from transformers import CompileConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

# What `prefix_dtype` may be.
PREFIX_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}
# Tokens at either end of a prompt that every layer keeps.
_PROTECTED_FIRST, _PROTECTED_LAST = 4, 1
# Queries whose attention is held at once, for all heads of one row.
_QUERY_CHUNK = 128
# The cache's name among the arguments and outputs of transformers: `past_key_values` before 5.24, `cache` since.
CACHE_ARGUMENT = "cache" if "cache" in inspect.signature(create_bidirectional_mask).parameters else "past_key_values"
# What `compiled_layers` made.
_COMPILED: dict[str, Callable[..., torch.Tensor]] = {}


class PrefixLayer(CacheLayerMixin):
    """One layer's keys and values of a prompt, and room behind them for those of the response.

    The first `update` gives the prompt's, and returns them. Every later one gives those of response tokens, writes
    them over what stood in their place, and returns the whole buffer: prompt and response.

    Args:
        room: length of the response.
    """

    is_compileable = True

    def __init__(self, room: int):
        super().__init__()
        self.room, self.prompt_length = room, 0
        # Where in the response the tokens of the next `update` begin.
        self.start = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate the buffers and keep the prompt's keys and values."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.prompt_length, self.is_initialized = key_states.shape[-2], True
        self.keys, self.values = (_with_room(states, self.room) for states in (key_states, value_states))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The prompt's keys and values as they came, or the buffers (B, G, K + R, E) with the response's in them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            return key_states, value_states
        first = self.prompt_length + self.start
        self.keys[:, :, first : first + key_states.shape[-2]] = key_states
        self.values[:, :, first : first + value_states.shape[-2]] = value_states
        return self.keys, self.values

    def prompt(self) -> tuple[torch.Tensor, ...]:
        """What is held of the prompt: keys, values and, where they are stored in int8, their scales."""
        return self.keys[:, :, : self.prompt_length], self.values[:, :, : self.prompt_length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that response tokens see, from the first on."""
        return self.prompt_length + self.room, 0

    def get_seq_length(self) -> int:
        """Number of the prompt's keys."""
        return self.prompt_length

    def get_max_length(self) -> int:
        """Number of keys that the layer has room for."""
        return self.prompt_length + self.room


class NarrowPrefixLayer(PrefixLayer):
    """A prefix in fewer bits than the model computes in. `update` restores it and puts the new keys and values, which
    it does not keep, behind it: only one layer at a time is whole.

    int8 has a float32 scale per channel for keys and per position for values (as KIVI, arXiv:2402.02750), symmetric:
    the error is at most half a scale, 1/254 of the largest value that shares it.
    """

    def __init__(self, room: int, stored: torch.dtype):
        super().__init__(room)
        self.stored = stored

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Store the prompt's keys and values."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.prompt_length, self.is_initialized = key_states.shape[-2], True
        self.keys, self.key_scales = _store(key_states, self.stored, dim=-2)
        self.values, self.value_scales = _store(value_states, self.stored, dim=-1)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The prompt's keys and values as they came; later the restored ones and the response's, (B, G, K + R, E)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            return key_states, value_states
        keys = _restore(self.keys, self.key_scales, key_states.dtype)
        values = _restore(self.values, self.value_scales, value_states.dtype)
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)

    def prompt(self) -> tuple[torch.Tensor, ...]:
        """Keys, values and their scales as they are stored."""
        parts = (self.keys, self.values, self.key_scales, self.value_scales)
        return tuple(part for part in parts if part is not None)


class PrefixCache(Cache):
    """A prompt's keys and values. Run response tokens on it with `run_layers` and `attention_masks`.

    Args:
        layers: one for each of the language model.
        masks_BK: which of its keys each layer sees; `None` is all.
    """

    def __init__(self, layers: list[PrefixLayer], masks_BK: list[torch.Tensor | None]):
        super().__init__(layers=layers)
        self.masks_BK = masks_BK

    @classmethod
    def survivors(
        cls, cache: Cache, kept_LBP: torch.Tensor, room: int, dtype: torch.dtype | None = None
    ) -> "PrefixCache":
        """What `kept_LBP`, bool, keeps of a prompt's cache, in the prompt's order; the cache is emptied on the way.

        `dtype` is the type to store; `None` leaves it.
        """
        layers = [PrefixLayer(room) if dtype is None else NarrowPrefixLayer(room, dtype) for _ in cache.layers]
        survivors = cls(layers, [])
        for number, (layer, kept_BP) in enumerate(zip(cache.layers, kept_LBP, strict=True)):
            index_BK, mask_BK = _survivors(kept_BP.to(layer.keys.device))
            index_B1K1 = index_BK[:, None, :, None]
            states = (torch.take_along_dim(each, index_B1K1, dim=2) for each in (layer.keys, layer.values))
            survivors.update(*states, number)
            survivors.masks_BK.append(mask_BK)
            layer.reset()
        return survivors

    def attention_masks(self, language_model: nn.Module, embeds_BND: torch.Tensor) -> list[torch.Tensor | None]:
        """Each layer's mask, as its attention takes it, for response tokens that see the prompt and the response."""
        return [
            None
            if mask_BK is None
            else _attention_mask(language_model, embeds_BND, _append_ones(mask_BK, layer.room), layer)
            for layer, mask_BK in zip(self.layers, self.masks_BK, strict=True)
        ]

    def write_at(self, start: int) -> None:
        """The response tokens that come next begin at its position `start`."""
        for layer in self.layers:
            layer.start = start

    def prompt_bytes(self) -> list[int]:
        """Bytes of the prompt's keys and values in each layer, with the scales of int8 and without the room."""
        return [sum(part.nbytes for part in layer.prompt()) for layer in self.layers]


def encode_whole(
    language_model: nn.Module,
    embeds_BPD: torch.Tensor,
    mask_BP: torch.Tensor | None,
    position_ids_BP: torch.LongTensor,
    room: int,
) -> tuple[PrefixCache, torch.LongTensor]:
    """The prompt's cache as it is, and the number of positions that each row keeps, all but padding, int64 (L, B)."""
    num_layers = len(language_model.layers)
    cache = PrefixCache([PrefixLayer(room) for _ in range(num_layers)], [mask_BP] * num_layers)
    _read_prompt(language_model, embeds_BPD, mask_BP, position_ids_BP, cache)
    return cache, _real(embeds_BPD, mask_BP).sum(-1).repeat(num_layers, 1)


def encode_compressed(
    language_model: nn.Module,
    embeds_BPD: torch.Tensor,
    mask_BP: torch.Tensor | None,
    position_ids_BP: torch.LongTensor,
    room: int,
    ratio: float | None,
    dtype: torch.dtype | None,
) -> tuple[PrefixCache, torch.LongTensor]:
    """The prompt's cache, evicted to `ratio` (`None`: nothing is) and stored as `dtype`, and the number of positions
    that each row keeps, int64 (L, B). Padding is never kept. All of it is on the device until the pass has ended.

    Raises:
        ValueError: the ratio is too small for a prompt of this length.
    """
    num_layers = len(language_model.layers)
    real_BP = _real(embeds_BPD, mask_BP)
    if ratio is not None:
        for length in real_BP.sum(-1).tolist():  # raises before any work
            prefix_budget(ratio, num_layers, length)
    cache, scores_L = DynamicCache(config=language_model.config), []

    def score_layer(layer: nn.Module, hidden_BPD: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> None:
        if ratio is not None:
            scores_L.append(attention_mass(layer, hidden_BPD, rotary, cache.layers[len(scores_L)].keys, real_BP))

    _read_prompt(language_model, embeds_BPD, mask_BP, position_ids_BP, cache, score_layer)
    kept_LBP = real_BP.repeat(num_layers, 1, 1)
    for row, scores_LP in enumerate(zip(*scores_L, strict=True)):
        kept_LBP[:, row, real_BP[row]] = kept_positions(torch.stack(scores_LP), ratio)
    return PrefixCache.survivors(cache, kept_LBP, room, dtype), kept_LBP.sum(-1)


def _read_prompt(
    language_model: nn.Module,
    embeds_BPD: torch.Tensor,
    mask_BP: torch.Tensor | None,
    position_ids_BP: torch.LongTensor,
    cache: Cache,
    after_layer: Callable[[nn.Module, torch.Tensor, tuple[torch.Tensor, torch.Tensor]], None] | None = None,
) -> None:
    """Fill `cache` by a pass over the prompt. Of the last layer only keys and values are computed: nothing reads more.

    `after_layer` is called with each layer, its input and the cosine and sine of the positions.
    """
    hidden_BPD = embeds_BPD
    mask = _attention_mask(language_model, embeds_BPD, mask_BP, None)
    rotary = language_model.rotary_emb(embeds_BPD, position_ids=position_ids_BP)
    *layers, last = language_model.layers
    for layer in layers:
        input_BPD = hidden_BPD
        hidden_BPD = _run_layer(layer, input_BPD, rotary, mask, cache)
        if after_layer is not None:
            after_layer(layer, input_BPD, rotary)
    attention, weight = last.self_attn, last.input_layernorm.weight
    if not weight.is_meta:  # offloaded weights come to their input
        hidden_BPD = hidden_BPD.to(weight.device)
    normed_BPD = last.input_layernorm(hidden_BPD)
    keys_BGPE, values_BGPE = (
        project(normed_BPD).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for project in (attention.k_proj, attention.v_proj)
    )
    cosine, sine = (table.to(keys_BGPE.device) for table in rotary)
    _, keys_BGPE = apply_rotary_pos_emb(keys_BGPE, keys_BGPE, cosine, sine)
    cache.update(keys_BGPE, values_BGPE, attention.layer_idx)
    if after_layer is not None:
        after_layer(last, hidden_BPD, rotary)


def run_layers(
    language_model: nn.Module,
    embeds_BND: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    masks: list[torch.Tensor | None],
    cache: Cache,
) -> torch.Tensor:
    """Final hidden states (B, N, D) by the modules of a stock `LlamaModel`, whose own forward has one mask for all
    layers and makes it, and the rotation, again at every call.

    Args:
        language_model: a `LlamaModel`.
        embeds_BND: new tokens.
        rotary: cosine and sine of their positions, as `language_model.rotary_emb` gives them.
        masks: each layer's, as its attention takes it.
        cache: what they see beside each other.
    """
    hidden_BND = embeds_BND
    for layer, mask in zip(language_model.layers, masks, strict=True):
        hidden_BND = _run_layer(layer, hidden_BND, rotary, mask, cache)
    return language_model.norm(hidden_BND)


def compiled_layers(config: CompileConfig) -> Callable[..., torch.Tensor]:
    """`run_layers` under `torch.compile`: the same one for the same config, so that calls share what was compiled."""
    arguments = config.to_dict()
    key = json.dumps(arguments, sort_keys=True, default=repr)
    if key not in _COMPILED:
        _COMPILED[key] = torch.compile(run_layers, **arguments)
    return _COMPILED[key]


def _run_layer(
    layer: nn.Module,
    hidden_BND: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    mask: torch.Tensor | None,
    cache: Cache,
) -> torch.Tensor:
    return layer(
        hidden_BND,
        attention_mask=mask,
        **{CACHE_ARGUMENT: cache},
        use_cache=True,
        position_embeddings=rotary,
        is_causal=False,
    )


@torch.no_grad()
def attention_mass(
    layer: nn.Module,
    hidden_BPD: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    keys_BGPE: torch.Tensor,
    real_BP: torch.Tensor,
) -> list[torch.Tensor]:
    """For each row the attention that its real tokens receive from its real tokens: mean over heads of the column
    sums, float32, one value per real token.

    The layer's queries are computed again from its input, whichever attention it runs; padding is cut out before.
    """
    attention = layer.self_attn
    queries_BNHE = attention.q_proj(layer.input_layernorm(hidden_BPD)).unflatten(-1, (-1, attention.head_dim))
    queries_BHPE = queries_BNHE.transpose(1, 2).to(keys_BGPE.device)
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
    in this order. The layer keeps the positions whose mass is below the threshold, which is the shortest start of the
    order that reaches it, and its protected ones. The threshold is the largest that stays within the budget, found by
    sorting the masses of all layers: what a bisection tends to, without its tolerance. Equal scores are ordered by
    position; equal masses are taken by rank in the layer, then by layer, so that the count is exact.
    """
    num_layers, length = scores_LP.shape
    budget = prefix_budget(ratio, num_layers, length)
    # Float64 on the CPU: the masses of a long tail differ by less than float32 resolves next to 1.
    sorted_LP, order_LP = scores_LP.double().cpu().sort(dim=-1, descending=True, stable=True)
    before_LP = sorted_LP.cumsum(-1) / sorted_LP.sum(-1, keepdim=True)
    before_LP = nn.functional.pad(before_LP[:, :-1], (1, 0))
    protected_LP = (order_LP < _PROTECTED_FIRST) | (order_LP >= length - _PROTECTED_LAST)
    before_LP = before_LP.masked_fill(protected_LP, -1)
    chosen = before_LP.T.flatten().sort(stable=True).indices[:budget]
    ranks, layers = chosen // num_layers, chosen % num_layers
    kept_LP = torch.zeros(num_layers, length, dtype=torch.bool)
    kept_LP[layers, order_LP[layers, ranks]] = True
    return kept_LP


def prefix_budget(ratio: float, num_layers: int, length: int) -> int:
    """How many of the `num_layers * length` keys of a prompt are kept: `ratio` of them, rounded down.

    Raises:
        ValueError: fewer than the protected ones.
    """
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


def _survivors(kept_BP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Positions of one layer's keys (B, K), and which of them are seen; `None` is all. A row that keeps fewer than K
    repeats its last one: it is masked, and leaves the scales of int8 as they are without it."""
    counts_B1 = kept_BP.sum(-1, keepdim=True)
    slots_K = torch.arange(int(counts_B1.max()), device=kept_BP.device)
    slots_BK = slots_K.minimum(counts_B1 - 1)
    index_BK = torch.stack([kept_P.nonzero()[slots, 0] for kept_P, slots in zip(kept_BP, slots_BK, strict=True)])
    mask_BK = slots_K < counts_B1
    return index_BK, None if mask_BK.all() else mask_BK


def _attention_mask(
    language_model: nn.Module, embeds_BND: torch.Tensor, mask_BK: torch.Tensor | None, layer: PrefixLayer | None
) -> torch.Tensor | None:
    """The mask over a layer's keys in the form that the model's attention implementation takes."""
    if mask_BK is None:
        return None
    past = None if layer is None else Cache(layers=[layer])
    return create_bidirectional_mask(language_model.config, embeds_BND, mask_BK, **{CACHE_ARGUMENT: past})


def _append_ones(mask_BK: torch.Tensor, length: int) -> torch.Tensor:
    return nn.functional.pad(mask_BK, (0, length), value=True)


def _real(embeds_BPD: torch.Tensor, mask_BP: torch.Tensor | None) -> torch.Tensor:
    """Which positions are no padding, bool (B, P), on the CPU."""
    return torch.ones(embeds_BPD.shape[:2], dtype=torch.bool) if mask_BP is None else mask_BP.cpu()


def _with_room(states_BGPE: torch.Tensor, room: int) -> torch.Tensor:
    """A copy with so many uninitialised positions behind it."""
    *sizes, length, width = states_BGPE.shape
    buffer = states_BGPE.new_empty((*sizes, length + room, width))
    buffer[:, :, :length] = states_BGPE
    return buffer


def _store(states: torch.Tensor, dtype: torch.dtype, dim: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What is stored, and the scales of int8, which are shared along `dim`."""
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
    return stored.to(dtype) if scales is None else (stored * scales).to(dtype)


__all__ = [
    "PREFIX_DTYPES",
    "PrefixCache",
    "compiled_layers",
    "encode_compressed",
    "encode_whole",
    "run_layers",
]
