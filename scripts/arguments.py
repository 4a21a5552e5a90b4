"""Arguments that commands share: which checkpoint, under which system, and how it answers."""

import argparse
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from types import ModuleType
from typing import Any

from .argument_types import checkpoint, preset_name, preset_names

# Arguments of `generate` that commands have.
_ANSWER = (
    "max_new_tokens",
    "block_length",
    "steps",
    "prefix_kv",
    "prefix_dtype",
    "confidence_threshold",
    "stop_at_eos",
    "dual_cache",
    "compile_config",
)


class CommandParser(argparse.ArgumentParser):
    """The parser of `shirg COMMAND`: its help is the module's docstring, and an error is one line."""

    def __init__(self, command: str, text: str, usage: str | None = None):
        style = argparse.RawDescriptionHelpFormatter
        super().__init__(command, usage, text, formatter_class=style, allow_abbrev=False)

    def error(self, message: str) -> None:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """--model, --revision, --device, --dtype: arguments of `running.load.load`."""
    about = "folder or Hub id of a checkpoint or an adapter; by default the bundled toy checkpoint"
    parser.add_argument("--model", type=checkpoint, help=about)
    parser.add_argument("--revision", help="branch, tag or commit of --model on the Hub")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ...")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))


def add_quantize_argument(parser: argparse.ArgumentParser) -> None:
    """--quantize, an argument of `running.load.load`."""
    about = "type of the language model's matrices, by bitsandbytes (extra quant); all else has --dtype"
    parser.add_argument("--quantize", choices=("int8", "int4"), help=about)


def add_system_arguments(parser: argparse.ArgumentParser) -> None:
    """--prune_method and --text_relevance; by default the checkpoint's own."""
    about = "system to use; by default the checkpoint's own"
    parser.add_argument("--prune_method", type=preset_name, metavar="NAME", help=about)
    about = "how patches are compared with the question; by default as the checkpoint says"
    parser.add_argument("--text_relevance", choices=("lm", "siglip", "none"), help=about)


def add_systems_argument(
    parser: argparse.ArgumentParser, default: list[str] | None = None, kind: Callable[[str], str] = preset_name
) -> None:
    """--prune_method with several systems, in `args.systems`; `default=None` is all of them."""
    metavar, names = ("NAME", "all") if kind is preset_name else ("NAME[:FIELD=VALUE,...]", " ".join(default))
    parser.add_argument(
        "--prune_method",
        "--systems",
        dest="systems",
        nargs="+",
        type=kind,
        default=default or preset_names(),
        metavar=metavar,
        help=f"systems to use; by default {names}",
    )


def add_option_argument(parser: argparse.ArgumentParser) -> None:
    """--option, which `running.load.parse_options` reads."""
    about = "any other field of the config, such as selection_budget=410 or diversity_weight=0; repeatable"
    parser.add_argument("--option", action="append", default=[], metavar="FIELD=VALUE", help=about)


def add_answer_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `generate` that commands have, which `answer_arguments` reads."""
    parser.add_argument("--max_new_tokens", type=int, help="length of the answer in tokens")
    parser.add_argument("--block_length", type=int, help="fill it in blocks of this length, from left to right")
    parser.add_argument("--steps", type=int, help="denoising steps in all")
    about = "share of the prompt's keys and values to keep"
    parser.add_argument("--prefix_kv", type=float, metavar="RATIO", help=about)
    parser.add_argument("--prefix_dtype", choices=("bfloat16", "float16", "int8"), help="type to store them in")
    about = "a step also fills in what is at least so probable"
    parser.add_argument("--confidence_threshold", type=float, metavar="P", help=about)
    switches = {
        "stop_at_eos": (True, "stop when all that is left comes after an end-of-text token"),
        "dual_cache": (True, "compute a block alone after its first step: an approximation"),
        "compile": ({"mode": "default", "fullgraph": True}, "compile the steps"),
    }
    for name, (value, about) in switches.items():
        dest = "compile_config" if name == "compile" else name
        parser.add_argument(f"--{name}", dest=dest, action="store_const", const=value, help=about)


def add_dataclasses(parser: argparse.ArgumentParser, module: ModuleType) -> None:
    """A group of arguments for each dataclass of `module`, titled by the first line of its docstring.

    The groups are for `--help` alone: HfArgumentParser reads the values.
    """
    for kind in filter(is_dataclass, vars(module).values()):
        if kind.__module__ == module.__name__:
            group = parser.add_argument_group(kind.__doc__.splitlines()[0].rstrip("."))
            for field in fields(kind):
                if field.name in vars(kind)["__annotations__"]:
                    about = field.metadata.get("help", "").replace("%", "%%")
                    group.add_argument(f"--{field.name}", metavar="VALUE", help=about)


def answer_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `generate` among the parsed ones; `None` leaves the checkpoint's own."""
    return {name: getattr(args, name) for name in _ANSWER}
