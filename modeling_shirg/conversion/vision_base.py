"""The SigLIP that LaViDa started from: LaViDa deleted its last layer and its pooling head, foveal scores need them.

Its text tower, which LaViDa never had, can come along with its tokenizer.
"""

import re
import string
from pathlib import Path

from tokenizers import Regex, normalizers
from transformers import PreTrainedTokenizerBase, SiglipConfig, SiglipTextConfig, SiglipVisionConfig

from .original_config import KNOWN_TOWERS
from .source import StoredTensor, load_tokenizer, read_headers, read_json

# What marks a tensor of the vision base in errors, and among the tensors of a LaViDa checkpoint.
OF_BASE = " (of the vision base)"
TEXT_PREFIX = "text_model."
SIGLIP = "google/siglip-so400m-patch14-384 (or a folder of it)"


def tower_fields(kept: dict, base: Path | None) -> dict:
    """Fields of `vision_config`, with the last layer and the head of `base` if there is one.

    Args:
        kept: `vision_fields` of the LaViDa checkpoint.
        base: folder of the SigLIP, vision tower alone or with its text tower.

    Raises:
        ValueError: the base is no SigLIP, or not this one; or there is none, and the width is not a known SigLIP's.
    """
    fields = {**kept, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "vision_use_head": base is not None}
    if base is None and kept["hidden_size"] not in KNOWN_TOWERS:
        raise ValueError(
            f"Unknown number of heads for a vision tower of width {kept['hidden_size']}: pass --vision_base."
        )
    if base is None:
        return {**fields, "num_attention_heads": KNOWN_TOWERS[kept["hidden_size"]][0]}
    fields["num_hidden_layers"] += 1
    config = read_json(base / "config.json")
    if config.get("model_type") not in (SiglipConfig.model_type, SiglipVisionConfig.model_type):
        raise ValueError(f"--vision_base {base} has model_type {config.get('model_type')!r}: pass {SIGLIP}.")
    tower = SiglipVisionConfig(**config.get("vision_config", config))
    compared = [(name, getattr(tower, name), fields[name]) for name in fields if name != "vision_use_head"]
    differing = [f"{name} {there}, needed {needed}" for name, there, needed in compared if there != needed]
    if differing:
        raise ValueError(
            f"--vision_base {base} is not the SigLIP this checkpoint was made from: {'; '.join(differing)}. LaViDa "
            f"keeps all layers but the last; the deepest in the source is layer {kept['num_hidden_layers'] - 1}."
        )
    return {**fields, "num_attention_heads": tower.num_attention_heads}


def base_tensors(folder: Path, text_tower: bool) -> dict[str, StoredTensor]:
    """Tensors of the vision tower, and of the text tower if asked for, under SigLIP's names and the mark `OF_BASE`."""
    tensors = {name.removeprefix("vision_model."): tensor for name, tensor in read_headers(folder).items()}
    # Older files hold the positions' numbers 0, 1, 2, ... too, which are no weights.
    kept = [name for name in tensors if text_tower or not name.startswith(TEXT_PREFIX)]
    return {name + OF_BASE: tensors[name] for name in kept if not name.endswith(".position_ids")}


def text_tower_fields(folder: Path) -> dict:
    """Fields of the text tower's config.

    Raises:
        ValueError: the base is a vision tower alone.
    """
    config = read_json(folder / "config.json")
    if config.get("model_type") != SiglipConfig.model_type or "text_config" not in config:
        raise ValueError(
            f"--text_tower needs a whole SigLIP, and --vision_base {folder} is a vision tower alone (model_type "
            f"{config.get('model_type')!r}): pass {SIGLIP}."
        )
    # No token ids: the tower reads none, and the defaults are CLIP's, outside SigLIP's vocabulary.
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    return {**SiglipTextConfig(**(config["text_config"] or {})).to_dict(), **ids}


def text_tower_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of the text tower, with everything that SigLIP does to a text before its vocabulary.

    `SiglipTokenizer` lowers case, drops punctuation and joins whitespace in Python, so a tokenizer.json need not do
    it; doing it twice changes nothing.
    """
    tokenizer, settings = load_tokenizer(folder), folder / "tokenizer_config.json"
    declared = read_json(settings) if settings.is_file() else {}
    if declared.get("tokenizer_class") == "SiglipTokenizer" and declared.get("do_lower_case", True):
        backend = tokenizer.backend_tokenizer
        canonical = [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(f"[{re.escape(string.punctuation)}]"), ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
        backend.normalizer = normalizers.Sequence([*canonical, *filter(None, [backend.normalizer])])
    return tokenizer
