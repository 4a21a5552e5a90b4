"""The application: transformers' server, less the endpoints that would let a client load, unload or fetch."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from transformers.cli.serving.server import build_server

from .chat import ChatHandler
from .limits import LimitedRequests, Limits, error_body
from .served_model import OneModel, ServedLavida

ENDPOINTS = ("/v1/chat/completions", "/v1/models", "/health")
LOOPBACK = ("localhost", "127.0.0.1", "::1")


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
        processor: its own.
        name: what requests call the model.
        limits: by default those of `Limits`.
        allow_urls: fetch images from public addresses.
        hosts: names under which the server may be called, so that no web page reaches it through a name of its own;
            `None` is any.
    """
    limits = limits or Limits()
    manager = OneModel(model, processor, name)
    handler = ChatHandler(manager, limits, allow_urls)
    # The handlers that are `None` belong to routes that are taken out below.
    app = build_server(manager, handler, None, None, None, None, handler.generation_state)
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) in ENDPOINTS]
    app.add_exception_handler(HTTPException, _error)
    app.add_exception_handler(RequestValidationError, _no_object)
    app.add_middleware(LimitedRequests, limits=limits)
    if hosts is not None:
        # A Host header writes an IPv6 address in brackets.
        written = [f"[{host}]" if ":" in host else host for host in hosts]
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=written)
    return app


async def _error(request: Request, error: HTTPException) -> JSONResponse:
    return JSONResponse(error_body(str(error.detail), error.status_code), error.status_code, headers=error.headers)


async def _no_object(request: Request, error: RequestValidationError) -> JSONResponse:
    return JSONResponse(error_body("The body of a request is one JSON object.", 400), 400)
