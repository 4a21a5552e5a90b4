"""Which stored tensor becomes which tensor of the model; everything is checked before anything is written."""

import torch

from configuration_shirg import ShirgLavidaConfig
from modeling_shirg import ShirgLavidaForConditionalGeneration

from .original_config import TOWER
from .safetensors_stream import CODES, StoredTensor
from .source import listed
from .vision_base import TEXT_PREFIX

FOVEAL = "model.vision_tower.foveal_position_embedding.weight"
COORDINATES = "model.coordinate_embedding."
BASE_POSITIONS = "model.vision_tower.vision_model.embeddings.position_embedding.weight"

_VISION = "model.vision_tower.vision_model."
_TEXT_TOWER = "model.relevance_text_model."
_LAYERS = "model.language_model.layers."
# Prefixes here -> there. The language model's layers have names of their own, below.
_PREFIXES = {
    "model.language_model.embed_tokens.": "model.transformer.wte.",
    "model.language_model.norm.": "model.transformer.ln_f.",
    "lm_head.": "model.transformer.ff_out.",
    "model.multi_modal_projector.linear_1.": "model.mm_projector.0.",
    "model.multi_modal_projector.linear_2.": "model.mm_projector.2.",
    "model.image_newline": "model.image_newline",
    _VISION: TOWER,
}
_LAYER_PARTS = {
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
}


def empty_model(config: ShirgLavidaConfig) -> ShirgLavidaForConditionalGeneration:
    """The model of `config` without storage: its names, shapes and code."""
    with torch.device("meta"):
        return ShirgLavidaForConditionalGeneration(config)


def expected_shapes(model: ShirgLavidaForConditionalGeneration) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a saved `model` holds: tied ones once."""
    tied = set(model.all_tied_weights_keys)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}


def original_name(name: str) -> str:
    """The original's name of a tensor of this package's model."""
    if name.startswith(_LAYERS):
        index, rest = name.removeprefix(_LAYERS).split(".", 1)
        part, kind = rest.rsplit(".", 1)
        return f"model.transformer.blocks.{index}.{_LAYER_PARTS[part]}.{kind}"
    here = next(prefix for prefix in _PREFIXES if name.startswith(prefix))
    return _PREFIXES[here] + name.removeprefix(here)


def grafted_part(name: str, kept_layers: int) -> str | None:
    """SigLIP's own name of a tensor that LaViDa does not have: of the layer after the kept ones, the head, or the text
    tower.
    """
    if name.startswith(_TEXT_TOWER):
        return TEXT_PREFIX + name.removeprefix(_TEXT_TOWER)
    if not name.startswith((f"{_VISION}encoder.layers.{kept_layers}.", f"{_VISION}head.")):
        return None
    return name.removeprefix(_VISION)


def match_tensors(
    expected: dict[str, tuple[int, ...]],
    original: dict[str, StoredTensor],
    base: dict[str, StoredTensor],
    kept_layers: int,
) -> dict[str, StoredTensor]:
    """The stored tensor of every expected name but `FOVEAL` and those of `COORDINATES`, which no source holds.

    Args:
        expected: names and shapes of the model.
        original: tensors of the LaViDa checkpoint.
        base: tensors of SigLIP's vision tower under its own names, without a prefix, and those of its text tower under
            `TEXT_PREFIX`; empty without a base.
        kept_layers: layers of the vision tower that the LaViDa checkpoint holds.

    Raises:
        ValueError: tensors are missing, unknown, misshapen or of a dtype that is not read; all in one message.
    """
    found: dict[str, StoredTensor] = {}
    missing, misshapen = [], []
    used, grafted = set(), set()
    for name, shape in expected.items():
        if name == FOVEAL or name.startswith(COORDINATES):
            continue
        part = grafted_part(name, kept_layers)
        where, stored_name = (base, part) if part is not None else (original, original_name(name))
        label = stored_name if part is None else f"{stored_name} (of the vision base)"
        (used if part is None else grafted).add(stored_name)
        tensor = where.get(stored_name)
        if tensor is None:
            missing.append(label)
        elif tensor.shape != shape:
            misshapen.append(f"{label} is {list(tensor.shape)}, the config needs {list(shape)}")
        elif tensor.code not in CODES:
            misshapen.append(f"{label} is stored as {tensor.code}, readable are {', '.join(CODES)}")
        else:
            found[name] = tensor
    if "lm_head.weight" not in expected:  # tied: the original may write the embedding a second time
        used.add("model.transformer.ff_out.weight")
    unknown = [name for name in original if name not in used]
    # Of the vision tower one layer and the head are taken, of the text tower everything.
    left = [name for name in base if name.startswith(TEXT_PREFIX) and name not in grafted]
    unknown += [f"{name} (of the vision base)" for name in left]
    if missing or unknown or misshapen:
        raise ValueError(
            "The checkpoint does not fit its config; nothing was written."
            + listed("missing", missing)
            + listed("unknown", unknown)
            + listed("misshapen", misshapen)
            + "\nIs the download complete, and does config.json belong to these weights?"
        )
    return found
