"""The systems of this package as data: one row per `--prune_method`. Imports the standard library only."""

from collections.abc import Iterable
from difflib import get_close_matches

# Sides in pixels of the views that belong to one base resolution of the vision tower. `full` is LaViDa's (SigLIP
# so400m at patch 14); `toy` has half of every side, so a quarter of the tokens.
GEOMETRIES = {
    "full": {"image_size": 384, "fovea_size": 448, "whole_size": 672, "canvas": 768},
    "toy": {"image_size": 192, "fovea_size": 224, "whole_size": 336, "canvas": 384},
}

# Fields that every preset sets, so that switching presets never leaves a field of the previous one behind.
_DEFAULTS = {
    "view_policy": "foveal",
    "fovea_size": 448,
    "fovea_placement": "center",
    "scaffold": True,
    "image_grid_pinpoints": None,
    "patch_merge_type": "flat",
    "pooled_grid_size": 16,
    "selection_method": "shirg",
    "selection_budget": 724,
    "attention_weight": 0.5,
    "text_weight": 0.3,
    "diversity_weight": 0.1,
    "coordinate_embedding": False,
}
# All tokens of the whole image and of the tiles of a canvas.
_TILES = {
    "view_policy": "anyres",
    "fovea_size": None,
    "image_grid_pinpoints": [[768, 768]],
    "pooled_grid_size": None,
    "selection_method": "none",
    "selection_budget": None,
}
_POOLED_TILES = {**_TILES, "pooled_grid_size": 14}
_SELECTED_TILES = {**_TILES, "scaffold": False, "selection_budget": 980}
# One view of the whole image, larger than the base view.
_WHOLE = {"view_policy": "whole", "fovea_size": 672, "pooled_grid_size": None, "scaffold": False}
_LAVIDA_CANVASES = [[384, 768], [768, 384], [768, 768], [1152, 384], [384, 1152]]

_PUBLISHED = ("saint", "topv", "visionzip", "vispruner", "divprune", "cdpruner", "holov")

# Values of the full geometry; `preset_fields` scales them to the others.
PRESETS = {
    "shirg": {},
    "shirg-v1": {"attention_weight": 0.7, "text_weight": 0.3, "diversity_weight": 0.0},
    "shirg-784": {"pooled_grid_size": 14, "selection_budget": 784},
    "shirg-salient": {"fovea_placement": "salient"},
    "shirg-adaptive": {"selection_method": "adaptive"},
    "shirg-fixed": {
        **_WHOLE,
        "scaffold": True,
        "pooled_grid_size": 12,
        "selection_method": "fixed",
        "selection_budget": 768,
        "text_weight": 0.7,
        "coordinate_embedding": True,
    },
    "shirg-mixed": {**_WHOLE, "selection_method": "mixed", "selection_budget": 768, "text_weight": 1 / 3},
    "shirg-3645": _SELECTED_TILES | {"selection_method": "shirg"},
    "siglip-672": {**_WHOLE, "selection_method": "none", "selection_budget": 2304},
    "random": {"selection_method": "random"},
    "uniform": {"selection_method": "uniform"},
    "pool": {"selection_method": "pool", "pooled_grid_size": 14, "selection_budget": 784},
    "lavida": {**_POOLED_TILES, "image_grid_pinpoints": _LAVIDA_CANVASES, "patch_merge_type": "spatial_unpad"},
    "lavida-980": _POOLED_TILES,
    "lavida-full": _TILES,
    **{name: {**_SELECTED_TILES, "selection_method": name} for name in _PUBLISHED},
}


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`" Did you mean 'shirg'?"` with the known name nearest to `name`; empty if none is near."""
    return "".join(f" Did you mean {match!r}?" for match in get_close_matches(name, known, n=1, cutoff=cutoff))


def preset_fields(name: str, geometry: str) -> dict:
    """Config fields of preset `name` at `geometry` (a key of `GEOMETRIES`).

    Raises:
        ValueError: an unknown name or geometry; the message lists the known ones.
    """
    if name not in PRESETS:
        known = ", ".join(sorted(PRESETS))
        raise ValueError(f"Unknown prune_method {name!r}.{did_you_mean(name, PRESETS)} Known methods: {known}.")
    if geometry not in GEOMETRIES:
        raise ValueError(f"Unknown geometry {geometry!r}. Known geometries: {', '.join(GEOMETRIES)}.")
    divisor = GEOMETRIES["full"]["image_size"] // GEOMETRIES[geometry]["image_size"]

    def scaled(value, by):
        if isinstance(value, list):
            return [scaled(item, by) for item in value]
        return None if value is None else value // by

    fields = {"prune_method": name, **_DEFAULTS, **PRESETS[name]}
    for side in ("fovea_size", "pooled_grid_size", "image_grid_pinpoints"):
        fields[side] = scaled(fields[side], divisor)
    return {**fields, "selection_budget": scaled(fields["selection_budget"], divisor**2)}


def geometry_of(image_size: int) -> str:
    """Name of the geometry whose base view is `image_size` pixels wide."""
    known = {sides["image_size"]: name for name, sides in GEOMETRIES.items()}
    if image_size not in known:
        raise ValueError(
            f"No preset geometry has a base view of {image_size} pixels (known: {', '.join(map(str, known))}): set "
            "the fields of ShirgLavidaConfig one by one."
        )
    return known[image_size]
