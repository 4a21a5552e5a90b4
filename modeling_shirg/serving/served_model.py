"""The model as transformers' server calls it, and the manager that knows this one model only."""

from typing import Any

import torch
from transformers import TextDiffusionStreamer
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.utils import Modality

from modeling_shirg import ShirgLavidaForConditionalGeneration


class ServedLavida(ShirgLavidaForConditionalGeneration):
    """Generates as transformers' server expects: for a given tokenizer, and token by token into its streamer."""

    def generate(self, *args, tokenizer: Any, streamer: Any = None, **kwargs) -> torch.LongTensor:
        """As the model's, without the filler at the end: an answer shorter than its fixed length has ended.

        Args:
            *args: as the model's.
            tokenizer: the processor, which the server hands to every model; its special tokens are the filler.
            streamer: gets the prompt, then each token once it and all before it are final.
            **kwargs: as the model's.
        """
        special = set(tokenizer.tokenizer.all_special_ids)
        if streamer is not None:
            streamer = FinalTokens(streamer, self._model_token("mask_token_id"), special)
        sequences_BS = super().generate(*args, streamer=streamer, **kwargs)
        length = sequences_BS.shape[1]
        while length > kwargs["input_ids"].shape[1] and sequences_BS[0, length - 1].item() in special:
            length -= 1
        return sequences_BS[:, :length]


class FinalTokens(TextDiffusionStreamer):
    """Hands a streamer of autoregressive models what it can take: tokens from left to right, each one final.

    A denoised token is never changed again, but the one before it may still be masked. So after each step the tokens
    up to the first mask are handed on, and special ones only once another token follows them.
    """

    def __init__(self, streamer: Any, mask_token_id: int, special: set[int]):
        self.streamer = streamer
        self.mask_token_id = mask_token_id
        self.special = special
        self.sent = 0
        self.has_prompt = False

    def put_draft(self, value: torch.Tensor, **kwargs: Any) -> None:
        """The response `(1, R)` after a step."""
        self._hand_on(value[0].tolist())

    def put(self, value: torch.Tensor) -> None:
        """The prompt `(1, P)`, then the response `(1, R)`."""
        if self.has_prompt:
            self._hand_on(value[0].tolist())
            return
        self.has_prompt = True
        self.streamer.put(value)

    def end(self) -> None:
        """The response is complete."""
        self.streamer.end()

    def _hand_on(self, tokens: list[int]) -> None:
        final = tokens.index(self.mask_token_id) if self.mask_token_id in tokens else len(tokens)
        while final > self.sent and tokens[final - 1] in self.special:
            final -= 1
        # An empty tensor, too: it is how the server's streamer notices that the client has gone.
        self.streamer.put(torch.tensor(tokens[self.sent : final], dtype=torch.int64))
        self.sent = max(self.sent, final)


class OneModel(ModelManager):
    """A manager whose only model is loaded already, and stays."""

    def __init__(self, model: ServedLavida, processor: Any, name: str):
        super().__init__(device=str(model.device))
        self.model = model
        self.processor = processor
        self.force_model = name

    @staticmethod
    def process_model_name(model_id: str) -> str:
        """The name as it was asked for."""
        return model_id

    @staticmethod
    def get_model_modality(model: Any, processor: Any = None) -> Modality:
        """Text and images."""
        return Modality.VLM

    def load_model_and_processor(self, *args: Any, **kwargs: Any) -> tuple[ServedLavida, Any]:
        """The one model, whatever was asked for: `_resolve_model` refuses other names."""
        return self.model, self.processor

    def get_gen_models(self, cache_dir: str | None = None) -> list[dict]:
        """The list of models of OpenAI's API."""
        return [{"id": self.force_model, "object": "model", "owned_by": "shirg", "created": 0}]
