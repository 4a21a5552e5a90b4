"""A file that is replaced as a whole: whoever reads it, also after a crash, sees the old text or the new one."""

import json
import os
import shutil
from pathlib import Path
from typing import Any


def write_whole(file: Path, text: str) -> None:
    """Write `text` to `file`, which keeps its permissions if it is there; its folder is made if it is not."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8", newline="")
        if file.exists():
            shutil.copymode(file, draft)
        os.replace(draft, file)
    finally:
        draft.unlink(missing_ok=True)


def write_json(file: Path, values: Any) -> None:
    """Write a JSON file."""
    write_whole(file, json.dumps(values, indent=2) + "\n")


def write_lines(file: Path, entries: list[Any]) -> None:
    """Write one line of JSON for each of `entries`."""
    write_whole(file, "".join(json.dumps(entry) + "\n" for entry in entries))
