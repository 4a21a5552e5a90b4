"""What is known before the model runs: configuration, presets, view geometry, image processor and processor.

Importing this package makes the Auto classes of transformers know them; the model's are in modeling_shirg.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoProcessor

from .configuration_shirg_lavida import ShirgLavidaConfig
from .image_processing_shirg_lavida import ShirgLavidaImageProcessor
from .presets_shirg import GEOMETRIES, PRESETS
from .processing_shirg_lavida import ShirgLavidaProcessor

ShirgLavidaConfig.register_for_auto_class()
ShirgLavidaImageProcessor.register_for_auto_class()
ShirgLavidaProcessor.register_for_auto_class()

AutoConfig.register(ShirgLavidaConfig.model_type, ShirgLavidaConfig, exist_ok=True)
AutoImageProcessor.register(
    ShirgLavidaConfig, image_processor_classes={"pil": ShirgLavidaImageProcessor}, exist_ok=True
)
AutoProcessor.register(ShirgLavidaConfig, ShirgLavidaProcessor, exist_ok=True)

__all__ = ["GEOMETRIES", "PRESETS", "ShirgLavidaConfig", "ShirgLavidaImageProcessor", "ShirgLavidaProcessor"]
