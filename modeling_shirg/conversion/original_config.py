"""LaViDa's own config.json: which checkpoints this package can compute, and the names of their fields here."""

import ast
import math
from importlib.resources import files

import yaml

from configuration_shirg.geometry_shirg import grid_side
from configuration_shirg.presets_shirg import GEOMETRIES

from .source import StoredTensor

TOWER = "model.vision_tower.vision_tower.vision_model."
# Heads and kept layers of the one SigLIP that LaViDa is made of (so400m), by its width; no tensor tells the heads.
KNOWN_TOWERS = {1152: (16, 26)}
# The original pools by this factor wherever it pools; no config field changes it.
_POOL_STRIDE = 2
_BACKBONES = files(__package__) / "backbones"


def read_backbone(model_type: str) -> dict[str, dict]:
    """The tables of `backbones/{model_type}.yaml`."""
    return yaml.safe_load((_BACKBONES / f"{model_type}.yaml").read_text(encoding="utf-8"))


def check_original(config: dict) -> dict[str, dict]:
    """The tables of an original config's backbone.

    Raises:
        ValueError: the model type or settings are not supported; the message lists all of them.
    """
    model_type, known = config.get("model_type"), sorted(file.name for file in _BACKBONES.iterdir())
    if f"{model_type}.yaml" not in known:
        converted = " It is converted already." if model_type == "shirg_lavida" else ""
        raise ValueError(f"The source has model_type {model_type!r}; there are tables {', '.join(known)}.{converted}")
    backbone = read_backbone(model_type)
    stated = backbone["config"]["stated"]
    default = {name: value for name, value in backbone["config"]["default"].items() if config.get(name) is not None}
    problems = [
        f"{name}={config.get(name)!r}, supported: {value!r}"
        for name, value in {**stated, **default}.items()
        if config.get(name) != value
    ]
    for name, value in text_fields(config, backbone).items():
        if not isinstance(value, int | float) or (value <= 0 and name != "tie_word_embeddings"):
            problems.append(f"{backbone['config']['text'][name][0]}={value!r}, it must be a number above 0")
    if problems:
        raise ValueError(
            f"The source's config has {len(problems)} settings that cannot be converted:\n  " + "\n  ".join(problems)
        )
    return backbone


def text_fields(config: dict, backbone: dict) -> dict:
    """Fields of `text_config`. No pad_token_id: the padding token's embedding trains like any other."""
    fields = {}
    for name, sources in backbone["config"]["text"].items():
        stated = [config[source] for source in sources if config.get(source) is not None]
        fields[name] = stated[0] if stated else backbone["config"]["text_default"].get(name)
    return fields


def vision_fields(tensors: dict[str, StoredTensor]) -> dict:
    """Sizes of the vision tower as far as the tensors tell them; `num_hidden_layers` are the layers that were kept.

    The image size is the geometry's whose grid the position table has.

    Raises:
        ValueError: the tensors that tell the sizes are missing or misshapen.
    """
    of_layers = [name[len(TOWER) :] for name in tensors if name.startswith(TOWER + "encoder.layers.")]
    mlp = next((name for name in of_layers if name.endswith(".mlp.fc1.weight")), "encoder.layers.0.mlp.fc1.weight")
    names = ("embeddings.patch_embedding.weight", "embeddings.position_embedding.weight", mlp)
    shapes = {TOWER + name: tensors[TOWER + name].shape for name in names if TOWER + name in tensors}
    if [len(shape) for shape in shapes.values()] != [4, 2, 2]:
        raise ValueError(f"The source holds no whole vision tower, {names} of {TOWER}: {shapes}.")
    (width, channels, _, patch), (positions, _), (mlp_width, _) = shapes.values()
    grid = math.isqrt(positions)
    sizes = [geometry["image_size"] for geometry in GEOMETRIES.values()]
    # The deepest layer there is: a layer that is missing below it is listed as missing.
    layers = max(int(name.split(".")[2]) for name in of_layers) + 1
    return {
        "hidden_size": width,
        "intermediate_size": mlp_width,
        "num_hidden_layers": max(layers, KNOWN_TOWERS.get(width, (0, 0))[1]),
        "image_size": next((size for size in sizes if grid_side(size, patch) == grid), grid * patch),
        "patch_size": patch,
        "num_channels": channels,
    }


def view_fields(config: dict, base_grid: int, pooled_grid_size: int | None) -> dict:
    """How the original looks at an image, as `lavida_views` of this package's config.

    Args:
        config: the original config.
        base_grid: patches per side of a view.
        pooled_grid_size: grid of a single view after pooling, 0 for none. Whether the original pools is an environment
            variable, so only the user knows; `None` pools as the original does by default.
    """
    pooled, aspect = math.ceil(base_grid / _POOL_STRIDE), config.get("image_aspect_ratio")
    if aspect not in ("anyres", "pad", "square", None):
        raise ValueError(f"image_aspect_ratio={aspect!r}, supported: 'anyres', 'pad' or 'square'.")
    if aspect != "anyres":
        grid = pooled if pooled_grid_size is None else pooled_grid_size or None
        policy = "pad" if aspect == "pad" else "square"
        return {"view_policy": policy, "image_grid_pinpoints": None, "pooled_grid_size": grid}
    if pooled_grid_size not in (None, pooled):
        raise ValueError(
            f"pooled_grid_size={pooled_grid_size} is for single-view checkpoints; this one has "
            f"image_aspect_ratio='anyres', which LaViDa trained with views pooled to {pooled}x{pooled}."
        )
    pinpoints = config.get("image_grid_pinpoints")
    try:
        written = isinstance(pinpoints, str)  # the original also writes them as a Python literal
        canvases = [list(canvas) for canvas in (ast.literal_eval(pinpoints) if written else pinpoints)]
    except (ValueError, SyntaxError, TypeError):
        raise ValueError(f"image_grid_pinpoints={pinpoints!r}, supported: a list of (width, height).") from None
    return {"view_policy": "anyres", "image_grid_pinpoints": canvases, "pooled_grid_size": pooled}
