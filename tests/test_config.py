"""Counts of every preset, and wrong combinations that fail at construction with the values named."""

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from configuration_shirg import GEOMETRIES, PRESETS, ShirgLavidaConfig
from modeling_shirg.published_selections_shirg import METHODS
from tiny_model import tiny_config

PEERS = ("saint", "topv", "visionzip", "vispruner", "divprune", "cdpruner", "holov")
# Views -> image tokens of the full geometry, as the table of systems says.
COUNTS = {
    **dict.fromkeys(("shirg", "shirg-v1", "shirg-salient", "shirg-adaptive", "random", "uniform"), 256 + 724),
    **dict.fromkeys(("shirg-784", "pool"), 196 + 784),
    **dict.fromkeys(("shirg-3645", *PEERS), 980),
    "shirg-fixed": 144 + 768,
    "shirg-mixed": 768,
    "siglip-672": 48 * 48,
    "lavida": None,
    "lavida-980": 5 * 196,
    "lavida-full": 5 * 729,
}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_its_count_and_a_quarter_of_it_at_toy_scale(preset):
    full, toy = (ShirgLavidaConfig.from_preset(preset, geometry=name).num_image_tokens for name in GEOMETRIES)
    assert full == COUNTS[preset]
    if preset == "lavida-full":
        assert toy == 5 * 169
    else:
        assert toy == (None if full is None else full // 4)


@pytest.mark.parametrize(
    ("preset", "overrides", "named"),
    [
        ("shirg", {"selection_budget": 1025}, ("1025", "1024")),
        ("shirg", {"selection_budget": 0}, ("selection_budget=0", "1024")),
        ("shirg", {"fovea_size": None}, ("foveal", "None")),
        ("shirg", {"fovea_size": 13}, ("13", "14")),
        ("shirg", {"fovea_size": 16 * 384 + 1}, ("6145", "6144")),
        ("shirg", {"pooled_grid_size": 28}, ("28", "27")),
        ("shirg", {"image_grid_pinpoints": [[768, 768]]}, ("foveal", "768")),
        ("shirg", {"selection_method": "none"}, ("'none'", "'shirg'")),
        ("shirg", {"selection_method": "best"}, ("best", "from_preset")),
        ("shirg", {"view_policy": "anyres"}, ("anyres", "448")),
        ("shirg", {"selection_temperature": 0.0}, ("selection_temperature=0.0",)),
        ("shirg", {"selection_seed": -1}, ("selection_seed=-1",)),
        ("shirg", {"attention_weight": float("nan")}, ("attention_weight", "nan")),
        ("shirg", {"vision_feature_layer": -28}, ("-28", "27")),
        ("shirg", {"prune_method": "shrig"}, ("shrig", "Did you mean 'shirg'?")),
        ("shirg", {"selction_budget": 724}, ("selction_budget", "Did you mean 'selection_budget'?")),
        ("shirg", {"image_token_id": 126336}, ("image_token_id", "126336", "differ")),
        ("shirg", {"image_token_id": 999_999}, ("image_token_id", "999999", "126464")),
        ("shirg", {"eos_token_id": -1}, ("eos_token_id=-1",)),
        ("shirg", {"text_config": {"vocab_size": 600}}, ("126349", "600")),
        ("shirg", {"vision_config": {"hidden_size": 0}}, ("vision_config.hidden_size=0",)),
        ("shirg", {"text_relevance": "siglip"}, ("no relevance_text_config", "--text_tower")),
        ("lavida", {"view_policy": "pad"}, ("pad", "768")),
        ("lavida", {"view_policy": "foveal", "fovea_size": 448, "image_grid_pinpoints": None}, ("foveal", "anyres")),
        ("lavida", {"patch_merge_type": "flat"}, ("'flat'", "spatial_unpad")),
        ("lavida", {"selection_method": "shirg", "selection_budget": 10}, ("'none'", "'shirg'")),
        ("lavida", {"view_policy": "square", "image_grid_pinpoints": None, "fovea_size": 448}, ("square", "448")),
        ("lavida-980", {"selection_budget": 980}, ("none", "980")),
        ("saint", {"selection_budget": 981}, ("981", "multiple of 5", "3645")),
        ("saint", {"selection_budget": 3650}, ("3650", "3645")),
        ("saint", {"scaffold": True}, ("scaffold=False", "True")),
        ("topv", {"pooled_grid_size": 14}, ("pooled_grid_size=None", "14")),
        ("shirg-fixed", {"pooled_grid_size": None}, ("scaffold=True", "pooled_grid_size")),
        ("shirg-mixed", {"selection_budget": 2305}, ("2305", "2304")),
        ("shirg-mixed", {"fovea_size": None}, ("whole", "None")),
        ("shirg-adaptive", {"selection_mass": 0.0}, ("selection_mass=0.0",)),
        ("siglip-672", {"selection_budget": 2000}, ("2304", "2000")),
        ("pool", {"selection_budget": 783}, ("pool", "783")),
    ],
)
def test_wrong_combinations_name_the_values(preset, overrides, named):
    with pytest.raises((ValueError, StrictDataclassError)) as raised:
        ShirgLavidaConfig.from_preset(preset, **overrides)
    assert all(value in str(raised.value) for value in named), str(raised.value)


@pytest.mark.parametrize(
    ("preset", "overrides", "count"),
    [
        ("shirg", {"scaffold": False}, 724),
        ("shirg", {"diversity_weight": 0}, 980),
        ("shirg", {"text_relevance": "none"}, 980),
        *(("shirg", {"selection_budget": budget}, 256 + budget) for budget in (410, 784, 820)),
        ("shirg", {"fovea_size": 512}, 980),
        # The papers' setting.
        *((name, {"selection_budget": 1200}, 1200) for name in ("saint", "topv")),
    ],
)
def test_ablation_switches(preset, overrides, count):
    assert ShirgLavidaConfig.from_preset(preset, **overrides).num_image_tokens == count


def test_every_preset_has_a_method_of_the_registry():
    methods = {ShirgLavidaConfig.from_preset(name).selection_method for name in PRESETS}
    assert methods == {*METHODS, "none", "pool"}


def test_an_original_checkpoint_is_told_to_convert(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llava_llada", "d_model": 64}')
    for auto in (ShirgLavidaConfig, AutoConfig, AutoModel, AutoModelForImageTextToText):
        with pytest.raises(ValueError, match="shirg convert SRC OUT"):
            auto.from_pretrained(tmp_path)


def test_a_misspelled_name_suggests_the_nearest(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no field 'prune_metod'. Did you mean 'prune_method'"):
        ShirgLavidaConfig.from_pretrained(tmp_path, prune_metod="shirg-v1")
    with pytest.raises(ValueError, match="'shrig'. Did you mean 'shirg'.*shirg-784"):
        ShirgLavidaConfig.from_pretrained(tmp_path, prune_method="shrig")


def test_save_and_load_keep_every_field(tmp_path):
    config = tiny_config("shirg-v1", selection_seed=7, fovea_placement="salient", lavida_views=VIEWS)
    config.save_pretrained(tmp_path)
    assert ShirgLavidaConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_switching_presets_leaves_nothing_behind():
    config = tiny_config("shirg")
    there_and_back = config.with_preset("lavida-full").with_preset("pool").with_preset("shirg")
    assert there_and_back.to_dict() == config.to_dict()


VIEWS = {"view_policy": "square", "image_grid_pinpoints": None, "pooled_grid_size": None}


def test_preset_lavida_restores_the_views_of_training(tmp_path):
    config = tiny_config("shirg", lavida_views=VIEWS)
    config.save_pretrained(tmp_path)
    lavida = ShirgLavidaConfig.from_pretrained(tmp_path, prune_method="lavida")
    assert {name: getattr(lavida, name) for name in VIEWS} == VIEWS
    assert lavida.to_dict() == tiny_config("lavida", lavida_views=VIEWS).to_dict()
    assert lavida.with_preset("shirg").to_dict() == config.to_dict()
    assert config.with_preset("lavida-980").view_policy == "anyres"


def test_language_model_is_always_bidirectional():
    assert ShirgLavidaConfig.from_preset("shirg", text_config={"is_causal": True}).text_config.is_causal is False
