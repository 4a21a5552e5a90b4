"""Arguments that commands share: which checkpoint, under which system, and how it answers."""

import argparse
import math
from typing import Any


def preset_name(name: str) -> str:
    """A `type` for arguments that name a preset: an unknown name is an error that suggests the nearest."""
    from configuration_shirg.presets_shirg import GEOMETRIES, preset_fields

    try:
        preset_fields(name, next(iter(GEOMETRIES)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return name


def port_number(written: str) -> int:
    """A `type` for arguments that name a port."""
    if not written.isascii() or not written.isdigit() or int(written) > 65535:
        raise argparse.ArgumentTypeError(f"{written!r} must be an integer from 0 to 65535")
    return int(written)


def seconds(written: str) -> float:
    """A `type` for arguments that name a time."""
    try:
        value = float(written)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{written!r} must be a number of seconds, 0 or more")
    return value


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """--model, --revision, --device and --dtype, the arguments of `loading.load`."""
    parser.add_argument(
        "--model", help="folder or Hub id of a checkpoint or an adapter; by default the bundled toy checkpoint"
    )
    parser.add_argument("--revision", help="branch, tag or commit of --model on the Hub")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ...")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))


def add_quantize_argument(parser: argparse.ArgumentParser) -> None:
    """--quantize, which `loading.load` takes."""
    parser.add_argument(
        "--quantize",
        choices=("int8", "int4"),
        help="type of the language model's matrices, by bitsandbytes (extra quant); all else has --dtype",
    )


def add_system_arguments(parser: argparse.ArgumentParser) -> None:
    """--prune_method and --text_relevance; by default the checkpoint's own."""
    parser.add_argument(
        "--prune_method", type=preset_name, metavar="NAME", help="system to use; by default the checkpoint's own"
    )
    parser.add_argument(
        "--text_relevance",
        choices=("lm", "siglip", "none"),
        help="how patches are compared with the question; by default as the checkpoint says",
    )


def add_option_argument(parser: argparse.ArgumentParser) -> None:
    """--option, which `loading.parse_options` reads."""
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="any other field of the config, such as selection_budget=410 or diversity_weight=0; repeatable",
    )


def add_answer_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `generate` that commands have, which `answer_arguments` reads."""
    parser.add_argument("--max_new_tokens", type=int, help="length of the answer in tokens")
    parser.add_argument("--block_length", type=int, help="fill it in blocks of this length, from left to right")
    parser.add_argument("--steps", type=int, help="denoising steps in all")
    parser.add_argument(
        "--prefix_kv", type=float, metavar="RATIO", help="share of the prompt's keys and values to keep"
    )
    parser.add_argument("--prefix_dtype", choices=("bfloat16", "float16", "int8"), help="type to store them in")
    _add_switch(parser, "prefix_offload", True, "hold them in host memory; the model is on an accelerator")
    parser.add_argument(
        "--confidence_threshold", type=float, metavar="P", help="a step also fills in what is at least so probable"
    )
    parser.add_argument(
        "--confidence_factor", type=float, metavar="F", help="or the n most probable while (n + 1)(1 - p_n) < F"
    )
    _add_switch(parser, "stop_at_eos", True, "stop when all that is left comes after an end-of-text token")
    _add_switch(parser, "dual_cache", True, "compute a block alone after its first step: an approximation")
    _add_switch(parser, "compile_config", {"mode": "default", "fullgraph": True}, "compile the steps", "--compile")


def _add_switch(parser: argparse.ArgumentParser, name: str, on: Any, text: str, flag: str | None = None) -> None:
    parser.add_argument(flag or f"--{name}", dest=name, action="store_const", const=on, help=text)


_ANSWER = (
    "max_new_tokens",
    "block_length",
    "steps",
    "prefix_kv",
    "prefix_dtype",
    "prefix_offload",
    "confidence_threshold",
    "confidence_factor",
    "stop_at_eos",
    "dual_cache",
    "compile_config",
)


def answer_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `generate` among the parsed ones; `None` leaves the checkpoint's own."""
    return {name: getattr(args, name) for name in _ANSWER}
