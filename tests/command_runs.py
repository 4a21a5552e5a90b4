"""Running a command in this process, and what it leaves in a folder."""

import contextlib
import hashlib
import io
import os
from functools import cache
from importlib.resources import files
from pathlib import Path

from shirg_scripts import cli
from tiny_model import tiny_config, tiny_model, tiny_processor

GRID = str(files("shirg_hub_card") / "examples" / "grid.png")


class CommandError(Exception):
    """A command ended with status 2; the message is its standard error."""


def command(*words: str) -> str:
    """Runs `shirg WORDS` here; returns its standard output, and raises a `CommandError` with status 2."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main([*words])
        except SystemExit as left:  # argparse
            status = left.code
    assert "Traceback" not in err.getvalue()
    if status == 2:
        raise CommandError(err.getvalue())
    assert status == 0, f"status {status}: {err.getvalue()}"
    return out.getvalue()


def contents(folder: Path) -> dict[str, str]:
    """Every entry below a folder with a digest of its content; the digest of a link is its target's name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


@cache
def checkpoint() -> Path:
    """A saved tiny model, in the session's Hugging Face home, which is removed with the session."""
    folder = Path(os.environ["HF_HOME"]) / "commands" / "checkpoint"
    tiny_model(tiny_config()).save_pretrained(folder)
    tiny_processor(tiny_config()).save_pretrained(folder)
    return folder
