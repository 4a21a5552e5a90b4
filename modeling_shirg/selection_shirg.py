"""Which tokens of a view are kept: the registry of methods, SHIRG's score, exact top-K and the controls.

A method is a pure function of one view of one image. Selection runs once per image, before any text is generated, so
the prefix cache stays valid. Scores are float32, kept tokens stay in raster order, and ties go to the lower index.

Shape suffixes: N patches of one view, K kept patches, D vision width, C width of the shared space, Q question
tokens, I rows, F any number of features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class ViewTokens:
    """What a selection method may read: the patches of one view of one image, in raster order.

    Only the fields that the method needs are filled. Everything but the features is float32.
    """

    features: torch.Tensor  # (N, D), the vision tower's output, which the projector reads
    attention: torch.Tensor | None = None  # (N,), see `attention_source` in `ShirgLavidaConfig`
    relevance: torch.Tensor | None = None  # (N,), relevance for the question; `None` without a question
    keys: torch.Tensor | None = None  # (N, K), keys of the last kept layer, averaged over heads
    inputs: torch.Tensor | None = None  # (N, D), the input of the last kept layer, in the features' type
    edges: torch.Tensor | None = None  # (N,), Sobel energy of each patch's pixels
    noise: torch.Tensor | None = None  # (N,), Gumbel noise for the ranking in training

    def ranking(self, scores_N: torch.Tensor) -> torch.Tensor:
        """The scores with the noise, if there is any, float32 (N,)."""
        return scores_N if self.noise is None else scores_N + self.noise


@dataclass(frozen=True)
class Selection:
    """Which tokens of one view the language model reads.

    With `merge_weights` a token is a weighted mean of the patches' features (rows sum to 1), without them its patch.
    """

    indices: torch.LongTensor  # (K,), the patch where each token stands, ascending, without repeats
    scores: torch.FloatTensor | None = None  # (N,), the score of every patch, float32
    merge_weights: torch.FloatTensor | None = None  # (K, N)


@dataclass(frozen=True)
class SelectionMethod:
    """A method of the registry.

    With `corrects_attention` a calibrated mean is subtracted from the attention first. The result can be negative:
    rank by it, do not treat it as a distribution.
    """

    select: Callable[[ViewTokens, int, Any], Selection]  # (view, budget, config) -> selection
    needs: frozenset[str]  # fields of `ViewTokens` besides `features`
    corrects_attention: bool = True
    ranks: bool = False  # by a score that noise can be added to

    @property
    def reads_mean(self) -> bool:
        """Whether a calibrated mean changes the method's choice."""
        return self.corrects_attention and "attention" in self.needs


METHODS: dict[str, SelectionMethod] = {}


def selection_method(name: str, *needs: str, corrects_attention: bool = True, ranks: bool = False) -> Callable:
    """Decorator that enters a function into `METHODS`; it then runs in float32, without autocast and gradients."""

    def enter(select: Callable[..., Selection]) -> Callable[..., Selection]:
        @wraps(select)
        def checked(view: ViewTokens, budget: int, config: Any = None, **constants: Any) -> Selection:
            assert 1 <= budget <= len(view.features), f"{budget} of {len(view.features)} patches"
            with torch.no_grad(), torch.autocast(view.features.device.type, enabled=False):
                return select(view, budget, config, **constants)

        METHODS[name] = SelectionMethod(checked, frozenset(needs), corrects_attention, ranks)
        return checked

    return enter


@selection_method("shirg", "attention", "relevance", ranks=True)
def shirg_top_k(view: ViewTokens, budget: int, config: Any) -> Selection:
    """SHIRG's score (`shirg_scores`), exact top-K."""
    scores_N = shirg_scores(view, budget, config)
    return Selection(top_k(view.ranking(scores_N), budget), scores_N)


@selection_method("random")
def random_draw(view: ViewTokens, budget: int, config: Any) -> Selection:
    """Control: a draw by `selection_seed`, the same for every image, device and process."""
    generator = torch.Generator("cpu").manual_seed(config.selection_seed)
    order_N = torch.randperm(len(view.features), generator=generator, device="cpu")
    return Selection(order_N[:budget].sort().values.to(view.features.device))


@selection_method("uniform")
def even_spread(view: ViewTokens, budget: int, config: Any) -> Selection:
    """Control: an even spread over the raster."""
    return Selection(uniform_indices(len(view.features), budget, view.features.device))


def shirg_scores(view: ViewTokens, budget: int, config: Any) -> torch.Tensor:
    """`attention_weight * a + text_weight * s - diversity_weight * d` of every patch, float32 (N,).

    Every term is min-max normalised. Without a question the text weight moves to `a`. `d` is the redundancy with the
    provisional top-K of the first two terms.
    """
    attention_N = min_max(view.attention.float())
    if view.relevance is None:
        scores_N = (config.attention_weight + config.text_weight) * attention_N
    else:
        scores_N = config.attention_weight * attention_N + config.text_weight * min_max(view.relevance.float())
    return scores_N - config.diversity_weight * min_max(redundancy(view.features, top_k(scores_N, budget)))


def min_max(scores_N: torch.Tensor) -> torch.Tensor:
    """Scores mapped to 0..1; scores that differ by rounding errors alone become 0."""
    low, high = scores_N.amin(), scores_N.amax()
    rounding = 1e-6 * scores_N.abs().amax()
    return torch.where(high - low > rounding, (scores_N - low) / (high - low), torch.zeros_like(scores_N))


def top_k(scores_IN: torch.Tensor, k: int) -> torch.Tensor:
    """Indices of the `k` largest scores of each row in ascending order, int64 (I, K); ties go to the lower index."""
    return scores_IN.argsort(dim=-1, descending=True, stable=True)[..., :k].sort(-1).values


def text_relevance(projected_NC: torch.Tensor, question_QC: torch.Tensor) -> torch.Tensor:
    """Best cosine of each patch with any embedding of the question, float32 (N,); both are of one space."""
    patches_NC = F.normalize(projected_NC.float(), dim=-1)
    words_QC = F.normalize(question_QC.float(), dim=-1)
    return (patches_NC @ words_QC.T).amax(-1)


def redundancy(features_ND: torch.Tensor, provisional_K: torch.Tensor) -> torch.Tensor:
    """Mean cosine of each token to the provisionally kept tokens, float32 (N,): one matrix-vector product."""
    unit_ND = F.normalize(features_ND.float(), dim=-1)
    return unit_ND @ unit_ND[provisional_K].mean(0)


def uniform_indices(num_tokens: int, k: int, device: torch.device) -> torch.Tensor:
    """`k` of `num_tokens` indices spread evenly over the raster, ascending, int64 (K,)."""
    return (torch.arange(k, device=device) * num_tokens + num_tokens // 2) // k


def pool_square(tokens_BNC: torch.Tensor, grid: int) -> torch.Tensor:
    """Bilinear pooling of a square token grid, as LaViDa pools: (B, N, C) -> (B, grid * grid, C)."""
    side = round(tokens_BNC.shape[1] ** 0.5)
    if side == grid:
        return tokens_BNC
    map_BChw = tokens_BNC.transpose(1, 2).unflatten(-1, (side, side))
    pooled_BChw = F.interpolate(map_BChw, size=(grid, grid), mode="bilinear", align_corners=False, antialias=False)
    return pooled_BChw.flatten(2).transpose(1, 2)


def merged_values(values_NF: torch.Tensor, selection: Selection) -> torch.Tensor:
    """The selected tokens' features or boxes, given those of the patches, in the same dtype, (K, F)."""
    if selection.merge_weights is None:
        return values_NF[selection.indices]
    with torch.autocast(values_NF.device.type, enabled=False):
        return (selection.merge_weights @ values_NF.float()).to(values_NF.dtype)
