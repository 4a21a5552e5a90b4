"""Modules kept in full precision under 4- and 8-bit loading: all but the language model's layers.

transformers (5.23) itself keeps only the head. The vision tower is a twentieth of the weights, and the scores that
choose tokens need its precision.
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
    """A `quantization_config` whose bitsandbytes settings are for the language model alone, unless they name their own
    `llm_int8_skip_modules` (which hold for 4 bits too)."""
    if isinstance(config, dict):
        config = AutoQuantizationConfig.from_dict(config)
    if not isinstance(config, BitsAndBytesConfig) or config.llm_int8_skip_modules is not None:
        return config
    config = deepcopy(config)
    config.llm_int8_skip_modules = list(_LEFT_ALONE)
    return config
