"""The library behind `shirg serve`, never on the Hub: transformers' own server with one model, and what it may take.

Routing, the chat endpoint's answers, the stream of events and the thread that generates are transformers'. What is
here says which model is served, what a request may hold, how large it may be and where an image may come from.
"""

from .limits import Limits

__all__ = ["Limits"]
