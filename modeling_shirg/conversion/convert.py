"""Convert an original LaViDa checkpoint to a folder that `from_pretrained` loads, with or without this package.

Headers first: config, names, shapes and dtypes of everything are checked before a byte is written. Then tensors go
from file to file a few megabytes at a time, so memory does not grow with the checkpoint.
"""

import math
import re
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path

import torch
from torch import nn
from transformers import AddedToken, PreTrainedTokenizerBase
from transformers.dynamic_module_utils import custom_object_save

from configuration_shirg import ShirgLavidaConfig, ShirgLavidaProcessor
from configuration_shirg.geometry_shirg import grid_side
from configuration_shirg.presets_shirg import GEOMETRIES, preset_fields
from modeling_shirg import ShirgGenerationConfig, ShirgLavidaForConditionalGeneration
from modeling_shirg.foveal_selections_shirg import CoordinateEmbedding
from modeling_shirg.published_selections_shirg import METHODS
from modeling_shirg.running.files import check_free, new_folder, write_json
from modeling_shirg.vision_shirg import FovealPositionEmbedding

from .card import write_card
from .original_config import attention_heads, check_original, text_fields, view_fields, vision_fields
from .plan import BASE_POSITIONS, COORDINATES, FOVEAL, empty_model, expected_shapes, match_tensors
from .safetensors_stream import DTYPES, StoredTensor, write_shards
from .source import Source, load_tokenizer, open_source, read_tensors, with_weights
from .vision_base import (
    ORIGINAL_BEHAVIOUR,
    base_tensors,
    fitting_base,
    text_tower_fields,
    text_tower_tokenizer,
)

IMAGE_TOKEN = "<image>"
_CHAT_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_INFILL_TOKEN, _MASK_TOKEN, _BOS_TOKEN = "<|reserved_token_1|>", "<|mdm_mask|>", "<|startoftext|>"
# Of LaViDa's predict.py, one block of 64; it also draws with temperature 0.1, where its evaluations take the argmax.
_GENERATION = {"max_new_tokens": 64, "step_ratio": 0.5, "schedule": "shift", "shift": 3.0}


@dataclass(frozen=True)
class Conversion:
    """What was converted, from what: the facts of conversion.json and of the model card.

    Args:
        source, revision: a folder's name or a Hub id, and the commit if it came from the Hub.
        license: licence fields of the source's card; empty if it states none.
        vision_base, vision_base_revision, vision_base_license: the same of the SigLIP whose last layer and pooling
            head were grafted; `None` and empty if there was none.
        text_tower: whether its text tower was grafted too.
        prune_method: the preset of the config.
        view_policy: how the preset looks at an image.
        dtype: of the weights that were written; several names if they were stored so and none was asked for.
        parameters, bytes, shards: of the weights that were written.
        kept_layers: layers of the vision tower that the source holds.
    """

    source: str
    revision: str | None
    license: dict[str, str]
    vision_base: str | None
    vision_base_revision: str | None
    vision_base_license: dict[str, str]
    text_tower: bool
    prune_method: str
    view_policy: str
    dtype: str
    parameters: int
    bytes: int
    shards: int
    kept_layers: int


def convert_checkpoint(
    source: str | Path,
    out: str | Path,
    vision_base: str | Path | None = None,
    text_tower: bool = False,
    prune_method: str = "lavida",
    dtype: str | None = None,
    pooled_grid_size: int | None = None,
    max_shard_size: str = "5GB",
    revision: str | None = None,
    vision_base_revision: str | None = None,
) -> Conversion:
    """Write `source` to the folder `out` in this package's format.

    Args:
        source: folder or Hub id of an original checkpoint on LLaDA.
        out: folder to write: a new one, or an empty one. It appears when it is complete.
        vision_base: folder or Hub id of the SigLIP it was made from; its last layer and pooling head, which LaViDa
            deleted, are added. Presets that score patches by the pooling head need it.
        text_tower: add the base's text tower and its tokenizer too, for `text_relevance="siglip"`.
        prune_method: preset of the written config.
        dtype: `"float32"`, `"bfloat16"` or `"float16"`; `None` keeps each tensor's.
        pooled_grid_size: only for single-view (low-resolution) checkpoints: the grid a view is pooled to under preset
            `lavida`, 0 for none. The original decides this by an environment variable, see `view_fields`.
        max_shard_size: size of a weight file, as in `save_pretrained`.
        revision, vision_base_revision: branch, tag or commit of a Hub id.

    Raises:
        ValueError: the source, the base or the arguments do not fit; nothing was written.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"Unknown dtype {dtype!r}. Known: {', '.join(DTYPES)}.")
    _check_shard_size(max_shard_size)
    out = Path(out).resolve()
    check_free(out)
    source = open_source(source, revision)
    _check_outside(out, source)
    original = source.read_json("config.json")
    check_original(original)
    tokenizer = _tokenizer(source, original)
    base = None if vision_base is None else open_source(vision_base, vision_base_revision)
    if base is not None:
        _check_outside(out, base)
    _check_preset(prune_method, base)
    relevance, relevance_tokenizer = None, None
    if text_tower:
        if base is None:
            raise ValueError(
                "--text_tower is that of --vision_base, and none was given: pass --vision_base "
                "google/siglip-so400m-patch14-384 (or a folder of it)."
            )
        relevance, relevance_tokenizer = text_tower_fields(base), text_tower_tokenizer(base)

    source = with_weights(source)
    stored = read_tensors(source)
    kept = vision_fields(stored)
    base_stored: dict[str, StoredTensor] = {}
    if base is None:
        heads = attention_heads(kept["hidden_size"], source, original)
    else:
        base = with_weights(base)
        heads = fitting_base(base, kept).num_attention_heads
        base_stored = base_tensors(base, text_tower)
    vision = _vision_config(kept, heads, grafted=base is not None)
    config = _config(original, vision, relevance, prune_method, pooled_grid_size, tokenizer)
    processor = ShirgLavidaProcessor.from_config(config, tokenizer, relevance_tokenizer=relevance_tokenizer)
    model = empty_model(config)
    expected = expected_shapes(model)
    tensors = match_tensors(expected, stored, base_stored, kept["num_hidden_layers"])
    dtypes = {name: DTYPES[dtype] if dtype else tensor.dtype for name, tensor in tensors.items()}
    if FOVEAL in expected:
        dtypes[FOVEAL] = dtypes[BASE_POSITIONS]
        tensors[FOVEAL] = _foveal_table(config, tensors[BASE_POSITIONS], dtypes[FOVEAL])
    if config.coordinate_embedding:
        for name, weight in _coordinate_weights(config).items():
            dtypes[name], tensors[name] = dtypes[BASE_POSITIONS], weight

    with new_folder(out) as folder:
        shards = write_shards(folder, tensors, dtypes, max_shard_size)
        _write_rest(folder, model, processor, set(dtypes.values()))
        facts = Conversion(
            source=source.label,
            revision=source.revision,
            license=source.license(),
            vision_base=None if base is None else base.label,
            vision_base_revision=None if base is None else base.revision,
            vision_base_license={} if base is None else base.license(),
            text_tower=text_tower,
            prune_method=prune_method,
            view_policy=config.view_policy,
            dtype=", ".join(sorted(name for name, value in DTYPES.items() if value in dtypes.values())),
            parameters=sum(math.prod(tensor.shape) for tensor in tensors.values()),
            bytes=sum(shards.values()),
            shards=len(shards),
            kept_layers=kept["num_hidden_layers"],
        )
        write_card(folder, facts, config)
        write_json(folder / "conversion.json", asdict(facts))
    return facts


def _check_shard_size(size: str) -> None:
    """Raises a `ValueError` unless it is a number above 0 with a unit."""
    found = re.fullmatch(r"(\d+\.?\d*) ?[KMGT]B", size, re.IGNORECASE)
    if found is None or float(found[1]) == 0:
        raise ValueError(f"max_shard_size={size!r} must be a number above 0 with KB, MB, GB or TB, such as 5GB.")


def _check_outside(out: Path, source: Source) -> None:
    """Raises a `ValueError` where the conversion would be written into what it is made from."""
    if out.is_relative_to(source.folder.resolve()):
        raise ValueError(f"{out} lies inside {source.name}, which is only read: name an OUT elsewhere.")


def _tokenizer(source: Source, original: dict) -> PreTrainedTokenizerBase:
    """The source's tokenizer with `<image>` on the first free id.

    Raises:
        ValueError: there is none, its ids are not the config's, or the embedding has no row for `<image>`.
    """
    if not (source.folder / "tokenizer.json").is_file():
        raise ValueError(f"{source.name} has no tokenizer.json: put LLaDA's beside its config.json.")
    tokenizer = load_tokenizer(source)
    ids = tokenizer.get_vocab()
    missing = [token for token in (_MASK_TOKEN, _INFILL_TOKEN, _BOS_TOKEN, *_CHAT_TOKENS) if token not in ids]
    if missing:
        raise ValueError(f"The tokenizer of {source.name} has no {', '.join(missing)}: it is not LLaDA's.")
    own = {"mask": ids[_MASK_TOKEN], "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    for name, token_id in own.items():
        configured = original.get(f"{name}_token_id")
        if configured not in (None, token_id):
            raise ValueError(
                f"{source.name}: {name}_token_id is {configured} in config.json, but {token_id} in its tokenizer. "
                "They are of two checkpoints: bring the tokenizer files that belong to this config."
            )
    tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
    rows, image_id = text_fields(original)["vocab_size"], tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    if image_id >= rows:
        raise ValueError(
            f"{IMAGE_TOKEN} takes id {image_id}, the first that the tokenizer of {source.name} leaves free, but the "
            f"embedding has {rows} rows (ids 0..{rows - 1}). Convert a checkpoint with the embedding's full size "
            f"(LLaDA has 126464), or add rows to wte and ff_out first."
        )
    return tokenizer


def _check_preset(prune_method: str, base: Source | None) -> None:
    fields = preset_fields(prune_method, next(iter(GEOMETRIES)))
    method = METHODS.get(fields["selection_method"])
    if method is not None and "attention" in method.needs and base is None:
        raise ValueError(
            f"prune_method={prune_method!r} scores patches with SigLIP's pooling head, which LaViDa deleted from its "
            "checkpoints: pass --vision_base google/siglip-so400m-patch14-384 (or a folder of it), or choose a preset "
            "without scores, such as lavida."
        )


def _vision_config(kept: dict, heads: int, grafted: bool) -> dict:
    layers = kept["num_hidden_layers"] + int(grafted)
    return {
        **kept,
        **ORIGINAL_BEHAVIOUR,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "vision_use_head": grafted,
    }


def _config(
    original: dict,
    vision: dict,
    relevance: dict | None,
    prune_method: str,
    pooled_grid_size: int | None,
    tokenizer: PreTrainedTokenizerBase,
) -> ShirgLavidaConfig:
    text = text_fields(original)
    grid = grid_side(vision["image_size"], vision["patch_size"])
    return ShirgLavidaConfig.from_preset(
        prune_method,
        vision_config=vision,
        text_config=text,
        relevance_text_config=relevance,
        vision_feature_layer=-2 if vision["vision_use_head"] else -1,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        mask_token_id=tokenizer.convert_tokens_to_ids(_MASK_TOKEN),
        infill_token_id=tokenizer.convert_tokens_to_ids(_INFILL_TOKEN),
        bos_token_id=tokenizer.convert_tokens_to_ids(_BOS_TOKEN),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=text["tie_word_embeddings"],
        lavida_views=view_fields(original, grid, pooled_grid_size),
    )


def _foveal_table(config: ShirgLavidaConfig, positions: StoredTensor, dtype: torch.dtype) -> torch.Tensor:
    """What the model itself derives for a grid that the checkpoint has no positions for."""
    table_ND = torch.cat(list(positions.pieces())).to(dtype).reshape(positions.shape)
    foveal = FovealPositionEmbedding(config.fovea_grid, nn.Embedding.from_pretrained(table_ND))
    return foveal.interpolated_base().to(dtype)


def _coordinate_weights(config: ShirgLavidaConfig) -> dict[str, torch.Tensor]:
    """A coordinate embedding as a new model has it, the same in every conversion; it is a no-op until trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = CoordinateEmbedding(config.vision_config.hidden_size)
    return {COORDINATES + name: weight.detach() for name, weight in fresh.state_dict().items()}


def _write_rest(
    folder: Path,
    model: ShirgLavidaForConditionalGeneration,
    processor: ShirgLavidaProcessor,
    dtypes: set[torch.dtype],
) -> None:
    """Everything `save_pretrained` writes but the weights: configs, processor and the code files."""
    config = model.config
    config.architectures = [type(model).__name__]
    # What `from_pretrained` loads everything in: the dtype that holds all of these.
    config.dtype = reduce(torch.promote_types, dtypes)
    custom_object_save(model, folder, config=config)
    config.save_pretrained(folder)
    ShirgGenerationConfig(
        **_GENERATION,
        suppress_tokens=[],
        mask_token_id=config.mask_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    ).save_pretrained(folder)
    processor.save_pretrained(folder)
