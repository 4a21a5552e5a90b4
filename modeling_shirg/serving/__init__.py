"""The library behind `shirg serve`: transformers' server with one model, strict requests and limits."""

from .request_limits import Limits

__all__ = ["Limits"]
