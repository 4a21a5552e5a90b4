"""Counts of every preset, and wrong combinations that fail at construction with both values named."""

from typing import get_args

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from configuration_shirg import GEOMETRIES, PRESETS, ShirgLavidaConfig
from modeling_shirg.published_selections_shirg import METHODS
from tiny_model import tiny_config

# Views -> image tokens, as the table of systems says.
PEERS = ("saint", "topv", "visionzip", "vispruner", "divprune", "cdpruner", "holov")
COUNTS = {
    "full": {
        "shirg": 256 + 724,
        "shirg-v1": 256 + 724,
        "shirg-784": 196 + 784,
        "shirg-salient": 256 + 724,
        "shirg-adaptive": 256 + 724,
        "shirg-fixed": 144 + 768,
        "shirg-mixed": 768,
        "shirg-3645": 980,
        "siglip-672": 48 * 48,
        "random": 256 + 724,
        "uniform": 256 + 724,
        "pool": 196 + 784,
        "lavida": None,
        "lavida-980": 5 * 196,
        "lavida-full": 5 * 729,
        **dict.fromkeys(PEERS, 980),
    },
    "toy": {
        "shirg": 64 + 181,
        "shirg-v1": 64 + 181,
        "shirg-784": 49 + 196,
        "shirg-salient": 64 + 181,
        "shirg-adaptive": 64 + 181,
        "shirg-fixed": 36 + 192,
        "shirg-mixed": 192,
        "shirg-3645": 245,
        "siglip-672": 24 * 24,
        "random": 64 + 181,
        "uniform": 64 + 181,
        "pool": 49 + 196,
        "lavida": None,
        "lavida-980": 5 * 49,
        "lavida-full": 5 * 169,
        **dict.fromkeys(PEERS, 245),
    },
}


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_its_count(preset, geometry):
    assert ShirgLavidaConfig.from_preset(preset, geometry=geometry).num_image_tokens == COUNTS[geometry][preset]


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"selection_budget": 1025}, ("1025", "1024")),
        ({"selection_budget": 0}, ("0", "1024")),
        ({"fovea_size": None}, ("foveal", "None")),
        ({"fovea_size": 13}, ("13", "14")),
        ({"pooled_grid_size": 28}, ("28", "27")),
        ({"image_grid_pinpoints": [[768, 768]]}, ("foveal", "768")),
        ({"selection_method": "none"}, ("none", "1024", "724")),
        ({"selection_method": "pool"}, ("724", "676")),
        ({"view_policy": "anyres"}, ("anyres", "448")),
        ({"selection_temperature": 0.0}, ("0.0",)),
        ({"vision_feature_layer": -28}, ("-28", "27")),
        ({"prune_method": "shrig"}, ("shrig", "Did you mean 'shirg'?")),
        ({"selction_budget": 724}, ("selction_budget",)),
        ({"selection_method": "best"}, ("best", "random")),
        ({"image_token_id": 126336}, ("image_token_id", "126336", "differ")),
        ({"image_token_id": 999_999}, ("image_token_id", "999999", "126464")),
        ({"text_config": {"vocab_size": 600}}, ("126349", "600")),
        ({"attention_weight": float("nan")}, ("attention_weight", "nan")),
    ],
)
def test_wrong_combinations_name_the_values(overrides, named):
    with pytest.raises((ValueError, StrictDataclassError)) as raised:
        ShirgLavidaConfig.from_preset("shirg", **overrides)
    assert all(value in str(raised.value) for value in named), str(raised.value)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"view_policy": "pad"}, ("pad", "768")),
        ({"view_policy": "foveal", "fovea_size": 448, "image_grid_pinpoints": None}, ("foveal", "spatial_unpad")),
        ({"patch_merge_type": "flat"}, ("flat", "1152")),
        ({"selection_method": "shirg", "selection_budget": 10}, ("spatial_unpad", "shirg", "14")),
        ({"view_policy": "square", "image_grid_pinpoints": None, "fovea_size": 448}, ("square", "448")),
    ],
)
def test_wrong_combinations_of_lavidas_layout_name_the_values(overrides, named):
    with pytest.raises((ValueError, StrictDataclassError)) as raised:
        ShirgLavidaConfig.from_preset("lavida", **overrides)
    assert all(value in str(raised.value) for value in named), str(raised.value)


@pytest.mark.parametrize(
    ("preset", "overrides", "named"),
    [
        ("saint", {"selection_budget": 981}, ("981", "3645", "5")),
        ("saint", {"selection_budget": 3650}, ("3650", "3645")),
        ("saint", {"scaffold": True}, ("scaffold=False", "True")),
        ("topv", {"pooled_grid_size": 14}, ("pooled_grid_size=None", "14")),
        ("shirg-fixed", {"pooled_grid_size": None}, ("scaffold=True", "pooled_grid_size, got None")),
        ("shirg-mixed", {"selection_budget": 2305}, ("2305", "2304")),
        ("shirg-mixed", {"fovea_size": None}, ("whole", "None")),
        ("shirg-adaptive", {"selection_mass": 0.0}, ("selection_mass", "0.0")),
        ("siglip-672", {"selection_budget": 2000}, ("2304", "2000")),
    ],
)
def test_wrong_combinations_of_other_systems_name_the_values(preset, overrides, named):
    with pytest.raises((ValueError, StrictDataclassError)) as raised:
        ShirgLavidaConfig.from_preset(preset, **overrides)
    assert all(value in str(raised.value) for value in named), str(raised.value)


def test_budgets_of_topv_and_saint_in_their_papers_setting():
    for name in ("saint", "topv"):
        assert ShirgLavidaConfig.from_preset(name, selection_budget=1200).num_image_tokens == 1200
        assert ShirgLavidaConfig.from_preset(name, geometry="toy", selection_budget=300).num_image_tokens == 300


@pytest.mark.parametrize(
    ("overrides", "count"),
    [
        ({"scaffold": False}, 724),
        ({"diversity_weight": 0.0}, 980),
        ({"text_weight": 0.0}, 980),
        ({"text_relevance": "none"}, 980),
        *(({"selection_budget": budget}, 256 + budget) for budget in (410, 784, 820)),
        ({"fovea_size": 512}, 980),
    ],
)
def test_ablation_switches(overrides, count):
    assert ShirgLavidaConfig.from_preset("shirg", **overrides).num_image_tokens == count


def test_the_methods_of_the_config_are_those_of_the_registry():
    known = get_args(ShirgLavidaConfig.__annotations__["selection_method"])
    assert {*known} == {*METHODS, "none", "pool"}


def test_an_original_checkpoint_is_told_to_convert(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llava_llada", "d_model": 64}')
    for auto in (ShirgLavidaConfig, AutoConfig):
        with pytest.raises(ValueError, match="shirg convert SRC OUT"):
            auto.from_pretrained(tmp_path)
    for auto in (AutoModel, AutoModelForImageTextToText):
        with pytest.raises(ValueError, match="shirg convert SRC OUT"):
            auto.from_pretrained(tmp_path)


@pytest.mark.parametrize("pinpoints", [None, [], [[700, 768]], [[768, 768], [384, 768]]])
def test_flat_tiles_need_one_canvas(pinpoints):
    with pytest.raises(StrictDataclassError, match="image_grid_pinpoints"):
        ShirgLavidaConfig.from_preset("lavida-980", image_grid_pinpoints=pinpoints)


def test_a_misspelled_name_suggests_the_nearest(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no field 'prune_metod'. Did you mean 'prune_method'"):
        ShirgLavidaConfig.from_pretrained(tmp_path, prune_metod="shirg-v1")
    with pytest.raises(ValueError, match="'shrig'. Did you mean 'shirg'"):
        ShirgLavidaConfig.from_pretrained(tmp_path, prune_method="shrig")


def test_whole_numbers_are_weights_too():
    assert tiny_config(attention_weight=1).attention_weight == 1


def test_unknown_preset_and_geometry_list_the_known_ones():
    with pytest.raises(ValueError, match="'shrig'.*shirg-784"):
        ShirgLavidaConfig.from_preset("shrig")
    with pytest.raises(ValueError, match="'huge'.*full, toy"):
        ShirgLavidaConfig.from_preset("shirg", geometry="huge")
    with pytest.raises(ValueError, match="224 pixels.*384"):
        ShirgLavidaConfig.from_preset("shirg", vision_config={"image_size": 224})


def test_save_and_load_keep_every_field(tmp_path):
    config = tiny_config("shirg-v1", selection_seed=7, fovea_placement="salient")
    config.save_pretrained(tmp_path)
    assert ShirgLavidaConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_switching_presets_leaves_nothing_behind():
    config = tiny_config("shirg")
    there_and_back = config.with_preset("lavida-full").with_preset("pool").with_preset("shirg")
    assert there_and_back.to_dict() == config.to_dict()


VIEWS = {"view_policy": "square", "image_grid_pinpoints": None, "pooled_grid_size": None}


def test_preset_lavida_restores_the_views_of_training(tmp_path):
    config = tiny_config("shirg", lavida_views=VIEWS)
    assert (config.view_policy, config.pooled_grid_size) == ("foveal", 8)
    config.save_pretrained(tmp_path)
    assert ShirgLavidaConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    lavida = ShirgLavidaConfig.from_pretrained(tmp_path, prune_method="lavida")
    assert {name: getattr(lavida, name) for name in VIEWS} == VIEWS
    assert lavida.to_dict() == tiny_config("lavida", lavida_views=VIEWS).to_dict()
    assert lavida.with_preset("shirg").to_dict() == config.to_dict()
    assert config.with_preset("lavida-980").view_policy == "anyres"


def test_what_is_asked_for_wins_over_the_views_of_training():
    config = tiny_config("shirg", lavida_views=VIEWS).with_preset("lavida", pooled_grid_size=7)
    assert (config.view_policy, config.pooled_grid_size, config.lavida_views) == ("square", 7, VIEWS)
    assert tiny_config("lavida", lavida_views=VIEWS, pooled_grid_size=7).pooled_grid_size == 7
    lavida = config.with_preset("lavida", lavida_views=None)
    assert (lavida.view_policy, lavida.pooled_grid_size) == ("anyres", 7)


@pytest.mark.parametrize("preset", ["shirg", "lavida"])
@pytest.mark.parametrize("views", [{}, {"view_policy": "pad"}, {**VIEWS, "fovea_size": 224}, list(VIEWS)])
def test_views_of_training_are_exactly_the_view_fields(preset, views):
    with pytest.raises((ValueError, StrictDataclassError), match="lavida_views"):
        tiny_config(preset, lavida_views=views)


def test_language_model_is_always_bidirectional():
    assert ShirgLavidaConfig.from_preset("shirg", text_config={"is_causal": True}).text_config.is_causal is False
