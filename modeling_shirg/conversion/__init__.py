"""From an original LaViDa checkpoint to one of this package: the library behind `shirg convert`, never on the Hub."""

from .convert import Conversion, convert_checkpoint
from .safetensors_stream import DTYPES

__all__ = ["DTYPES", "Conversion", "convert_checkpoint"]
