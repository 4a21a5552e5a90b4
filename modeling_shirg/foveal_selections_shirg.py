"""SHIRG's further selections, as pure functions of one view on a square grid: `shirg-fixed`, `shirg-mixed` and
`shirg-adaptive`, and the coordinate embedding.

`fixed_selection` scores by relevance, contrast to the neighbours and distance to the centre, keeps a token of every
4x4 block and merges pairs of neighbours. `mixed_selection` scores by variance, relevance and edges, keeps a token of
every region of the view and sums up what each region drops. `adaptive_selection` keeps as many tokens as the mass of
the score needs. All are SHIRG's own definitions (shared/reference/BASELINES.md, "SHIRG scores"); the merging follows
the idea of ToMe (Bolya et al., 2210.09461), not its algorithm.

Everything a selection decides is float32 and made of sorts, sums and products of single numbers: it depends neither
on the batch nor on autocast, and nothing but `adaptive_selection` waits for the device. Ties go to the lower index.

Shape suffixes: V views, N patches of one view (N = side * side, raster order), K tokens, D vision width, P pixels per
side, H and W rows and columns, F any number of features.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from .selection_shirg import Selection, ViewTokens, min_max, shirg_scores, top_k

# ITU-R 601, the grey of PIL's mode "L".
_GREY = (0.299, 0.587, 0.114)

# `shirg-fixed` covers blocks of 4x4 patches, `shirg-mixed` 4x4 regions of the view.
BLOCK = 4
REGIONS = 4


def fixed_selection(
    view: ViewTokens,
    budget: int,
    *,
    text_weight: float = 0.7,
    neighbor_weight: float = 0.2,
    center_weight: float = 0.1,
    coverage: bool = True,
    merging: bool = True,
    merge_threshold: float = 0.05,
) -> Selection:
    """Exactly `budget` tokens by the distance score, with 4x4 coverage and merged neighbours (`shirg-fixed`).

    1. The patches are put in keeping order: the best of each 4x4 block, best first, then all others, best first. A
       budget below the number of blocks keeps the best blocks' bests.
    2. The first `budget` patches are kept.
    3. Kept neighbours whose scores differ by less than `merge_threshold` become pairs (`neighbor_pairs`), each one
       token: the mean of both, which stands at the better patch. A patch is in one pair at most.
    4. Each pair frees a place, which the next patch in keeping order takes. These are not merged again.

    There are at most as many pairs as patches to refill from; of more pairs, those of the closest scores merge. What
    step 2 kept stays in some token, so a block that was covered is still touched by a token's patches.

    Args:
        view: features, and relevance or, without a question, attention.
        budget: 1..N.
        text_weight, neighbor_weight, center_weight: see `distance_scores`.
        coverage: `False` leaves out the bests of the blocks in step 1.
        merging: `False` leaves out steps 3 and 4; then `mixing` is `None`.
        merge_threshold: in units of the score, whose range is 1 with the default weights.
    """
    scores_N = distance_scores(view, text_weight, neighbor_weight, center_weight)
    check_budget(budget, len(scores_N))
    blocks_N = block_ids(grid_side(len(scores_N)), scores_N.device)
    order_N = keeping_order(view.ranking(scores_N), blocks_N if coverage else None)
    if not merging:
        return Selection(order_N[:budget].sort().values, scores_N)
    return _merged(scores_N, order_N, budget, merge_threshold)


def mixed_selection(
    view: ViewTokens,
    budget: int,
    *,
    variance_weight: float = 1 / 3,
    text_weight: float = 1 / 3,
    edge_weight: float = 1 / 3,
    coverage: bool = True,
    summaries: bool = True,
) -> Selection:
    """Exactly `budget` tokens by the edge score, with region coverage and summary tokens (`shirg-mixed`).

    The view is divided into 4x4 regions. The patches are put in keeping order: the best of each region, best first,
    then all others, best first. The first n of them are kept, and each region that drops a patch gets one summary
    token, the mean of the patches it drops. n is the largest number for which both together are `budget` tokens: one
    more kept patch costs one more token, or none where it is the last of its region and replaces the summary, so there
    always is one. A summary token stands at the best patch that its region drops.

    A budget below two tokens per region has no summaries: it is the first `budget` patches in keeping order.

    Args:
        view: features, pixel edges, and relevance or, without a question, attention.
        budget: 1..N.
        variance_weight, text_weight, edge_weight: see `edge_scores`.
        coverage: `False` leaves out the bests of the regions; then a region may have a summary token alone.
        summaries: `False` keeps `budget` patches; then `mixing` is `None`.
    """
    scores_N = edge_scores(view, variance_weight, text_weight, edge_weight)
    check_budget(budget, len(scores_N))
    side = grid_side(len(scores_N))
    regions_N, num_regions = region_ids(side, scores_N.device), min(REGIONS, side) ** 2
    order_N = keeping_order(view.ranking(scores_N), regions_N if coverage else None)
    if not summaries or budget < 2 * num_regions:
        return Selection(order_N[:budget].sort().values, scores_N)
    return _summarised(scores_N, order_N, regions_N, num_regions, budget)


def adaptive_selection(
    view: ViewTokens,
    budget: int,
    *,
    mass: float = 0.8,
    min_budget: int | None = None,
    temperature: float = 0.15,
    attention_weight: float = 0.5,
    text_weight: float = 0.3,
    diversity_weight: float = 0.1,
) -> Selection:
    """The fewest best tokens that hold `mass` of `softmax(score / temperature)`, at most `budget` (`shirg-adaptive`).

    The score is `shirg_scores`. A view with a few salient patches needs few tokens, an even one the whole budget.

    Args:
        view: features, attention, and relevance if there is a question.
        budget: 1..N, the most tokens.
        mass: above 0, at most 1.
        min_budget: the fewest tokens, 1..budget; `None` is half of the budget, rounded up.
        temperature: of the softmax; the lower, the fewer tokens.
        attention_weight, text_weight, diversity_weight: see `shirg_scores`.
    """
    check_budget(budget, len(view.features))
    fewest = math.ceil(budget / 2) if min_budget is None else min_budget
    if not 1 <= fewest <= budget:
        raise ValueError(f"min_budget must be in 1..budget={budget}, got {min_budget}.")
    if not 0 < mass <= 1:
        raise ValueError(f"mass is a share of the score's mass, above 0 and at most 1, got {mass}.")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}.")
    if view.attention is None:
        raise ValueError("The score of shirg-adaptive needs the patches' attention, and the view has none.")
    relevance_N = None if view.relevance is None else view.relevance.float()
    weights = (attention_weight, text_weight, diversity_weight)
    with torch.autocast(view.features.device.type, enabled=False):
        scores_N = shirg_scores(view.features, view.attention, relevance_N, budget, *weights)
    sums_N = (scores_N / temperature).softmax(-1).sort(descending=True).values.cumsum(-1)
    reached = int((sums_N < mass).sum()) + 1
    return Selection(top_k(view.ranking(scores_N), min(max(reached, fewest), budget)), scores_N)


def distance_scores(
    view: ViewTokens, text_weight: float = 0.7, neighbor_weight: float = 0.2, center_weight: float = 0.1
) -> torch.Tensor:
    """`0.7 s - 0.2 (distance to the neighbours' features) - 0.1 (distance to the view's centre)`, float32 (N,).

    Every term is min-max normalised. Without a question (`view.relevance` is `None`) `s` is the attention, at the same
    weight. The distance to the neighbours is the mean cosine distance to the up to 8 patches around.
    """
    # The negative similarity is the distance but for a constant; unlike 1 - similarity it shows `min_max` its scale.
    neighbors_N = min_max(-neighbor_similarity(view.features))
    center_N = min_max(center_distance(view.features))
    return _relevance_term(view, text_weight) - neighbor_weight * neighbors_N - center_weight * center_N


def edge_scores(
    view: ViewTokens, variance_weight: float = 1 / 3, text_weight: float = 1 / 3, edge_weight: float = 1 / 3
) -> torch.Tensor:
    """`(variance + s + edge density) / 3`, float32 (N,).

    Every term is min-max normalised. Without a question (`view.relevance` is `None`) `s` is the attention, at the same
    weight. The variance is `local_variance`, the edge density `view.edges`, see `patch_edges`.
    """
    scores_N = _relevance_term(view, text_weight) + variance_weight * min_max(local_variance(view.features))
    if edge_weight == 0.0:
        return scores_N
    if view.edges is None:
        raise ValueError("The edge score needs the pixel edges of the patches (patch_edges), and the view has none.")
    return scores_N + edge_weight * min_max(view.edges.float())


def _relevance_term(view: ViewTokens, weight: float) -> torch.Tensor:
    """`weight * s`, or `weight * a` without a question, float32 (N,)."""
    if weight == 0.0:
        return torch.zeros(len(view.features), device=view.features.device)
    signal_N = view.attention if view.relevance is None else view.relevance
    if signal_N is None:
        raise ValueError(
            "This score needs the patches' relevance for the question, or without a question their attention, and the "
            "view has neither. Hand one over, or set text_weight=0."
        )
    return weight * min_max(signal_N.float())


def neighbor_similarity(features_ND: torch.Tensor) -> torch.Tensor:
    """Mean cosine of each patch to the up to 8 patches around it, float32 (N,); 0 on a grid of one patch."""
    unit_HWD = _on_grid(F.normalize(features_ND.float(), dim=-1))
    around_HWD = _window_sums(unit_HWD) - unit_HWD
    num_around_HW1 = _window_sums(torch.ones_like(unit_HWD[..., :1])) - 1
    return ((unit_HWD * around_HWD).sum(-1, keepdim=True) / num_around_HW1.clamp(min=1)).flatten()


def local_variance(features_ND: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of the patches in each 3x3 window to their mean, float32 (N,).

    A window at the border is cut to the patches that exist.
    """
    # A variance does not change with the origin; with one patch there, equal features have exactly none.
    features_HWD = _on_grid(features_ND.float() - features_ND[:1].float())
    num_HW1 = _window_sums(torch.ones_like(features_HWD[..., :1]))
    mean_HWD = _window_sums(features_HWD) / num_HW1
    mean_square_HW1 = _window_sums(features_HWD.square().sum(-1, keepdim=True)) / num_HW1
    return (mean_square_HW1[..., 0] - mean_HWD.square().sum(-1)).clamp(min=0).flatten()


def center_distance(features_ND: torch.Tensor) -> torch.Tensor:
    """Distance of each patch to the centre of the view in patches, float32 (N,)."""
    side = grid_side(len(features_ND))
    row_N, column_N = _rows_and_columns(side, features_ND.device)
    middle = (side - 1) / 2
    return ((row_N - middle).square() + (column_N - middle).square()).sqrt()


@torch.no_grad()
def patch_edges(pixels_V3PP: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Edge density of every patch, float32 (V, N): the mean of gx^2 + gy^2 by the 3x3 Sobel operator.

    It is taken on the grey of the normalised pixels as the vision tower gets them. Border pixels are repeated outside
    the view; a remainder of pixels at the right and the bottom, which no patch shows, is not looked at.
    """
    side = min(pixels_V3PP.shape[-2:]) // patch_size
    red_VHW, green_VHW, blue_VHW = pixels_V3PP.float()[..., : side * patch_size, : side * patch_size].unbind(1)
    grey_VHW = _GREY[0] * red_VHW + _GREY[1] * green_VHW + _GREY[2] * blue_VHW
    padded = F.pad(grey_VHW[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    smooth_down = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    smooth_across = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    gx_VHW = smooth_down[..., 2:] - smooth_down[..., :-2]
    gy_VHW = smooth_across[:, 2:] - smooth_across[:, :-2]
    energy_VHW = gx_VHW.square() + gy_VHW.square()
    return energy_VHW.unflatten(1, (side, patch_size)).unflatten(3, (side, patch_size)).mean((2, 4)).flatten(1)


def block_ids(side: int, device: torch.device, block: int = BLOCK) -> torch.Tensor:
    """Which `block` x `block` block each patch is in, int64 (N,); the last of a row or column may be smaller."""
    row_N, column_N = _rows_and_columns(side, device)
    return row_N // block * side + column_N // block


def region_ids(side: int, device: torch.device, regions: int = REGIONS) -> torch.Tensor:
    """Which of `regions` x `regions` regions of the view each patch is in, int64 (N,); a small grid has fewer."""
    row_N, column_N = _rows_and_columns(side, device)
    return row_N * regions // side * regions + column_N * regions // side


def keeping_order(scores_N: torch.Tensor, groups_N: torch.Tensor | None = None) -> torch.Tensor:
    """All patches in the order in which they are kept, int64 (N,).

    Best first; with `groups_N` the best patch of each group comes before all others, so that the first K patches touch
    as many groups as K patches can.
    """
    order_N = scores_N.argsort(descending=True, stable=True)
    if groups_N is None:
        return order_N
    return order_N[_first_of_groups(groups_N[order_N]).byte().argsort(descending=True, stable=True)]


def _first_of_groups(groups_N: torch.Tensor) -> torch.Tensor:
    """Which elements are the first of their group, bool (N,)."""
    by_group_N = groups_N.argsort(stable=True)
    grouped_N = groups_N[by_group_N]
    starts_N = torch.ones_like(groups_N, dtype=torch.bool)
    starts_N[1:] = grouped_N[1:] != grouped_N[:-1]
    return _scattered(starts_N, by_group_N)


def neighbor_pairs(kept_N: torch.Tensor, scores_N: torch.Tensor, threshold: float, most: int) -> torch.Tensor:
    """The other patch of the pair that each patch is in, or the patch itself, int64 (N,).

    A pair is two kept 4-neighbours whose scores differ by less than `threshold`. Patches look for a free partner in
    four rounds: pairs that begin in even columns, in odd columns, in even rows, in odd rows. Every two neighbours meet
    once, so no further pair could be made. Of more than `most` pairs those of the closest scores stay, of equally
    close ones those that begin first in raster order.
    """
    own_N = torch.arange(len(scores_N), device=scores_N.device)
    partner_N, free_N = own_N.clone(), kept_N.clone()
    for first, second in _neighbor_rounds(own_N):
        close = (scores_N[first] - scores_N[second]).abs() < threshold
        paired = close & free_N[first] & free_N[second]
        partner_N[first], partner_N[second] = (
            torch.where(paired, second, partner_N[first]),
            torch.where(paired, first, partner_N[second]),
        )
        free_N[first], free_N[second] = free_N[first] & ~paired, free_N[second] & ~paired
    gap_N = (scores_N - scores_N[partner_N]).abs().masked_fill(partner_N <= own_N, torch.inf)
    rank_N = _scattered(own_N, gap_N.argsort(stable=True))
    begins_N = (partner_N > own_N) & (rank_N < most)
    return torch.where(begins_N | begins_N[partner_N], partner_N, own_N)


def _neighbor_rounds(own_N: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Four rounds of (first, second) patches that are neighbours; within a round no patch comes twice."""
    grid_HW = _on_grid(own_N)
    across = [(grid_HW[:, start:-1:2].flatten(), grid_HW[:, start + 1 :: 2].flatten()) for start in (0, 1)]
    down = [(grid_HW[start:-1:2].flatten(), grid_HW[start + 1 :: 2].flatten()) for start in (0, 1)]
    return across + down


def _merged(scores_N: torch.Tensor, order_N: torch.Tensor, budget: int, threshold: float) -> Selection:
    """Steps 2 to 4 of `fixed_selection`."""
    own_N = torch.arange(len(scores_N), device=scores_N.device)
    kept_N = _scattered(own_N < budget, order_N)
    partner_N = neighbor_pairs(kept_N, scores_N, threshold, most=len(scores_N) - budget)
    gain_N = scores_N[partner_N] - scores_N
    absorbed_N = (gain_N > 0) | ((gain_N == 0) & (partner_N < own_N))
    # First what stands for itself or a pair, then what was not kept, last what another patch stands for.
    rank_N = torch.where(absorbed_N, 2, torch.where(kept_N, 0, 1))
    indices_K = order_N[rank_N[order_N].argsort(stable=True)][:budget].sort().values
    mixing_KN = (own_N == indices_K[:, None]) | (own_N == partner_N[indices_K][:, None])
    return Selection(indices_K, scores_N, _rows_of_sum_1(mixing_KN))


def _summarised(
    scores_N: torch.Tensor, order_N: torch.Tensor, regions_N: torch.Tensor, num_regions: int, budget: int
) -> Selection:
    """`mixed_selection` given the keeping order; needs a budget of at least one token per region."""
    place_N = torch.arange(len(scores_N), device=scores_N.device)
    # How many tokens there are if the patches up to each place are kept: a complete region has no summary.
    completes_N = _first_of_groups(regions_N[order_N].flip(0)).flip(0)
    tokens_N = place_N + 1 + num_regions - completes_N.cumsum(0)
    kept_N = place_N < (tokens_N <= budget).sum()
    stands_N = kept_N | _first_of_groups(regions_N[order_N].masked_fill(kept_N, -1))
    indices_K = top_k(_scattered(stands_N, order_N).float(), budget)
    dropped_N = _scattered(~kept_N, order_N)
    region_KN = dropped_N & (regions_N == regions_N[indices_K][:, None])
    mixing_KN = torch.where(dropped_N[indices_K][:, None], region_KN, place_N == indices_K[:, None])
    return Selection(indices_K, scores_N, _rows_of_sum_1(mixing_KN))


def mixed_values(values_NF: torch.Tensor, selection: Selection) -> torch.Tensor:
    """What the tokens get of the patches' values, in the values' dtype, (K, F).

    For features that is each token's feature, for boxes (x, y, w, h) its box: of a merged token the area-weighted mean
    of its patches, which are all of one size. Mixed in float32 whatever autocast surrounds it; gradients pass.
    """
    if selection.mixing is None:
        return values_NF[selection.indices]
    with torch.autocast(values_NF.device.type, enabled=False):
        return (selection.mixing @ values_NF.float()).to(values_NF.dtype)


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero, a class of its own so that a model's `_init_weights` can know it.

    transformers does not call `_init_weights` for modules without parameters of their own, such as
    `CoordinateEmbedding`, and initialises every other `nn.Linear` at random. So a model that has one must, before it
    leaves linear layers to `super()._init_weights`, do `init.zeros_` of the weight and the bias of a `ZeroLinear`.
    """

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class CoordinateEmbedding(nn.Module):
    """Where a token lies in the image, as something to add to its feature before the projector: two linear layers.

    The last layer, `linear_out`, starts at zero (see `ZeroLinear`), so the embedding changes nothing until it is
    trained.

    Args:
        feature_size: D.
        hidden_size: width between the two layers.
    """

    def __init__(self, feature_size: int, hidden_size: int = 128):
        super().__init__()
        self.linear_in = nn.Linear(4, hidden_size)
        self.linear_out = ZeroLinear(hidden_size, feature_size)

    def forward(self, boxes: torch.Tensor) -> torch.Tensor:
        """Boxes (x, y, w, h) in 0..1, shape (..., 4), to what is added to the features, shape (..., D)."""
        return self.linear_out(self.linear_in(boxes.to(self.linear_in.weight.dtype)))


def check_budget(budget: int, num_patches: int) -> None:
    """Raises a `ValueError` unless `budget` tokens can be kept of `num_patches`."""
    if not 1 <= budget <= num_patches:
        raise ValueError(f"A view of {num_patches} patches can keep 1..{num_patches} tokens, got budget={budget}.")


def grid_side(num_patches: int) -> int:
    """Patches per side of a square view."""
    side = math.isqrt(num_patches)
    if side * side != num_patches:
        raise ValueError(
            f"This selection needs a square grid of patches, got {num_patches}. Does the view hold padding or several "
            "tiles? Select from each view on its own."
        )
    return side


def _on_grid(values: torch.Tensor) -> torch.Tensor:
    """(N, ...) -> (H, W, ...)."""
    return values.unflatten(0, (grid_side(len(values)), -1))


def _rows_and_columns(side: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of each patch, int64 (N,) each."""
    own_N = torch.arange(side * side, device=device)
    return own_N // side, own_N % side


def _window_sums(values_HWF: torch.Tensor) -> torch.Tensor:
    """Sum of the 3x3 window around each place, with zeros outside, (H, W, F)."""
    padded = F.pad(values_HWF, (0, 0, 1, 1, 1, 1))
    down = padded[:-2] + padded[1:-1] + padded[2:]
    return down[:, :-2] + down[:, 1:-1] + down[:, 2:]


def _scattered(values_N: torch.Tensor, order_N: torch.Tensor) -> torch.Tensor:
    """Values that are given in an order of the patches, back in raster order, (N,)."""
    return torch.empty_like(values_N).scatter_(0, order_N, values_N)


def _rows_of_sum_1(members_KN: torch.Tensor) -> torch.Tensor:
    """Equal weights, which sum to 1 in every row, on the members, float32 (K, N)."""
    weights_KN = members_KN.float()
    return weights_KN / weights_KN.sum(-1, keepdim=True)
