"""The library behind `shirg push`: what is published of a run or a checkpoint, with its card. Never on the Hub."""

from .checkpoint import Checkpoint, base_fingerprint
from .push import Publication

__all__ = ["Checkpoint", "Publication", "base_fingerprint"]
