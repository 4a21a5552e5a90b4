"""The SigLIP that LaViDa started from: LaViDa deleted its last layer and its pooling head, foveal scores need them."""

from transformers import SiglipConfig, SiglipVisionConfig

from .safetensors_stream import StoredTensor
from .source import Source, read_tensors

_PREFIX = "vision_model."
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
            f"LaViDa keeps {kept['num_hidden_layers']} layers, all but the last of its base."
        )
    return base


def base_tensors(source: Source) -> dict[str, StoredTensor]:
    """Tensors of the vision tower under the names they have inside it."""
    tensors = read_tensors(source)
    if any(name.startswith(_PREFIX) for name in tensors):
        return {name.removeprefix(_PREFIX): value for name, value in tensors.items() if name.startswith(_PREFIX)}
    return tensors
