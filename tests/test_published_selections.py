"""The published selection methods: exact counts, brute-force oracles on few patches, and that every term matters."""

import dataclasses
import inspect
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from modeling_shirg.published_selections_shirg import (
    METHODS,
    cdpruner,
    divprune,
    holov,
    saint,
    topv,
    visionzip,
    vispruner,
)
from modeling_shirg.selection_shirg import Selection, ViewTokens

SEEDS = range(8)
PUBLISHED = ("saint", "topv", "visionzip", "vispruner", "divprune", "cdpruner", "holov")


def _view(num_patches: int = 36, seed: int = 0, width: int = 48, spread: float = 1.0) -> ViewTokens:
    """Random patches around a common direction; `spread` of them is their own."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return ViewTokens(
        features=draw(1, width) + spread * draw(num_patches, width),
        attention=draw(num_patches).mul(2).softmax(0),
        relevance=draw(num_patches),
        keys=draw(1, 12) + 0.6 * draw(num_patches, 12),
        inputs=draw(num_patches, width),
    )


def _each(view: ViewTokens, change: Callable[[torch.Tensor], torch.Tensor]) -> ViewTokens:
    return ViewTokens(*(None if value is None else change(value) for value in vars(view).values()))


def _indices(name: str, view: ViewTokens, budget: int, **constants: float) -> list[int]:
    return METHODS[name].select(view, budget, **constants).indices.tolist()


def _changed(name: str, budget: int = 14, change: dict[str, Callable] | None = None, **constants: float) -> int:
    """For how many of the random views the selection changes with a field or a constant."""
    changed = 0
    for seed in SEEDS:
        view = _view(seed=seed)
        other = dataclasses.replace(view, **{field: value(view) for field, value in (change or {}).items()})
        changed += _indices(name, view, budget) != _indices(name, other, budget, **constants)
    return changed


def _check(selection: Selection, num_patches: int, budget: int) -> None:
    indices = selection.indices
    assert indices.dtype == torch.int64
    assert indices.shape == (budget,)
    assert all(first < second for first, second in pairwise([-1, *indices.tolist(), num_patches]))
    if selection.scores is not None:
        assert selection.scores.dtype == torch.float32
        assert selection.scores.shape == (num_patches,)
        assert selection.scores.isfinite().all()
    if selection.merge_weights is not None:
        assert selection.merge_weights.dtype == torch.float32
        assert selection.merge_weights.shape == (budget, num_patches)
        assert torch.allclose(selection.merge_weights.sum(1), torch.ones(budget))


def test_the_table_names_every_method_and_only_fields_that_exist():
    assert set(METHODS) == {*PUBLISHED, "shirg", "random", "uniform", "fixed", "mixed", "adaptive"}
    fields = {field.name for field in dataclasses.fields(ViewTokens)}
    assert all(method.needs <= fields for method in METHODS.values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_method_reads_the_fields_that_it_names_and_no_other(name):
    method, needs = METHODS[name].select, METHODS[name].needs
    view = _view()
    # `features` is always there and tells the number of patches.
    rest = {field.name: None for field in dataclasses.fields(view) if field.name not in needs | {"features"}}
    bare = dataclasses.replace(view, **rest)
    assert torch.equal(method(bare, 14).indices, method(view, 14).indices)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("budget", [0, -1, 37])
def test_a_budget_outside_the_view_is_refused(name, budget):
    with pytest.raises(AssertionError, match=f"{budget} of 36"):
        METHODS[name].select(_view(), budget)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("num_patches", [1, 4, 9, 25])
def test_every_budget_of_a_small_view_is_met(name, num_patches):
    for budget in range(1, num_patches + 1):
        _check(METHODS[name].select(_view(num_patches), budget), num_patches, budget)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize(
    ("num_patches", "budgets"),
    [(169, (1, 43, 49, 60, 168)), (256, (2, 181)), (729, (3, 182, 196, 240, 729)), (1024, (17, 724))],
)
def test_budgets_of_real_views_are_met(name, num_patches, budgets):
    for budget in budgets:
        _check(METHODS[name].select(_view(num_patches), budget), num_patches, budget)


@pytest.mark.parametrize("name", PUBLISHED)
@settings(max_examples=20)
@given(data=st.data())
def test_any_budget_of_any_patches_is_met(name, data):
    side = data.draw(st.integers(1, 12))
    # Only the transport needs a grid; the other methods take all five views of an image at once.
    num_patches = side**2 if name == "topv" else data.draw(st.integers(1, 144))
    budget = data.draw(st.integers(1, num_patches))
    kind = data.draw(st.sampled_from(["random", "similar", "narrow", "equal", "zero"]))
    view = _view(num_patches, seed=side, width=3 if kind == "narrow" else 8, spread=0.01 if kind == "similar" else 1.0)
    if kind in ("equal", "zero"):
        view = _each(view, lambda field: torch.full_like(field, float(kind == "equal")))
    _check(METHODS[name].select(view, budget), num_patches, budget)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_same_view_gives_the_same_selection(name):
    view = _view(169)
    first, second = (METHODS[name].select(view, 49) for _ in range(2))
    assert torch.equal(first.indices, second.indices)
    for one, other in ((first.scores, second.scores), (first.merge_weights, second.merge_weights)):
        assert one is other is None or torch.equal(one, other)


@pytest.mark.parametrize("name", PUBLISHED)
def test_half_precision_and_autocast_change_nothing_but_the_input(name):
    method = METHODS[name].select
    half = _each(_view(64), torch.Tensor.bfloat16)
    full = _each(half, torch.Tensor.float)
    expected = method(full, 20)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = method(full, 20), method(half, 20)
    for selection in (method(half, 20), *under_autocast):
        _check(selection, 64, 20)
        assert torch.equal(selection.indices, expected.indices)
        assert expected.scores is None or torch.equal(selection.scores, expected.scores)
        assert expected.merge_weights is None or torch.equal(selection.merge_weights, expected.merge_weights)


@pytest.mark.parametrize("name", PUBLISHED)
def test_selection_takes_no_part_in_gradients(name):
    view = _each(_view(), torch.Tensor.requires_grad_)
    selection = METHODS[name].select(view, 14)
    assert not any(v is not None and v.requires_grad for v in (selection.scores, selection.merge_weights))


def test_among_equals_the_lower_index_is_kept():
    """All patches alike, in values that arithmetic keeps exact."""
    one_hot = F.one_hot(torch.zeros(16, dtype=torch.int64), 4).float()
    view = ViewTokens(one_hot, torch.ones(16), torch.ones(16), one_hot, one_hot)
    first = list(range(5))
    assert _indices("saint", view, 5) == first
    assert _indices("divprune", view, 5) == first
    assert _indices("cdpruner", view, 5) == first
    assert _indices("holov", view, 5) == first
    assert _indices("holov", view, 5, crops=2) == [0, 1, 2, 8, 9]
    assert _indices("vispruner", view, 5, attention_share=1.0) == first
    # Four by attention. The others, 4 to 15: every first one goes, then of 5, 9 and 13 the later two.
    assert _indices("vispruner", view, 8) == [0, 1, 2, 3, 5, 7, 11, 15]
    # Four dominant patches, and one token of all others at the middle of them.
    assert _indices("visionzip", view, 5) == [0, 1, 2, 3, 10]
    # The transport tells patches apart by their places alone; two mirror images are equal.
    assert _indices("topv", view, 13, centre_weight=0.0, grid_weight=0.0) == list(range(13))


# SAINT


def _naive_saint(keys: torch.Tensor, budget: int, tau: float = 0.83, pace: int = 16) -> list[int]:
    left = list(range(len(keys)))
    cosine = F.cosine_similarity(keys[:, None].double(), keys[None].double(), dim=-1)
    while len(left) > budget:
        drop = min(len(left) - budget, max(1, len(left) // pace))
        degree = {i: sum((cosine[i, j] >= tau).item() for j in left if j != i) for i in left}
        total = {i: sum(cosine[i, j].item() for j in left if j != i) for i in left}
        left = sorted(sorted(left, key=lambda i, d=degree, t=total: (d[i], t[i], i))[: len(left) - drop])
    return left


@pytest.mark.parametrize("budget", [1, 5, 17, 30, 47])
@pytest.mark.parametrize("tau", [0.83, 0.6])
@pytest.mark.parametrize("pace", [16, 3])
def test_saint_is_degree_pruning(budget, tau, pace):
    keys = _view(48, seed=budget).keys
    assert _indices("saint", _view(48, seed=budget), budget, tau=tau, pace=pace) == _naive_saint(
        keys, budget, tau, pace
    )


def test_saint_drops_the_many_alike_and_keeps_the_unlike():
    keys = torch.eye(8)[[0, 0, 0, 1, 0, 2, 0, 3]]
    assert _indices("saint", ViewTokens(keys, keys=keys), 4) == [0, 3, 5, 7]


def test_saint_counts_edges_and_not_similarity():
    """Patches 0 and 1 share an edge; patch 2 is more similar to all others together, but to none by tau."""
    angles = torch.tensor([0.0, 20.0, 60.0, 100.0]).deg2rad()
    keys = torch.stack([angles.cos(), angles.sin()], dim=-1)
    view = ViewTokens(keys, keys=keys)
    assert (keys @ keys.T).sum(1).argmax() == 2
    assert _indices("saint", view, 3) == [0, 2, 3]
    # Without any edge the sum decides.
    assert _indices("saint", view, 3, tau=1.1) == [0, 1, 3]


def test_saint_follows_keys_tau_and_pace():
    assert _changed("saint", change={"keys": lambda view: view.keys.flip(1) * torch.arange(12)}) == len(SEEDS)
    assert _changed("saint", tau=0.7) >= 4
    assert _changed("saint", pace=2) >= 4


# TopV


def _naive_topv_scores(view: ViewTokens, weights: tuple[float, float, float], sigma: float, epsilon: float):
    num, side = len(view.features), round(len(view.features) ** 0.5)
    target = F.layer_norm(view.features.double(), view.features.shape[1:])
    terms = torch.zeros(3, num, num, dtype=torch.float64)
    for i in range(num):
        for j in range(num):
            squared = (i // side - j // side) ** 2 + (i % side - j % side) ** 2
            terms[0, i, j] = (view.inputs[i].double() - target[j]).norm()
            terms[1, i, j] = 1 - torch.exp(torch.tensor(-squared / (2 * sigma**2), dtype=torch.float64))
            terms[2, i, j] = ((i // side - (side - 1) / 2) ** 2 + (i % side - (side - 1) / 2) ** 2) ** 0.5
    low, high = terms.amin((1, 2), keepdim=True), terms.amax((1, 2), keepdim=True)
    cost = sum(weight * term for weight, term in zip(weights, (terms - low) / (high - low), strict=True))
    kernel = torch.exp(-cost / epsilon)
    plan = kernel / kernel.sum(0, keepdim=True) / num
    return plan, cost


@pytest.mark.parametrize("weights", [(1.0, 1.0, 0.01), (0.0, 1.0, 0.0), (0.5, 0.0, 0.5)])
def test_topv_scores_are_the_mass_that_a_source_gives(weights):
    view = _view(25)
    plan, _ = _naive_topv_scores(view, weights, 10.0, 0.1)
    names = ("feature_weight", "grid_weight", "centre_weight")
    scores = topv(view, 10, **dict(zip(names, weights, strict=True))).scores
    assert torch.allclose(scores.double(), plan.sum(1), atol=1e-5)
    assert torch.allclose(scores.sum(), torch.tensor(1.0))


def test_a_balanced_plan_would_give_every_patch_the_same_score():
    """The trap: Sinkhorn that ends with the rows returns the source marginal, whatever the cost."""
    view = _view(25)
    _, cost = _naive_topv_scores(view, (1.0, 1.0, 0.01), 10.0, 0.1)
    plan = torch.exp(-cost / 0.1)
    for _ in range(50):
        plan = plan / plan.sum(0, keepdim=True) / 25
        plan = plan / plan.sum(1, keepdim=True) / 25
    assert torch.allclose(plan.sum(1), torch.full((25,), 1 / 25, dtype=torch.float64))
    scores = topv(view, 10).scores
    assert scores.max() > 3 * scores.min()


@pytest.mark.parametrize("name", ["feature_weight", "grid_weight", "centre_weight"])
def test_every_term_of_topvs_cost_matters(name):
    assert _changed("topv", budget=18, **{name: 3.0}) >= 6
    assert _changed("topv", budget=18, **{name: 0.0}) >= (1 if name == "centre_weight" else 6)


def test_topv_follows_inputs_features_and_its_constants():
    assert _changed("topv", budget=18, change={"inputs": lambda view: view.inputs.roll(3, 0)}) == len(SEEDS)
    assert _changed("topv", budget=18, change={"features": lambda view: view.features.roll(3, 1)}) == len(SEEDS)
    assert _changed("topv", budget=18, sigma=1.0) >= 6
    assert _changed("topv", budget=18, epsilon=1.0) >= 4
    assert _changed("topv", budget=18, every=2) >= 6
    # A target is its layer norm, so its scale does not matter; a source's does.
    assert _changed("topv", budget=18, change={"features": lambda view: 7 * view.features + 3}) == 0
    assert _changed("topv", budget=18, change={"inputs": lambda view: 7 * view.inputs}) >= 4


@pytest.mark.parametrize(("num_patches", "every"), [(25, 4), (36, 4), (36, 3), (729, 4)])
def test_topv_recovers_every_fourth_of_the_patches_that_are_not_among_the_best(num_patches, every):
    view = _view(num_patches)
    order = topv(view, 1).scores.argsort(descending=True, stable=True).tolist()
    for budget in range(1, num_patches + 1) if num_patches < 100 else (150, 182, 183, 196, 240, 600):
        step = every
        while True:  # the largest number of best patches, with the smallest step that leaves at least one
            fitting = [best for best in range(1, budget + 1) if best + (num_patches - best) // step == budget]
            if fitting:
                break
            step += 1
        best = max(fitting)
        expected = order[:best] + sorted(order[best:])[step - 1 :: step]
        assert _indices("topv", view, budget, every=every) == sorted(expected)


def test_topv_needs_a_square_grid():
    with pytest.raises(AssertionError, match="12 patches are no square"):
        topv(_view(12), 3)


# VisionZip


def _naive_visionzip(view: ViewTokens, budget: int) -> list[tuple[int, list[int]]]:
    """Each token's patch and the patches that it is the mean of."""
    num = len(view.attention)
    contextual = (budget * 10 + 32) // 64
    by_attention = sorted(range(num), key=lambda i: (-view.attention[i].item(), i))
    dominant, others = by_attention[: budget - contextual], sorted(by_attention[budget - contextual :])
    targets = [others[(place * len(others) + len(others) // 2) // contextual] for place in range(contextual)]
    groups = {target: [target] for target in targets}
    for other in others:
        if other not in groups and targets:
            cosines = {
                target: F.cosine_similarity(view.keys[other], view.keys[target], 0).item() for target in targets
            }
            groups[max(targets, key=lambda target, cosines=cosines: (cosines[target], -target))].append(other)
    return sorted([(i, [i]) for i in dominant] + [(target, sorted(group)) for target, group in groups.items()])


@pytest.mark.parametrize("budget", [1, 3, 4, 9, 10, 16, 35, 48, 64])
def test_visionzip_keeps_the_dominant_and_merges_the_others_by_their_keys(budget):
    view = _view(64, seed=budget)
    selection = visionzip(view, budget)
    groups = [row.nonzero()[:, 0].tolist() for row in selection.merge_weights]
    tokens = list(zip(selection.indices.tolist(), groups, strict=True))
    assert tokens == _naive_visionzip(view, budget)
    for (_, group), row in zip(tokens, selection.merge_weights, strict=True):
        assert torch.allclose(row[group], torch.full((len(group),), 1 / len(group)))


def test_visionzip_loses_no_patch():
    """Each token times the number of its patches: together the sum of all features."""
    view = _view(169)
    mixing = visionzip(view, 49).merge_weights
    counts = (mixing > 0).sum(1)
    assert (mixing > 0).sum(0).tolist() == [1] * 169
    assert torch.allclose(counts.float() @ (mixing @ view.features), view.features.sum(0), atol=1e-3)


def test_visionzip_has_54_dominant_tokens_to_10_contextual_ones():
    for budget, contextual in ((64, 10), (128, 20), (192, 30), (196, 31), (3, 0), (4, 1)):
        assert ((visionzip(_view(729), budget).merge_weights > 0).sum(1) > 1).sum() == contextual


def test_visionzips_targets_stay_apart_when_their_keys_are_equal():
    view = dataclasses.replace(_view(64), keys=torch.ones(64, 12))
    selection = visionzip(view, 32)
    _check(selection, 64, 32)
    assert (selection.merge_weights[torch.arange(32), selection.indices] > 0).all()


def test_visionzip_of_all_patches_changes_none():
    assert torch.equal(visionzip(_view(64), 64).merge_weights, torch.eye(64))


def test_visionzip_follows_attention_keys_and_its_share():
    assert _changed("visionzip", change={"attention": lambda view: view.attention.roll(1)}) == len(SEEDS)
    assert _changed("visionzip", contextual_share=0.4) == len(SEEDS)
    view = _view()
    other = dataclasses.replace(view, keys=view.keys.roll(1, 0))
    first, second = visionzip(view, 14), visionzip(other, 14)
    assert torch.equal(first.indices, second.indices)
    assert not torch.equal(first.merge_weights, second.merge_weights)
    # Cosines, not dot products: a long key draws no more patches.
    longer = dataclasses.replace(view, keys=view.keys * torch.linspace(1, 9, 36)[:, None])
    assert torch.equal(visionzip(longer, 14).merge_weights, first.merge_weights)


# VisPruner


def _naive_vispruner(view: ViewTokens, budget: int, share: float = 0.5, pace: int = 8) -> list[int]:
    order = sorted(range(len(view.attention)), key=lambda i: (-view.attention[i].item(), i))
    important = int(budget * share)
    left = order[important:]
    unit = F.normalize(view.features.double(), dim=-1)
    while len(left) > budget - important:
        if len(left) == 1:
            left = []
            break
        first, second = left[::2], left[1::2]
        likeness = {i: max((unit[i] @ unit[j]).item() for j in second) for i in first}
        drop = min(pace, len(left) - (budget - important), len(first))
        # The most alike go, of equals the one that comes later.
        gone = sorted(first, key=lambda i: (likeness[i], first.index(i)), reverse=True)[:drop]
        left = [i for i in left if i not in gone]
    return sorted(order[:important] + left)


@pytest.mark.parametrize("budget", [1, 2, 7, 20, 40, 49])
@pytest.mark.parametrize(("share", "pace"), [(0.5, 8), (0.0, 3), (1.0, 8), (0.8, 1)])
def test_vispruner_keeps_a_share_by_attention_and_removes_near_duplicates(budget, share, pace):
    view = _view(49, seed=budget)
    expected = _naive_vispruner(view, budget, share, pace)
    assert _indices("vispruner", view, budget, attention_share=share, pace=pace) == expected


def test_vispruner_drops_the_copy_and_keeps_the_original():
    """Patches 1 and 3 are copies of their successors in attention; the first half of a pair goes."""
    features = torch.eye(6)[[0, 1, 1, 3, 3, 5]]
    view = ViewTokens(features, attention=torch.tensor([0.9, 0.5, 0.4, 0.3, 0.2, 0.1]))
    assert _indices("vispruner", view, 4, attention_share=0.25) == [0, 2, 4, 5]


def test_vispruner_follows_attention_features_and_its_constants():
    assert _changed("vispruner", change={"attention": lambda view: view.attention.roll(1)}) == len(SEEDS)
    assert _changed("vispruner", change={"features": lambda view: view.features.roll(1, 0)}) >= 6
    assert _changed("vispruner", attention_share=0.2) == len(SEEDS)
    assert _changed("vispruner", pace=2) >= 3
    assert _changed("vispruner", change={"features": lambda v: v.features * torch.linspace(1, 9, 36)[:, None]}) == 0


# DivPrune


@pytest.mark.parametrize("budget", [1, 2, 5, 13, 24])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_divprune_is_greedy_max_min(budget, seed):
    features = _view(25, seed=seed).features.double()
    distance = 1 - F.cosine_similarity(features[:, None], features[None], dim=-1)
    others = {i: [j for j in range(25) if j != i] for i in range(25)}
    kept = [max(range(25), key=lambda i: min(distance[i, j] for j in others[i]).item())]
    while len(kept) < budget:
        nearest = {i: min(distance[i, j] for j in kept).item() for i in range(25) if i not in kept}
        kept.append(max(nearest, key=lambda i, nearest=nearest: nearest[i]))
    assert _indices("divprune", _view(25, seed=seed), budget) == sorted(kept)


def test_divprune_keeps_one_of_each_kind_before_a_second():
    features = torch.eye(8)[[4, 4, 4, 2, 2, 7, 0, 0]]
    assert _indices("divprune", ViewTokens(features), 4) == [0, 3, 5, 6]
    # The first is the only one without a copy.
    assert _indices("divprune", ViewTokens(features), 1) == [5]


def test_divprune_follows_features_in_direction_and_not_in_length():
    assert _changed("divprune", change={"features": lambda view: view.features.roll(1, 0)}) == len(SEEDS)
    assert _changed("divprune", change={"features": lambda v: v.features * torch.linspace(1, 9, 36)[:, None]}) == 0


# CDPruner


def _naive_cdpruner(view: ViewTokens, budget: int) -> list[int]:
    features = F.normalize(view.features.double(), dim=-1)
    relevance = torch.ones(len(features), dtype=torch.float64)
    if view.relevance is not None:
        span = view.relevance.double() - view.relevance.double().min()
        relevance = span / span.max() + 1e-6
    kernel = relevance[:, None] * (features @ features.T).fill_diagonal_(1.0) * relevance
    kept = []
    while len(kept) < budget:
        rest = [i for i in range(len(features)) if i not in kept]
        volume = {i: torch.linalg.slogdet(kernel[[*kept, i]][:, [*kept, i]])[1].item() for i in rest}
        kept.append(max(rest, key=lambda i, volume=volume: volume[i]))
    return sorted(kept)


@pytest.mark.parametrize("budget", [1, 2, 6, 14, 19])
@pytest.mark.parametrize("with_question", [True, False])
def test_cdpruner_is_the_greedy_map_of_its_determinantal_point_process(budget, with_question):
    view = _view(20, seed=budget)
    if not with_question:
        view = dataclasses.replace(view, relevance=None)
    assert _indices("cdpruner", view, budget) == _naive_cdpruner(view, budget)


def test_cdpruner_without_a_question_is_as_with_one_that_tells_nothing_apart():
    for seed in SEEDS:
        view = _view(seed=seed)
        flat = dataclasses.replace(view, relevance=torch.full((36,), 0.3))
        assert _indices("cdpruner", flat, 14) == _indices("cdpruner", dataclasses.replace(view, relevance=None), 14)


def test_cdpruner_follows_relevance_and_features():
    assert _changed("cdpruner", change={"relevance": lambda view: -view.relevance}) == len(SEEDS)
    assert _changed("cdpruner", change={"relevance": lambda view: None}) == len(SEEDS)
    assert _changed("cdpruner", change={"features": lambda view: view.features.roll(1, 0)}) >= 6
    assert _changed("cdpruner", change={"features": lambda v: v.features * torch.linspace(1, 9, 36)[:, None]}) == 0
    assert _changed("cdpruner", change={"relevance": lambda view: 5 * view.relevance - 2}) == 0


def test_cdpruner_starts_afresh_when_the_features_have_no_further_direction():
    """Five copies of three directions: every round takes one of each, never a copy before its time."""
    features = torch.eye(3).repeat_interleave(5, 0)
    for rounds in range(1, 6):
        expected = [5 * direction + number for direction in range(3) for number in range(rounds)]
        assert _indices("cdpruner", ViewTokens(features), 3 * rounds) == expected
    # Relevance orders the copies, and a copy waits for every other direction, however relevant it is.
    relevance = torch.tensor([9.0, 8, 7, 6, 5, 1, 2, 1, 1, 1, 1, 1, 3, 1, 0])
    assert _indices("cdpruner", ViewTokens(features, relevance=relevance), 3) == [0, 6, 12]
    assert _indices("cdpruner", ViewTokens(features, relevance=relevance), 4) == [0, 1, 6, 12]


def test_cdpruner_takes_a_copy_for_no_new_direction_however_relevant_it_is():
    """What rounding leaves of the copies (1e-7) is more than the last patch's own relevance squared (1e-12)."""
    copies = torch.linspace(1, 9, 15)[:, None] * _view(1).features
    view = ViewTokens(torch.cat([copies, _view(1, seed=1).features]), relevance=torch.tensor([1.0] * 15 + [0.0]))
    assert _indices("cdpruner", view, 2) == [0, 15]


def test_cdpruner_keeps_no_rounding_errors():
    """Fewer dimensions than kept patches: each round is a greedy MAP of what the rounds before left."""
    view = _view(40, width=6)
    left, expected = list(range(40)), []
    for _ in range(4):
        part = ViewTokens(view.features[left], relevance=None)
        kept = _naive_cdpruner(part, 6)
        expected += [left[i] for i in kept]
        left = [i for i in left if i not in expected]
    assert _indices("cdpruner", dataclasses.replace(view, relevance=None), 24) == sorted(expected)


# HoloV


def _naive_holov(view: ViewTokens, budget: int, crops: int = 16, variance_weight: float = 0.09) -> list[int]:
    num, crops = len(view.attention), min(crops, len(view.attention))
    ends = [0]
    for crop in range(crops):
        ends.append(ends[-1] + num // crops + (crop < num % crops))
    groups = [list(range(start, end)) for start, end in pairwise(ends)]
    unit = F.normalize(view.features.double(), dim=-1)
    variance = [0.0] * num
    for group in groups:
        for i in group:
            cosines = torch.tensor([(unit[i] @ unit[j]).item() for j in group if j != i], dtype=torch.float64)
            variance[i] = cosines.var(correction=0).item() if len(group) > 1 else 0.0
    attention = view.attention.double().tolist()
    scale = (sum(attention) / num) / max(sum(variance) / num, 1e-12)
    score = [a + variance_weight * scale * v for a, v in zip(attention, variance, strict=True)]
    weight = [sum(score[i] for i in group) / len(group) for group in groups]

    share, full = [0.0] * crops, set()
    while True:
        rest = budget - sum(len(groups[crop]) for crop in full)
        total = sum(weight[crop] for crop in range(crops) if crop not in full)
        share = [len(group) if crop in full else rest * weight[crop] / total for crop, group in enumerate(groups)]
        over = {crop for crop in range(crops) if share[crop] >= len(groups[crop])} - full
        if not over:
            break
        full |= over
    quota = [int(value) for value in share]
    for crop in sorted(range(crops), key=lambda c: (quota[c] - share[c], c))[: budget - sum(quota)]:
        quota[crop] += 1
    kept = [i for group, k in zip(groups, quota, strict=True) for i in sorted(group, key=lambda i: (-score[i], i))[:k]]
    return sorted(kept)


@pytest.mark.parametrize("num_patches", [10, 49, 64, 169])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.7, 0.95])
@pytest.mark.parametrize(("crops", "variance_weight"), [(16, 0.09), (5, 2.0)])
def test_holov_gives_every_crop_its_quota(num_patches, share, crops, variance_weight):
    budget = max(1, int(share * num_patches))
    view = _view(num_patches, seed=budget)
    expected = _naive_holov(view, budget, crops, variance_weight)
    assert _indices("holov", view, budget, crops=crops, variance_weight=variance_weight) == expected


def test_holov_follows_attention_variance_and_its_constants():
    assert _changed("holov", change={"attention": lambda view: view.attention.roll(5)}) == len(SEEDS)
    assert _changed("holov", change={"features": lambda view: view.features.roll(1, 0)}) >= 1
    assert _changed("holov", variance_weight=0.0) >= 1
    assert _changed("holov", variance_weight=2.0) >= 6
    assert _changed("holov", attention_weight=0.0) == len(SEEDS)
    assert _changed("holov", crops=4) >= 6
    assert _changed("holov", change={"features": lambda v: v.features * torch.linspace(1, 9, 36)[:, None]}) == 0


def test_holovs_variance_decides_the_quota_and_the_choice_within_a_crop():
    """Even attention: the half with varied cosines gets more, and in it the patches that are like some but not all."""
    alike, varied = torch.eye(4)[[0, 0, 0, 0]], torch.eye(4)[[1, 1, 2, 1]]
    view = ViewTokens(torch.cat([alike, varied]), attention=torch.ones(8))
    # Variances: 2/9 for the three patches that match two of the three others, 0 for the one that matches none.
    assert _indices("holov", view, 2, crops=2, variance_weight=1.5) == [4, 5]
    assert _indices("holov", view, 4, crops=2, variance_weight=1.5) == [0, 4, 5, 7]
    assert _indices("holov", view, 2, crops=2, variance_weight=0.0) == [0, 4]
    assert holov(view, 2, crops=2).scores.tolist()[6] == 1.0


def test_holov_hands_on_what_a_small_crop_cannot_take():
    attention = torch.tensor([100.0, 100, 3, 3, 3, 3, 1, 1])
    view = ViewTokens(torch.eye(8), attention=attention)
    # Shares of 5 by attention: 4.7, 0.1, 0.1, 0.05; the first crop takes 2, and 3 are left for 3 : 3 : 1.
    assert _indices("holov", view, 5, crops=4) == [0, 1, 2, 4, 6]
    assert _indices("holov", view, 6, crops=4) == [0, 1, 2, 3, 4, 5]


def test_every_constant_has_the_value_of_its_paper():
    published = {name: METHODS[name].select for name in PUBLISHED}
    defaults = {
        name: {p.name: p.default for p in inspect.signature(method).parameters.values() if p.kind is p.KEYWORD_ONLY}
        for name, method in published.items()
    }
    assert defaults == {
        "saint": {"tau": 0.83, "pace": 16},
        "topv": {
            "feature_weight": 1.0,
            "grid_weight": 1.0,
            "centre_weight": 0.01,
            "sigma": 10.0,
            "epsilon": 0.1,
            "every": 4,
        },
        "visionzip": {"contextual_share": 10 / 64},
        "vispruner": {"attention_share": 0.5, "pace": 8},
        "divprune": {},
        "cdpruner": {},
        "holov": {"crops": 16, "attention_weight": 1.0, "variance_weight": 0.09},
    }
    assert all(method.__doc__ and "arXiv" in method.__doc__ for method in published.values())
    assert [saint, topv, visionzip, vispruner, divprune, cdpruner, holov] == [*published.values()]
