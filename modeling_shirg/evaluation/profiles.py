"""The sizes at which systems are timed: widths and length of answer; the geometry gives views and token counts."""

from dataclasses import dataclass
from typing import Any

import torch

from configuration_shirg import ShirgLavidaConfig, ShirgLavidaProcessor
from modeling_shirg import ShirgLavidaForConditionalGeneration
from modeling_shirg.running.load import Loaded


@dataclass(frozen=True)
class Profile:
    """Geometry, widths (empty is the full size), picture size, answer and dtype of a measurement."""

    geometry: str
    vision: dict[str, int]
    text: dict[str, int]
    image_size: tuple[int, int]
    max_new_tokens: int
    steps: int
    dtype: str = "float32"


def _widths(hidden: int, intermediate: int, layers: int, heads: int, **more: int) -> dict[str, int]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return dict(zip(names, (hidden, intermediate, layers, heads), strict=True)) | more


# MLPs are as wide beside the layers, and heads as wide, as at the full size.
PROFILES = {
    "toy": Profile("toy", _widths(128, 512, 5, 4), _widths(192, 512, 4, 3, vocab_size=768), (512, 384), 8, 8),
    "cpu": Profile("full", _widths(256, 960, 6, 4), _widths(512, 1536, 8, 8, vocab_size=4096), (1024, 768), 32, 16),
    "gpu": Profile("full", {}, {}, (1024, 768), 32, 30, "bfloat16"),
}
# A random model is asked through the tokenizer of a checkpoint, so it takes that checkpoint's token ids.
_TOKEN_IDS = ("image_token_id", "mask_token_id", "infill_token_id", "bos_token_id", "eos_token_id", "pad_token_id")


def random_system(
    profile: Profile, preset: str, fields: dict[str, Any], given: Loaded, dtype: torch.dtype, device: torch.device
) -> Loaded:
    """A preset with random weights at a profile's widths, asked through the tokenizer of `given`.

    Args:
        profile, preset: keys of `PROFILES` and `PRESETS`.
        fields: of the config; they win over the preset's.
        given: any checkpoint.
        dtype, device: of the weights.
    """
    fields |= {name: getattr(given.model.config, name) for name in _TOKEN_IDS}
    text = {"max_position_embeddings": 4096, **profile.text}
    config = ShirgLavidaConfig.from_preset(
        preset, geometry=profile.geometry, vision_config=profile.vision, text_config=text, **fields
    )
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        model = ShirgLavidaForConditionalGeneration._from_config(config, dtype=dtype).eval()
    saved = given.processor
    processor = ShirgLavidaProcessor.from_config(config, saved.tokenizer, saved.chat_template)
    return Loaded(model, processor, "random weights")
