"""Counted operations: what a stage computes and which weights it reads, whatever the machine does beside it.

Counts are exact and the same on every machine. On fake tensors the full-size model is counted without its 17 GB.
"""

from collections import defaultdict
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count
from transformers.initialization import no_init_weights

from configuration_shirg import ShirgLavidaConfig
from modeling_shirg import ShirgLavidaForConditionalGeneration
from modeling_shirg.prefix_cache_shirg import encode_whole, run_layers
from modeling_shirg.published_selections_shirg import METHODS
from modeling_shirg.running.timing import StageClock
from modeling_shirg.selection_shirg import text_relevance

aten = torch.ops.aten


def _attention_flops(query, key, value, *args, out_val=None, **kwargs) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _vector_flops(matrix, vector, *args, out_val=None, **kwargs) -> int:
    return 2 * matrix.numel()


def _distance_flops(first, second, *args, out_val=None, **kwargs) -> int:
    return 2 * out_val.numel() * first.shape[-1]


# Products that torch's own registry lacks.
_FORMULAS = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    aten.mv: _vector_flops,
    aten.dot: _vector_flops,
    aten._cdist_forward: _distance_flops,
}
# What reads as much of its input as it returns.
_LOOKUPS = {aten.embedding, aten.index, aten.index_select, aten.gather}
# What touches no element.
_FREE = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten._unsafe_view, aten.lift_fresh}


@dataclass
class Operations:
    """What one stage did.

    Args:
        flops: of matrix products, convolutions and attention; a multiplication with its addition counts two.
        elements: one for every element that any other operation reads or writes, whichever is more.
        weight_bytes: of the model's weights, as often as they are read; of a table only the rows that are looked up.
    """

    flops: int = 0
    elements: int = 0
    weight_bytes: int = 0

    @property
    def total(self) -> int:
        """Products and everything else together."""
        return self.flops + self.elements


class OperationCount(TorchDispatchMode):
    """Counts whatever runs under it for the clock's current stage; `stages` has the counts by name.

    Args:
        clock: says which stage is open; operations outside of any count for `""`.
        model: whose weights are weights; without one no weight bytes are counted.
    """

    def __init__(self, clock: StageClock, model: nn.Module | None = None):
        super().__init__()
        self.clock = clock
        self.stages: dict[str, Operations] = defaultdict(Operations)
        self._weights = set() if model is None else {_storage(weight) for weight in model.parameters()}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        packet = func.overloadpacket
        inputs, outputs = _tensors((args, kwargs)), _tensors(output)
        if func.is_view or packet in _FREE or not outputs:
            return output
        count = self.stages[self.clock.current or ""]
        formula = _FORMULAS.get(packet) or flop_registry.get(packet)
        if formula is not None:
            count.flops += formula(*args, **kwargs, out_val=output)
        else:
            reads = 0 if packet in _LOOKUPS else sum(each.numel() for each in inputs)
            count.elements += max(reads, sum(each.numel() for each in outputs))
        for weight in inputs:
            if _storage(weight) in self._weights:
                read = outputs if packet in _LOOKUPS else [weight]
                count.weight_bytes += sum(each.nbytes for each in read)
        return output


def counts_without_weights(
    config: ShirgLavidaConfig, prompt_tokens: int, question_tokens: int, response_tokens: int
) -> dict[str, Operations]:
    """Operations of a model of `config` for one image, by stage, on fake tensors: nothing is allocated or computed.

    Stages: `encode`, `select` and `project` of the image tokens; `prefix`; `step`, one denoising forward with the
    logits of the whole response. `dropped` is the part of `project` that goes to patches that are not kept: their
    relevance for the question needs it.

    Args:
        config: of a system whose number of views does not depend on the image.
        prompt_tokens: tokens of the prompt, image tokens included.
        question_tokens: tokens of the question, which patches are compared with; 0 is no question.
        response_tokens: length of the answer.
    """
    clock = StageClock(now=lambda: 0.0)
    with FakeTensorMode(), no_init_weights(), torch.no_grad():
        # The dtype changes the bytes alone; bfloat16 is how the full size runs.
        model = ShirgLavidaForConditionalGeneration._from_config(deepcopy(config), dtype=torch.bfloat16).eval()
        with OperationCount(clock, model) as counter:
            with clock.watch(model):
                model.model.get_image_features(**_fake_views(config))
            compared, dropped = _compared_and_dropped(config)
            if question_tokens and compared:
                with clock.stage("select"):
                    text_relevance(*(_fake(count, config.text_config) for count in (compared, question_tokens)))
                with clock.stage("dropped"):
                    model.model.multi_modal_projector(_fake(dropped, config.vision_config))
            language_model = model.model.language_model
            with clock.stage("prefix"):
                embeds_BPC = _fake(prompt_tokens, config.text_config)[None]
                cache, _ = encode_whole(language_model, embeds_BPC, None, _positions(prompt_tokens), response_tokens)
            with clock.stage("step"):
                embeds_BRC = model.get_input_embeddings()(_positions(response_tokens))
                rotary = language_model.rotary_emb(embeds_BRC, position_ids=_positions(response_tokens))
                masks = cache.attention_masks(language_model, embeds_BRC)
                model.lm_head(run_layers(language_model, embeds_BRC, rotary, masks, cache))
    return dict(counter.stages)


def _compared_and_dropped(config: ShirgLavidaConfig) -> tuple[int, int]:
    """How many patches of an image are compared with the question in the language model's space, and how many of them
    are not kept."""
    method = METHODS.get(config.selection_method)
    if method is None or "relevance" not in method.needs or config.text_relevance != "lm":
        return 0, 0
    patches = config.num_selected_views * config.selected_grid**2
    return patches, patches - config.selection_budget


def _fake_views(config: ShirgLavidaConfig) -> dict[str, torch.Tensor]:
    """Pixels of one image's views, and where its patches lie."""
    base = config.fovea_size if config.view_policy == "whole" else config.vision_config.image_size
    views = {"pixel_values": torch.empty(config.num_base_views, 3, base, base)}
    if config.view_policy == "foveal":
        views["fovea_pixel_values"] = torch.empty(1, 3, config.fovea_size, config.fovea_size)
    if config.coordinate_embedding:
        views["patch_boxes"] = torch.empty(1, config.num_selected_views * config.selected_grid**2, 4)
    return views


def _positions(count: int) -> torch.LongTensor:
    return torch.arange(count)[None]


def _fake(count: int, config: Any) -> torch.Tensor:
    return torch.empty(count, config.hidden_size, dtype=torch.bfloat16)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
