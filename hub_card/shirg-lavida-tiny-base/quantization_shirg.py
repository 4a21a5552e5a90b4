"""What stays as it is where bitsandbytes quantizes weights while they are loaded: all but the language model's layers.

transformers (5.23) itself leaves only the head alone. But the views, and the scores that choose among them, need the
vision tower's precision, and it is a twentieth of the weights.
"""

from copy import deepcopy
from typing import Any

from transformers import BitsAndBytesConfig
from transformers.quantizers import AutoQuantizationConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

_PARTS = ("vision_tower", "multi_modal_projector", "coordinate_embedding", "relevance_text_model")
# As the model names them, and as its part without the head does.
_LEFT_ALONE = ("lm_head", *(f"model.{part}" for part in _PARTS), *_PARTS)


def language_model_only(
    config: QuantizationConfigMixin | dict[str, Any] | None,
) -> QuantizationConfigMixin | None:
    """The `quantization_config` of a `from_pretrained`, of which bitsandbytes' is for the language model alone, unless
    its `llm_int8_skip_modules`, which hold for 4 bits too, say otherwise."""
    if isinstance(config, dict):
        config = AutoQuantizationConfig.from_dict(config)
    if not isinstance(config, BitsAndBytesConfig) or config.llm_int8_skip_modules is not None:
        return config
    config = deepcopy(config)
    config.llm_int8_skip_modules = list(_LEFT_ALONE)
    return config


__all__ = ["language_model_only"]
