"""The model as transformers' server calls it, and the streamer between the two."""

from typing import Any

import torch
from transformers import TextDiffusionStreamer

from modeling_shirg import ShirgLavidaForConditionalGeneration


class ServedLavida(ShirgLavidaForConditionalGeneration):
    """Generates as transformers' server expects: for a given tokenizer, and token by token into its streamer."""

    def generate(self, *args, tokenizer: Any, streamer: Any = None, **kwargs) -> torch.LongTensor:
        """As the model's `generate`, without the special tokens of `tokenizer`, the processor, at the answer's end."""
        special = set(tokenizer.tokenizer.all_special_ids)
        if streamer is not None:
            streamer = FinalTokens(streamer, self.config.mask_token_id, special)
        sequences_BS = super().generate(*args, streamer=streamer, **kwargs)
        prompt = kwargs["input_ids"].shape[1]
        return sequences_BS[:, : prompt + _without_filler(sequences_BS[0, prompt:].tolist(), special)]


class FinalTokens(TextDiffusionStreamer):
    """Hands final tokens from left to right to a streamer of autoregressive models.

    A denoised token never changes again, but a token before it may still be masked. So each step hands on the tokens
    before the first mask, and special tokens only once another token follows them.
    """

    def __init__(self, streamer: Any, mask_token_id: int, special: set[int]):
        self.streamer = streamer
        self.mask_token_id = mask_token_id
        self.special = special
        self.sent = 0
        self.has_prompt = False

    def put_draft(self, value: torch.Tensor, **kwargs: Any) -> None:
        """The response `(1, R)` after a step."""
        tokens = value[0].tolist()
        if self.mask_token_id in tokens:
            tokens = tokens[: tokens.index(self.mask_token_id)]
        final = max(self.sent, _without_filler(tokens, self.special))
        # An empty tensor, too: with every put the server's streamer checks whether the client has gone.
        self.streamer.put(torch.tensor(tokens[self.sent : final], dtype=torch.int64))
        self.sent = final

    def put(self, value: torch.Tensor) -> None:
        """The prompt `(1, P)`, then the response `(1, R)`."""
        (self.put_draft if self.has_prompt else self.streamer.put)(value)
        self.has_prompt = True

    def end(self) -> None:
        self.streamer.end()


def _without_filler(tokens: list[int], special: set[int]) -> int:
    """The number of tokens up to the last that is not special."""
    return max((number for number, token in enumerate(tokens, start=1) if token not in special), default=0)
