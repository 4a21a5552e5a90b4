"""Serve a model over OpenAI's chat API, images included, on this machine.

    shirg serve
    shirg serve --model me/my-lavida --prune_method shirg --device cuda --port 8001
    curl http://127.0.0.1:8000/v1/models

    from openai import OpenAI
    client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")

It is transformers' own server (`transformers serve`) with this one model and `POST /v1/chat/completions`,
`GET /v1/models` and `GET /health`. It listens on 127.0.0.1 and knows no users: put a proxy that does in front of it
before --host names another address. Images come as data: URLs; --allow_urls also fetches them, from public addresses
only. Answers are generated one after the other; --max_requests are at work or waiting, one more gets status 429.
A stream brings each token once it and all before it are final. Besides OpenAI's fields a request may have
`fovea_boxes` ([[left, top, right, bottom]], pixels) and `generation_config`, a string such as '{"steps": 4}'.

Needs: pip install 'shirg-lavida[serve]'. Limits and what they protect: SECURITY.md.
"""

import argparse
from dataclasses import fields
from pathlib import Path


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    from .argument_types import light_module, port_number
    from .arguments import CommandParser, add_model_arguments, add_quantize_argument, add_system_arguments

    parser = CommandParser("shirg serve", __doc__)
    add_model_arguments(parser)
    add_quantize_argument(parser)
    add_system_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=port_number, default=8000, help="0 takes a free one")
    parser.add_argument("--allow_urls", action="store_true", help="fetch http(s) images from public addresses")
    for field in fields(light_module("modeling_shirg.serving.request_limits").Limits):
        parser.add_argument(
            f"--{field.name}", type=field.type, default=field.default, help=f"(default {field.default})"
        )
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Load the model and serve until interrupted."""
    import sys

    from modeling_shirg.running.extras import need

    need("serve", "fastapi", "uvicorn", "openai", "httpcore")

    import uvicorn

    from modeling_shirg.running.load import BUNDLED, load
    from modeling_shirg.serving import Limits
    from modeling_shirg.serving.served_model import ServedLavida
    from modeling_shirg.serving.server import LOOPBACK, build_app

    limits = Limits(**{field.name: getattr(args, field.name) for field in fields(Limits)})
    loaded = load(
        args.model,
        args.prune_method,
        args.device,
        args.dtype,
        args.text_relevance,
        revision=args.revision,
        quantize=args.quantize,
    ).as_class(ServedLavida)
    local = args.host in LOOPBACK
    name = BUNDLED if args.model is None else Path(args.model).name if Path(args.model).is_dir() else args.model
    app = build_app(loaded.model, loaded.processor, name, limits, args.allow_urls, LOOPBACK if local else None)
    if not local:
        print(f"--host {args.host}: whoever reaches this address may ask; there is no password.", file=sys.stderr)
    print(f"Model: {name}, system: {loaded.model.config.prune_method}", file=sys.stderr)
    uvicorn.run(app, host=args.host, port=args.port, timeout_graceful_shutdown=5)
