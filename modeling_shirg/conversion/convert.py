"""Convert an original LaViDa checkpoint to a folder that `from_pretrained` loads, with or without this package.

Headers first: config, names, shapes and types of everything are checked before a byte is written. Then tensors go from
file to file one shard at a time, so memory does not grow with the checkpoint.
"""

from functools import reduce
from math import prod
from pathlib import Path

import torch
from transformers import AddedToken, PreTrainedTokenizerBase
from transformers.dynamic_module_utils import custom_object_save

from configuration_shirg import ShirgLavidaConfig, ShirgLavidaProcessor
from configuration_shirg.geometry_shirg import grid_side
from configuration_shirg.presets_shirg import GEOMETRIES, preset_fields
from modeling_shirg import ShirgGenerationConfig, ShirgLavidaForConditionalGeneration
from modeling_shirg.foveal_selections_shirg import CoordinateEmbedding
from modeling_shirg.published_selections_shirg import METHODS
from modeling_shirg.publishing.cards import MODEL_TAGS, render
from modeling_shirg.publishing.checkpoint import FLOAT_TYPES
from modeling_shirg.running.files import check_free, new_folder, write_json
from modeling_shirg.vision_shirg import resampled_positions

from .original_config import check_original, text_fields, view_fields, vision_fields
from .source import StoredTensor, load_tokenizer, open_source, read_headers, read_json
from .tensors import empty_model, expected_shapes, match_tensors, write_shards
from .vision_base import SIGLIP, base_tensors, text_tower_fields, text_tower_tokenizer, tower_fields

RECORD = "conversion.json"
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOAT_TYPES.values()}
IMAGE_TOKEN = "<image>"
_FOVEAL = "model.vision_tower.foveal_position_embedding.weight"
_COORDINATES = "model.coordinate_embedding."
_BASE_POSITIONS = "model.vision_tower.vision_model.embeddings.position_embedding.weight"


def convert_checkpoint(
    source: str | Path,
    out: str | Path,
    vision_base: str | Path | None = None,
    text_tower: bool = False,
    prune_method: str = "lavida",
    dtype: str | None = None,
    pooled_grid_size: int | None = None,
    max_shard_size: str = "5GB",
) -> dict:
    """Write `source` to the folder `out` in this package's format; returns the facts of `RECORD`.

    Args:
        source: folder or `REPO_ID[@REVISION]` of an original checkpoint.
        out: folder to write: a new one, or an empty one. It appears when it is complete.
        vision_base: folder or `REPO_ID[@REVISION]` of the SigLIP it was made from; its last layer and pooling head,
            which LaViDa deleted, are added. Presets that score patches by the pooling head need it.
        text_tower: add the base's text tower and its tokenizer too, for `text_relevance="siglip"`.
        prune_method: preset of the written config.
        dtype: `"float32"`, `"bfloat16"` or `"float16"`; `None` keeps each tensor's.
        pooled_grid_size: of single-view checkpoints alone, see `view_fields`.
        max_shard_size: size of a weight file, as in `save_pretrained`.

    Raises:
        ValueError: the source, the base or the arguments do not fit; nothing was written.
    """
    if dtype not in (None, *DTYPES):
        raise ValueError(f"Unknown dtype {dtype!r}. Known: {', '.join(DTYPES)}.")
    method = METHODS.get(preset_fields(prune_method, next(iter(GEOMETRIES)))["selection_method"])
    if vision_base is None and (text_tower or (method is not None and "attention" in method.needs)):
        which = "text_tower=True" if text_tower else f"prune_method={prune_method!r}"
        raise ValueError(f"{which} needs parts of SigLIP that LaViDa's checkpoints lack: pass --vision_base {SIGLIP}.")
    out = Path(out).resolve()
    check_free(out)
    folder, origin = open_source(source)
    base, base_origin = (None, None) if vision_base is None else open_source(vision_base)
    original = read_json(folder / "config.json")
    backbone = check_original(original)
    tokenizer = _tokenizer(folder, original, backbone)
    stored = read_headers(folder)
    kept = vision_fields(stored)
    fields, relevance_tokenizer = {"vision_config": tower_fields(kept, base)}, None
    if text_tower:
        fields["relevance_text_config"], relevance_tokenizer = text_tower_fields(base), text_tower_tokenizer(base)
    if base is not None:
        stored |= base_tensors(base, text_tower)
    grid = grid_side(kept["image_size"], kept["patch_size"])
    fields["lavida_views"] = view_fields(original, grid, pooled_grid_size)
    model = empty_model(_config(prune_method, original, backbone, tokenizer, fields))
    tensors, dtypes = _tensors(model, stored, kept["num_hidden_layers"], backbone, dtype)
    processor = ShirgLavidaProcessor.from_config(model.config, tokenizer, relevance_tokenizer=relevance_tokenizer)
    with new_folder(out) as written:
        shards, size = write_shards(written, tensors, dtypes, max_shard_size)
        _write_configs(written, model, backbone, set(dtypes.values()))
        processor.save_pretrained(written)
        facts = {
            "source": origin.label,
            "revision": origin.revision,
            "license": origin.licence,
            "vision_base": base_origin and base_origin.label,
            "vision_base_revision": base_origin and base_origin.revision,
            "vision_base_license": base_origin and base_origin.licence,
            "text_tower": text_tower,
            "prune_method": prune_method,
            "dtype": ", ".join(sorted(name for name, value in DTYPES.items() if value in dtypes.values())),
            "parameters": sum(prod(tensor.shape) for tensor in tensors.values()),
            "bytes": size,
            "shards": shards,
            "kept_layers": kept["num_hidden_layers"],
        }
        write_json(written / RECORD, facts)
        shown = {"facts": facts, "config": model.config, "grafted": base_origin}
        card = render("converted", origin, None, "path/to/this/folder", {"tags": [*MODEL_TAGS, "lavida"]}, **shown)
        card.save(written / "README.md")
    return facts


def _config(
    prune_method: str, original: dict, backbone: dict, tokenizer: PreTrainedTokenizerBase, fields: dict
) -> ShirgLavidaConfig:
    text = text_fields(original, backbone)
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": text.pop("rope_theta")}
    return ShirgLavidaConfig.from_preset(
        prune_method,
        text_config=text,
        tie_word_embeddings=text["tie_word_embeddings"],
        vision_feature_layer=-2 if fields["vision_config"]["vision_use_head"] else -1,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in backbone["tokens"].items()},
        **fields,
    )


def _tensors(
    model: ShirgLavidaForConditionalGeneration,
    stored: dict[str, StoredTensor],
    kept_layers: int,
    backbone: dict,
    dtype: str | None,
) -> tuple[dict[str, StoredTensor | torch.Tensor], dict[str, torch.dtype]]:
    """Every tensor of the model and its type. SHIRG's own tensors, which no source holds, are those of a new model."""
    shapes = expected_shapes(model)
    own = {name for name in shapes if name == _FOVEAL or name.startswith(_COORDINATES)}
    shapes = {name: shape for name, shape in shapes.items() if name not in own}
    tensors = match_tensors(shapes, stored, kept_layers, backbone)
    dtypes = {name: DTYPES[dtype] if dtype else FLOAT_TYPES[tensor.code] for name, tensor in tensors.items()}
    dtypes |= dict.fromkeys(own, dtypes[_BASE_POSITIONS])
    if _FOVEAL in own:
        table_ND = tensors[_BASE_POSITIONS].load().to(dtypes[_BASE_POSITIONS])
        tensors[_FOVEAL] = resampled_positions(table_ND, model.config.fovea_grid).contiguous()
    if model.config.coordinate_embedding:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            fresh = CoordinateEmbedding(model.config.vision_config.hidden_size).state_dict()
        tensors |= {_COORDINATES + name: weight for name, weight in fresh.items()}
    return tensors, dtypes


def _tokenizer(folder: Path, original: dict, backbone: dict) -> PreTrainedTokenizerBase:
    """The source's tokenizer with `<image>` on the first free id; the other ids are those of the config."""
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.get_vocab()
    missing = [token for token in (*backbone["tokens"].values(), *backbone["chat_tokens"]) if token not in ids]
    if missing:
        raise ValueError(f"The tokenizer of {folder} has no {', '.join(missing)}: it is another model's.")
    own = {name: ids[token] for name, token in backbone["tokens"].items()}
    own |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    differing = [name for name in own if original.get(name) not in (None, own[name])]
    wrong = [f"{name} is {original[name]}, not {own[name]}" for name in differing]
    if wrong:
        raise ValueError(f"The tokenizer of {folder} is not that of its config.json, where {'; '.join(wrong)}.")
    tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
    rows, image_id = text_fields(original, backbone)["vocab_size"], tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    if image_id >= rows:
        raise ValueError(
            f"{IMAGE_TOKEN} takes id {image_id}, the first that the tokenizer of {folder} leaves free, but the "
            f"embedding has {rows} rows. Convert a checkpoint with the embedding's full size (LLaDA has 126464)."
        )
    return tokenizer


def _write_configs(
    folder: Path, model: ShirgLavidaForConditionalGeneration, backbone: dict, dtypes: set[torch.dtype]
) -> None:
    """Code files and configs, as `save_pretrained` writes them."""
    config = model.config
    config.architectures = [type(model).__name__]
    config.dtype = reduce(torch.promote_types, dtypes)  # `from_pretrained` loads everything in this type
    custom_object_save(model, folder, config=config)
    config.save_pretrained(folder)
    ids = {f"{name}_token_id": getattr(config, f"{name}_token_id") for name in ("mask", "bos", "eos", "pad")}
    ShirgGenerationConfig(**backbone["generation"], suppress_tokens=[], **ids).save_pretrained(folder)
