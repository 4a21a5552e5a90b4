"""The selections of shirg-fixed, shirg-mixed and shirg-adaptive against loops that follow their definitions word by
word, and the figures about what a selection kept by hand-made cases."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from modeling_shirg.evaluation.selection_quality import (
    gini,
    relevance_over_random,
    selection_quality,
)
from modeling_shirg.foveal_selections_shirg import (
    adaptive,
    block_ids,
    center_distance,
    distance_scores,
    edge_scores,
    fixed,
    keeping_order,
    local_variance,
    mixed,
    neighbor_similarity,
    patch_edges,
)
from modeling_shirg.selection_shirg import Selection, ViewTokens, merged_values, min_max, shirg_scores, top_k

SIDES = (13, 16, 24, 27, 32, 48)
CPU = torch.device("cpu")
# Weights and switches of the presets, as a config has them.
WEIGHTS = {
    "attention_weight": 0.5,
    "text_weight": 0.3,
    "diversity_weight": 0.1,
    "neighbor_weight": 0.2,
    "center_weight": 0.1,
    "merge_threshold": 0.05,
    "variance_weight": 1 / 3,
    "edge_weight": 1 / 3,
    "selection_mass": 0.8,
    "selection_temperature": 0.15,
    "coverage": True,
    "merging": True,
    "summaries": True,
}
FIXED, MIXED = {"text_weight": 0.7}, {"text_weight": 1 / 3}


def _config(**options) -> SimpleNamespace:
    return SimpleNamespace(**WEIGHTS | options)


def fixed_selection(view: ViewTokens, budget: int, **options) -> Selection:
    return fixed(view, budget, _config(**FIXED | options))


def mixed_selection(view: ViewTokens, budget: int, **options) -> Selection:
    return mixed(view, budget, _config(**MIXED | options))


def adaptive_selection(view: ViewTokens, budget: int, **options) -> Selection:
    return adaptive(view, budget, _config(**options))


def _view(side: int, seed: int = 0, levels: int | None = None, question: bool = True, width: int = 6) -> ViewTokens:
    """Smooth random signals, as a picture's are; with `levels` signals of so many values, which tie often."""
    draw = torch.Generator().manual_seed(seed)

    def signal() -> torch.Tensor:
        coarse = torch.rand(1, 1, max(side // 3, 1), max(side // 3, 1), generator=draw)
        values = F.interpolate(coarse, size=(side, side), mode="bilinear").flatten()
        return values if levels is None else (values * levels).floor() / levels

    features = torch.randn(side * side, width, generator=draw)
    attention, relevance, edges = signal(), signal(), signal()
    return ViewTokens(features, attention, relevance if question else None, edges=edges)


def _score_only(scores: torch.Tensor) -> tuple[ViewTokens, dict]:
    """A view and options for `fixed_selection` whose score is `min_max(scores)`."""
    view = ViewTokens(torch.ones(len(scores), 2), relevance=scores)
    return view, {"text_weight": 1.0, "neighbor_weight": 0.0, "center_weight": 0.0}


def _blocks(side: int, block: int = 4) -> dict[int, tuple[int, int]]:
    return {patch: (patch // side // block, patch % side // block) for patch in range(side * side)}


def _regions(side: int) -> dict[int, tuple[int, int]]:
    """Region of each patch: the view cut at multiples of a quarter of its side."""
    return {p: (math.floor(p // side / side * 4), math.floor(p % side / side * 4)) for p in range(side * side)}


def _best_first(scores: list[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda patch: (-scores[patch], patch))


def _order(scores: list[float], group: dict | None) -> list[int]:
    """Keeping order by a loop: bests of groups, then the rest."""
    best_first, bests, seen = _best_first(scores), [], set()
    for patch in best_first:
        if group is not None and group[patch] not in seen:
            seen.add(group[patch])
            bests.append(patch)
    return bests + [patch for patch in best_first if patch not in bests]


def _neighbors(patch: int, side: int) -> list[int]:
    row, column = divmod(patch, side)
    places = ((row, column + 1), (row, column - 1), (row + 1, column), (row - 1, column))
    return [r * side + c for r, c in places if 0 <= r < side and 0 <= c < side]


def _members(selection: Selection) -> list[tuple[int, ...]]:
    """The patches that each token is made of."""
    if selection.merge_weights is None:
        return [(index,) for index in selection.indices.tolist()]
    return [tuple(row.nonzero()[:, 0].tolist()) for row in selection.merge_weights]


def _check(selection: Selection, count: int, patches: int) -> None:
    """What holds for every selection: exact count, raster order, rows that sum to 1, no patch in two tokens."""
    assert selection.indices.dtype == torch.int64
    assert len(selection.indices) == count
    assert (selection.indices.diff() > 0).all()
    assert 0 <= selection.indices[0] and selection.indices[-1] < patches
    assert selection.scores.dtype == torch.float32 and selection.scores.shape == (patches,)
    if selection.merge_weights is not None:
        members = selection.merge_weights > 0
        assert members.shape == (count, patches) and selection.merge_weights.dtype == torch.float32
        assert members[torch.arange(count), selection.indices].all()
        assert members.sum(0).max() == 1
        assert torch.allclose(selection.merge_weights.sum(1), torch.ones(count), atol=1e-6)
        assert torch.equal(selection.merge_weights, members / members.sum(1, keepdim=True))


def _same(first: Selection, second: Selection) -> bool:
    if (first.merge_weights is None) != (second.merge_weights is None):
        return False
    same_mixing = first.merge_weights is None or torch.equal(first.merge_weights, second.merge_weights)
    return torch.equal(first.indices, second.indices) and torch.equal(first.scores, second.scores) and same_mixing


# Exact counts


@pytest.mark.parametrize("side", (1, 2, 3, 5, *SIDES))
@settings(max_examples=10)
@given(data=st.data())
def test_every_budget_is_met_exactly(side, data):
    patches = side * side
    budget = data.draw(st.integers(1, patches) | st.integers(max(patches - 40, 1), patches))
    levels = data.draw(st.sampled_from([None, 1, 4]))
    view = _view(side, data.draw(st.integers(0, 99)), levels, question=data.draw(st.booleans()))
    coverage, other = data.draw(st.booleans()), data.draw(st.sampled_from([True, True, False]))
    _check(fixed_selection(view, budget, coverage=coverage, merging=other), budget, patches)
    _check(mixed_selection(view, budget, coverage=coverage, summaries=other), budget, patches)


@pytest.mark.parametrize("select", [fixed_selection, mixed_selection, adaptive_selection])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_selections_are_the_same_again_under_autocast_and_from_half_precision(select, dtype):
    view = _view(16, 3)
    half = ViewTokens(**{name: None if value is None else value.to(dtype) for name, value in vars(view).items()})
    full = ViewTokens(**{name: None if value is None else value.float() for name, value in vars(half).items()})
    expected = select(full, 100)
    assert expected.scores.dtype == torch.float32
    assert _same(select(half, 100), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert _same(select(half, 100), expected)
        assert merged_values(half.features, expected).dtype == dtype
    if expected.merge_weights is not None:
        with torch.autocast("cpu", torch.bfloat16):
            mixed = merged_values(view.features, expected)
        assert torch.equal(mixed, expected.merge_weights @ view.features)


def test_ties_go_to_the_lower_index():
    view, options = _score_only(torch.zeros(64))
    assert fixed_selection(view, 3, coverage=False, merging=False, **options).indices.tolist() == [0, 1, 2]
    # The blocks' first patches, then the rest from the start.
    kept = fixed_selection(view, 6, merging=False, **options).indices.tolist()
    assert kept == [0, 1, 2, 4, 32, 36]
    assert fixed_selection(view, 2, merging=False, **options).indices.tolist() == [0, 4]
    # Of tied pairs the lower patch stands for both.
    merged = fixed_selection(view, 2, coverage=False, **options)
    assert _members(merged) == [(0, 1), (2,)]
    alike = ViewTokens(torch.ones(64, 2), torch.ones(64))
    assert adaptive_selection(alike, 5, selection_mass=0.01).indices.tolist() == [0, 1, 2]
    # A region of 8x8 has 2x2 patches: with 16 tokens left beside the summaries each keeps its first.
    flat = ViewTokens(torch.ones(64, 2), torch.ones(64), edges=torch.ones(64))
    firsts = sorted(8 * row + column for row in range(0, 8, 2) for column in range(0, 8, 2))
    assert mixed_selection(flat, 16).indices.tolist() == firsts
    assert mixed_selection(flat, 32).indices.tolist() == sorted([*firsts, *(patch + 1 for patch in firsts)])


# Scores


def test_neighbor_similarity_is_the_mean_cosine_to_the_patches_around():
    features, side = torch.randn(25, 3), 5
    for patch, value in enumerate(neighbor_similarity(features).tolist()):
        row, column = divmod(patch, side)
        around = [
            r * side + c
            for r in range(row - 1, row + 2)
            for c in range(column - 1, column + 2)
            if 0 <= r < side and 0 <= c < side and (r, c) != (row, column)
        ]
        cosines = [F.cosine_similarity(features[patch], features[other], dim=0).item() for other in around]
        assert value == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)
    assert neighbor_similarity(torch.ones(1, 3)).tolist() == [0.0]


def test_local_variance_is_that_of_the_window_cut_to_the_view():
    features, side = torch.randn(36, 4) + 50, 6
    for patch, value in enumerate(local_variance(features).tolist()):
        row, column = divmod(patch, side)
        window = features.reshape(side, side, -1)[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        window = window.flatten(0, 1).double()
        expected = (window - window.mean(0)).square().sum(1).mean().item()
        assert value == pytest.approx(expected, rel=1e-4)
    assert local_variance(torch.full((36, 4), 0.1)).tolist() == [0.0] * 36


@pytest.mark.parametrize("question", [True, False])
def test_the_distance_score_and_the_edge_score_follow_their_formulas(question):
    view = _view(13, question=question)
    s = min_max(view.relevance if question else view.attention)
    distance = min_max(1 - neighbor_similarity(view.features))
    centre = min_max(center_distance(view.features))
    assert torch.allclose(distance_scores(view, _config(**FIXED)), 0.7 * s - 0.2 * distance - 0.1 * centre, atol=1e-5)
    variance = min_max(local_variance(view.features))
    assert torch.allclose(edge_scores(view, _config(**MIXED)), (variance + s + min_max(view.edges)) / 3, atol=1e-6)


def test_patch_edges_are_the_mean_sobel_energy_of_the_grey():
    pixels = torch.randn(2, 3, 14, 14)
    grey = (pixels * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)[..., :12, :12]
    kernel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    energy = sum(F.conv2d(padded, each[None, None]).square() for each in (kernel, kernel.T))
    with torch.autocast("cpu", torch.bfloat16):
        edges = patch_edges(pixels, 4)
    assert edges.shape == (2, 9) and edges.dtype == torch.float32
    assert torch.allclose(edges, F.avg_pool2d(energy, 4).flatten(1), rtol=1e-4)
    assert torch.equal(patch_edges(pixels[1:], 4)[0], edges[1])


# Coverage


@pytest.mark.parametrize("side", [8, 13, 16, 27])
@pytest.mark.parametrize("levels", [None, 3])
def test_coverage_is_the_best_of_each_block_then_the_best_of_all(side, levels):
    scores = _view(side, 7, levels).relevance
    view, options = _score_only(scores)
    blocks = _blocks(side)
    num_blocks = len(set(blocks.values()))
    assert len(block_ids(side, CPU).unique()) == num_blocks == math.ceil(side / 4) ** 2
    order = _order(scores.tolist(), blocks)
    assert keeping_order(scores, block_ids(side, CPU)).tolist() == order
    for budget in {1, num_blocks // 2, num_blocks - 1, num_blocks, num_blocks + 1, side * side // 3, side * side}:
        kept = fixed_selection(view, budget, merging=False, **options).indices.tolist()
        assert kept == sorted(order[:budget])
        assert len({blocks[patch] for patch in kept}) == min(budget, num_blocks)
        free = fixed_selection(view, budget, merging=False, coverage=False, **options).indices.tolist()
        assert free == sorted(_best_first(scores.tolist())[:budget])


# Merging


def _merge_by_hand(scores: torch.Tensor, budget: int, threshold: float) -> list[tuple[int, ...]]:
    """`fixed_selection` step by step: the patches of each token, by the index it stands at."""
    patches, side = len(scores), math.isqrt(len(scores))
    order = _order(scores.tolist(), _blocks(side))
    free, pairs = set(order[:budget]), []
    for step, parity_of in ((1, lambda p: p % side), (side, lambda p: p // side)):
        for parity in (0, 1):
            for first in range(patches):
                second = first + step
                inside = first % side < side - 1 if step == 1 else second < patches
                if parity_of(first) % 2 != parity or not inside or not {first, second} <= free:
                    continue
                if abs(scores[first] - scores[second]) < threshold:
                    pairs.append((first, second))
                    free -= {first, second}
    pairs.sort(key=lambda pair: (abs(scores[pair[0]] - scores[pair[1]]).item(), pair[0]))
    pairs = pairs[: patches - budget]
    paired = {patch for pair in pairs for patch in pair}
    tokens = [(patch,) for patch in order[:budget] if patch not in paired] + pairs
    for patch in order[budget:]:
        if len(tokens) < budget:
            tokens.append((patch,))
    return sorted(tokens, key=lambda group: min(group, key=lambda patch: (-scores[patch], patch)))


@pytest.mark.parametrize("side", [4, 8, 13, 16])
@pytest.mark.parametrize("levels", [None, 2, 12])
@pytest.mark.parametrize("threshold", [0.05, 0.3])
def test_merging_is_what_its_steps_say(side, levels, threshold):
    scores = min_max(_view(side, side, levels).relevance)
    view, options = _score_only(scores)
    merged_somewhere = False
    for budget in {1, 5, side * side // 3, side * side // 2, side * side - 3, side * side - 1, side * side}:
        if not 1 <= budget <= side * side:
            continue
        selection = fixed_selection(view, budget, merge_threshold=threshold, **options)
        _check(selection, budget, side * side)
        groups = _members(selection)
        assert groups == _merge_by_hand(selection.scores, budget, threshold)
        for index, group in zip(selection.indices.tolist(), groups, strict=True):
            assert index == min(group, key=lambda patch: (-selection.scores[patch], patch))
        pairs = [group for group in groups if len(group) == 2]
        merged_somewhere |= bool(pairs)
        assert len(pairs) <= side * side - budget and max(map(len, groups)) <= 2
        assert all(
            second in _neighbors(first, side) and abs(scores[first] - scores[second]) < threshold
            for first, second in pairs
        )
    assert merged_somewhere


def test_merged_values_of_an_unmixed_selection_are_the_patches_own_and_pass_gradients():
    view = _view(8)
    plain = fixed_selection(view, 20, merging=False)
    assert plain.merge_weights is None
    assert torch.equal(merged_values(view.features, plain), view.features[plain.indices])
    features = view.features.clone().requires_grad_()
    selection = fixed_selection(view, 20)
    merged_values(features, selection).sum().backward()
    expected = selection.merge_weights.sum(0)[:, None].expand_as(features)
    assert torch.allclose(features.grad, expected)


# Summary tokens


def _summaries_by_hand(scores: torch.Tensor, budget: int, coverage: bool) -> list[tuple[int, tuple[int, ...]]]:
    """`mixed_selection` by trying every number of kept patches: (index, its patches) of each token."""
    patches, side = len(scores), math.isqrt(len(scores))
    regions = _regions(side)
    order = _order(scores.tolist(), regions if coverage else None)
    if budget < 2 * len(set(regions.values())):
        return sorted((patch, (patch,)) for patch in order[:budget])
    fitting = []
    for count in range(patches + 1):
        tokens = [(patch, (patch,)) for patch in order[:count]]
        for region in set(regions.values()):
            dropped = [patch for patch in order[count:] if regions[patch] == region]
            if dropped:
                best = min(dropped, key=lambda patch: (-scores[patch], patch))
                tokens.append((best, tuple(sorted(dropped))))
        if len(tokens) == budget:
            fitting.append(sorted(tokens))
    return fitting[-1]


@pytest.mark.parametrize("side", [4, 6, 8, 13])
@pytest.mark.parametrize("levels", [None, 3])
@pytest.mark.parametrize("coverage", [True, False])
def test_summaries_are_the_means_of_what_each_region_drops(side, levels, coverage):
    view = _view(side, side, levels)
    patches = side * side
    for budget in range(1, patches + 1, 1 if side < 13 else 24):
        selection = mixed_selection(view, budget, coverage=coverage)
        _check(selection, budget, patches)
        groups = _members(selection)
        expected = _summaries_by_hand(selection.scores, budget, coverage)
        assert list(zip(selection.indices.tolist(), groups, strict=True)) == expected
        means = torch.stack([view.features[list(group)].mean(0) for group in groups])
        assert torch.allclose(merged_values(view.features, selection), means, atol=1e-5)


# Adaptive


@pytest.mark.parametrize("mass", [0.6, 0.8, 0.95, 1.0])
def test_adaptive_keeps_the_fewest_tokens_that_reach_the_mass(mass):
    view, budget = _view(16, 6), 250
    selection = adaptive_selection(view, budget, selection_mass=mass)
    scores = shirg_scores(view, budget, _config())
    assert torch.equal(selection.scores, scores)
    probabilities = (scores.double() / 0.15).softmax(-1)
    held = probabilities[selection.indices].sum().item()
    assert held >= mass - 1e-6 or len(selection.indices) == budget
    if budget // 2 < len(selection.indices) < budget:
        assert held - probabilities[selection.indices].min().item() < mass
    assert torch.equal(selection.indices, top_k(scores, len(selection.indices)))


# Coordinate embedding


# Quality


def _keeping(indices: list[int], mixing: torch.Tensor | None = None, scores: torch.Tensor | None = None) -> Selection:
    return Selection(torch.tensor(indices), scores, mixing)


def test_gini_is_that_of_the_definition():
    values = torch.rand(30)
    above = (values - values.min()).double()
    expected = (above[:, None] - above[None]).abs().mean() / (2 * above.mean())
    assert gini(values) == pytest.approx(expected.item())
    assert gini(values * 3 - 2) == pytest.approx(expected.item(), rel=1e-4)
    assert gini(torch.ones(9)) == 0.0
    assert gini(torch.eye(10)[0]) == pytest.approx(0.9)


def test_relevance_is_compared_with_a_random_draws_average():
    relevance = torch.tensor([-1.0, 0.0, 1.0, 0.0])
    assert relevance_over_random(_keeping([2]), relevance) == pytest.approx(2.0)
    assert relevance_over_random(_keeping([0, 1, 2, 3]), relevance) == pytest.approx(1.0)
    assert relevance_over_random(_keeping([0]), relevance) == 0.0
    halves = torch.tensor([[0.0, 0.5, 0.5, 0.0]])
    assert relevance_over_random(_keeping([2], halves), relevance) == pytest.approx(1.5)
    assert relevance_over_random(_keeping([1]), torch.ones(4)) == 1.0


def test_coherence_and_block_coverage_by_hand():
    view = ViewTokens(torch.zeros(64, 1))
    # Two beside each other, one diagonal to them, one at the end of a row whose next index begins another.
    figures = selection_quality(_keeping([0, 1, 10, 31, 32]), view, 8)
    assert figures == {"coherence": 2 / 5, "block_coverage": 3 / 4}
    assert selection_quality(_keeping([0, 8]), view, 8) == {"coherence": 1.0, "block_coverage": 1 / 4}
    assert selection_quality(_keeping([0]), ViewTokens(torch.zeros(25, 1)), 5)["block_coverage"] == 1 / 4


@pytest.mark.parametrize("select", [fixed_selection, mixed_selection, adaptive_selection])
def test_the_figures_of_a_real_selection(select):
    view = _view(16, 5)
    figures = selection_quality(select(view, 100), view, 16, base_features=torch.randn(169, 6))
    assert set(figures) == {"coherence", "block_coverage", "gini", "relevance_over_random", "grid_correlation"}
    assert figures["relevance_over_random"] > 1 and 0 < figures["gini"] < 1
    assert 0.5 < figures["coherence"] <= 1
    assert figures["block_coverage"] == 1.0 or select is not fixed_selection
