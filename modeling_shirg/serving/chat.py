"""The chat endpoint: transformers' handler, with our checks before and our generation arguments."""

import asyncio
import threading
from typing import Any

import torch
from fastapi import HTTPException
from jinja2 import TemplateError
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.utils import GenerationState, Modality

from modeling_shirg.generation_config_shirg import ShirgGenerationConfig
from modeling_shirg.prefix_cache_shirg import prefix_budget
from modeling_shirg.running.ask import check_length

from .chat_request import check_fields, checked_messages, generation_config
from .images import read_images
from .limits import Limits
from .served_model import OneModel


class ChatHandler(ChatCompletionHandler):
    """Answers `/v1/chat/completions`.

    Images are read in threads of their own and decoded one request at a time, which bounds their memory; answers are
    generated one after the other on one thread, as transformers' server does. Nothing of a request is kept on the
    model, the processor or this handler.
    """

    def __init__(self, manager: OneModel, limits: Limits, allow_urls: bool):
        super().__init__(manager, GenerationState(continuous_batching=False))
        self.limits = limits
        self.allow_urls = allow_urls
        self._decoding = threading.Lock()

    async def handle_request(self, body: dict, request_id: str) -> Any:
        """The answer, whole or streamed; an error of the request has status 400 and says what to change."""
        name, model, processor = self._resolve_model(body)
        try:
            check_fields(body)
            config = generation_config(body, model.generation_config, self.limits.max_new_tokens)
            inputs = await asyncio.to_thread(self._inputs, body, processor)
            _check_prompt(model, config, inputs["input_ids"].shape[1])
        except (ValueError, TemplateError) as error:
            raise HTTPException(400, str(error)) from None
        inputs = dict(inputs.to(model.device))
        if body.get("seed") is not None:
            inputs["generator"] = torch.Generator().manual_seed(body["seed"])
        respond = self._streaming if body.get("stream") else self._non_streaming
        manager = self.generation_state.get_manager(name)
        response = respond(request_id, model, processor, name, inputs, config, gen_manager=manager)
        return response if body.get("stream") else await response

    def _inputs(self, body: dict, processor: Any) -> Any:
        messages = self.get_processor_inputs_from_messages(checked_messages(body, self.limits), Modality.VLM)
        parts = [part for message in messages for part in message["content"] if part["type"] == "image"]
        images = read_images([part.pop("url") for part in parts], self.limits, self.allow_urls)
        for part, image in zip(parts, images, strict=True):
            part["image"] = image
        boxes = body.get("fovea_boxes")
        with self._decoding:
            return processor.apply_chat_template(
                messages,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={} if boxes is None else {"fovea_boxes": boxes},
            )


def _check_prompt(model: Any, config: ShirgGenerationConfig, length: int) -> None:
    """Raises a `ValueError` for what `config` cannot do with a prompt of `length` tokens."""
    check_length(model, length, config.max_new_tokens)
    if config.prefix_kv is not None:
        prefix_budget(config.prefix_kv, model.config.text_config.num_hidden_layers, length)
