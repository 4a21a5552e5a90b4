"""Bad and odd configs: every field in its type and in its value, and fields that contradict each other."""

import math
from typing import Any, Literal, get_args, get_origin

from huggingface_hub.errors import StrictDataclassError

from configuration_shirg import PRESETS, ShirgLavidaConfig
from tiny_model import tiny_config

from .case import Case, refused

KIND = "config"
_ERRORS = (ValueError, StrictDataclassError)
# What no field of that type can be.
_WRONG = {
    int: (1.5, "3", [3]),
    float: ("0.5", [0.5], {}),
    str: (3, None, b"shirg"),
    bool: (1, "yes", None),
    list: ("a", 3, {}),
    dict: ("a", 3, [1]),
}
_SUB_CONFIGS = ("vision_config", "text_config")


def build(prune_method: str = "shirg", **fields: Any) -> ShirgLavidaConfig:
    """A tiny model's config with these fields instead of its own."""
    return (
        tiny_config(**{"prune_method": prune_method, **fields})
        if prune_method in PRESETS
        else from_fields(prune_method=prune_method, **fields)
    )


def from_fields(**fields: Any) -> ShirgLavidaConfig:
    """The same from a saved config whose fields were changed by hand."""
    return ShirgLavidaConfig.from_dict({**tiny_config().to_dict(), **fields})


def _kinds(annotation: Any) -> list[Any]:
    """The types that a field may have."""
    if get_origin(annotation) is Literal:
        return [Literal]
    parts = [part for part in get_args(annotation) if get_origin(annotation) not in (list, dict)] or [annotation]
    return [get_origin(part) or part for part in parts]


def _mistyped(name: str, annotation: Any) -> list[Any]:
    """Values that have no type that a field may have."""
    kinds = _kinds(annotation)
    if Literal in kinds:
        return ["nonsense", 3, None]
    values = [value for kind in kinds if kind in _WRONG for value in _WRONG[kind]]
    plain = tuple(kind for kind in kinds if isinstance(kind, type))
    taken = plain + ((int,) if float in plain else ())
    return [value for value in values if not (isinstance(value, taken) and not isinstance(value, bool))]


TYPES = [
    refused(
        KIND,
        f"{name}={value!r}",
        lambda n=name, v=value: from_fields(**{n: v}),
        _ERRORS,
        rf"{name}|vision_config and text_config must be dicts",
    )
    for name, annotation in ShirgLavidaConfig.__annotations__.items()
    for value in _mistyped(name, annotation)
]


def _bad(says: str, **fields: Any) -> Case:
    name = ", ".join(f"{name}={value!r:.60}" for name, value in fields.items())
    return refused(KIND, f"{name} ({says:.40})", lambda: build(**fields), _ERRORS, says)


_FACTS = {"verdict": "", "decided": {}, "held_out": {}, "held_out_corrected": {}, "data": "", "prune_method": "shirg"}
_MAP = {"view_policy": "foveal", "grid": 16, "source": "map", "mean": None, **_FACTS}


def _calibration(relevance: Any = None, attention: Any = None) -> dict[str, Any]:
    return {"relevance": {} if relevance is None else relevance, "attention": [] if attention is None else attention}


VALUES = [
    _bad("Unknown prune_method 'shrig'. Did you mean 'shirg'", prune_method="shrig"),
    _bad("Unknown prune_method ''", prune_method=""),
    _bad("fovea_size from the patch size 14 to 3072 pixels, got fovea_size=3", fovea_size=3),
    _bad("fovea_size=-224", fovea_size=-224),
    _bad("to 3072 pixels, got fovea_size=1000000", fovea_size=1_000_000),
    _bad("fovea_size from the patch size 14 to 3072 pixels, got fovea_size=None", fovea_size=None),
    _bad("pooled_grid_size=14 must be between 1 and the 13 patches", pooled_grid_size=14),
    _bad("pooled_grid_size=0 must be between 1", pooled_grid_size=0),
    *[
        _bad(f"selection_budget={value} must be between 1 and the 256 tokens", selection_budget=value)
        for value in (0, -1, 257, None)
    ],
    *[
        _bad(f"{name}={value} must be a finite number", **{name: value})
        for name in ("attention_weight", "text_weight", "diversity_weight")
        for value in (math.nan, math.inf)
    ],
    *[
        _bad(f"selection_temperature must be > 0, got {value}", selection_temperature=value)
        for value in (0, -1, math.nan)
    ],
    *[
        _bad(f"selection_mass must be above 0 and at most 1, got {value}", selection_mass=value)
        for value in (0, 1.5, math.nan)
    ],
    *[_bad(f"selection_seed={value} must be at least 0 and below", selection_seed=value) for value in (-1, 2**63)],
    *[
        _bad(f"vision_feature_layer={value} must be between -3 and -1", vision_feature_layer=value)
        for value in (0, -4, 2)
    ],
    *[
        _bad(f"{name}={value} must be below text_config.vocab_size=272: set it to the tokenizer's id", **{name: value})
        for name in ("image_token_id", "mask_token_id")
        for value in (-1, 272)
    ],
    *[
        _bad(f"{name}=-1 must be a token id, at least 0", **{name: -1})
        for name in ("infill_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
    ],
    _bad("image_token_id and mask_token_id are both 258: they must differ", image_token_id=258),
    _bad("no field 'selection_buget'", selection_buget=3),
    _bad("no field 'temperature'", temperature=3),
    _bad(
        "No preset geometry has a base view of 100 pixels|has a base view of 192 pixels",
        vision_config={"image_size": 100},
    ),
    *[
        _bad(f"vision_config.{name}={value} must be at least 1", vision_config={"image_size": 192, name: value})
        for name, value in (("hidden_size", 0), ("num_attention_heads", 0), ("patch_size", 0), ("num_channels", -1))
    ],
    *[
        _bad(f"text_config.{name}=0 must be at least 1", text_config={name: 0})
        for name in ("hidden_size", "num_attention_heads", "num_key_value_heads", "vocab_size", "num_hidden_layers")
    ],
    _bad("relevance_text_config.num_attention_heads=0 must", relevance_text_config={"num_attention_heads": 0}),
    _bad("patch_size", vision_config={"patch_size": 999, "hidden_size": 32}),
    _bad(
        "vision_config must be of model_type 'siglip_vision_model', got 'clip_vision_model'",
        vision_config={"model_type": "clip_vision_model", "image_size": 192},
    ),
    _bad("text_config must be of model_type 'llama', got 'gpt2'", text_config={"model_type": "gpt2"}),
    _bad("calibration must be None or have the fields relevance and attention", calibration={"relevance": {}}),
    _bad("needs a dict of relevance and a list of attention", calibration={"relevance": [], "attention": []}),
    _bad("'clip': only 'lm' and 'siglip' have a sign", calibration=_calibration({"clip": {"sign": 1, **_FACTS}})),
    _bad("must have exactly the fields", calibration=_calibration({"lm": {"sign": 1}})),
    _bad("sign must be 1 or -1, got 0.5", calibration=_calibration({"lm": {"sign": 0.5, **_FACTS}})),
    _bad("a whole grid >= 1, got .* 0", calibration=_calibration(None, [{**_MAP, "grid": 0}])),
    _bad(
        "mean needs 256 values, one for each patch, got 2 values",
        calibration=_calibration(None, [{**_MAP, "mean": [1, 2]}]),
    ),
    _bad(
        "every value of mean must be a finite number",
        calibration=_calibration(None, [{**_MAP, "mean": [math.nan] * 256}]),
    ),
    _bad("two means of one attention", calibration=_calibration(None, [_MAP, _MAP])),
    _bad("lavida_views must be None or have exactly the fields", lavida_views={"view_policy": "pad"}),
]

CONTRADICTIONS = [
    _bad(
        "prune_method='shirg' has view_policy='foveal', got 'pad'",
        view_policy="pad",
        fovea_size=None,
        selection_method="none",
        selection_budget=None,
    ),
    _bad("prune_method='shirg' has selection_method='shirg', got 'random'", selection_method="random"),
    _bad("view_policy='foveal' has no tiles, got image_grid_pinpoints", image_grid_pinpoints=[[384, 384]]),
    _bad("view_policy='anyres' has no fovea, got fovea_size=224", prune_method="lavida-980", fovea_size=224),
    _bad("exactly one .width, height.", prune_method="lavida-980", image_grid_pinpoints=[[384, 384], [192, 384]]),
    _bad("384.*700|700", prune_method="lavida-980", image_grid_pinpoints=[[384, 700]]),
    _bad("image_grid_pinpoints", prune_method="lavida-980", image_grid_pinpoints=None),
    _bad("image_grid_pinpoints|pinpoint", prune_method="lavida-980", image_grid_pinpoints=[[384]]),
    _bad("image_grid_pinpoints|pinpoint", prune_method="lavida-980", image_grid_pinpoints=[[0, 0]]),
    _bad("patch_merge_type='flat', got 'spatial_unpad'", patch_merge_type="spatial_unpad"),
    _bad("keeps all 576 tokens, got selection_budget=5", prune_method="siglip-672", selection_budget=5),
    _bad(
        "needs a square selection_budget, got 195; the nearest below is 169", prune_method="pool", selection_budget=195
    ),
    _bad("a multiple of 5, which the views share", prune_method="saint", selection_budget=244),
    _bad("pooled_grid_size=None, scaffold=False", prune_method="saint", scaffold=True),
    _bad("needs pooled_grid_size, got None", prune_method="shirg-fixed", pooled_grid_size=None),
    _bad(
        "attention_source='map' needs SigLIP's pooling head",
        vision_config={"vision_use_head": False, "hidden_size": 32, "num_attention_heads": 2},
    ),
    _bad(
        "attention_source='map' needs SigLIP's pooling head .*choose attention_source='received'",
        vision_feature_layer=-1,
    ),
    _bad("text_relevance='siglip' needs SigLIP's text tower.*--text_tower", text_relevance="siglip"),
]

ODD = [
    Case(KIND, "whole numbers as weights", lambda folder: lambda: build(text_weight=1).text_weight, same_as=lambda: 1),
    Case(
        KIND,
        "saved and read again",
        lambda folder: lambda: from_fields().to_dict(),
        same_as=lambda: tiny_config().to_dict(),
    ),
    Case(
        KIND,
        "the key of another version of transformers",
        lambda folder: lambda: from_fields(torch_dtype="float32").num_image_tokens,
        same_as=lambda: 245,
    ),
]

CASES = [*TYPES, *VALUES, *CONTRADICTIONS, *ODD]
