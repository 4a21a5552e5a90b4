"""Published token selection methods, one function each, in the registry under their names.

The functions follow their papers' rules, for a tower without a CLS token: one view at a time, features before the
projector, an exact count. A docstring names every choice that its paper leaves open. Ties go to the lower index.

Shape suffixes: N patches of one view, D width, K kept patches, M patches that are left in a loop, R patches that are
not dominant, C contextual tokens, P crops, 1 one patch.
"""

from typing import Any

import torch
from torch.nn import functional as F

from .foveal_selections_shirg import rows_and_columns, view_side
from .selection_shirg import METHODS, Selection, ViewTokens, min_max, selection_method, top_k, uniform_indices


def _cosines(tokens_ND: torch.Tensor) -> torch.Tensor:
    """Cosine of every token to every other, float32 (N, N)."""
    unit_ND = F.normalize(tokens_ND.float(), dim=-1)
    # Exactly 1 to itself: equal patches must not be ordered by rounding errors.
    return (unit_ND @ unit_ND.T).fill_diagonal_(1.0)


@selection_method("saint", "keys")
def saint(view: ViewTokens, budget: int, config: Any, *, tau: float = 0.83, pace: int = 16) -> Selection:
    """SAINT (arXiv 2503.11549): its rule for vision-language models, before the language model.

    Patches whose keys have a cosine of at least `tau` share an edge. Every pass drops the patches with most edges to
    the remaining patches: one in `pace` of them, at least one, and in the last pass the surplus.

    The paper does not order equal degrees, which are common. Here the patch with the smaller sum of cosines to the
    remaining patches stays; the authors' code ranks by that sum alone.
    """
    cosines_NN = _cosines(view.keys)
    left_M = torch.arange(len(cosines_NN), device=cosines_NN.device)
    while len(left_M) > budget:
        staying = max(budget, len(left_M) - max(1, len(left_M) // pace))
        cosines_MM = cosines_NN[left_M[:, None], left_M]
        order_M = cosines_MM.sum(dim=1).argsort(stable=True)
        order_M = order_M[(cosines_MM >= tau).sum(dim=1)[order_M].argsort(stable=True)]
        left_M = left_M[order_M[:staying].sort().values]
    return Selection(left_M, -(cosines_NN >= tau).sum(dim=1).float())


@selection_method("topv", "inputs")
def topv(
    view: ViewTokens,
    budget: int,
    config: Any,
    *,
    centre_weight: float = 0.01,
    sigma: float = 10.0,
    epsilon: float = 0.1,
    every: int = 4,
) -> Selection:
    """TopV (arXiv 2503.18278), a reconstruction: optimal transport from the last kept layer's input to its output.

    The cost of a source and a target patch is the sum of three terms, each scaled to 0..1: the L2 distance of the
    source's input to the target's layer-normed output, 1 - exp(-d^2 / 2 sigma^2) of their distance d on the grid, and,
    weighted by `centre_weight`, the source's distance to the centre. Every target draws 1 / N from the sources that
    are cheap for it (the semi-relaxed plan), and a patch scores the mass that it gives.

    The best patches are kept, and so is every fourth of the others in raster order, together the budget. Under a
    quarter of the patches that leaves no room for a best one: there the recovered patches lie further apart.
    """
    side = view_side(len(view.features))
    grid_N2 = torch.stack(rows_and_columns(side, view.features.device), dim=-1).float()
    target_ND = F.layer_norm(view.features.float(), view.features.shape[-1:])
    cost_NN = min_max(torch.cdist(view.inputs.float(), target_ND))
    cost_NN += min_max(1 - torch.exp(-torch.cdist(grid_N2, grid_N2).square() / (2 * sigma**2)))
    cost_NN += centre_weight * min_max((grid_N2 - (side - 1) / 2).norm(dim=-1))[:, None]
    scores_N = (-cost_NN / epsilon).softmax(dim=0).mean(dim=1)
    return Selection(_best_and_recovered(scores_N, budget, every), scores_N)


def _best_and_recovered(scores_N: torch.Tensor, budget: int, every: int) -> torch.Tensor:
    """The patches that `topv` keeps, int64 (K,)."""
    every = max(every, (len(scores_N) - 1) // budget + 1)
    dropped = len(scores_N) - budget
    best = budget - max(dropped - 1, 0) // (every - 1)
    order_N = scores_N.argsort(descending=True, stable=True)
    recovered = order_N[best:].sort().values[every - 1 :: every]
    return torch.cat([order_N[:best], recovered]).sort().values


@selection_method("visionzip", "attention", "keys")
def visionzip(view: ViewTokens, budget: int, config: Any, *, contextual_share: float = 10 / 64) -> Selection:
    """VisionZip (arXiv 2412.04467): the dominant patches by attention, the others merged into contextual tokens.

    Dominant to contextual is 54 to 10. Of the others, evenly spread ones are targets, and each of the rest joins the
    target whose key is most similar to its own; a contextual token is the mean of its patches and stands at its
    target. (The authors' code adds the mean of the joining patches to the target, which doubles the features' norm.)
    """
    contextual = int(budget * contextual_share + 0.5)
    attention_N = view.attention.float()
    order_N = attention_N.argsort(descending=True, stable=True)
    dominant, others_R = order_N[: budget - contextual], order_N[budget - contextual :].sort().values
    weights_KN = torch.zeros(budget, len(order_N), device=order_N.device)
    weights_KN[torch.arange(len(dominant), device=order_N.device), dominant] = 1.0
    targets_C = others_R[:0]
    if contextual:
        places_C = uniform_indices(len(others_R), contextual, order_N.device)
        targets_C = others_R[places_C]
        unit_ND = F.normalize(view.keys.float(), dim=-1)
        joined_R = (unit_ND[others_R] @ unit_ND[targets_C].T).argmax(dim=1)
        joined_R[places_C] = torch.arange(contextual, device=order_N.device)
        weights_KN[len(dominant) + joined_R, others_R] = 1.0
    indices_K, order_K = torch.cat([dominant, targets_C]).sort()
    weights_KN = weights_KN[order_K]
    return Selection(indices_K, attention_N, weights_KN / weights_KN.sum(dim=1, keepdim=True))


@selection_method("vispruner", "attention")
def vispruner(view: ViewTokens, budget: int, config: Any, *, attention_share: float = 0.5, pace: int = 8) -> Selection:
    """VisPruner (ICCV 2025, arXiv 2412.01818): a share by attention, the rest by removing near-duplicates.

    What attention did not keep is split into every first and every second patch, in the order of attention. The `pace`
    patches of the first half that are most similar to any of the second half are dropped; this is repeated until as
    many are left as the budget wants. (The authors' code reorders the patches after every pass; here they keep their
    order.)
    """
    important = int(budget * attention_share)
    attention_N = view.attention.float()
    order_N = attention_N.argsort(descending=True, stable=True)
    cosines_NN = _cosines(view.features)
    left_M, diverse = order_N[important:], budget - important
    while len(left_M) > max(diverse, 1):
        first, second = left_M[::2], left_M[1::2]
        staying = len(first) - min(pace, len(left_M) - diverse, len(first))
        likeness = cosines_NN[first[:, None], second].amax(dim=1)
        places_M = torch.arange(len(left_M), device=left_M.device)
        places_M = torch.cat([places_M[::2][likeness.argsort(stable=True)[:staying]], places_M[1::2]])
        left_M = left_M[places_M.sort().values]
    return Selection(torch.cat([order_N[:important], left_M[:diverse]]).sort().values, attention_N)


@selection_method("divprune")
def divprune(view: ViewTokens, budget: int, config: Any) -> Selection:
    """DivPrune (arXiv 2503.02175): the max-min diversity problem on cosine distances, solved greedily.

    First comes the patch that is farthest from its nearest neighbour, then always the one that is farthest from the
    nearest kept patch.
    """
    distances_NN = 1 - _cosines(view.features)
    pick_1 = distances_NN.clone().fill_diagonal_(torch.inf).amin(dim=1).argmax(dim=0, keepdim=True)
    nearest_N = torch.full_like(distances_NN[0], torch.inf)
    for _ in range(budget):
        nearest_N = torch.minimum(nearest_N, distances_NN.index_select(0, pick_1)[0])
        nearest_N = nearest_N.index_fill(0, pick_1, -torch.inf)
        pick_1 = nearest_N.argmax(dim=0, keepdim=True)
    return Selection(nearest_N.isneginf().nonzero()[:, 0])


@selection_method("cdpruner", "relevance")
def cdpruner(view: ViewTokens, budget: int, config: Any) -> Selection:
    """CDPruner (arXiv 2506.10967): greedy MAP of a determinantal point process, conditional on the question.

    The kernel is diag(r) S diag(r), S the cosines of the features, r the relevance from 0 to 1 plus 1e-6, so that no
    patch is impossible; r is 1 without a question. A step keeps the patch that adds most to the log-determinant, the
    largest pivot of an incremental Cholesky factor. Where no pivot is left but rounding errors (more patches than
    dimensions), which the paper does not treat, the process starts afresh among the patches that are left.
    """
    cosines_NN = _cosines(view.features)
    relevance_N = torch.ones_like(cosines_NN[0]) if view.relevance is None else min_max(view.relevance.float()) + 1e-6
    kernel_NN = relevance_N[:, None] * cosines_NN * relevance_N
    whole_N = kernel_NN.diagonal().clone()
    gains_N, factor_KN, in_use_K = whole_N, torch.zeros_like(kernel_NN[:budget]), torch.zeros_like(whole_N[:budget])
    for step in range(budget):
        open_N = gains_N > 1e-5 * whole_N
        spent = ~open_N.any()
        gains_N, in_use_K = torch.where(spent, whole_N, gains_N), torch.where(spent, 0.0, in_use_K)
        pick_1 = torch.where(open_N | spent, gains_N, -torch.inf).argmax(dim=0, keepdim=True)
        earlier = factor_KN[:step].index_select(1, pick_1)[:, 0] * in_use_K[:step]
        row_N = kernel_NN.index_select(0, pick_1)[0] - earlier @ factor_KN[:step]
        factor_KN[step] = row_N / gains_N.index_select(0, pick_1).clamp_min(1e-30).sqrt()
        in_use_K[step] = 1.0
        gains_N = (gains_N - factor_KN[step].square()).index_fill(0, pick_1, -torch.inf)
        whole_N = whole_N.index_fill(0, pick_1, -torch.inf)
    return Selection(gains_N.isneginf().nonzero()[:, 0])


def _apportion(weights_P: torch.Tensor, sizes_P: torch.Tensor, budget: int) -> torch.Tensor:
    """Integer shares of `budget` by weight, none above its size, int64 (P,): the method of largest remainders."""
    full_P = torch.zeros_like(sizes_P, dtype=torch.bool)
    # A share that is cut to its size leaves more to the others, whose shares may then be cut; at most once for each.
    for _ in range(len(sizes_P) + 1):
        rest = budget - (sizes_P * full_P).sum()
        shares_P = torch.where(full_P, sizes_P, rest * weights_P / (weights_P * ~full_P).sum())
        full_P = full_P | (shares_P >= sizes_P)
    quotas_P = shares_P.floor().long()
    order_P = (shares_P - quotas_P).argsort(descending=True, stable=True)
    quotas_P[order_P[: budget - int(quotas_P.sum())]] += 1
    return quotas_P


@selection_method("holov", "attention", corrects_attention=False)
def holov(view: ViewTokens, budget: int, config: Any, *, crops: int = 16, variance_weight: float = 0.09) -> Selection:
    """HoloV (arXiv 2510.02912): a quota for every crop of the view, so that no region goes unseen.

    A crop is a run of patches in raster order, as in the authors' code. A patch scores its attention plus 0.09 times
    the variance of its cosines to the other patches of its crop. A crop's quota follows its mean score, by largest
    remainders and up to its size; its best patches are kept.

    The authors' code scales the variance within every crop and keeps by attention alone, so its variance term changes
    nothing. Here the variance is scaled to the attention's mean over the view, and the score decides both.
    """
    attention_N, variances = view.attention.float(), []
    crops = min(crops, len(attention_N))
    for features_MD in view.features.tensor_split(crops):
        others = max(len(features_MD) - 1, 1)
        cosines_MM = _cosines(features_MD)
        between_MM = 1 - torch.eye(len(features_MD), device=features_MD.device)
        mean_M = (cosines_MM * between_MM).sum(dim=1, keepdim=True) / others
        variances.append(((cosines_MM - mean_M).square() * between_MM).sum(dim=1) / others)
    variance_N = torch.cat(variances)
    variance_N = variance_N * attention_N.abs().mean() / variance_N.mean().clamp_min(1e-12)
    scores_N = attention_N + variance_weight * variance_N

    parts = scores_N.tensor_split(crops)
    sizes = [len(part) for part in parts]
    means_P = torch.stack([part.mean() for part in parts]).clamp_min(1e-12)
    quotas = _apportion(means_P, torch.tensor(sizes, device=means_P.device), budget).tolist()
    starts = torch.tensor([0, *sizes[:-1]]).cumsum(0).tolist()
    kept = [start + top_k(part, quota) for start, part, quota in zip(starts, parts, quotas, strict=True)]
    return Selection(torch.cat(kept), scores_N)


__all__ = ["METHODS"]  # with the methods of this file in it
