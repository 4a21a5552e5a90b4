"""The `shirg` command: one subcommand per file of this folder, imported only when it is called."""

import importlib
import sys

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

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


def main(argv: list[str] | None = None) -> int:
    """Run `shirg COMMAND ...`; the exit status is 0, or 2 after an error that the user can mend."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    command, *rest = argv
    if command not in COMMANDS:
        print(f"shirg: unknown command {command!r}.\n\n{_usage()}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"{__package__}.{command}")
    try:
        module.main(module.parse_args(with_underscores(rest)))
    except (ValueError, OSError, SafetensorError, StrictDataclassError) as error:
        cause = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
        print(f"shirg {command}: {cause}", file=sys.stderr)
        return 2
    return 0


def with_underscores(argv: list[str]) -> list[str]:
    """The same arguments with `--some-flag` written `--some_flag`; what follows a lone `--` is left alone."""
    flags = []
    for position, argument in enumerate(argv):
        if argument == "--":
            return flags + argv[position:]
        if argument.startswith("--") and " " not in argument.split("=")[0]:
            name, equals, value = argument.partition("=")
            argument = "--" + name[2:].replace("-", "_") + equals + value
        flags.append(argument)
    return flags


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(["usage: shirg COMMAND [options]   (shirg COMMAND --help)", "", *lines])


if __name__ == "__main__":
    sys.exit(main())
