"""The sizes at which systems are timed, and models of one set of weights under several systems.

A profile is widths and a length of answer; the geometry gives it the views and token counts of every system.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from configuration_shirg import ShirgLavidaConfig
from modeling_shirg import ShirgLavidaForConditionalGeneration
from modeling_shirg.vision_shirg import FovealPositionEmbedding


@dataclass(frozen=True)
class Profile:
    """Widths, geometry and answer of a measurement.

    Args:
        geometry: a key of `GEOMETRIES`.
        vision, text: widths of SigLIP and of the language model; empty is the full size.
        image_size: width and height of the picture in pixels.
        max_new_tokens, steps: length of the answer, denoising steps.
        dtype: of the weights.
        needs_accelerator: whether a CPU is too small for it.
    """

    geometry: str
    vision: dict[str, int]
    text: dict[str, int]
    image_size: tuple[int, int]
    max_new_tokens: int
    steps: int
    dtype: str = "float32"
    needs_accelerator: bool = False


# The ratios of the MLPs to the widths, and 64 to a head, are about those of the full size.
PROFILES = {
    "toy": Profile(
        geometry="toy",
        vision={"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 5, "num_attention_heads": 4},
        text={
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "vocab_size": 768,
        },
        image_size=(512, 384),
        max_new_tokens=8,
        steps=8,
    ),
    "cpu": Profile(
        geometry="full",
        vision={"hidden_size": 256, "intermediate_size": 960, "num_hidden_layers": 6, "num_attention_heads": 4},
        text={
            "hidden_size": 512,
            "intermediate_size": 1536,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "vocab_size": 4096,
        },
        image_size=(1024, 768),
        max_new_tokens=32,
        steps=16,
    ),
    "gpu": Profile(
        geometry="full",
        vision={},
        text={},
        image_size=(1024, 768),
        max_new_tokens=32,
        steps=30,
        dtype="bfloat16",
        needs_accelerator=True,
    ),
}

# What a random model takes from the checkpoint whose tokenizer it is asked through.
_TOKEN_IDS = ("image_token_id", "mask_token_id", "infill_token_id", "bos_token_id", "eos_token_id", "pad_token_id")


def profile_config(profile: Profile, ids: ShirgLavidaConfig, vocab_size: int | None = None) -> ShirgLavidaConfig:
    """The config of `profile` under the default system, with the token ids of `ids`.

    Raises:
        ValueError: `vocab_size` is too small for those ids.
    """
    text = {"max_position_embeddings": 4096, **profile.text}
    if vocab_size is not None:
        text["vocab_size"] = vocab_size
    tokens = {name: getattr(ids, name) for name in _TOKEN_IDS}
    needed = ids.text_config.vocab_size
    if text.get("vocab_size", needed) < needed:
        raise ValueError(
            f"vocab_size={text['vocab_size']}: the prompts are written in {needed} ids, so that is least."
        )
    return ShirgLavidaConfig.from_preset(
        "shirg", geometry=profile.geometry, vision_config=profile.vision, text_config=text, **tokens
    )


def random_model(
    config: ShirgLavidaConfig, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> ShirgLavidaForConditionalGeneration:
    """A model with random weights, made where it will run."""
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        return ShirgLavidaForConditionalGeneration._from_config(config, dtype=dtype).eval()


def under_system(
    source: ShirgLavidaForConditionalGeneration, name: str, **fields: Any
) -> ShirgLavidaForConditionalGeneration:
    """A model of preset `name` on the weights of `source`, which it shares; only what the preset adds is its own.

    Args:
        source: any system's model.
        name: of a preset.
        **fields: of the config; they win over the preset's.
    """
    config = source.config.with_preset(name, **fields)
    with torch.device("meta"):
        model = ShirgLavidaForConditionalGeneration(config)
    core, shared = model.model, source.model
    for part in ("language_model", "multi_modal_projector", "relevance_text_model", "image_newline"):
        setattr(core, part, getattr(shared, part))
    model.lm_head = source.lm_head
    core.vision_tower.vision_model = shared.vision_tower.vision_model
    like = source.lm_head.weight
    table = core.vision_tower.foveal_position_embedding
    if table is not None:
        base = core.vision_tower.vision_model.embeddings.position_embedding
        held = shared.vision_tower.foveal_position_embedding
        same = held is not None and held.grid == table.grid
        own = held if same else _initialised(model, FovealPositionEmbedding(table.grid, base), like)
        core.vision_tower.foveal_position_embedding = own
    if core.coordinate_embedding is not None:
        held = shared.coordinate_embedding
        own = core.coordinate_embedding.to_empty(device="cpu")
        core.coordinate_embedding = held if held is not None else _initialised(model, own, like)
    model.generation_config = source.generation_config
    return model.eval()


def _initialised(model: nn.Module, module: nn.Module, like: torch.Tensor) -> nn.Module:
    """`module` with the model's initial weights, in the dtype and on the device of `like`."""
    module = module.to(device=like.device, dtype=like.dtype)
    module.apply(model._init_weights)
    return module
