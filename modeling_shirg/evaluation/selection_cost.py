"""What choosing tokens costs: each method alone as the number of patches grows, and inside its own system.

Alone means scores, choice and gather of one view's patches, and beside it the signals that the method reads: the
attention of the pooling probe, keys, edges, relevance. A method is called linear or quadratic by its counted
operations, which no busy machine moves; times and their fitted exponent stand beside.

Shape suffixes: N patches of one view, D vision width, C language model width, Q tokens of a question, P pixels.
"""

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from configuration_shirg import PRESETS, ShirgLavidaConfig
from modeling_shirg import ShirgLavidaForConditionalGeneration
from modeling_shirg.evaluation.operations import OperationCount, Operations, counts_without_weights
from modeling_shirg.evaluation.side_by_side import Answered, System
from modeling_shirg.foveal_selections_shirg import merged_values, patch_edges
from modeling_shirg.published_selections_shirg import METHODS
from modeling_shirg.running.timing import StageClock, repeated_seconds, wall_seconds
from modeling_shirg.selection_shirg import ViewTokens, text_relevance

# Square grids next to 256, 512, 1,024, 2,048 and 4,096 patches: some methods know rows and columns.
GRIDS = (16, 23, 32, 45, 64)
# A short question in LaViDa's prompt, and its answer.
_QUESTION_TOKENS, _PROMPT_TEXT_TOKENS, _RESPONSE_TOKENS = 10, 60, 32
# Names of growths by the largest exponent that they still fit.
_ORDERS = {1.5: "linear", 2.2: "quadratic", float("inf"): "more than quadratic"}


@dataclass(frozen=True)
class Growth:
    """A method alone at every number of patches.

    Args:
        patches: N.
        seconds: of scores, choice and gather; the median of the repeats.
        signal_seconds: of what the method reads besides the features.
        exponent: of the seconds against N, a least squares fit of the logarithms.
        counted_exponent: between the two largest N, of the products or of all other operations, whichever is steeper.
    """

    patches: list[int]
    seconds: list[float]
    signal_seconds: list[float]
    exponent: float
    counted_exponent: float

    @property
    def order(self) -> str:
        """How the method grows while it keeps the same share: one of `_ORDERS`."""
        return next(name for most, name in _ORDERS.items() if self.counted_exponent <= most)


@torch.no_grad()
def see(system: System, chats: list[list[dict]], clock: StageClock) -> Answered:
    """The way from pictures to the prompt's embeddings alone, with the stages on `clock`: an `ask` of `measure`."""
    model = system.model
    with clock.watch(model), clock.stage("rest"):
        with clock.stage("preprocess"):
            inputs = system.processor.apply_chat_template(
                chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            ).to(model.device)
        names = inspect.signature(model.model.prepare_inputs_embeds).parameters
        model.model.prepare_inputs_embeds(**{name: value for name, value in inputs.items() if name in names})
    return Answered(clock, {"image_tokens": int((inputs["input_ids"][0] == model.config.image_token_id).sum())})


def own_system(method: str) -> str:
    """The first preset that selects by `method`."""
    return next(name for name, fields in PRESETS.items() if fields.get("selection_method", "shirg") == method)


def growth(
    model: ShirgLavidaForConditionalGeneration,
    method: str,
    repeats: int,
    grids: tuple[int, ...] = GRIDS,
    now: Callable[[], float] = wall_seconds,
) -> Growth:
    """Time and count `method` alone on random patches of the model's widths, from the smallest grid to the largest.

    Args:
        model: any system's; its tower computes the signals.
        method: a key of `METHODS`. It keeps the share of the patches that its own system keeps.
        repeats: the median of so many counts.
        grids: sides of the views, ascending.
        now: one of `CLOCKS`.
    """
    config = model.config.with_preset(own_system(method))
    share = config.selection_budget / (config.num_selected_views * config.selected_grid**2)
    alone = [_Alone(model, config, method, side, max(1, round(share * side * side))) for side in grids]
    patches = [each.side**2 for each in alone]
    seconds = [median(repeated_seconds(each.select, repeats, now)) for each in alone]
    signal_seconds = [median(repeated_seconds(each.signals, repeats, now)) if each.needs else 0.0 for each in alone]
    return Growth(
        patches=patches,
        seconds=seconds,
        signal_seconds=signal_seconds,
        exponent=fitted_exponent(patches, seconds),
        counted_exponent=_counted_exponent(patches[-2:], alone[-2:]),
    )


def fitted_exponent(sizes: list[int], costs: list[float]) -> float:
    """The p of the power law cost = c * size^p that fits best: the slope of the logarithms by least squares."""
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (sizes, costs))
    x = x - x.mean()
    return ((x * y).sum() / x.square().sum()).item()


def _counted_exponent(patches: list[int], alone: list["_Alone"]) -> float:
    counts = [_count(each.select) for each in alone]
    kinds = [[each.elements for each in counts], [each.flops for each in counts]]
    return max(fitted_exponent(patches, kind) for kind in kinds if all(kind))


def full_size_share(preset: str) -> dict[str, Any]:
    """Counted operations of `preset` at the full size, and those of its selection as a share of encode and prefix.

    `share_with_dropped` adds the projection of the patches that are not kept, which the stage `project` holds.
    """
    config = ShirgLavidaConfig.from_preset(preset)
    prompt = config.num_image_tokens + _PROMPT_TEXT_TOKENS
    counts = counts_without_weights(config, prompt, _QUESTION_TOKENS, _RESPONSE_TOKENS)
    whole = counts["encode"].total + counts["prefix"].total
    selection = counts["select"].total
    return {
        "system": preset,
        "prompt_tokens": prompt,
        "operations": {name: asdict(each) for name, each in counts.items()},
        "share": selection / whole,
        "share_with_dropped": (selection + counts["dropped"].total) / whole,
    }


class _Alone:
    """One method on one random view."""

    def __init__(
        self,
        model: ShirgLavidaForConditionalGeneration,
        config: ShirgLavidaConfig,
        method: str,
        side: int,
        budget: int,
    ):
        self.model, self.config, self.side, self.budget = model, config, side, budget
        self.method, self.needs = METHODS[method].select, METHODS[method].needs
        generator = torch.Generator("cpu").manual_seed(0)
        like = model.lm_head.weight

        def noise(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, device="cpu").to(like)

        width, words = config.vision_config.hidden_size, config.text_config.hidden_size
        self.features_ND, self.inputs_ND = noise(side * side, width), noise(side * side, width)
        self.projected_NC, self.question_QC = noise(side * side, words), noise(_QUESTION_TOKENS, words)
        pixels = side * config.vision_config.patch_size
        self.pixels_13PP = noise(1, 3, pixels, pixels)
        self.view = ViewTokens(self.features_ND, **self.signals())

    @torch.no_grad()
    def signals(self) -> dict[str, torch.Tensor]:
        """What the method reads besides the features, as the model computes it."""
        tower = self.model.model.vision_tower
        made: dict[str, Callable[[], torch.Tensor]] = {
            "attention": lambda: tower.probe_attention(self.features_ND[None])[0],
            "relevance": lambda: text_relevance(self.projected_NC, self.question_QC),
            "keys": lambda: tower.mean_keys(self.inputs_ND[None])[0],
            "inputs": lambda: self.inputs_ND,
            "edges": lambda: patch_edges(self.pixels_13PP, self.config.vision_config.patch_size)[0],
        }
        return {name: made[name]() for name in sorted(self.needs)}

    @torch.no_grad()
    def select(self) -> torch.Tensor:
        """Scores, choice and gather."""
        return merged_values(self.features_ND, self.method(self.view, self.budget, self.config))


def _count(run: Callable[[], object]) -> Operations:
    clock = StageClock()
    with OperationCount(clock) as counter:
        run()
    return counter.stages[""]
