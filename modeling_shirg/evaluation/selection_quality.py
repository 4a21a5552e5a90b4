"""Figures about the kept patches of a selection, reported beside accuracy.

A token keeps the patches that are at least half of it: its own patch, or both of a merged pair, but none of the many
patches in a summary token's mean.

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
_SIGNAL_INPUTS = ("input_ids", "pixel_values", "fovea_pixel_values", "question_mask", "relevance_input_ids")


@torch.no_grad()
def system_quality(model, inputs: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """The `FIGURES` of a model's selection for `inputs` of one image, means over the selected views.

    Without a selection there are none; a pooled view and a whole view have the correlation alone; views with the base
    grid have no correlation.
    """
    config = model.config
    if not config.selects:
        return {}
    method = METHODS.get(config.selection_method)
    needs = {"relevance", *(() if method is None else method.needs)}
    views = model.model.get_view_tokens(**{name: inputs.get(name) for name in _SIGNAL_INPUTS}, needs=needs)
    base_VND, figures = [None] * len(views), []
    if config.selected_grid != config.base_grid:
        pixels_V3PP = inputs["fovea_pixel_values"] if config.view_policy == "foveal" else inputs["pixel_values"]
        side = (config.vision_config.image_size,) * 2
        resized_V3PP = F.interpolate(pixels_V3PP.float(), size=side, mode="bicubic", antialias=True)
        base_VND = model.model.vision_tower(resized_V3PP)[0]
    for view, base_ND in zip(views, base_VND, strict=True):
        if method is not None:
            selection = method.select(view, config.selection_budget // config.num_selected_views, config)
            figures.append(selection_quality(selection, view, config.selected_grid, base_ND))
        elif base_ND is not None:
            figures.append({"grid_correlation": grid_correlation(view.features, base_ND)})
    measured = [name for name in FIGURES if figures and name in figures[0]]
    return {name: sum(of_view[name] for of_view in figures) / len(figures) for name in measured}


def selection_quality(
    selection: Selection, view: ViewTokens, grid: int, base_features: torch.Tensor | None = None
) -> dict[str, float]:
    """The figures of one view's selection; a figure without its input is left out.

    Args:
        selection, view: of one view with `grid` x `grid` patches.
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
    """Gini coefficient of the scores above the lowest (scores may be negative); 0.0 if all are equal."""
    sorted_N = min_max(scores_N.double()).sort().values
    if not sorted_N.any():
        return 0.0
    rank_N = torch.arange(1, len(sorted_N) + 1, device=sorted_N.device)
    differences = ((2 * rank_N - len(sorted_N) - 1) * sorted_N).sum()
    return (differences / (len(sorted_N) * sorted_N.sum())).item()


def relevance_over_random(selection: Selection, relevance_N: torch.Tensor) -> float:
    """Mean relevance of the tokens, above the view's lowest, over the mean of all patches, a random draw's average."""
    above_N = min_max(relevance_N.float())
    if not above_N.any():
        return 1.0
    return (merged_values(above_N[:, None], selection).mean() / above_N.mean()).item()


def token_of_patch(selection: Selection, num_patches: int) -> torch.Tensor:
    """The token that keeps each patch, int64 (N,); -1 for dropped patches."""
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
    """Pearson's correlation over patches of features at an interpolated and at the base grid, -1..1.

    The features are resampled (bilinear) to the base grid. It is a mean over the channels that vary on both grids, so
    that SigLIP's few huge channels count no more than others; without such a channel it is a `ValueError`.
    """
    side, base_side = math.isqrt(len(features_ND)), math.isqrt(len(base_MD))
    map_1Dhw = features_ND.double().T.reshape(1, -1, side, side)
    resized_1Dhw = F.interpolate(map_1Dhw, size=(base_side, base_side), mode="bilinear", align_corners=False)
    first_DM, second_DM = (_standardised(grid) for grid in (resized_1Dhw[0].flatten(1), base_MD.double().T))
    varies_D = first_DM.any(-1) & second_DM.any(-1)
    if not varies_D.any():
        raise ValueError("No channel of the features varies over both grids: is the picture of one colour?")
    return (first_DM * second_DM).sum(-1)[varies_D].mean().item()


def _standardised(values_DM: torch.Tensor) -> torch.Tensor:
    """Rows of mean 0 and length 1; rows that vary by no more than rounding errors are 0."""
    centered_DM = values_DM - values_DM.mean(-1, keepdim=True)
    length_D1 = centered_DM.norm(dim=-1, keepdim=True)
    return torch.where(length_D1 > 1e-6 * values_DM.norm(dim=-1, keepdim=True), centered_DM / length_D1, 0.0)
