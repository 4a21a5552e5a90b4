"""What is known before the model runs: configuration, presets, view geometry, image processor and processor."""

from .configuration_shirg_lavida import ShirgLavidaConfig
from .image_processing_shirg_lavida import ShirgLavidaImageProcessor
from .presets_shirg import GEOMETRIES, PRESETS
from .processing_shirg_lavida import ShirgLavidaProcessor

__all__ = ["GEOMETRIES", "PRESETS", "ShirgLavidaConfig", "ShirgLavidaImageProcessor", "ShirgLavidaProcessor"]
