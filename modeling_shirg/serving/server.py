"""The application: transformers' server with one model, strict requests, and no endpoint that loads or unloads."""

import asyncio
import threading
from typing import Any

import torch
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from jinja2 import TemplateError
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import GenerationState, Modality

from modeling_shirg.prefix_cache_shirg import prefix_budget
from modeling_shirg.running.ask import check_length

from .chat_request import ChatRequest, parse_request
from .request_bodies import LimitedRequests, error_body
from .request_images import read_images
from .request_limits import Limits
from .served_model import ServedLavida

ENDPOINTS = ("/v1/chat/completions", "/v1/models", "/health")
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class OneModel(ModelManager):
    """A manager whose only model is loaded already, and stays."""

    def __init__(self, model: ServedLavida, processor: Any, name: str):
        super().__init__(device=str(model.device))
        self.model = model
        self.processor = processor
        self.force_model = name

    @staticmethod
    def process_model_name(model_id: str) -> str:
        return model_id

    @staticmethod
    def get_model_modality(model: Any, processor: Any = None) -> Modality:
        return Modality.VLM

    def load_model_and_processor(self, *args: Any, **kwargs: Any) -> tuple[ServedLavida, Any]:
        """The one model, whatever was asked for: `_resolve_model` refuses other names."""
        return self.model, self.processor

    def get_gen_models(self, cache_dir: str | None = None) -> list[dict]:
        return [{"id": self.force_model, "object": "model", "owned_by": "shirg", "created": 0}]


class ChatHandler(ChatCompletionHandler):
    """Answers `/v1/chat/completions`.

    Images are decoded one request at a time, which bounds their memory; transformers' server generates the answers one
    after the other on one thread. Nothing of a request is kept on the model, the processor or this handler.
    """

    def __init__(self, manager: OneModel, limits: Limits, allow_urls: bool):
        super().__init__(manager, GenerationState(continuous_batching=False))
        self.limits = limits
        self.allow_urls = allow_urls
        self._decoding = threading.Lock()

    async def handle_request(self, body: dict, request_id: str) -> Any:
        """The answer, whole or streamed; an error of the request has status 400 and says what to change."""
        try:
            request = await asyncio.to_thread(parse_request, body, self.limits)
            name, model, processor = self._resolve_model(body)
            config = request.generation(model.generation_config, self.limits.max_new_tokens)
            images = await read_images(request.image_urls, self.limits, self.allow_urls)
            inputs = await asyncio.to_thread(self._inputs, request, images, processor)
            prompt = inputs["input_ids"].shape[1]
            check_length(model, prompt, config.max_new_tokens)
            if config.prefix_kv is not None:
                prefix_budget(config.prefix_kv, model.config.text_config.num_hidden_layers, prompt)
        except (ValueError, TemplateError) as error:
            raise HTTPException(400, str(error)) from None
        inputs = dict(inputs.to(model.device))
        if request.seed is not None:
            inputs["generator"] = torch.Generator().manual_seed(request.seed)
        respond = self._streaming if request.stream else self._non_streaming
        manager = self.generation_state.get_manager(name)
        response = respond(request_id, model, processor, name, inputs, config, gen_manager=manager)
        return response if request.stream else await response

    def _inputs(self, request: ChatRequest, images: list[Any], processor: Any) -> Any:
        with self._decoding:
            return processor.apply_chat_template(
                request.conversation(images),
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs=request.image_options,
            )


def build_app(
    model: ServedLavida,
    processor: Any,
    name: str,
    limits: Limits | None = None,
    allow_urls: bool = False,
    hosts: tuple[str, ...] | None = LOOPBACK,
) -> FastAPI:
    """The application for uvicorn.

    Args:
        model: in evaluation mode.
        processor: the model's own.
        name: the model's name in requests.
        limits: by default those of `Limits`.
        allow_urls: fetch images from public addresses.
        hosts: names that a Host header may have, against web pages that rebind a name of theirs; `None` is any.
    """
    limits = limits or Limits()
    manager = OneModel(model, processor, name)
    handler = ChatHandler(manager, limits, allow_urls)
    # The handlers that are `None` belong to routes that are taken out below.
    app = build_server(manager, handler, None, None, None, None, handler.generation_state)
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) in ENDPOINTS]
    app.add_exception_handler(AnyHTTPException, _error)
    app.add_exception_handler(RequestValidationError, _no_object)
    app.add_middleware(LimitedRequests, limits=limits)
    if hosts is not None:
        # A Host header writes an IPv6 address in brackets.
        written = [f"[{host}]" if ":" in host else host for host in hosts]
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=written)
    return app


async def _error(request: Request, error: AnyHTTPException) -> JSONResponse:
    return JSONResponse(error_body(str(error.detail), error.status_code), error.status_code, headers=error.headers)


async def _no_object(request: Request, error: RequestValidationError) -> JSONResponse:
    return JSONResponse(error_body("The body of a request is one JSON object.", 400), 400)
