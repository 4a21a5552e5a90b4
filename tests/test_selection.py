"""The selection functions by hand-computed cases, and the static, exact selection of the whole model."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from modeling_shirg.selection_shirg import (
    ViewTokens,
    min_max,
    random_draw,
    redundancy,
    shirg_scores,
    text_relevance,
    top_k,
    uniform_indices,
)
from tiny_model import QUESTIONS, chat, encode, noise_image, tiny_config, tiny_model, tiny_processor


def _scores(features, attention, relevance, budget, *weights) -> torch.Tensor:
    names = ("attention_weight", "text_weight", "diversity_weight")
    config = SimpleNamespace(**dict(zip(names, weights, strict=True)))
    return shirg_scores(ViewTokens(features, attention, relevance), budget, config)


def test_top_k_is_in_raster_order_and_breaks_ties_by_index():
    scores = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 5.0]])
    assert top_k(scores, 4).tolist() == [[1, 2, 3, 5]]
    assert top_k(torch.zeros(2, 9), 4).tolist() == [[0, 1, 2, 3]] * 2
    # Sorts that are stable for a few scores are not for a fovea of them.
    assert top_k(torch.zeros(1, 1024), 724).tolist() == [list(range(724))]


def test_min_max_spans_zero_to_one_and_maps_rounding_noise_to_zero():
    assert min_max(torch.tensor([2.0, 4.0, 3.0])).tolist() == [0.0, 1.0, 0.5]
    assert min_max(torch.tensor([7.0, 7.0, 7.0])).tolist() == [0.0, 0.0, 0.0]
    assert min_max(torch.tensor([0.1, 0.1 + 1e-8, 0.1])).tolist() == [0.0, 0.0, 0.0]
    # What is noise depends on the scores' size: neither small scores nor small differences are.
    assert min_max(torch.tensor([1000.0, 1000.0001, 1000.0])).tolist() == [0.0, 0.0, 0.0]
    assert min_max(torch.tensor([2.0, 4.0, 3.0]) * 2**-30).tolist() == [0.0, 1.0, 0.5]
    assert min_max(torch.tensor([1.0, 1.001])).tolist() == [0.0, 1.0]


def test_text_relevance_is_the_best_cosine_over_the_question():
    patches = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    words = torch.tensor([[0.0, 1.0], [5.0, 0.0]])
    assert torch.allclose(text_relevance(patches, words[:1]), torch.tensor([0.0, 1.0, 0.5**0.5]))
    assert torch.allclose(text_relevance(patches, words), torch.tensor([1.0, 1.0, 0.5**0.5]))
    oblique = torch.tensor([[3.0, 4.0], [60.0, 80.0]])
    assert torch.allclose(text_relevance(patches, oblique), torch.tensor([0.6, 0.8, 1.4 * 0.5**0.5]))


def test_redundancy_is_the_mean_cosine_to_the_provisional_tokens():
    features, provisional = torch.randn(10, 4), torch.tensor([0, 3, 7])
    expected = F.cosine_similarity(features[:, None], features[None, provisional], dim=-1).mean(1)
    assert torch.allclose(redundancy(features, provisional), expected, atol=1e-6)


def test_score_v2_and_v1_follow_their_formulas():
    features, attention, relevance = torch.randn(12, 4), torch.rand(12), torch.rand(12)
    a, s = min_max(attention), min_max(relevance)
    v1 = _scores(features, attention, relevance, 5, 0.7, 0.3, 0.0)
    assert torch.allclose(v1, 0.7 * a + 0.3 * s)
    v2 = _scores(features, attention, relevance, 5, 0.5, 0.3, 0.1)
    d = min_max(redundancy(features, top_k(0.5 * a + 0.3 * s, 5)))
    assert torch.allclose(v2, 0.5 * a + 0.3 * s - 0.1 * d)


def test_scores_of_half_precision_are_computed_in_float32():
    features, attention, words = torch.randn(12, 4).bfloat16(), torch.rand(12).bfloat16(), torch.randn(3, 4).bfloat16()
    provisional = torch.tensor([0, 3, 7])
    assert torch.equal(text_relevance(features, words), text_relevance(features.float(), words.float()))
    assert torch.equal(redundancy(features, provisional), redundancy(features.float(), provisional))
    relevance = text_relevance(features, words)
    for of_question in (relevance, None):
        scores = _scores(features, attention, of_question, 5, 0.5, 0.3, 0.1)
        assert scores.dtype == torch.float32
        assert torch.equal(scores, _scores(features.float(), attention.float(), of_question, 5, 0.5, 0.3, 0.1))


@pytest.mark.parametrize(("tokens", "kept"), [(1024, 724), (256, 181), (5, 5), (7, 1)])
def test_controls_keep_exactly_k_distinct_tokens_in_raster_order(tokens, kept):
    drawn = random_draw(ViewTokens(torch.ones(tokens, 1)), kept, SimpleNamespace(selection_seed=0)).indices
    for indices in (uniform_indices(tokens, kept, torch.device("cpu")), drawn):
        assert len(indices) == kept
        assert (indices.diff() > 0).all()
        assert 0 <= indices.min() and indices.max() < tokens


def _kept(model, inputs):
    with torch.no_grad():
        return model(**inputs, output_selection=True).kept_indices


def test_selection_depends_on_the_question_and_not_without_text_relevance():
    image = noise_image(0)
    for text_relevance_source, differ in (("lm", True), ("none", False)):
        config = tiny_config("shirg", text_relevance=text_relevance_source)
        model, processor = tiny_model(config), tiny_processor(config)
        first, second = (_kept(model, encode(processor, chat(q, image))).tolist() for q in QUESTIONS[:2])
        assert (first != second) == differ


def test_selection_without_a_question_is_the_text_free_score():
    config = tiny_config("shirg")
    model, processor = tiny_model(config), tiny_processor(config)
    inputs = encode(processor, chat("", noise_image(0)))
    assert inputs["question_mask"].sum() == 0
    without_mask = {name: value for name, value in inputs.items() if name != "question_mask"}
    assert _kept(model, inputs).tolist() == _kept(model, without_mask).tolist()


def test_the_reported_scores_are_the_formula_on_the_named_attention_source():
    scores = {}
    for source in ("map", "received", "norm"):
        config = tiny_config("shirg", attention_source=source)
        model, processor = tiny_model(config), tiny_processor(config)
        inputs = encode(processor, chat(QUESTIONS[0], noise_image(0)))
        with torch.no_grad():
            scores[source] = model(**inputs, output_selection=True).scores[0]
            features, signals = model.model.vision_tower(inputs["fovea_pixel_values"], {"attention"})
            projected = model.model.multi_modal_projector(features)[0]
            question = inputs["input_ids"][0][inputs["question_mask"][0].bool()]
            relevance = text_relevance(projected, model.get_input_embeddings()(question))
            expected = _scores(features[0], signals["attention"][0], relevance, 181, 0.5, 0.3, 0.1)
        assert torch.allclose(scores[source], expected, atol=1e-5)
    kept = {source: tuple(top_k(values, 181).tolist()) for source, values in scores.items()}
    assert len(set(kept.values())) == 3


@pytest.mark.parametrize("source", ["map", "received", "norm"])
def test_signals_of_a_float32_tower_are_computed_in_float32_under_autocast(source):
    """As in mixed-precision training, where activations are bfloat16 and weights are not."""
    tower = tiny_model(tiny_config(attention_source=source)).model.vision_tower
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        _, plain = tower(pixels, {"attention", "keys"})
        with torch.autocast("cpu", torch.bfloat16):
            _, mixed = tower(pixels, {"attention", "keys"})
    for name, values in plain.items():
        assert mixed[name].dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(mixed[name].flatten(), values.flatten(), dim=0) > 0.99


SWITCHES = [
    ("shirg", "attention_weight", 0.0),
    ("shirg", "text_weight", 0.0),
    ("shirg", "diversity_weight", 0.0),
    ("shirg", "text_relevance", "none"),
    ("shirg", "attention_source", "received"),
    ("shirg", "attention_source", "norm"),
    ("shirg-v1", "attention_weight", 0.0),
    ("shirg-v1", "text_weight", 0.0),
    ("shirg-v1", "diversity_weight", 0.2),
    ("shirg-784", "diversity_weight", 0.0),
    ("shirg-salient", "fovea_placement", "center"),
    ("shirg-3645", "diversity_weight", 0.0),
    ("shirg-3645", "text_weight", 0.0),
    ("shirg-adaptive", "attention_weight", 0.0),
    ("shirg-adaptive", "text_weight", 0.0),
    ("shirg-adaptive", "diversity_weight", 0.0),
    ("shirg-adaptive", "selection_mass", 0.5),
    ("shirg-adaptive", "selection_temperature", 0.05),
    ("shirg-fixed", "text_weight", 0.0),
    ("shirg-fixed", "text_relevance", "none"),
    ("shirg-fixed", "neighbor_weight", 0.0),
    ("shirg-fixed", "center_weight", 0.0),
    ("shirg-fixed", "merge_threshold", 0.2),
    ("shirg-fixed", "coverage", False),
    ("shirg-fixed", "merging", False),
    ("shirg-mixed", "text_weight", 0.0),
    ("shirg-mixed", "text_relevance", "none"),
    ("shirg-mixed", "variance_weight", 0.0),
    ("shirg-mixed", "edge_weight", 0.0),
    ("shirg-mixed", "coverage", False),
    ("shirg-mixed", "summaries", False),
    ("random", "selection_seed", 1),
    ("visionzip", "attention_source", "norm"),
    ("vispruner", "attention_source", "norm"),
    ("holov", "attention_source", "norm"),
    ("cdpruner", "text_relevance", "none"),
]


def _tokens(preset: str, **fields) -> tuple[list[list[int]], torch.Tensor]:
    """What a tiny model with fixed weights keeps of an image, and the image tokens that it reads."""
    config = tiny_config(preset, **fields)
    model, processor = tiny_model(config), tiny_processor(config)
    inputs = encode(processor, chat(QUESTIONS[0], noise_image(0, 400, 300)))
    with torch.no_grad():
        given = {name: value for name, value in inputs.items() if name != "attention_mask"}
        _, images = model.model.prepare_inputs_embeds(**given)
    return images.kept_indices.tolist(), images.image_tokens[0]


@pytest.fixture(scope="module")
def plain_tokens() -> dict:
    return {preset: _tokens(preset) for preset in {preset for preset, _, _ in SWITCHES}}


@pytest.mark.parametrize(("preset", "field", "value"), SWITCHES)
def test_every_switch_of_the_config_reaches_the_selection(plain_tokens, preset, field, value):
    plain_kept, plain = plain_tokens[preset]
    # Of noise, a large budget covers every block anyway.
    few = {"selection_budget": 40} if field == "coverage" else {}
    if few:
        plain_kept, plain = _tokens(preset, **few)
    kept, tokens = _tokens(preset, **{field: value}, **few)
    if field in ("merging", "merge_threshold"):  # may stand at the same patches, but the tokens are other ones
        assert tokens.shape == plain.shape and not torch.equal(tokens, plain)
    else:
        assert kept != plain_kept


def test_probe_attention_is_what_the_stock_head_attends_to():
    model = tiny_model(tiny_config())
    tower = model.model.vision_tower
    with torch.no_grad():
        features, signals = tower(torch.randn(2, 3, 224, 224), {"attention"})
        hidden = tower.vision_model.encoder.layers[-1](features, None)
        hidden = tower.vision_model.post_layernorm(hidden)
        probe = tower.vision_model.head.probe.expand(2, -1, -1)
        expected = tower.vision_model.head.attention(probe, hidden, hidden)[1][:, 0]
        assert torch.allclose(signals["attention"], expected, atol=1e-6)


def test_received_attention_is_the_column_mean_of_the_eager_map():
    tower = tiny_model(tiny_config(attn_implementation="eager", attention_source="received")).model.vision_tower
    last, maps = tower.vision_model.encoder.layers[tower.num_kept_layers - 1], []
    handle = last.self_attn.register_forward_hook(lambda module, args, output: maps.append(output[1]))
    with torch.no_grad():
        _, signals = tower(torch.randn(2, 3, 192, 192), {"attention", "inputs"})
        handle.remove()
        assert torch.allclose(signals["attention"], maps[0].mean((1, 2)), atol=1e-6)
        assert torch.allclose(tower.received_attention(signals["inputs"], chunk=7), maps[0].mean((1, 2)), atol=1e-6)


def test_keys_and_inputs_are_those_of_the_last_kept_layer():
    tower = tiny_model(tiny_config("saint")).model.vision_tower
    pixels = torch.randn(2, 3, 192, 192)
    seen = {}
    last = tower.vision_model.encoder.layers[tower.num_kept_layers - 1]
    handles = [
        last.register_forward_pre_hook(lambda module, args: seen.update(inputs=args[0])),
        last.self_attn.k_proj.register_forward_hook(lambda module, args, output: seen.update(keys=output)),
    ]
    with torch.no_grad():
        _, signals = tower(pixels, {"keys", "inputs"})
    for handle in handles:
        handle.remove()
    assert torch.equal(signals["inputs"], seen["inputs"])
    heads = seen["keys"].unflatten(-1, (2, 16))
    assert torch.allclose(signals["keys"], (heads[..., 0, :] + heads[..., 1, :]) / 2)
