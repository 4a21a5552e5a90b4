"""A page in the browser: ask about an image, watch the answer denoise, see where each system looked.

    shirg demo
    shirg demo --model me/my-lavida --device cuda --systems shirg lavida-980 --port 7861

It listens on 127.0.0.1; --host names another address, and then whoever reaches it may ask. Needs:
pip install 'shirg-lavida[demo]'. hub_card/space/ is the same page as a Space.
"""

import argparse
import socket
from pathlib import Path
from typing import Any

EXAMPLES = {
    "grid.png": "What is in cell 5?",
    "chart.png": "What is the value of point S?",
    "document.png": "What is the value of V?",
    "shapes.png": "What color is the triangle?",
}
TOY = (
    "The checkpoint that comes with the package is a toy: it reads small rendered scenes, and was adapted to "
    "`shirg`, with the fovea in the middle. Elsewhere it shows where a system looks, and reads less."
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    from .argument_types import port_number
    from .arguments import CommandParser, add_model_arguments, add_quantize_argument, add_systems_argument

    parser = CommandParser("shirg demo", __doc__)
    add_model_arguments(parser)
    add_quantize_argument(parser)
    add_systems_argument(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=port_number, default=7860)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Serve the page until interrupted or terminated; what was uploaded goes with it."""
    import os
    import signal
    import sys
    from tempfile import TemporaryDirectory

    # Gradio closes the page and returns at an interrupt, so that what comes after it is done at either.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _check_address(args.host, args.port)
    with TemporaryDirectory(prefix="shirg-demo-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = build_page(args)
        page.launch(
            server_name=args.host, server_port=args.port, show_error=True, quiet=True, prevent_thread_lock=True
        )
        print(f"Running on {page.blocks.local_url}", file=sys.stderr)
        page.blocks.block_thread()


def _check_address(host: str, port: int) -> None:
    """Raises a `ValueError` where nothing can listen; Gradio's own names settings that are not the command's."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(address)
    except OSError as error:
        raise ValueError(f"--host {host} --port {port}: {error.strerror}. Choose others.") from None


def build_page(args: argparse.Namespace) -> Any:
    """The page that `args` describe, with its first system loaded."""
    from importlib.resources import files

    from modeling_shirg.running.extras import need

    need("demo", "gradio", "httpcore")

    from modeling_shirg.demo.demo_page import DemoPage
    from modeling_shirg.demo.drafts import Asker
    from modeling_shirg.running.load import Loaded, load

    def load_system(name: str) -> Loaded:
        return load(args.model, name, args.device, args.dtype, revision=args.revision, quantize=args.quantize)

    asker = Asker(load_system)
    asker.system(args.systems[0])
    folder = Path(str(files("shirg_hub_card") / "examples"))
    examples = [(folder / name, question) for name, question in EXAMPLES.items()]
    return DemoPage(asker, args.systems, examples, "" if args.model else TOY)
