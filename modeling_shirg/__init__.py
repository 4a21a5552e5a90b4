"""The model. Importing this package makes the Auto classes of transformers know it."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM

from configuration_shirg import ShirgLavidaConfig

from .generation_config_shirg import ShirgGenerationConfig
from .modeling_shirg_lavida import ShirgLavidaForConditionalGeneration, ShirgLavidaModel
from .unconverted import UnconvertedLavidaConfig

ShirgLavidaForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

AutoConfig.register(UnconvertedLavidaConfig.model_type, UnconvertedLavidaConfig, exist_ok=True)
for auto_class in (AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    auto_class.register(ShirgLavidaConfig, ShirgLavidaForConditionalGeneration, exist_ok=True)

__all__ = ["ShirgGenerationConfig", "ShirgLavidaForConditionalGeneration", "ShirgLavidaModel"]
