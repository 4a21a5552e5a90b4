"""Which foveal tokens are kept: scores, exact top-K, and the controls. Pure tensor functions of one view at a time.

Selection runs once per image on what the vision tower saw, before any text is generated, so the prefix cache of a
bidirectional language model stays valid. Scores are float32, the kept tokens keep raster order, ties go to the lower
index.

Shape suffixes: N patches of one fovea, K kept patches, D vision width, C language model width, Q question tokens, I
    images.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class ViewTokens:
    """What a selection method may look at: the patches of one view of one image, in raster order.

    Only what the method asked for is there; the rest is `None`.

    Args:
        features (`torch.Tensor` of shape `(N, D)`): the vision tower's output, what the projector reads.
        attention (`torch.Tensor` of shape `(N,)`, *optional*): the attention signal, float32; see `attention_source`.
        relevance (`torch.Tensor` of shape `(N,)`, *optional*): relevance for the question, float32; `None` also where
            there is no question.
        keys (`torch.Tensor` of shape `(N, K)`, *optional*): keys of the last kept layer, averaged over heads.
        inputs (`torch.Tensor` of shape `(N, D)`, *optional*): what entered the last kept layer.
        edges (`torch.Tensor` of shape `(N,)`, *optional*): Sobel energy of each patch's pixels, float32.
        noise (`torch.Tensor` of shape `(N,)`, *optional*): what is added to the score before patches are ranked by it,
            float32; Gumbel noise in training (`selection_noise` of the model).
    """

    features: torch.Tensor
    attention: torch.Tensor | None = None
    relevance: torch.Tensor | None = None
    keys: torch.Tensor | None = None
    inputs: torch.Tensor | None = None
    edges: torch.Tensor | None = None
    noise: torch.Tensor | None = None

    def ranking(self, scores_N: torch.Tensor) -> torch.Tensor:
        """What patches are ranked by, float32 (N,): their score, with the noise if there is any."""
        return scores_N if self.noise is None else scores_N + self.noise


@dataclass(frozen=True)
class Selection:
    """Which tokens of one view the language model reads.

    Args:
        indices (`torch.LongTensor` of shape `(K,)`): the patch that each token stands for, ascending, without repeats.
        scores (`torch.FloatTensor` of shape `(N,)`, *optional*): the score of every patch, float32.
        mixing (`torch.FloatTensor` of shape `(K, N)`, *optional*): the weights, which sum to 1 in every row, by which
            each token is mixed of the patches' features; `None` where every token is its patch.
    """

    indices: torch.LongTensor
    scores: torch.FloatTensor | None = None
    mixing: torch.FloatTensor | None = None


def min_max(scores_N: torch.Tensor) -> torch.Tensor:
    """Scores mapped to 0..1; scores that differ by no more than rounding errors become 0."""
    low, high = scores_N.amin(), scores_N.amax()
    noise = 1e-6 * scores_N.abs().amax()
    return torch.where(high - low > noise, (scores_N - low) / (high - low), torch.zeros_like(scores_N))


def top_k(scores_IN: torch.Tensor, k: int) -> torch.Tensor:
    """Indices of the `k` largest scores of each row in ascending order, int64 (I, K); ties go to the lower index."""
    return scores_IN.argsort(dim=-1, descending=True, stable=True)[..., :k].sort(-1).values


def text_relevance(projected_NC: torch.Tensor, question_QC: torch.Tensor) -> torch.Tensor:
    """Best cosine of each patch with any embedding of the question, float32 (N,).

    Both are of one space: projected patches meet the question's tokens (Q of them) in the language model's input
    space, the only one that LaViDa aligned them in; or patches and the whole question (Q = 1) meet in SigLIP's.
    """
    patches_NC = F.normalize(projected_NC.float(), dim=-1)
    words_QC = F.normalize(question_QC.float(), dim=-1)
    return (patches_NC @ words_QC.T).amax(-1)


def redundancy(features_ND: torch.Tensor, provisional_K: torch.Tensor) -> torch.Tensor:
    """Mean cosine of each token to the provisionally kept ones, float32 (N,): one matrix-vector product."""
    unit_ND = F.normalize(features_ND.float(), dim=-1)
    return unit_ND @ unit_ND[provisional_K].mean(0)


def shirg_scores(
    features_ND: torch.Tensor,
    attention_N: torch.Tensor,
    relevance_N: torch.Tensor | None,
    budget: int,
    attention_weight: float,
    text_weight: float,
    diversity_weight: float,
) -> torch.Tensor:
    """SHIRG's score `attention_weight * a + text_weight * s - diversity_weight * d` of one view, float32 (N,).

    Every term is min-max normalised. Without a question (`relevance_N` is `None`) the text weight moves to `a`. `d` is
    the redundancy with the provisional top-K of the first two terms.
    """
    if relevance_N is None:
        scores_N = (attention_weight + text_weight) * min_max(attention_N.float())
    else:
        scores_N = attention_weight * min_max(attention_N.float()) + text_weight * min_max(relevance_N)
    if diversity_weight == 0.0:
        return scores_N
    return scores_N - diversity_weight * min_max(redundancy(features_ND, top_k(scores_N, budget)))


def random_indices(num_tokens: int, k: int, seed: int, device: torch.device) -> torch.Tensor:
    """`k` of `num_tokens` indices, ascending, int64 (K,): the same draw for every image, device and process."""
    order_N = torch.randperm(num_tokens, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
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
