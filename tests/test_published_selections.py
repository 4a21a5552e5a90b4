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
    topv,
    visionzip,
)
from modeling_shirg.selection_shirg import Selection, ViewTokens

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


# TopV


def _naive_topv_scores(
    view: ViewTokens, centre_weight: float = 0.01, sigma: float = 10.0, epsilon: float = 0.1
) -> torch.Tensor:
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
    scaled = (terms - low) / (high - low)
    kernel = torch.exp(-(scaled[0] + scaled[1] + centre_weight * scaled[2]) / epsilon)
    return (kernel / kernel.sum(0, keepdim=True) / num).sum(1)


@pytest.mark.parametrize("constants", [{}, {"centre_weight": 0.5, "sigma": 1.0, "epsilon": 1.0}])
def test_topv_scores_are_the_mass_that_a_source_gives(constants):
    view = _view(25)
    scores = topv(view, 10, **constants).scores
    assert torch.allclose(scores.double(), _naive_topv_scores(view, **constants), atol=1e-5)
    assert torch.allclose(scores.sum(), torch.tensor(1.0))
    assert scores.max() > 3 * scores.min() or constants  # a balanced plan would give every patch the same score


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


def test_every_constant_has_the_value_of_its_paper():
    defaults = {name: inspect.signature(METHODS[name].select).parameters.values() for name in PUBLISHED}
    defaults = {
        name: {p.name: p.default for p in given if p.kind is p.KEYWORD_ONLY} for name, given in defaults.items()
    }
    assert defaults == {
        "saint": {"tau": 0.83, "pace": 16},
        "topv": {"centre_weight": 0.01, "sigma": 10.0, "epsilon": 0.1, "every": 4},
        "visionzip": {"contextual_share": 10 / 64},
        "vispruner": {"attention_share": 0.5, "pace": 8},
        "divprune": {},
        "cdpruner": {},
        "holov": {"crops": 16, "variance_weight": 0.09},
    }
