"""The model. Importing this package makes the Auto classes of transformers know it."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from configuration_shirg.configuration_shirg_lavida import ShirgLavidaConfig
from configuration_shirg.image_processing_shirg_lavida import ShirgLavidaImageProcessor
from configuration_shirg.processing_shirg_lavida import ShirgLavidaProcessor

from .generation_config_shirg import ShirgGenerationConfig
from .modeling_shirg_lavida import ShirgLavidaForConditionalGeneration, ShirgLavidaModel
from .unconverted import UnconvertedLavidaConfig

ShirgLavidaConfig.register_for_auto_class()
ShirgLavidaImageProcessor.register_for_auto_class()
ShirgLavidaProcessor.register_for_auto_class()
ShirgLavidaForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

AutoConfig.register(ShirgLavidaConfig.model_type, ShirgLavidaConfig, exist_ok=True)
AutoConfig.register(UnconvertedLavidaConfig.model_type, UnconvertedLavidaConfig, exist_ok=True)
AutoImageProcessor.register(
    ShirgLavidaConfig, image_processor_classes={"pil": ShirgLavidaImageProcessor}, exist_ok=True
)
AutoProcessor.register(ShirgLavidaConfig, ShirgLavidaProcessor, exist_ok=True)
for auto_class in (AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    auto_class.register(ShirgLavidaConfig, ShirgLavidaForConditionalGeneration, exist_ok=True)

__all__ = ["ShirgGenerationConfig", "ShirgLavidaForConditionalGeneration", "ShirgLavidaModel"]
