"""Every way of choosing tokens under its name: the one registry. A new method is one function and one line here.

A method sees one view of one image (`ViewTokens`) and answers with exactly `budget` tokens (`Selection`; `adaptive`
with at most as many). Views are handed over one at a time, so what is kept never depends on who shares the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .foveal_selections_shirg import adaptive_selection, fixed_selection, mixed_selection
from .published_selections_shirg import PEERS
from .selection_shirg import Selection, ViewTokens, random_indices, shirg_scores, top_k, uniform_indices


@dataclass(frozen=True)
class SelectionMethod:
    """A method and what it reads.

    Args:
        select: `(view, budget, config) -> Selection`; `config` is the `ShirgLavidaConfig` with weights and switches.
        needs: fields of `ViewTokens` besides `features`.
        corrects_attention: whether a calibrated mean is subtracted from the attention first. What is left has either
            sign: it can be ranked, but it is no mass.
        ranks: whether patches are ranked by a score that noise can be added to.
    """

    select: Callable[[ViewTokens, int, Any], Selection]
    needs: frozenset[str] = frozenset()
    corrects_attention: bool = True
    ranks: bool = False

    @property
    def reads_mean(self) -> bool:
        """Whether a calibrated mean makes a difference."""
        return self.corrects_attention and "attention" in self.needs


def _shirg(view: ViewTokens, budget: int, config: Any) -> Selection:
    """SHIRG's score (see `shirg_scores`), exact top-K."""
    weights = (config.attention_weight, config.text_weight, config.diversity_weight)
    scores_N = shirg_scores(view.features, view.attention, view.relevance, budget, *weights)
    return Selection(top_k(view.ranking(scores_N), budget), scores_N)


def _random(view: ViewTokens, budget: int, config: Any) -> Selection:
    """Control: a seeded draw, the same for every image."""
    return Selection(random_indices(len(view.features), budget, config.selection_seed, view.features.device))


def _uniform(view: ViewTokens, budget: int, config: Any) -> Selection:
    """Control: an even spread over the raster."""
    return Selection(uniform_indices(len(view.features), budget, view.features.device))


def _fixed(view: ViewTokens, budget: int, config: Any) -> Selection:
    """`shirg-fixed`: distance score, coverage of blocks, merged neighbours."""
    return fixed_selection(
        view, budget, text_weight=config.text_weight, coverage=config.coverage, merging=config.merging
    )


def _mixed(view: ViewTokens, budget: int, config: Any) -> Selection:
    """`shirg-mixed`: edge score, coverage of regions, summary tokens."""
    return mixed_selection(
        view, budget, text_weight=config.text_weight, coverage=config.coverage, summaries=config.summaries
    )


def _adaptive(view: ViewTokens, budget: int, config: Any) -> Selection:
    """`shirg-adaptive`: as many tokens as the mass of SHIRG's score needs, at most `budget`."""
    return adaptive_selection(
        view,
        budget,
        mass=config.selection_mass,
        temperature=config.selection_temperature,
        attention_weight=config.attention_weight,
        text_weight=config.text_weight,
        diversity_weight=config.diversity_weight,
    )


def _peer(select: Callable[..., Selection]) -> Callable[[ViewTokens, int, Any], Selection]:
    """A published method with its paper's constants."""
    return lambda view, budget, config: select(view, budget)


# HoloV's quotas are shares of the attention.
_MASS = ("holov",)

METHODS: dict[str, SelectionMethod] = {
    "shirg": SelectionMethod(_shirg, frozenset({"attention", "relevance"}), ranks=True),
    "random": SelectionMethod(_random),
    "uniform": SelectionMethod(_uniform),
    "fixed": SelectionMethod(_fixed, frozenset({"attention", "relevance"}), ranks=True),
    "mixed": SelectionMethod(_mixed, frozenset({"attention", "relevance", "edges"}), ranks=True),
    "adaptive": SelectionMethod(_adaptive, frozenset({"attention", "relevance"}), ranks=True),
    **{
        name: SelectionMethod(_peer(select), needs - {"features"}, corrects_attention=name not in _MASS)
        for name, (select, needs) in PEERS.items()
    },
}
