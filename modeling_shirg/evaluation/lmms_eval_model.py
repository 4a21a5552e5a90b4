"""SHIRG-LaViDa as a model of lmms-eval, through the entry point `lmms_eval.models`; no fork.

    pip install 'shirg-lavida[eval]'
    python -m lmms_eval --model shirg --model_args pretrained=me/my-lavida,prune_method=shirg --tasks chartqa

Of a task's own arguments only `max_new_tokens` is taken: an answer is denoised greedily, to its whole length.
"""

import json
from collections.abc import Sequence
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.protocol import ChatMessages
from tqdm.auto import tqdm

from modeling_shirg.generation_config_shirg import GENERATION_DEFAULTS
from modeling_shirg.running.ask import ask
from modeling_shirg.running.load import load, parse_options


def manifest() -> ModelManifest:
    """The entry point."""
    return ModelManifest("shirg", chat_class_path=f"{__name__}.{ShirgLmms.__name__}")


class ShirgLmms(lmms):
    """The chat model of lmms-eval; arguments are those of `load`, and `options` are of `generate` or of the config."""

    is_simple = False

    def __init__(
        self,
        pretrained: str | None = None,
        prune_method: str | None = None,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int | str = 1,
        **options: Any,
    ):
        super().__init__()
        self.generation = {name: options.pop(name) for name in list(options) if name in GENERATION_DEFAULTS}
        options.pop("max_batch_size", None)  # lmms-eval hands it to every model
        words = {name: value if isinstance(value, str) else json.dumps(value) for name, value in options.items()}
        fields = parse_options([f"{name}={value}" for name, value in words.items()])
        self.loaded = load(pretrained, prune_method, device, dtype, options=fields, revision=revision)
        self.batch_size = int(batch_size)

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """The answers, in the order of the requests; those of one length are answered together."""
        by_length: dict[int | None, list[int]] = {}
        for number, request in enumerate(requests):
            by_length.setdefault(request.args[2].get("max_new_tokens"), []).append(number)
        answers: dict[int, str] = {}
        for length, numbers in by_length.items():
            generation = {"max_new_tokens": length, **self.generation}
            if "step_ratio" not in generation:
                generation.setdefault("steps", generation["max_new_tokens"])
            for start in tqdm(range(0, len(numbers), self.batch_size), desc="answering"):
                batch = numbers[start : start + self.batch_size]
                given = ask(self.loaded, [self._chat(requests[number]) for number in batch], **generation)
                answers |= zip(batch, given.texts, strict=True)
        return [answers[number] for number in range(len(requests))]

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not supported: a round needs the answer to the round before."""
        raise NotImplementedError("SHIRG-LaViDa answers single-round tasks of lmms-eval.")

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not supported: a masked diffusion model has no likelihood of a text in one pass."""
        raise NotImplementedError(
            "A masked diffusion model has no likelihood of an answer: take a task that generates."
        )

    def _chat(self, request: Instance) -> list[dict]:
        _, doc_to_messages, _, doc_id, task, split = request.args
        messages = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id])).messages
        return [{"role": turn.role, "content": [_block(content) for content in turn.content]} for turn in messages]


def _block(content: Any) -> dict[str, Any]:
    if content.type not in ("text", "image"):
        raise ValueError(f"This model reads images and text, no {content.type}: choose another task.")
    return {"type": content.type, content.type: content.text if content.type == "text" else content.url}
