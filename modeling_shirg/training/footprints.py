"""Which weights are trained: named LoRA footprints, and the counts and checks that go with them.

LoRA on the projector and on the vision tower's first blocks, and in full what belongs to this package's own views, the
foveal position table and, with `shirg-fixed`, the coordinate embedding. The language model stays frozen, but for
`shirg-extra-language`. Target modules are one anchored expression, because SigLIP's text tower and the language model
have layers of the same names.
"""

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.utils import logging

from configuration_shirg.presets_shirg import did_you_mean
from modeling_shirg import ShirgLavidaForConditionalGeneration
from modeling_shirg.adapters_shirg import Adapter

logger = logging.get_logger(__name__)

GROUPS = ("projector", "vision", "positions", "coordinates", "language")
_SAVED_MODULES = {"foveal_position_embedding": "positions", "coordinate_embedding": "coordinates"}
_ADAPTER = "default"
_LANGUAGE_LAYERS = r"model\.language_model\.layers\.\d+\.(?:self_attn\.[qkvo]|mlp\.(?:gate|up|down))_proj"


@dataclass(frozen=True)
class Footprint:
    """What is trained, before it is known of which model.

    Args:
        name: its name on the command line and in reports.
        blocks: which of `q`, `k` and `v` get LoRA weights in which block of the vision tower.
        coordinates: whether the coordinate embedding is trained.
        language: whether all linear layers in the language model's blocks get LoRA weights. A model that knows image
            tokens in one arrangement only, as a toy does, needs that for another.
        rank: of all LoRA weights but those of `narrow_blocks`.
        alpha: LoRA's scale is `alpha / rank`, also where the rank is another.
        narrow_blocks: blocks of half the rank.
    """

    name: str
    blocks: tuple[tuple[int, str], ...] = ()
    coordinates: bool = False
    language: bool = False
    rank: int = 64
    alpha: float = 128
    narrow_blocks: tuple[int, ...] = ()


def _blocks(first: str, later: str = "") -> tuple[tuple[int, str], ...]:
    """`first` in blocks 0 to 3, `later` in blocks 4 and 5."""
    return tuple((block, first) for block in range(4)) + tuple((block, later) for block in (4, 5) if later)


# The projector's two layers and the foveal positions are in all of them.
_FOOTPRINTS = (
    Footprint("projector"),
    Footprint("shirg-base", _blocks("qk")),
    Footprint("shirg-extra", _blocks("qkv", "qk")),
    Footprint("shirg-extra-no-v", _blocks("qk", "qk")),
    Footprint("shirg-extra-narrow", _blocks("qkv", "qk"), narrow_blocks=(4, 5)),
    Footprint("shirg-extra-language", _blocks("qkv", "qk"), language=True),
    Footprint("shirg-fixed", _blocks("qkv", "qk"), coordinates=True),
    Footprint("shirg-fixed-no-v", _blocks("qk", "qk"), coordinates=True),
)
FOOTPRINTS = {footprint.name: footprint for footprint in _FOOTPRINTS}


def named_footprint(name: str, rank: int | None = None, alpha: float | None = None) -> Footprint:
    """The footprint `name`, with another rank or alpha if given; another rank alone keeps the scale of 2.

    Raises:
        ValueError: there is no such footprint, or rank or alpha is not positive.
    """
    if name not in FOOTPRINTS:
        hint = did_you_mean(name, FOOTPRINTS, cutoff=0.4)
        raise ValueError(f"Unknown footprint {name!r}.{hint} Known footprints: {', '.join(FOOTPRINTS)}.")
    footprint = FOOTPRINTS[name]
    if rank is not None:
        footprint = replace(footprint, rank=rank, alpha=2 * rank)
    if alpha is not None:
        footprint = replace(footprint, alpha=alpha)
    if footprint.rank < 1 or footprint.alpha <= 0:
        raise ValueError(f"A footprint needs rank >= 1 and alpha > 0, got {footprint.rank} and {footprint.alpha}.")
    return footprint


def lora_config(footprint: Footprint, model: ShirgLavidaForConditionalGeneration) -> LoraConfig:
    """PEFT's configuration of `footprint` on `model`.

    Blocks beyond the last one that is projected cannot learn, so they are left out, with a warning: only full-size
    towers have them all.

    Raises:
        ValueError: the footprint trains a coordinate embedding that the model's preset does not have.
    """
    tower = model.model.vision_tower
    if footprint.coordinates and model.model.coordinate_embedding is None:
        raise ValueError(
            f"footprint={footprint.name!r} trains the coordinate embedding, which preset "
            f"{model.config.prune_method!r} does not have: use prune_method='shirg-fixed', or footprint='shirg-extra'."
        )
    blocks = [(block, letters) for block, letters in footprint.blocks if block < tower.num_kept_layers]
    if len(blocks) < len(footprint.blocks):
        left_out = sorted({block for block, _ in footprint.blocks} - {block for block, _ in blocks})
        logger.warning(
            f"Footprint {footprint.name!r}: this vision tower projects the output of block {tower.num_kept_layers - 1}"
            f", so its blocks {left_out} are left out."
        )
    saved = ["foveal_position_embedding"] if tower.foveal_position_embedding is not None else []
    narrow = f"{_layers(footprint.narrow_blocks)}.*"
    halved = footprint.narrow_blocks and any(block in footprint.narrow_blocks for block, _ in blocks)
    return LoraConfig(
        r=footprint.rank,
        lora_alpha=footprint.alpha,
        target_modules=_targets(blocks, footprint.language),
        rank_pattern={narrow: footprint.rank // 2} if halved else {},
        alpha_pattern={narrow: footprint.alpha / 2} if halved else {},
        modules_to_save=[*saved, *(["coordinate_embedding"] if footprint.coordinates else [])] or None,
    )


def apply_footprint(model: ShirgLavidaForConditionalGeneration, footprint: Footprint, seed: int) -> PeftModel:
    """`model` with everything frozen but `footprint`, whose weights are float32 whatever the model's type.

    Args:
        model: is changed in place.
        footprint: what to train.
        seed: of LoRA's initial weights.
    """
    torch.manual_seed(seed)
    with without_known_warnings():
        adapted = get_peft_model(model, lora_config(footprint, model))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


@contextmanager
def without_known_warnings() -> Iterator[None]:
    """While PEFT wraps a model, it asks transformers for a property by the name that it had before."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def load_adapter(adapted: PeftModel, folder: str) -> None:
    """Start from the adapter in `folder` instead of a fresh one.

    Raises:
        ValueError: it is of another footprint or of other base weights; the message names the first difference.
    """
    adapter = Adapter.open(folder)
    if adapter is None:
        raise ValueError(f"There is no adapter at {folder}: give the folder or the Hub id of one.")
    adapter.check_base(adapted.get_base_model())
    own, other = adapted.peft_config[_ADAPTER], LoraConfig.from_pretrained(folder)
    for field in ("target_modules", "modules_to_save", "r", "lora_alpha", "rank_pattern", "alpha_pattern"):
        here, there = getattr(own, field), getattr(other, field)
        if here != there:
            raise ValueError(
                f"The adapter in {folder} has {field}={there!r}, this footprint has {here!r}: two footprints never "
                "mix. Name the footprint, rank and alpha that the adapter was trained with."
            )
    result = adapted.load_adapter(folder, _ADAPTER, is_trainable=True)
    if result.missing_keys or result.unexpected_keys:
        raise ValueError(
            f"The adapter in {folder} does not fit this model: it lacks {result.missing_keys[:3]} and has "
            f"{result.unexpected_keys[:3]} too many. Is it of another base model or preset?"
        )


def check_trainable(adapted: PeftModel) -> None:
    """Raises a `ValueError` unless exactly the adapter's own tensors are trained, in float32."""
    own = trained_by_footprint(adapted)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    low = {name for name in own & trained if adapted.get_parameter(name).dtype != torch.float32}
    for found, problem in (
        (trained - own, "outside the footprint would be trained: freeze them with requires_grad_(False)"),
        (own - trained, "of the footprint are frozen: let them be trained with requires_grad_(True)"),
        (low, "must be float32, or small steps are lost in rounding: convert them with .float()"),
    ):
        if found:
            raise ValueError(f"{len(found)} tensors {problem}. The first: {', '.join(sorted(found)[:5])}.")


def trained_by_footprint(adapted: nn.Module) -> set[str]:
    """Names of the parameters that belong to the adapter: LoRA's, and the copies of what is trained in full."""
    own = re.compile(rf"\.(lora_A|lora_B|modules_to_save)\.{_ADAPTER}\.")
    return {name for name, _ in adapted.named_parameters() if own.search(name)}


@dataclass(frozen=True)
class TrainableCounts:
    """Number of trained weights: in `total`, as a `share` of the base model's, and by module and by `GROUPS`."""

    total: int
    share: float
    modules: dict[str, int]
    groups: dict[str, int]

    def table(self) -> str:
        """One line per module: its group, count and share of what is trained."""
        width = max(map(len, self.modules))
        lines = [
            f"  {name:<{width}}  {group_of(name):<11} {count:>12,}  {count / self.total:7.2%}"
            for name, count in self.modules.items()
        ]
        return "\n".join([*lines, f"Trained: {self.total:,} weights, {self.share:.4%} of the base model's."])


def trainable_counts(adapted: PeftModel) -> TrainableCounts:
    """Counts of the parameters that require a gradient, whoever made them require it."""
    own = trained_by_footprint(adapted)
    base = sum(parameter.numel() for name, parameter in adapted.named_parameters() if name not in own)
    modules, groups = Counter(), Counter()
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            modules[_module_of(name)] += parameter.numel()
            groups[group_of(name)] += parameter.numel()
    return TrainableCounts(modules.total(), modules.total() / base, dict(modules), dict(groups))


def _module_of(parameter_name: str) -> str:
    """The base model's name of the module that an adapter's parameter belongs to."""
    name = parameter_name.removeprefix("base_model.model.")
    return re.split(r"\.(?:lora_[AB]|modules_to_save|original_module|base_layer)\.|\.(?:weight|bias)$", name)[0]


def group_of(name: str) -> str:
    """Which of `GROUPS` a module or parameter belongs to.

    Raises:
        ValueError: to none: footprints have no other modules.
    """
    for saved, group in _SAVED_MODULES.items():
        if saved in name:
            return group
    if "multi_modal_projector" in name:
        return "projector"
    if "vision_tower" in name:
        return "vision"
    if "language_model" in name:
        return "language"
    raise ValueError(f"{name} is in none of the groups {', '.join(GROUPS)}.")


def _targets(blocks: list[tuple[int, str]], language: bool) -> str:
    """The expression that matches exactly the modules with LoRA weights; saved adapters are compared by it."""
    letters: dict[str, list[int]] = {}
    for block, projections in blocks:
        letters.setdefault(projections, []).append(block)
    vision = [f"{_layers(members)}\\.self_attn\\.[{projections}]_proj" for projections, members in letters.items()]
    return "|".join([r"model\.multi_modal_projector\.linear_[12]", *vision, *([_LANGUAGE_LAYERS] * language)])


def _layers(blocks: Iterable[int]) -> str:
    numbers = "|".join(map(str, blocks))
    return rf"model\.vision_tower\.vision_model\.encoder\.layers\.(?:{numbers})"
