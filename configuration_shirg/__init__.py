"""What is known before the model runs: configuration, presets, view geometry, image processor and processor."""

from .configuration_shirg_lavida import ShirgLavidaConfig
from .presets_shirg import GEOMETRIES, PRESETS

__all__ = ["GEOMETRIES", "PRESETS", "ShirgLavidaConfig"]
