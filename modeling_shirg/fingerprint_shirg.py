"""A fingerprint of base weights: whether an adapter meets the weights it was trained on.

It is a sha256 over the sign bits of a few matrices. A cast between float types keeps every sign, so a checkpoint has
one fingerprint in float32, bfloat16 and float16, on disk and in memory. Training moves weights across zero and changes
it. A change of other tensors, or one too small to flip a sign, goes unseen.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

# Matrices of every part that training can move. SHIRG's own tables are left out: adapters replace them.
FINGERPRINT_TENSORS = (
    "model.multi_modal_projector.linear_1.weight",
    "model.multi_modal_projector.linear_2.weight",
    "model.vision_tower.vision_model.embeddings.patch_embedding.weight",
    "model.vision_tower.vision_model.embeddings.position_embedding.weight",
    "model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
    "model.language_model.embed_tokens.weight",
    "model.language_model.layers.0.self_attn.q_proj.weight",
)
# Rows that are read of each: a few megabytes of a checkpoint of 16 GB.
FINGERPRINT_ROWS = 512


def fingerprint(model: nn.Module) -> str | None:
    """The fingerprint of a loaded `ShirgLavidaForConditionalGeneration`; `None` if it is quantized or offloaded.

    With PEFT's layers in the model it is the frozen base's, as long as no adapter is merged.
    """
    weights = {plain_name(name): weight for name, weight in model.named_parameters()}
    found = [(name, weights[name]) for name in FINGERPRINT_TENSORS]
    if any(weight.is_meta or not weight.is_floating_point() for _, weight in found):
        return None
    return digest(
        (name, tuple(weight.shape), torch.signbit(weight.detach()[:FINGERPRINT_ROWS]).cpu().numpy())
        for name, weight in found
    )


def digest(signs: Iterable[tuple[str, tuple[int, ...], np.ndarray]]) -> str:
    """sha256 of name, shape and sign bits (bool, of the first `FINGERPRINT_ROWS` rows) of `FINGERPRINT_TENSORS`."""
    summed = hashlib.sha256()
    for name, shape, negative in signs:
        summed.update(f"{name} {shape}\n".encode())
        summed.update(np.packbits(negative.reshape(-1)).tobytes())
    return summed.hexdigest()


def plain_name(parameter: str) -> str:
    """A parameter's name without what PEFT's wrappers add to it."""
    return parameter.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".original_module.", ".")
