"""From an original LaViDa checkpoint to one of this package: the library behind `shirg convert`, never on the Hub."""

from .convert import convert_checkpoint

__all__ = ["convert_checkpoint"]
