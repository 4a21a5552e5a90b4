"""SHIRG-LaViDa as a model of lmms-eval, which finds it through the entry point `lmms_eval.models`; no fork.

    pip install 'shirg-lavida[eval]'
    python -m lmms_eval --model shirg --model_args pretrained=me/my-lavida,prune_method=shirg --tasks chartqa

`pretrained` is a checkpoint or an adapter; without it the bundled toy answers. Other arguments: `prune_method`,
`revision`, `device`, `dtype`, arguments of `generate` such as `prefix_kv`, and fields of the config. Of a task's own
arguments only `max_new_tokens` is taken: an answer is denoised greedily and ends nowhere but at its length.
"""

import json
from collections.abc import Sequence
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.protocol import ChatMessages
from tqdm.auto import tqdm

from modeling_shirg.evaluation.side_by_side import System, answer
from modeling_shirg.generation_config_shirg import GENERATION_DEFAULTS
from modeling_shirg.running.load import load, parse_options
from modeling_shirg.running.timing import StageClock

MODEL_ID = "shirg"


def manifest() -> ModelManifest:
    """What the entry point returns."""
    return ModelManifest(MODEL_ID, chat_class_path=f"{__name__}.{ShirgLmms.__name__}")


class ShirgLmms(lmms):
    """The chat model of lmms-eval.

    Args:
        pretrained: checkpoint or adapter, a folder or a Hub id; `None` is the bundled toy.
        prune_method: the system; `None` is the checkpoint's own.
        revision: of `pretrained` on the Hub.
        device, dtype: as for `shirg evaluate`.
        batch_size: questions that are answered together.
        **options: arguments of `generate`, and fields of the config.

    Raises:
        ValueError: an option is neither.
    """

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
        fields = parse_options([f"{name}={_written(value)}" for name, value in options.items()])
        self.loaded = load(pretrained, prune_method, device, dtype, options=fields, revision=revision)
        self.batch_size = int(batch_size)

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """The answers, in the order of the requests; those of one length are answered together."""
        lengths = [self._length(request.args[2]) for request in requests]
        answers: dict[int, str] = {}
        for length in dict.fromkeys(lengths):
            mine = [number for number, each in enumerate(lengths) if each == length]
            for start in tqdm(range(0, len(mine), self.batch_size), desc=f"answering in {length or 'own'} tokens"):
                batch = mine[start : start + self.batch_size]
                answers |= zip(batch, self._answer([requests[each] for each in batch], length), strict=True)
        return [answers[number] for number in range(len(requests))]

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not there: a round would need the answer to the one before."""
        raise NotImplementedError("SHIRG-LaViDa answers single-round tasks of lmms-eval.")

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not there: a masked diffusion model has no likelihood of a text in one pass."""
        raise NotImplementedError(
            "A masked diffusion model gives no likelihood of an answer in one pass: take a task that generates."
        )

    def _length(self, asked: dict[str, Any]) -> int | None:
        """Tokens of an answer: the model's argument before the task's; `None` is the checkpoint's own."""
        return self.generation.get("max_new_tokens", asked.get("max_new_tokens"))

    def _answer(self, requests: Sequence[Instance], length: int | None) -> list[str]:
        generation = dict(self.generation)
        if length is not None:
            generation["max_new_tokens"] = length
            if "step_ratio" not in generation:
                generation.setdefault("steps", length)
        system = System(self.loaded.model, self.loaded.processor, generation, len(requests))
        return answer(system, [self._chat(request) for request in requests], StageClock()).texts

    def _chat(self, request: Instance) -> list[dict]:
        _, doc_to_messages, _, doc_id, task, split = request.args
        messages = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id])).messages
        return [{"role": turn.role, "content": [_block(each) for each in turn.content]} for turn in messages]


def _block(content: Any) -> dict[str, Any]:
    """A block of our chat template."""
    if content.type == "text":
        return {"type": "text", "text": content.text}
    if content.type == "image":
        return {"type": "image", "image": content.url}
    raise ValueError(f"This model reads images and text, no {content.type}: choose another task.")


def _written(value: Any) -> str:
    """A value as the command line has it."""
    return value if isinstance(value, str) else json.dumps(value)
