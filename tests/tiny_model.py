"""Randomly initialised models of real geometry and tiny widths, and prompts for them: the base of the model tests."""

import numpy as np
import torch
from PIL import Image

from configuration_shirg import ShirgLavidaConfig, ShirgLavidaProcessor
from modeling_shirg import ShirgLavidaForConditionalGeneration
from tokenizer_fixture import make_tokenizer

VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 272,
}
QUESTIONS = ("What is in cell 5?", "Which?", "What color is the shape on the left?")


def tiny_config(prune_method: str = "shirg", geometry: str = "toy", **overrides) -> ShirgLavidaConfig:
    """A config of real geometry whose model has a few thousand parameters and the test tokenizer's ids."""
    ids = {
        "image_token_id": 262,
        "mask_token_id": 258,
        "infill_token_id": 265,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": 257,
    }
    fields = {"vision_config": VISION, "text_config": TEXT, **ids, **overrides}
    return ShirgLavidaConfig.from_preset(prune_method, geometry=geometry, **fields)


def tiny_model(config: ShirgLavidaConfig, seed: int = 0) -> ShirgLavidaForConditionalGeneration:
    """A model of `config` whose attention is sharp enough for a wrong mask or position to show in the logits."""
    torch.manual_seed(seed)
    model = ShirgLavidaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embedding" not in name and "embed_tokens" not in name:
                weight.mul_(4)
        model.get_input_embeddings().weight.mul_(20)
        # Interpolated tables were computed from the base table before anything was scaled; they stay what they are.
    return model


def tiny_processor(config: ShirgLavidaConfig, padding_side: str = "left") -> ShirgLavidaProcessor:
    """The processor of `config` over the test tokenizer."""
    return ShirgLavidaProcessor.from_config(config, make_tokenizer(padding_side))


def noise_image(seed: int, width: int = 300, height: int = 260) -> Image.Image:
    """An image without structure, so that no two patches look alike."""
    pixels = np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def chat(question: str, *images: Image.Image) -> list[dict]:
    """One user turn with images before the question."""
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def encode(processor: ShirgLavidaProcessor, *chats: list[dict], **kwargs):
    """Model inputs of one or more conversations, ready for an answer."""
    return processor.apply_chat_template(
        list(chats), tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True, **kwargs
    )
