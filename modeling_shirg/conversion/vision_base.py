"""The SigLIP that LaViDa started from: LaViDa deleted its last layer and its pooling head, foveal scores need them.

Its text tower, which LaViDa never had, can come along with its tokenizer.
"""

import re
import string

from tokenizers import Regex, normalizers
from transformers import PreTrainedTokenizerBase, SiglipConfig, SiglipTextConfig, SiglipVisionConfig

from .safetensors_stream import StoredTensor
from .source import Source, load_tokenizer, read_tensors

_PREFIX = "vision_model."
# Not stripped: in a `SiglipVisionModel` of its own no tensor has it, so the two towers' names cannot meet.
TEXT_PREFIX = "text_model."
# Fields of the text tower that are its sizes and its function.
_TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
    "layer_norm_eps",
    "projection_size",
)
# What LaViDa's own vision code always uses.
ORIGINAL_BEHAVIOUR = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}


def fitting_base(source: Source, kept: dict) -> SiglipVisionConfig:
    """The vision config of a SigLIP, vision tower alone or with its text tower, that has one layer more than was kept.

    Args:
        source: the SigLIP.
        kept: `vision_fields` of the LaViDa checkpoint.

    Raises:
        ValueError: it is no SigLIP, or not this one; the message has both values of everything that differs.
    """
    config = source.read_json("config.json")
    if config.get("model_type") not in (SiglipConfig.model_type, SiglipVisionConfig.model_type):
        raise ValueError(
            f"--vision_base {source.name} has model_type {config.get('model_type')!r}, it must be 'siglip' or "
            "'siglip_vision_model', such as google/siglip-so400m-patch14-384."
        )
    base = SiglipVisionConfig(**config.get("vision_config", config))
    needed = {**kept, **ORIGINAL_BEHAVIOUR, "num_hidden_layers": kept["num_hidden_layers"] + 1}
    differing = [
        f"{name} {getattr(base, name)}, needed {value}"
        for name, value in needed.items()
        if getattr(base, name) != value
    ]
    if differing:
        raise ValueError(
            f"--vision_base {source.name} is not the SigLIP this checkpoint was made from: {'; '.join(differing)}. "
            f"LaViDa keeps all layers but the last of its base; the source's deepest is layer "
            f"{kept['num_hidden_layers'] - 1}. If it should have more, its download is incomplete."
        )
    return base


def base_tensors(source: Source, text_tower: bool = False) -> dict[str, StoredTensor]:
    """Tensors of the vision tower under the names they have inside it, and those of the text tower under `TEXT_PREFIX`
    if asked for.
    """
    tensors = read_tensors(source)
    if not any(name.startswith(_PREFIX) for name in tensors):
        return tensors
    vision = {name.removeprefix(_PREFIX): value for name, value in tensors.items() if name.startswith(_PREFIX)}
    if not text_tower:
        return vision
    # Older files hold the positions' numbers 0, 1, 2, ... too, which are no weights.
    text = {name: value for name, value in tensors.items() if name.startswith(TEXT_PREFIX)}
    return {**vision, **{name: value for name, value in text.items() if not name.endswith(".position_ids")}}


def text_tower_fields(source: Source) -> dict:
    """Fields of the text tower's config.

    Raises:
        ValueError: the base is a vision tower alone.
    """
    config = source.read_json("config.json")
    if config.get("model_type") != SiglipConfig.model_type or "text_config" not in config:
        raise ValueError(
            f"--text_tower needs a whole SigLIP, and --vision_base {source.name} is a vision tower alone (model_type "
            f"{config.get('model_type')!r}): pass one with both towers, such as google/siglip-so400m-patch14-384."
        )
    tower = SiglipTextConfig(**(config["text_config"] or {}))
    # No token ids: the tower reads none, and the defaults are CLIP's, outside SigLIP's vocabulary.
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    return {"model_type": tower.model_type, **{name: getattr(tower, name) for name in _TEXT_FIELDS}, **ids}


def text_tower_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The tokenizer of the text tower, with everything that SigLIP does to a text before its vocabulary.

    `SiglipTokenizer` lowers case, drops punctuation and joins whitespace in Python, so a tokenizer.json need not do
    it; doing it twice changes nothing.

    Raises:
        ValueError: there is no tokenizer.json.
    """
    if not (source.folder / "tokenizer.json").is_file():
        raise ValueError(
            f"--text_tower needs the tokenizer of --vision_base {source.name}, which has no tokenizer.json (a "
            "spiece.model alone is not read): put SigLIP's beside its config.json."
        )
    tokenizer = load_tokenizer(source)
    declared = {}
    if (source.folder / "tokenizer_config.json").is_file():
        declared = source.read_json("tokenizer_config.json")
    if declared.get("tokenizer_class") == "SiglipTokenizer" and declared.get("do_lower_case", True):
        backend = tokenizer.backend_tokenizer
        own = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([*_canonical_text(), *own])
    return tokenizer


def _canonical_text() -> list[normalizers.Normalizer]:
    return [
        normalizers.Lowercase(),
        normalizers.Replace(Regex(f"[{re.escape(string.punctuation)}]"), ""),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(),
    ]
