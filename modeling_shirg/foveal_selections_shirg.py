"""SHIRG's further selections, as pure functions of one view on a square grid: `shirg-fixed`, `shirg-mixed`,
`shirg-adaptive`, and the coordinate embedding.

All are SHIRG's own definitions. The merging follows the idea of ToMe (Bolya et al., 2210.09461), not its algorithm.
Ties go to the lower index.

Shape suffixes: V views, N patches of one view (N = side * side, raster order), K tokens, D vision width, P pixels per
side, H and W rows and columns, F any number of features.
"""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .selection_shirg import Selection, ViewTokens, min_max, selection_method, shirg_scores, top_k

# `shirg-fixed` covers blocks of 4x4 patches, `shirg-mixed` 4x4 regions of the view.
BLOCK = 4
REGIONS = 4


@selection_method("fixed", "attention", "relevance", ranks=True)
def fixed(view: ViewTokens, budget: int, config: Any) -> Selection:
    """Exactly `budget` tokens by the distance score, with 4x4 coverage and merged neighbours (`shirg-fixed`).

    1. The patches are put in keeping order: the best of each 4x4 block, best first, then all others, best first.
       `coverage=False` leaves the blocks out.
    2. The first `budget` patches are kept.
    3. Kept neighbours whose scores differ by less than `merge_threshold` become pairs (`neighbor_pairs`), each one
       token: the mean of both, placed at the better patch. `merging=False` ends here.
    4. Each pair frees a place, which the next patch in keeping order takes. Patches that refill are not merged, so
       there are at most as many pairs as patches to refill from.
    """
    scores_N = distance_scores(view, config)
    blocks_N = block_ids(view_side(len(scores_N)), scores_N.device)
    order_N = keeping_order(view.ranking(scores_N), blocks_N if config.coverage else None)
    if not config.merging:
        return Selection(order_N[:budget].sort().values, scores_N)
    return _merged(scores_N, order_N, budget, config.merge_threshold)


@selection_method("mixed", "attention", "relevance", "edges", ranks=True)
def mixed(view: ViewTokens, budget: int, config: Any) -> Selection:
    """Exactly `budget` tokens by the edge score, with region coverage and summary tokens (`shirg-mixed`).

    The view has 4x4 regions. The patches are put in keeping order: the best of each region, best first, then all
    others, best first (`coverage=False` leaves the regions out). The first n patches are kept, and each region that
    drops a patch gets one summary token, the mean of its dropped patches, placed at the best of them. n is the largest
    number for which both together are `budget` tokens. `summaries=False`, or a budget below two tokens per region,
    keeps the first `budget` patches in keeping order.
    """
    scores_N = edge_scores(view, config)
    side = view_side(len(scores_N))
    regions_N, num_regions = region_ids(side, scores_N.device), min(REGIONS, side) ** 2
    order_N = keeping_order(view.ranking(scores_N), regions_N if config.coverage else None)
    if not config.summaries or budget < 2 * num_regions:
        return Selection(order_N[:budget].sort().values, scores_N)
    return _summarised(scores_N, order_N, regions_N, num_regions, budget)


@selection_method("adaptive", "attention", "relevance", ranks=True)
def adaptive(view: ViewTokens, budget: int, config: Any) -> Selection:
    """The fewest best tokens with `selection_mass` of `softmax(score / selection_temperature)` (`shirg-adaptive`).

    Between half of `budget`, rounded up, and `budget` tokens are kept, by `shirg_scores`.
    """
    scores_N = shirg_scores(view, budget, config)
    sums_N = (scores_N / config.selection_temperature).softmax(-1).sort(descending=True).values.cumsum(-1)
    reached = int((sums_N < config.selection_mass).sum()) + 1
    return Selection(top_k(view.ranking(scores_N), min(max(reached, math.ceil(budget / 2)), budget)), scores_N)


def distance_scores(view: ViewTokens, config: Any) -> torch.Tensor:
    """`text_weight * s - neighbor_weight * n - center_weight * c` of every patch, float32 (N,).

    `s` is the relevance, or the attention without a question; `n` the mean cosine distance to the up to 8 patches
    around; `c` the distance to the view's centre. Every term is min-max normalised.
    """
    # The negative similarity equals the distance up to a constant and keeps the scale that `min_max` looks at.
    neighbors_N = min_max(-neighbor_similarity(view.features))
    center_N = min_max(center_distance(view.features))
    return _relevance_term(view, config) - config.neighbor_weight * neighbors_N - config.center_weight * center_N


def edge_scores(view: ViewTokens, config: Any) -> torch.Tensor:
    """`variance_weight * v + text_weight * s + edge_weight * e` of every patch, float32 (N,).

    `v` is `local_variance`, `s` the relevance, or the attention without a question, and `e` the edge density
    (`patch_edges`). Every term is min-max normalised.
    """
    scores_N = _relevance_term(view, config) + config.variance_weight * min_max(local_variance(view.features))
    return scores_N + config.edge_weight * min_max(view.edges.float())


def _relevance_term(view: ViewTokens, config: Any) -> torch.Tensor:
    return config.text_weight * min_max((view.attention if view.relevance is None else view.relevance).float())


def neighbor_similarity(features_ND: torch.Tensor) -> torch.Tensor:
    """Mean cosine of each patch to the up to 8 patches around it, float32 (N,); 0 on a grid of one patch."""
    unit_HWD = _on_grid(F.normalize(features_ND.float(), dim=-1))
    around_HWD = _window_sums(unit_HWD) - unit_HWD
    num_around_HW1 = _window_sums(torch.ones_like(unit_HWD[..., :1])) - 1
    return ((unit_HWD * around_HWD).sum(-1, keepdim=True) / num_around_HW1.clamp(min=1)).flatten()


def local_variance(features_ND: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of the patches in each 3x3 window, cut at the border, to their mean, float32 (N,)."""
    # A variance does not change with the origin; with one patch there, equal features have exactly none.
    features_HWD = _on_grid(features_ND.float() - features_ND[:1].float())
    num_HW1 = _window_sums(torch.ones_like(features_HWD[..., :1]))
    mean_HWD = _window_sums(features_HWD) / num_HW1
    mean_square_HW1 = _window_sums(features_HWD.square().sum(-1, keepdim=True)) / num_HW1
    return (mean_square_HW1[..., 0] - mean_HWD.square().sum(-1)).clamp(min=0).flatten()


def center_distance(features_ND: torch.Tensor) -> torch.Tensor:
    """Distance of each patch to the centre of the view in patches, float32 (N,)."""
    side = view_side(len(features_ND))
    row_N, column_N = rows_and_columns(side, features_ND.device)
    middle = (side - 1) / 2
    return ((row_N - middle).square() + (column_N - middle).square()).sqrt()


@torch.no_grad()
def patch_edges(pixels_V3PP: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Edge density of every patch, float32 (V, N): the mean of gx^2 + gy^2 by the 3x3 Sobel operator.

    Border pixels are repeated outside the view. Pixels at the right and the bottom that no patch covers are ignored.
    """
    side = min(pixels_V3PP.shape[-2:]) // patch_size
    red_VHW, green_VHW, blue_VHW = pixels_V3PP.float()[..., : side * patch_size, : side * patch_size].unbind(1)
    grey_VHW = 0.299 * red_VHW + 0.587 * green_VHW + 0.114 * blue_VHW  # ITU-R 601, as PIL's mode "L"
    padded = F.pad(grey_VHW[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    smooth_down = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    smooth_across = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    gx_VHW = smooth_down[..., 2:] - smooth_down[..., :-2]
    gy_VHW = smooth_across[:, 2:] - smooth_across[:, :-2]
    energy_VHW = gx_VHW.square() + gy_VHW.square()
    return energy_VHW.unflatten(1, (side, patch_size)).unflatten(3, (side, patch_size)).mean((2, 4)).flatten(1)


def block_ids(side: int, device: torch.device) -> torch.Tensor:
    """The 4x4 block that each patch is in, int64 (N,); the last of a row or column may be smaller."""
    row_N, column_N = rows_and_columns(side, device)
    return row_N // BLOCK * side + column_N // BLOCK


def region_ids(side: int, device: torch.device) -> torch.Tensor:
    """Which of 4x4 regions of the view each patch is in, int64 (N,); a small grid has fewer."""
    row_N, column_N = rows_and_columns(side, device)
    return row_N * REGIONS // side * REGIONS + column_N * REGIONS // side


def keeping_order(scores_N: torch.Tensor, groups_N: torch.Tensor | None = None) -> torch.Tensor:
    """All patches best first, int64 (N,); with `groups_N` the best patch of each group comes before all others."""
    order_N = scores_N.argsort(descending=True, stable=True)
    if groups_N is None:
        return order_N
    return order_N[_first_of_groups(groups_N[order_N]).byte().argsort(descending=True, stable=True)]


def _first_of_groups(groups_N: torch.Tensor) -> torch.Tensor:
    """True at the first element of each group, bool (N,)."""
    by_group_N = groups_N.argsort(stable=True)
    grouped_N = groups_N[by_group_N]
    starts_N = torch.ones_like(groups_N, dtype=torch.bool)
    starts_N[1:] = grouped_N[1:] != grouped_N[:-1]
    return _scattered(starts_N, by_group_N)


def neighbor_pairs(kept_N: torch.Tensor, scores_N: torch.Tensor, threshold: float, most: int) -> torch.Tensor:
    """The partner of each patch, or the patch itself, int64 (N,).

    A pair is two kept 4-neighbours whose scores differ by less than `threshold`. Pairs are made in four rounds: those
    that begin in even columns, in odd columns, in even rows, in odd rows. Of more than `most` pairs those of the
    closest scores stay.
    """
    own_N = torch.arange(len(scores_N), device=scores_N.device)
    partner_N, free_N = own_N.clone(), kept_N.clone()
    grid_HW = _on_grid(own_N)
    across = [(grid_HW[:, start:-1:2].flatten(), grid_HW[:, start + 1 :: 2].flatten()) for start in (0, 1)]
    down = [(grid_HW[start:-1:2].flatten(), grid_HW[start + 1 :: 2].flatten()) for start in (0, 1)]
    for first, second in across + down:
        close = (scores_N[first] - scores_N[second]).abs() < threshold
        paired = close & free_N[first] & free_N[second]
        partner_N[first] = torch.where(paired, second, partner_N[first])
        partner_N[second] = torch.where(paired, first, partner_N[second])
        free_N = free_N & (partner_N == own_N)
    gap_N = (scores_N - scores_N[partner_N]).abs().masked_fill(partner_N <= own_N, torch.inf)
    rank_N = _scattered(own_N, gap_N.argsort(stable=True))
    begins_N = (partner_N > own_N) & (rank_N < most)
    return torch.where(begins_N | begins_N[partner_N], partner_N, own_N)


def _merged(scores_N: torch.Tensor, order_N: torch.Tensor, budget: int, threshold: float) -> Selection:
    """Steps 2 to 4 of `fixed`."""
    own_N = torch.arange(len(scores_N), device=scores_N.device)
    kept_N = _scattered(own_N < budget, order_N)
    partner_N = neighbor_pairs(kept_N, scores_N, threshold, most=len(scores_N) - budget)
    gain_N = scores_N[partner_N] - scores_N
    absorbed_N = (gain_N > 0) | ((gain_N == 0) & (partner_N < own_N))
    # Rank 0: kept, alone or for a pair; 1: not kept; 2: absorbed by another patch.
    rank_N = torch.where(absorbed_N, 2, torch.where(kept_N, 0, 1))
    indices_K = order_N[rank_N[order_N].argsort(stable=True)][:budget].sort().values
    weights_KN = (own_N == indices_K[:, None]) | (own_N == partner_N[indices_K][:, None])
    return Selection(indices_K, scores_N, _rows_of_sum_1(weights_KN))


def _summarised(
    scores_N: torch.Tensor, order_N: torch.Tensor, regions_N: torch.Tensor, num_regions: int, budget: int
) -> Selection:
    """`mixed` given the keeping order."""
    place_N = torch.arange(len(scores_N), device=scores_N.device)
    # How many tokens there are if the patches up to each place are kept: a complete region has no summary.
    completes_N = _first_of_groups(regions_N[order_N].flip(0)).flip(0)
    tokens_N = place_N + 1 + num_regions - completes_N.cumsum(0)
    kept_N = place_N < (tokens_N <= budget).sum()
    stands_N = kept_N | _first_of_groups(regions_N[order_N].masked_fill(kept_N, -1))
    indices_K = top_k(_scattered(stands_N, order_N).float(), budget)
    dropped_N = _scattered(~kept_N, order_N)
    region_KN = dropped_N & (regions_N == regions_N[indices_K][:, None])
    weights_KN = torch.where(dropped_N[indices_K][:, None], region_KN, place_N == indices_K[:, None])
    return Selection(indices_K, scores_N, _rows_of_sum_1(weights_KN))


class ZeroLinear(nn.Linear):
    """A linear layer that the model's `_init_weights` sets to zero."""


class CoordinateEmbedding(nn.Module):
    """Embedding of a token's box in the image, added to its feature before the projector: two linear layers.

    The last layer starts at zero, so the embedding changes nothing until it is trained.
    """

    def __init__(self, feature_size: int, hidden_size: int = 128):
        super().__init__()
        self.linear_in = nn.Linear(4, hidden_size)
        self.linear_out = ZeroLinear(hidden_size, feature_size)

    def forward(self, boxes: torch.Tensor) -> torch.Tensor:
        """Boxes (x, y, w, h) in 0..1, shape (..., 4), to embeddings of shape (..., D)."""
        return self.linear_out(self.linear_in(boxes.to(self.linear_in.weight.dtype)))


def view_side(num_patches: int) -> int:
    """Patches per side of a square view."""
    side = math.isqrt(num_patches)
    assert side * side == num_patches, f"{num_patches} patches are no square"
    return side


def _on_grid(values: torch.Tensor) -> torch.Tensor:
    """(N, ...) -> (H, W, ...)."""
    return values.unflatten(0, (view_side(len(values)), -1))


def rows_and_columns(side: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of each patch, int64 (N,) each."""
    own_N = torch.arange(side * side, device=device)
    return own_N // side, own_N % side


def _window_sums(values_HWF: torch.Tensor) -> torch.Tensor:
    """Sum of the 3x3 window around each place, with zeros outside, (H, W, F)."""
    padded = F.pad(values_HWF, (0, 0, 1, 1, 1, 1))
    down = padded[:-2] + padded[1:-1] + padded[2:]
    return down[:, :-2] + down[:, 1:-1] + down[:, 2:]


def _scattered(values_N: torch.Tensor, order_N: torch.Tensor) -> torch.Tensor:
    """Values in the order `order_N` of the patches, put back in raster order, (N,)."""
    return torch.empty_like(values_N).scatter_(0, order_N, values_N)


def _rows_of_sum_1(members_KN: torch.Tensor) -> torch.Tensor:
    """Equal weights, which sum to 1 in every row, on the members, float32 (K, N)."""
    weights_KN = members_KN.float()
    return weights_KN / weights_KN.sum(-1, keepdim=True)
