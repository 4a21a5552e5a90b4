"""Which foveal tokens are kept: scores, exact top-K, and the controls. Pure tensor functions of one view at a time.

Selection runs once per image on what the vision tower saw, before any text is generated, so the prefix cache of a
bidirectional language model stays valid. Scores are float32, the kept tokens keep raster order, ties go to the lower
index.

Shape suffixes: I images, N patches of the fovea, K kept patches, D vision width, C language model width, L prompt
tokens.
"""

import torch
from torch.nn import functional as F


def min_max(scores_IN: torch.Tensor) -> torch.Tensor:
    """Each row mapped to 0..1; a constant row becomes 0."""
    low_I1, high_I1 = scores_IN.amin(-1, keepdim=True), scores_IN.amax(-1, keepdim=True)
    return (scores_IN - low_I1) / (high_I1 - low_I1).clamp_min(torch.finfo(scores_IN.dtype).tiny)


def top_k(scores_IN: torch.Tensor, k: int) -> torch.Tensor:
    """Indices of the `k` largest scores of each row in ascending order, int64 (I, K); ties go to the lower index."""
    return scores_IN.argsort(dim=-1, descending=True, stable=True)[:, :k].sort(-1).values


def text_relevance(
    projected_INC: torch.Tensor, question_ILC: torch.Tensor, question_mask_IL: torch.Tensor
) -> torch.Tensor:
    """Best cosine of each projected patch with any question token's input embedding, float32 (I, N).

    Patches and words meet in the language model's input space, the only space that LaViDa aligned them in. A row
    without a question is 0.
    """
    patches_INC = F.normalize(projected_INC.float(), dim=-1)
    words_ILC = F.normalize(question_ILC.float(), dim=-1)
    cosine_INL = patches_INC @ words_ILC.transpose(1, 2)
    cosine_INL = cosine_INL.masked_fill(~question_mask_IL.bool()[:, None], -torch.inf)
    has_question_I1 = question_mask_IL.bool().any(-1, keepdim=True)
    return cosine_INL.amax(-1).masked_fill(~has_question_I1, 0.0)


def redundancy(features_IND: torch.Tensor, provisional_IK: torch.Tensor) -> torch.Tensor:
    """Mean cosine of each token to the provisionally kept ones, float32 (I, N).

    One matrix-vector product per image.
    """
    unit_IND = F.normalize(features_IND.float(), dim=-1)
    kept_IKD = unit_IND.gather(1, provisional_IK[..., None].expand(-1, -1, unit_IND.shape[-1]))
    return (unit_IND @ kept_IKD.mean(1)[..., None]).squeeze(-1)


def shirg_scores(
    features_IND: torch.Tensor,
    attention_IN: torch.Tensor,
    relevance_IN: torch.Tensor,
    has_question_I: torch.Tensor,
    budget: int,
    attention_weight: float,
    text_weight: float,
    diversity_weight: float,
) -> torch.Tensor:
    """SHIRG's score `attention_weight * a + text_weight * s - diversity_weight * d`, float32 (I, N).

    Every term is min-max normalised per view. Without a question the text weight moves to `a`. `d` is the redundancy
    with the provisional top-K of the first two terms.
    """
    text_weight_I1 = torch.where(has_question_I[:, None], text_weight, 0.0)
    scores_IN = (attention_weight + text_weight - text_weight_I1) * min_max(attention_IN.float())
    scores_IN = scores_IN + text_weight_I1 * min_max(relevance_IN)
    if diversity_weight == 0.0:
        return scores_IN
    return scores_IN - diversity_weight * min_max(redundancy(features_IND, top_k(scores_IN, budget)))


def random_indices(num_tokens: int, k: int, seed: int, device: torch.device) -> torch.Tensor:
    """`k` of `num_tokens` indices, ascending, int64 (K,): the same draw for every image, device and process."""
    order_N = torch.randperm(num_tokens, generator=torch.Generator().manual_seed(seed))
    return order_N[:k].sort().values.to(device)


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
