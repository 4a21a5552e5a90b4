"""The `shirg` command: one subcommand per file of this folder, imported only when it is called."""

import importlib
import logging
import os
import re
import signal
import sys
import threading
import warnings
from argparse import ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager

COMMANDS = {
    "ask": "Answer a question about an image.",
    "bench": "Time systems side by side, stage by stage.",
    "calibrate": "Measure the scores on labelled boxes, and correct them.",
    "compare": "Put every system side by side on one image.",
    "convert": "Convert an original LaViDa checkpoint.",
    "demo": "Ask in the browser, and see where each system looked.",
    "evaluate": "Score systems on benchmarks, with intervals and paired differences.",
    "push": "Publish an adapter, a model or its position embeddings on the Hub.",
    "report": "Write pages and slides about an evaluation or a study.",
    "serve": "Serve a model over OpenAI's chat API, images included.",
    "study": "Compare systems on one base, zero-shot and adapted.",
    "train": "Fine-tune a LoRA footprint on image-question data.",
}
# Commands that load a checkpoint under many presets: that a preset does not use a table of the checkpoint is no news.
_MANY_SYSTEMS = ("bench", "compare", "demo", "evaluate", "study")
# Read by libraries when they are imported.
_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "KINETO_LOG_LEVEL": "99",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TRANSFORMERS_VERBOSITY": "error",
}


def main(argv: list[str] | None = None) -> int:
    """Run `shirg COMMAND ...`; the exit status is 0, 2 after an error that the user can mend, or 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    command, *rest = arguments
    if command not in COMMANDS:
        print(f"shirg: unknown command {command!r}.\n\n{_usage()}", file=sys.stderr)
        return 2
    if argv is None:
        _quiet_libraries(command)
    module = importlib.import_module(f"{__package__}.{command}")
    with _interrupts() as interrupts:
        try:
            module.main(module.parse_args(with_underscores(rest)))
        except KeyboardInterrupt:
            interrupts.append(command)
        except _user_errors() as error:
            # A strict dataclass wraps the error of its validator in words of its own.
            strict = type(error).__name__.startswith("StrictDataclass")
            print(f"shirg {command}: {error.__cause__ if strict and error.__cause__ else error}", file=sys.stderr)
            return 2
    if not interrupts:
        return 0
    print(f"\nshirg {command}: interrupted", file=sys.stderr)
    return 130


def with_underscores(argv: list[str]) -> list[str]:
    """The same arguments with `--some-flag` written `--some_flag`; what follows a lone `--` is left alone."""
    end = argv.index("--") if "--" in argv else len(argv)
    flags = [
        re.sub(r"^--[^ =]+(?==|$)", lambda flag: f"--{flag[0][2:].replace('-', '_')}", word) for word in argv[:end]
    ]
    return flags + argv[end:]


def _quiet_libraries(command: str) -> None:
    """Keep log lines, warnings and progress bars of libraries off the terminal, and all bars out of pipes."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    if command in _MANY_SYSTEMS:
        logging.getLogger("modeling_shirg").setLevel(logging.ERROR)


@contextmanager
def _interrupts() -> Iterator[list]:
    """The interrupts of the block, also those that a server or a browser page turns into a quiet end."""
    interrupts: list = []
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return

    def interrupt(number, frame) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


def _user_errors() -> tuple[type[BaseException], ...]:
    """Errors that a user can mend; evaluated after an error, which only an imported library can have raised."""
    plain = (ValueError, OSError, ArgumentTypeError, ModuleNotFoundError)
    if "torch" not in sys.modules:
        return plain
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from torch import OutOfMemoryError

    return *plain, SafetensorError, StrictDataclassError, OutOfMemoryError


def _usage() -> str:
    lines = "".join(f"\n  {name:<9}  {text}" for name, text in COMMANDS.items())
    return f"usage: shirg COMMAND [options]   (shirg COMMAND --help)\n{lines}"


if __name__ == "__main__":
    sys.exit(main())
