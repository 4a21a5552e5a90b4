"""Which stored tensor becomes which tensor of the model, and how they are written, one shard at a time."""

from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from tqdm.auto import tqdm

from configuration_shirg import ShirgLavidaConfig
from modeling_shirg import ShirgLavidaForConditionalGeneration
from modeling_shirg.publishing.checkpoint import FLOAT_TYPES
from modeling_shirg.running.files import write_json

from .source import INDEX, StoredTensor
from .vision_base import OF_BASE, TEXT_PREFIX

_VISION = "model.vision_tower.vision_model."
_TEXT_TOWER = "model.relevance_text_model."
_LAYERS = "model.language_model.layers."
# Most entries of a list in an error.
_LISTED = 100


def empty_model(config: ShirgLavidaConfig) -> ShirgLavidaForConditionalGeneration:
    """The model of `config` without storage: its names, shapes and code."""
    with torch.device("meta"):
        return ShirgLavidaForConditionalGeneration(config)


def expected_shapes(model: ShirgLavidaForConditionalGeneration) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a saved `model` holds: tied ones once."""
    tied = set(model.all_tied_weights_keys)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}


def original_name(name: str, backbone: dict) -> str:
    """The original's name of a tensor of this package's model."""
    table = backbone["tensors"]
    if name.startswith(_LAYERS):
        number, rest = name.removeprefix(_LAYERS).split(".", 1)
        part, kind = rest.rsplit(".", 1)
        return f"{table['layer'].format(number)}{table['layer_parts'].get(part, part)}.{kind}"
    here = next(prefix for prefix in table["prefixes"] if name.startswith(prefix))
    return table["prefixes"][here] + name.removeprefix(here)


def grafted_part(name: str, kept_layers: int) -> str | None:
    """SigLIP's own name of a tensor that LaViDa lacks: of the layer after the kept ones, the head, the text tower."""
    if name.startswith(_TEXT_TOWER):
        return TEXT_PREFIX + name.removeprefix(_TEXT_TOWER)
    of_base = name.startswith((f"{_VISION}encoder.layers.{kept_layers}.", f"{_VISION}head."))
    return name.removeprefix(_VISION) if of_base else None


def match_tensors(
    expected: dict[str, tuple[int, ...]], stored: dict[str, StoredTensor], kept_layers: int, backbone: dict
) -> dict[str, StoredTensor]:
    """The stored tensor of every expected name.

    Args:
        expected: names and shapes of the model.
        stored: tensors of the LaViDa checkpoint, and of the vision base under SigLIP's own names and `OF_BASE`.
        kept_layers: layers of the vision tower that the LaViDa checkpoint holds.
        backbone: of the checkpoint.

    Raises:
        ValueError: tensors are missing, unknown, misshapen or of a type that is not read; all in one message.
    """
    labels = {}
    for name in expected:
        part = grafted_part(name, kept_layers)
        labels[name] = original_name(name, backbone) if part is None else part + OF_BASE
    missing = [label for label in labels.values() if label not in stored]
    matched = {name: stored[label] for name, label in labels.items() if label in stored}
    misshapen = [
        f"{labels[name]} is {tensor.code} {list(tensor.shape)}, the config needs {list(expected[name])}"
        for name, tensor in matched.items()
        if tensor.shape != expected[name] or tensor.code not in FLOAT_TYPES
    ]
    # A tied head may be written a second time. Of SigLIP's vision tower one layer and the head are taken.
    used = {*labels.values(), *(() if "lm_head.weight" in expected else [original_name("lm_head.weight", backbone)])}
    unknown = [name for name in stored if name not in used and (OF_BASE not in name or name.startswith(TEXT_PREFIX))]
    if missing or unknown or misshapen:
        raise ValueError(
            "The checkpoint does not fit its config; nothing was written."
            + _listed("missing", missing)
            + _listed("unknown", unknown)
            + _listed("misshapen", misshapen)
            + "\nIs the download complete, and does config.json belong to these weights?"
        )
    return matched


def write_shards(
    folder: Path,
    tensors: Mapping[str, StoredTensor | torch.Tensor],
    dtypes: Mapping[str, torch.dtype],
    max_shard_size: str,
) -> tuple[int, int]:
    """Write safetensors files as `save_pretrained` names them, with an index if there are several.

    Returns the number of files and the bytes of all tensors.
    """
    empty = {name: torch.empty(tensor.shape, dtype=dtypes[name], device="meta") for name, tensor in tensors.items()}
    split = split_torch_state_dict_into_shards(empty, max_shard_size=max_shard_size)
    for file, names in tqdm(split.filename_to_tensors.items(), desc="Writing"):
        shard = {name: _converted(name, tensors[name], dtypes[name]) for name in names}
        save_file(shard, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        write_json(folder / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})
    return len(split.filename_to_tensors), split.metadata["total_size"]


def _converted(name: str, stored: StoredTensor | torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    tensor = stored.load() if isinstance(stored, StoredTensor) else stored
    converted = tensor.to(dtype)
    if dtype is torch.float16 and bool((converted.isinf() & ~tensor.isinf()).any()):
        raise ValueError(
            f"{name} holds values up to {tensor.abs().max().item():g}, float16 ends at {torch.finfo(dtype).max:g}: "
            "choose --dtype bfloat16 or float32."
        )
    return converted


def _listed(what: str, entries: list[str]) -> str:
    """The lines of an error that count and name `entries`, the first hundred of them; empty without any."""
    more = [f"and {len(entries) - _LISTED} more"] if len(entries) > _LISTED else []
    return f"\n{len(entries)} {what}:\n  " + "\n  ".join(entries[:_LISTED] + more) if entries else ""
