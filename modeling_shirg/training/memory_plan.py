"""How much memory a training step takes on each device, before anything is loaded.

The step runs on fake tensors, which have shapes and types and no memory: the model at its full size, its adapter, one
batch of rows, forward and backward, with activations recomputed or kept. What is alive is summed up at every
operation. Nothing of it is measured on a device: allocators round up and fragment, and kernels have workspaces.
"""

import math
import weakref
from dataclasses import asdict, dataclass, field
from typing import Literal

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import PreTrainedConfig

from modeling_shirg import ShirgLavidaForConditionalGeneration
from modeling_shirg.selection_methods_shirg import METHODS
from modeling_shirg.training.arguments import ModelArguments
from modeling_shirg.training.footprints import Footprint, apply_footprint

Strategy = Literal["single", "ddp", "fsdp2"]

# What FSDP2 gathers as one unit; everything else is the root's unit.
WRAPPED_LAYERS = ("LlamaDecoderLayer", "SiglipEncoderLayer")
_STATES_OF_ADAMW = 2
_GATHERED_LAYERS = 2  # the one that computes and the one that is fetched ahead


@dataclass
class PlanArguments(ModelArguments):
    """What `shirg plan` takes: what is trained, as in `shirg train`, the size of a step, and the devices."""

    model: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub id of which the config is read; by default LLaDA-8B's sizes."},
    )
    per_device_train_batch_size: int = field(default=1, metadata={"help": "Rows per forward on one device."})
    text_tokens: int = field(default=128, metadata={"help": "Tokens of a row's text before the answer."})
    answer_length: int = field(default=32, metadata={"help": "Tokens of an answer, filled up."})
    bf16: bool = field(default=True, metadata={"help": "bfloat16 activations, or the weights' own type."})
    activation_checkpointing: bool = field(
        default=True, metadata={"help": "Recompute activations in the backward pass."}
    )
    strategy: Strategy = field(default="single", metadata={"help": "How several devices share the work."})
    devices: int = field(default=1, metadata={"help": "How many there are."})
    json: bool = field(default=False, metadata={"help": "Last line: one JSON object, in bytes."})

    def __post_init__(self):
        for name in ("per_device_train_batch_size", "text_tokens", "answer_length", "devices"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.adapter is not None:
            raise ValueError("A plan is the same with and without --adapter: leave it out.")


@dataclass(frozen=True)
class Workload:
    """One forward and backward on one device.

    Args:
        rows: rows per device, each with one image.
        text_tokens: tokens of a row's text before its answer.
        answer_tokens: tokens of an answer with what fills it up; all are predicted.
        dtype: of the frozen weights.
        autocast: whether activations are bfloat16.
        activation_checkpointing: whether they are recomputed in the backward pass.
    """

    rows: int = 1
    text_tokens: int = 128
    answer_tokens: int = 32
    dtype: torch.dtype = torch.bfloat16
    autocast: bool = True
    activation_checkpointing: bool = True


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes per device.

    Attributes:
        weights: frozen weights that stay on the device: all of them, or its shard.
        adapter: trained weights, float32.
        gradients: of the trained weights, float32.
        optimizer: AdamW's two states, float32.
        communication: DDP's buckets; the layers that FSDP2 gathers.
        activations: the most that a step needs besides.
    """

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    communication: int
    activations: int

    @property
    def total(self) -> int:
        """All together."""
        return sum(asdict(self).values())

    def table(self) -> str:
        """One line per part, in GiB."""
        parts = {**asdict(self), "total": self.total}
        return "\n".join(f"  {name:<14}{value / 2**30:10.3f} GiB" for name, value in parts.items())


def plan_memory(
    config: PreTrainedConfig,
    footprint: Footprint,
    workload: Workload,
    strategy: Strategy = "single",
    devices: int = 1,
) -> MemoryPlan:
    """Memory of each device.

    Args:
        config: a `ShirgLavidaConfig` of any size; no weights are read.
        footprint: what is trained.
        workload: of each device.
        strategy: everything on each device (`single`, `ddp`), or frozen and trained weights, gradients and states in
            shards that are gathered layer by layer (`fsdp2`).
        devices: how many.

    Raises:
        ValueError: strategy and number of devices contradict each other.
    """
    if strategy not in ("single", "ddp", "fsdp2"):
        raise ValueError(f"Unknown strategy {strategy!r}. Known: single, ddp, fsdp2.")
    if (strategy == "single") != (devices == 1):
        raise ValueError(
            f"strategy={strategy!r} on {devices} devices: one device is single, several are ddp or fsdp2."
        )
    model = _model(config, footprint, workload)
    with FakeTensorMode():
        _give_fake_weights(model)
        activations = _peak_of_step(model, workload)
    trained = [each for each in model.parameters() if each.requires_grad]
    adapter = _nbytes(trained)
    weights = _nbytes(model.parameters()) + _nbytes(model.buffers()) - adapter
    shards = devices if strategy == "fsdp2" else 1
    gathered = {"single": 0, "ddp": adapter, "fsdp2": _gathered_bytes(model, workload)}
    return MemoryPlan(
        weights=math.ceil(weights / shards),
        adapter=math.ceil(adapter / shards),
        gradients=math.ceil(adapter / shards),
        optimizer=math.ceil(_STATES_OF_ADAMW * adapter / shards),
        communication=gathered[strategy],
        activations=activations,
    )


def _model(config: PreTrainedConfig, footprint: Footprint, workload: Workload) -> nn.Module:
    """The adapted model without weights, in training mode."""
    config = type(config).from_dict(config.to_dict())
    # Which tokens are kept does not matter here, and some methods look at values to decide.
    method = METHODS.get(config.selection_method)
    if method is not None:
        config.selection_method = "shirg" if "attention" in method.needs else "uniform"
    with torch.device("meta"):
        model = ShirgLavidaForConditionalGeneration(config).to(workload.dtype)
    adapted = apply_footprint(model, footprint, seed=0)
    if workload.activation_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    return adapted.train()


def _give_fake_weights(model: nn.Module) -> None:
    """Puts a fake tensor in the place of every weight; to be called under a `FakeTensorMode`."""
    for module in model.modules():
        for name, each in module._parameters.items():
            if each is not None:
                module._parameters[name] = nn.Parameter(torch.empty(each.shape, dtype=each.dtype), each.requires_grad)
        for name, each in module._buffers.items():
            if each is not None:
                module._buffers[name] = torch.empty(each.shape, dtype=each.dtype)


def _peak_of_step(model: nn.Module, workload: Workload) -> int:
    """Bytes that are alive at most in a forward and backward, besides weights and gradients."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    held = [
        *model.parameters(),
        *model.buffers(),
        *(each.grad for each in model.parameters() if each.grad is not None),
    ]
    with LiveBytes(held) as live, torch.autocast("cpu", torch.bfloat16, enabled=workload.autocast):
        _loss(model.get_base_model(), workload).backward()
    return live.peak


def _loss(model: ShirgLavidaForConditionalGeneration, workload: Workload) -> torch.Tensor:
    """The training loss of one batch through the same tensors as in `forward`, which decides by values and cannot run
    on fake ones.
    """
    config, core = model.config, model.model
    base = config.fovea_size if config.view_policy == "whole" else config.vision_config.image_size
    views = {"pixel_values": torch.empty(workload.rows * _num_base_views(config), 3, base, base)}
    if config.view_policy == "foveal":
        views["fovea_pixel_values"] = torch.empty(workload.rows, 3, config.fovea_size, config.fovea_size)
    if config.coordinate_embedding:
        views["patch_boxes"] = torch.empty(workload.rows, config.selected_grid**2, 4)
    if config.has_mosaic:
        tokens = core._all_tokens(views["pixel_values"], [_largest_window(config)] * workload.rows)
    else:
        tokens = core.get_image_features(**views).image_tokens
    images_BTC = torch.stack(tokens)
    length = workload.text_tokens + workload.answer_tokens
    ids_BL = torch.empty(workload.rows, images_BTC.shape[1] + length, dtype=torch.int64)
    embeds_BLC = core.get_input_embeddings()(ids_BL)
    is_image_BL1 = torch.empty((*ids_BL.shape, 1), dtype=torch.bool)
    embeds_BLC = embeds_BLC.masked_scatter(is_image_BL1, images_BTC.to(embeds_BLC.dtype))
    mask_C = core.get_input_embeddings().weight[0]
    embeds_2BLC = torch.where(is_image_BL1.repeat(2, 1, 1), mask_C, embeds_BLC.repeat(2, 1, 1))
    hidden = core.language_model(
        inputs_embeds=embeds_2BLC,
        attention_mask=torch.ones(embeds_2BLC.shape[:2], dtype=torch.int64),
        use_cache=False,
        is_causal=False,
    ).last_hidden_state
    predicted = workload.rows * workload.answer_tokens
    logits_MV = model.lm_head(hidden.flatten(0, 1)[:predicted])
    return F.cross_entropy(logits_MV.float(), torch.empty(predicted, dtype=torch.int64), reduction="none").mean()


def _num_base_views(config: PreTrainedConfig) -> int:
    """Base-size views of an image; the most that there can be where it depends on the image."""
    if config.num_base_views is not None:
        return config.num_base_views
    rows, columns, *_ = _largest_window(config)
    return 1 + rows * columns


def _largest_window(config: PreTrainedConfig) -> list[int]:
    """The mosaic window of an image that fills the canvas with the most tiles."""
    base, grid = config.vision_config.image_size, config.view_grid
    width, height = max(config.image_grid_pinpoints, key=lambda point: point[0] * point[1])
    rows, columns = height // base, width // base
    return [rows, columns, 0, rows * grid, 0, columns * grid]


def _gathered_bytes(model: nn.Module, workload: Workload) -> int:
    """What FSDP2 has gathered at once: the root's own weights and two of the largest layers, in the compute type."""
    width = 2 if workload.autocast else workload.dtype.itemsize
    layers = [module for module in model.modules() if type(module).__name__ in WRAPPED_LAYERS]
    in_layers = sum(_numel(layer.parameters()) for layer in layers)
    root = _numel(model.parameters()) - in_layers
    return width * (root + _GATHERED_LAYERS * max(_numel(layer.parameters()) for layer in layers))


def _numel(tensors) -> int:
    return sum(each.numel() for each in tensors)


def _nbytes(tensors) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)


class LiveBytes(TorchDispatchMode):
    """Sums the bytes of all storages that operations made and that are still referenced.

    Args:
        held: tensors that do not count.
    """

    def __init__(self, held: list[torch.Tensor]):
        super().__init__()
        self.now = self.peak = 0
        self._known = weakref.WeakSet(each.untyped_storage() for each in held)
        self._held = held

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outputs = function(*args, **(kwargs or {}))
        for output in tree_iter(outputs):
            if isinstance(output, torch.Tensor):
                self._count(output.untyped_storage())
        return outputs

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, nbytes: int) -> None:
        self.now -= nbytes
