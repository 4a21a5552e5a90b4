"""Figures about what a selection kept, reported beside accuracy (shared/reference/BASELINES.md, "selection quality").

A token keeps the patches that are at least half of it: its own patch, or both of a merged pair, but none of the many
that a summary token is the mean of.

Shape suffixes: N patches of one view, K tokens, D vision width, M patches of the base view, h and w rows and columns.
"""

import math
from collections.abc import Mapping

import torch
from torch.nn import functional as F

from modeling_shirg.foveal_selections_shirg import block_ids
from modeling_shirg.published_selections_shirg import METHODS
from modeling_shirg.selection_shirg import Selection, ViewTokens, merged_values, min_max

FIGURES = ("gini", "relevance_over_random", "coherence", "block_coverage", "grid_correlation")


@torch.no_grad()
def system_quality(model, inputs: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """The `FIGURES` of what a model selects of one image, each the mean over the views that it selects from.

    A figure that the system has no notion of is left out: all without a selection; all but the correlation where
    tokens are pooled or none is dropped; the correlation where the views have the base grid.

    Args:
        model: a `ShirgLavidaForConditionalGeneration`.
        inputs: what its processor made of one prompt with one image.
    """
    config = model.config
    if not config.selects:
        return {}
    method = METHODS.get(config.selection_method)
    names = ("input_ids", "pixel_values", "fovea_pixel_values", "question_mask", "relevance_input_ids")
    views = model.model.get_view_tokens(
        *(inputs.get(name) for name in names), needs={"relevance", *(() if method is None else method.needs)}
    )
    base_V = _base_features(model, inputs)
    figures = []
    for view, base_ND in zip(views, base_V or [None] * len(views), strict=True):
        if method is not None:
            selection = method.select(view, config.selection_budget // config.num_selected_views, config)
            figures.append(selection_quality(selection, view, config.selected_grid, base_ND))
        elif base_ND is not None:
            figures.append({"grid_correlation": grid_correlation(view.features, base_ND)})
    found = [name for name in FIGURES if figures and name in figures[0]]
    return {name: sum(each[name] for each in figures) / len(figures) for name in found}


def _base_features(model, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor] | None:
    """Features of each selected view, its pixels resized to the base view; `None` where they have its grid."""
    config = model.config
    if config.selected_grid == config.base_grid:
        return None
    pixels_V3PP = inputs["fovea_pixel_values"] if config.view_policy == "foveal" else inputs["pixel_values"]
    side = config.vision_config.image_size
    resized_V3PP = F.interpolate(pixels_V3PP.float(), size=(side, side), mode="bicubic", antialias=True)
    return list(model.model.vision_tower(resized_V3PP)[0])


def selection_quality(
    selection: Selection, view: ViewTokens, grid: int, base_features: torch.Tensor | None = None
) -> dict[str, float]:
    """What can be said of one selection; a figure whose input is absent is left out.

    - `gini`: of the scores, 0 (all alike) to 1 (all on one patch).
    - `relevance_over_random`: mean relevance of the tokens over that of a random draw.
    - `coherence`: share of the tokens with a token on a 4-neighbouring patch, 0..1.
    - `block_coverage`: share of the 4x4 blocks of patches with a token, 0..1.
    - `grid_correlation`: of the view's features with those of the base grid, -1..1.

    Args:
        selection: of one view.
        view: what the selection was made from.
        grid: side of the view's grid.
        base_features: features of the same picture at the base grid, shape (M, D).
    """
    owner_N = token_of_patch(selection, len(view.features))
    figures = {"coherence": coherence(owner_N, grid), "block_coverage": block_coverage(owner_N, grid)}
    if selection.scores is not None:
        figures["gini"] = gini(selection.scores)
    if view.relevance is not None:
        figures["relevance_over_random"] = relevance_over_random(selection, view.relevance)
    if base_features is not None:
        figures["grid_correlation"] = grid_correlation(view.features, base_features)
    return figures


def gini(scores_N: torch.Tensor) -> float:
    """Gini coefficient of what each score is above the lowest, for scores may be negative; 0.0 if all are equal."""
    sorted_N = min_max(scores_N.double()).sort().values
    if not sorted_N.any():
        return 0.0
    rank_N = torch.arange(1, len(sorted_N) + 1, device=sorted_N.device)
    differences = ((2 * rank_N - len(sorted_N) - 1) * sorted_N).sum()
    return (differences / (len(sorted_N) * sorted_N.sum())).item()


def relevance_over_random(selection: Selection, relevance_N: torch.Tensor) -> float:
    """Mean relevance of the tokens, a mixed one's that of its patches, over what a random draw has on average.

    A random draw's average is the mean of all patches, so none is drawn. Relevance counts from the view's lowest, for
    a cosine may be negative; 1.0 if all patches are equally relevant.
    """
    above_N = min_max(relevance_N.float())
    if not above_N.any():
        return 1.0
    return (merged_values(above_N[:, None], selection).mean() / above_N.mean()).item()


def token_of_patch(selection: Selection, num_patches: int) -> torch.Tensor:
    """Which token keeps each patch, int64 (N,); -1 where none does."""
    owner_N = torch.full((num_patches,), -1, device=selection.indices.device)
    if selection.merge_weights is None:
        owner_N[selection.indices] = torch.arange(len(selection.indices), device=owner_N.device)
        return owner_N
    weight_N, token_N = selection.merge_weights.max(0)
    return torch.where(weight_N >= 0.5, token_N, owner_N)


def coherence(owner_N: torch.Tensor, grid: int) -> float:
    """Share of the tokens that keep a patch beside another token's, given `token_of_patch`; 0.0 without tokens."""
    owner_hw = owner_N.reshape(grid, grid)
    beside = set()
    for first, second in ((owner_hw[:, :-1], owner_hw[:, 1:]), (owner_hw[:-1], owner_hw[1:])):
        meet = (first >= 0) & (second >= 0) & (first != second)
        beside.update(first[meet].tolist(), second[meet].tolist())
    return len(beside) / max(len(set(owner_N.tolist()) - {-1}), 1)


def block_coverage(owner_N: torch.Tensor, grid: int) -> float:
    """Share of the 4x4 blocks, cut at the right and the bottom, in which a token keeps a patch."""
    blocks_N = block_ids(grid, owner_N.device)
    return len(blocks_N[owner_N >= 0].unique()) / len(blocks_N.unique())


def grid_correlation(features_ND: torch.Tensor, base_MD: torch.Tensor) -> float:
    """How alike one picture's features are at an interpolated grid and at the base grid, -1..1.

    The features are resampled (bilinear) to the base grid. Of each channel it is Pearson's correlation over the
    patches, and of the channels the mean, so that SigLIP's few huge channels count no more than others; a channel that
    is constant on either grid has none.

    Raises:
        ValueError: no channel varies on both grids.
    """
    side, base_side = math.isqrt(len(features_ND)), math.isqrt(len(base_MD))
    map_1Dhw = features_ND.double().T.reshape(1, -1, side, side)
    resized_1Dhw = F.interpolate(map_1Dhw, size=(base_side, base_side), mode="bilinear", align_corners=False)
    first_DM, second_DM = (_standardised(each) for each in (resized_1Dhw[0].flatten(1), base_MD.double().T))
    varies_D = first_DM.any(-1) & second_DM.any(-1)
    if not varies_D.any():
        raise ValueError("No channel of the features varies over both grids: is the picture of one colour?")
    return (first_DM * second_DM).sum(-1)[varies_D].mean().item()


def _standardised(values_DM: torch.Tensor) -> torch.Tensor:
    """Rows of mean 0 and length 1; rows that vary by no more than rounding errors are 0."""
    centered_DM = values_DM - values_DM.mean(-1, keepdim=True)
    length_D1 = centered_DM.norm(dim=-1, keepdim=True)
    return torch.where(length_D1 > 1e-6 * values_DM.norm(dim=-1, keepdim=True), centered_DM / length_D1, 0.0)
