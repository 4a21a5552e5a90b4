"""A folder that appears as a whole or not at all, and that only its own kind may replace.

`OUT` is built as `.OUT.partial` beside it. An earlier conversion steps aside as `.OUT.previous` for the moment between
two renames; whoever finds one of the two after a killed run puts things right. One conversion to an OUT at a time.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RECORD = "conversion.json"


def check_replaceable(out: Path) -> None:
    """`out` is absent, empty, or an earlier conversion and nothing else.

    Raises:
        ValueError: it holds something that replacing it would destroy.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise ValueError(f"{out} is a file. Choose another OUT.")
    record = out / RECORD
    if not record.is_file() or not _is_converted(out):
        raise ValueError(
            f"{out} is not empty and no earlier conversion (it has no {RECORD} beside a shirg_lavida config.json). "
            "Choose another OUT, or remove the folder."
        )
    own = {*json.loads(record.read_text())["files"], RECORD}
    others = sorted(entry.name for entry in out.iterdir() if entry.name not in own)
    if others:
        raise ValueError(
            f"{out} is an earlier conversion with {len(others)} further entries, which would be lost: "
            f"{', '.join(others[:8])}. Choose another OUT, or move them away."
        )


@contextmanager
def replaced_folder(out: Path) -> Iterator[Path]:
    """A new folder to fill; when the block ends without an error it is `out`, otherwise it is gone."""
    partial, previous = _beside(out, "partial"), _beside(out, "previous")
    recover(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial.mkdir()
    try:
        yield partial
        if out.exists():
            os.replace(out, previous)
        os.replace(partial, out)
    finally:
        recover(out)


def recover(out: Path) -> None:
    """Undo what a killed run left beside `out`: a half-built folder, or an earlier conversion that stepped aside."""
    partial, previous = _beside(out, "partial"), _beside(out, "previous")
    if previous.exists() and not out.exists():
        os.replace(previous, out)
    for leftover in (partial, previous):
        if leftover.exists():
            shutil.rmtree(leftover)


def write_record(folder: Path, facts: dict) -> None:
    """Note `facts` and which files are the conversion's own."""
    files = sorted(entry.name for entry in folder.iterdir())
    (folder / RECORD).write_text(json.dumps({**facts, "files": files}, indent=2) + "\n")


def _beside(out: Path, state: str) -> Path:
    return out.with_name(f".{out.name}.{state}")


def _is_converted(out: Path) -> bool:
    config = out / "config.json"
    return config.is_file() and json.loads(config.read_text()).get("model_type") == "shirg_lavida"
