"""The systems of this package as data: one row per `--prune_method`, one column set per geometry.

A *geometry* is the set of view sizes and token counts that belong to one base resolution of the vision tower. `full`
is LaViDa's (SigLIP so400m at 384 pixels, patch 14), `toy` is its quarter: same ratios, a quarter of the tokens.
"""

from difflib import get_close_matches

GEOMETRIES = {
    "full": {
        "image_size": 384,
        "fovea_size": 448,
        "canvas": 768,
        "pinpoints": [[384, 768], [768, 384], [768, 768], [1152, 384], [384, 1152]],
        "global_grid": 16,
        "tile_grid": 14,
        "budget": 724,
        "wide_budget": 784,
        "whole_size": 672,
        "whole_tokens": 2304,
        "scaffold_grid": 12,
        "fixed_budget": 768,
        "mixed_budget": 768,
        "tiles_budget": 980,
    },
    "toy": {
        "image_size": 192,
        "fovea_size": 224,
        "canvas": 384,
        "pinpoints": [[192, 384], [384, 192], [384, 384], [576, 192], [192, 576]],
        "global_grid": 8,
        "tile_grid": 7,
        "budget": 181,
        "wide_budget": 196,
        "whole_size": 336,
        "whole_tokens": 576,
        "scaffold_grid": 6,
        "fixed_budget": 192,
        "mixed_budget": 192,
        "tiles_budget": 245,
    },
}

# Fields that every preset sets, so that switching presets never leaves a field of the previous one behind.
_DEFAULTS = {
    "view_policy": "foveal",
    "fovea_size": "@fovea_size",
    "fovea_placement": "center",
    "scaffold": True,
    "image_grid_pinpoints": None,
    "patch_merge_type": "flat",
    "pooled_grid_size": "@global_grid",
    "selection_method": "shirg",
    "selection_budget": "@budget",
    "attention_weight": 0.5,
    "text_weight": 0.3,
    "diversity_weight": 0.1,
    "coordinate_embedding": False,
}
_TILES = {
    "view_policy": "anyres",
    "fovea_size": None,
    "image_grid_pinpoints": [["@canvas", "@canvas"]],
    "selection_method": "none",
    "selection_budget": None,
}

# Every token of the five views, to choose from.
_TILES_SELECTED = {**_TILES, "pooled_grid_size": None, "scaffold": False, "selection_budget": "@tiles_budget"}
# One view of the whole image, larger than the base view.
_WHOLE = {"view_policy": "whole", "fovea_size": "@whole_size", "pooled_grid_size": None, "scaffold": False}

# "@name" stands for the geometry's value of that name.
PRESETS = {
    "shirg": {},
    "shirg-v1": {"attention_weight": 0.7, "text_weight": 0.3, "diversity_weight": 0.0},
    "shirg-784": {"pooled_grid_size": "@tile_grid", "selection_budget": "@wide_budget"},
    "shirg-salient": {"fovea_placement": "salient"},
    "shirg-adaptive": {"selection_method": "adaptive"},
    "shirg-fixed": {
        **_WHOLE,
        "scaffold": True,
        "pooled_grid_size": "@scaffold_grid",
        "selection_method": "fixed",
        "selection_budget": "@fixed_budget",
        "text_weight": 0.7,
        "coordinate_embedding": True,
    },
    "shirg-mixed": {
        **_WHOLE,
        "selection_method": "mixed",
        "selection_budget": "@mixed_budget",
        "text_weight": 1 / 3,
    },
    "shirg-3645": {**_TILES_SELECTED, "selection_method": "shirg"},
    "siglip-672": {**_WHOLE, "selection_method": "none", "selection_budget": "@whole_tokens"},
    "random": {"selection_method": "random"},
    "uniform": {"selection_method": "uniform"},
    "pool": {"selection_method": "pool", "pooled_grid_size": "@tile_grid", "selection_budget": "@wide_budget"},
    "lavida": {
        **_TILES,
        "image_grid_pinpoints": "@pinpoints",
        "patch_merge_type": "spatial_unpad",
        "pooled_grid_size": "@tile_grid",
    },
    "lavida-980": {**_TILES, "pooled_grid_size": "@tile_grid"},
    "lavida-full": {**_TILES, "pooled_grid_size": None},
    **{
        name: {**_TILES_SELECTED, "selection_method": name}
        for name in ("saint", "topv", "visionzip", "vispruner", "divprune", "cdpruner", "holov")
    },
}


def preset_fields(name: str, geometry: str) -> dict:
    """Config fields of preset `name` at `geometry` (a key of `GEOMETRIES`).

    Raises:
        ValueError: the name or the geometry is unknown; the message lists the known ones.
    """
    if name not in PRESETS:
        nearest = "".join(f" Did you mean {match!r}?" for match in get_close_matches(name, PRESETS, n=1))
        raise ValueError(f"Unknown prune_method {name!r}.{nearest} Known methods: {', '.join(sorted(PRESETS))}.")
    if geometry not in GEOMETRIES:
        raise ValueError(f"Unknown geometry {geometry!r}. Known geometries: {', '.join(GEOMETRIES)}.")
    values = GEOMETRIES[geometry]

    def resolve(value):
        if isinstance(value, list):
            return [resolve(item) for item in value]
        return resolve(values[value[1:]]) if isinstance(value, str) and value.startswith("@") else value

    return {"prune_method": name, **{key: resolve(value) for key, value in {**_DEFAULTS, **PRESETS[name]}.items()}}


def geometry_of(image_size: int) -> str:
    """Name of the geometry whose base view is `image_size` pixels wide."""
    for name, values in GEOMETRIES.items():
        if values["image_size"] == image_size:
            return name
    known = ", ".join(f"{values['image_size']} ({name})" for name, values in GEOMETRIES.items())
    raise ValueError(
        f"No preset geometry has a base view of {image_size} pixels. Known base views: {known}. "
        "Set the fields of ShirgLavidaConfig one by one for another geometry."
    )
