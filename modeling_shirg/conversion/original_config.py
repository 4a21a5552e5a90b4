"""LaViDa's own config.json, read: which checkpoints this package can compute, and what their fields are called here.

LaViDa's config class completes a file with LLaDA's defaults, which are those of another architecture; a field that is
missing here is read with that default too.
"""

import ast
import json
import math
from typing import Any

from configuration_shirg.geometry_shirg import grid_side
from configuration_shirg.presets_shirg import GEOMETRIES

from .safetensors_stream import StoredTensor
from .source import Source

MODEL_TYPE = "llava_llada"
TOWER = "model.vision_tower.vision_tower.vision_model."

# Field -> (values whose function this package computes, what a missing field means to the original).
_SUPPORTED: dict[str, tuple[tuple, Any]] = {
    "block_type": (("llama",), "sequential"),
    "block_group_size": ((1,), 1),
    "activation_type": (("silu",), "swiglu"),
    "rope": ((True,), False),
    "rope_full_precision": ((True,), True),
    "alibi": ((False,), False),
    "layer_norm_type": (("rms",), "default"),
    "layer_norm_with_affine": ((True,), True),
    "attention_layer_norm": ((False,), False),
    "input_emb_norm": ((False,), False),
    "include_bias": ((False,), False),
    "include_qkv_bias": ((False, None), False),
    "bias_for_layer_norm": ((False, None), None),
    "scale_logits": ((False,), False),
    "mm_projector_type": (("mlp2x_gelu",), "linear"),
    "mm_resampler_type": ((None,), None),
    "mm_patch_merge_type": (("spatial_unpad",), "flat"),
    "image_aspect_ratio": (("anyres", "pad", "square", None), None),
    "mm_spatial_pool_mode": (("bilinear",), "bilinear"),
    "mm_use_im_start_end": ((False,), False),
    "mm_use_im_patch_token": ((False,), False),
    "add_faster_video": ((False,), False),
}
_NEEDED = ("d_model", "n_layers", "n_heads", "eos_token_id")
# The original pools by this factor wherever it pools; no config field changes it.
_POOL_STRIDE = 2
# The heads of the one SigLIP that LaViDa is made of (so400m), by its width.
_KNOWN_HEADS = {1152: 16}
# The layers that LaViDa kept of it, by its width.
_KNOWN_LAYERS = {1152: 26}


def check_original(config: dict) -> None:
    """One error for everything in an original config that this package does not compute.

    Raises:
        ValueError: the model type or settings are not supported; the message lists all of them.
    """
    if config.get("model_type") != MODEL_TYPE:
        converted = " It is converted already." if config.get("model_type") == "shirg_lavida" else ""
        raise ValueError(
            f"The source has model_type {config.get('model_type')!r}, LaViDa's checkpoints on LLaDA have "
            f"{MODEL_TYPE!r}.{converted}"
        )
    problems = [f"{name} is missing" for name in _NEEDED if config.get(name) is None]
    for name, (supported, default) in _SUPPORTED.items():
        value = config.get(name, default)
        if value not in supported:
            missing = "" if name in config else " (missing, the original's default)"
            problems.append(f"{name}={value!r}{missing}, supported: {' or '.join(map(repr, supported))}")
    if _vocabulary(config) is None:
        problems.append("embedding_size and vocab_size are missing")
    for name in ("d_model", "n_layers", "n_heads"):
        value = config.get(name)
        if value is not None and (not isinstance(value, int) or value < 1):
            problems.append(f"{name}={value!r}, it must be a whole number of at least 1")
    theta = config.get("rope_theta")
    if theta is not None and (isinstance(theta, bool) or not isinstance(theta, int | float) or theta <= 0):
        problems.append(f"rope_theta={theta!r}, it must be a number above 0")
    problems += _pinpoint_problems(config)
    if problems:
        raise ValueError(
            f"The source's config has {len(problems)} settings that cannot be converted:\n  " + "\n  ".join(problems)
        )


def text_fields(config: dict) -> dict:
    """Fields of the language model's config. No pad_token_id: the padding token's embedding trains like any other."""
    heads = config["n_heads"]
    key_value_heads = config.get("n_kv_heads")
    if key_value_heads is None:
        key_value_heads = 1 if config.get("multi_query_attention") else heads
    hidden = config.get("mlp_hidden_size")
    return {
        "hidden_size": config["d_model"],
        "num_hidden_layers": config["n_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "intermediate_size": config.get("mlp_ratio", 4) * config["d_model"] if hidden is None else hidden,
        "vocab_size": _vocabulary(config),
        "max_position_embeddings": config.get("max_sequence_length", 1024),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-5),
        "rope_parameters": {"rope_type": "default", "rope_theta": config.get("rope_theta") or 10000.0},
        "tie_word_embeddings": config.get("weight_tying", True),
    }


def vision_fields(tensors: dict[str, StoredTensor]) -> dict:
    """Sizes of the vision tower as far as the tensors tell them; `num_hidden_layers` are the layers that were kept.

    The image size is the geometry's whose grid the position table has.

    Raises:
        ValueError: the tensors that tell the sizes are missing, or the position table is no square.
    """
    names = ("embeddings.patch_embedding.weight", "embeddings.position_embedding.weight")
    of_layers = [name[len(TOWER) :] for name in tensors if name.startswith(TOWER + "encoder.layers.")]
    names += (
        next((name for name in of_layers if name.endswith(".mlp.fc1.weight")), "encoder.layers.0.mlp.fc1.weight"),
    )
    missing = [TOWER + name for name in names if TOWER + name not in tensors]
    if missing:
        raise ValueError(f"The source holds no vision tower: {', '.join(missing)} missing. Convert a full checkpoint.")
    patches, positions, mlp = (tensors[TOWER + name].shape for name in names)
    if len(patches) != 4 or 0 in patches or len(mlp) != 2:
        raise ValueError(
            f"The vision tower's tensors are misshapen: {TOWER}{names[0]} is {list(patches)}, {TOWER}{names[2]} is "
            f"{list(mlp)}."
        )
    # The deepest layer there is: a layer that is missing below it is listed as missing.
    layers = max(int(name.split(".")[2]) for name in of_layers) + 1
    grid, patch = math.isqrt(positions[0]), patches[-1]
    if grid * grid != positions[0]:
        raise ValueError(f"{TOWER}{names[1]} has {positions[0]} positions, which is no square grid.")
    sizes = [geometry["image_size"] for geometry in GEOMETRIES.values()]
    image_size = next((size for size in sizes if grid_side(size, patch) == grid), grid * patch)
    return {
        "hidden_size": patches[0],
        "intermediate_size": mlp[0],
        "num_hidden_layers": max(layers, _KNOWN_LAYERS.get(patches[0], 0)),
        "image_size": image_size,
        "patch_size": patch,
        "num_channels": patches[1],
    }


def attention_heads(hidden_size: int, source: Source, config: dict) -> int:
    """Heads of the vision tower, which no tensor tells: the known SigLIP's, or those in the config of the folder that
    `mm_vision_tower` names, in the source or beside it.

    Raises:
        ValueError: the width is not a known SigLIP's, and no such folder is there.
    """
    if hidden_size in _KNOWN_HEADS:
        return _KNOWN_HEADS[hidden_size]
    named = str(config.get("mm_vision_tower") or "")
    for folder in (source.folder / named, source.folder.resolve().parent / named):
        if named and (folder / "config.json").is_file():
            tower = json.loads((folder / "config.json").read_text())
            heads = tower.get("vision_config", tower).get("num_attention_heads")
            if isinstance(heads, int) and heads > 0 and hidden_size % heads == 0:
                return heads
    raise ValueError(
        f"The number of attention heads of a vision tower of width {hidden_size} is not in the checkpoint "
        f"(known: {', '.join(f'width {width}: {heads}' for width, heads in _KNOWN_HEADS.items())}). Pass "
        f"--vision_base with the SigLIP it was trained from, or put the folder {named!r} that mm_vision_tower names "
        "beside the source."
    )


def view_fields(config: dict, base_grid: int, pooled_grid_size: int | None) -> dict:
    """How the original looks at an image, as `lavida_views` of this package's config.

    Args:
        config: the original config.
        base_grid: patches per side of a view.
        pooled_grid_size: grid of a single view after pooling, 0 for none. Whether the original pools is an environment
            variable, so only the user knows; `None` pools as the original does by default.
    """
    pooled = math.ceil(base_grid / _POOL_STRIDE)
    aspect = config.get("image_aspect_ratio")
    if aspect == "anyres":
        if pooled_grid_size not in (None, pooled):
            raise ValueError(
                f"pooled_grid_size={pooled_grid_size} is for single-view checkpoints; this one has "
                f"image_aspect_ratio='anyres', which LaViDa trained with views pooled to {pooled}x{pooled}."
            )
        return {"view_policy": "anyres", "image_grid_pinpoints": _pinpoints(config), "pooled_grid_size": pooled}
    grid = pooled if pooled_grid_size is None else pooled_grid_size or None
    return {
        "view_policy": "pad" if aspect == "pad" else "square",
        "image_grid_pinpoints": None,
        "pooled_grid_size": grid,
    }


def _vocabulary(config: dict) -> int | None:
    size = config.get("embedding_size")
    return config.get("vocab_size") if size is None else size


def _pinpoints(config: dict) -> list[list[int]]:
    """The canvases as lists; the original also writes them as a Python literal."""
    value = config.get("image_grid_pinpoints")
    if isinstance(value, str):
        value = ast.literal_eval(value)
    return [list(canvas) for canvas in value]


def _pinpoint_problems(config: dict) -> list[str]:
    if config.get("image_aspect_ratio") != "anyres":
        return []
    need = "a list of (width, height)"
    try:
        canvases = _pinpoints(config)
    except (ValueError, SyntaxError, TypeError):
        return [f"image_grid_pinpoints={config.get('image_grid_pinpoints')!r}, supported: {need}"]
    if not canvases or not all(len(canvas) == 2 for canvas in canvases):
        return [f"image_grid_pinpoints={canvases!r}, supported: {need}"]
    return []
