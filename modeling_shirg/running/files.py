"""Files and folders that are whole or absent: a reader, also after a crash, sees the old state or the new one."""

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

# Formats that pictures are written in.
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pdf")
# In the draft of a folder, the file that names the process that fills the draft.
_OWNER = ".shirg-owner"


@contextmanager
def draft_of(file: Path) -> Iterator[Path]:
    """A path to write to, which replaces `file` when the block ends, and is removed if the block fails."""
    draft = file.with_name(f".{os.getpid()}.{file.name}")
    try:
        yield draft
        if file.exists():
            shutil.copymode(file, draft)
        os.replace(draft, file)
    finally:
        draft.unlink(missing_ok=True)


def write_whole(file: Path, text: str) -> None:
    """Write `text` to `file`, which keeps its permissions if there is one; its folder is made if there is none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with draft_of(file) as draft:
        draft.write_text(text, encoding="utf-8", newline="")


def write_json(file: Path, values: Any) -> None:
    """Write a JSON file."""
    write_whole(file, json.dumps(values, indent=2) + "\n")


def write_lines(file: Path, entries: list[Any]) -> None:
    """Write one line of JSON for each of `entries`."""
    write_whole(file, "".join(json.dumps(entry) + "\n" for entry in entries))


def save_picture(picture: Image.Image, file: Path) -> None:
    """Write a picture; its format follows from the name of `file`."""
    with draft_of(file) as draft:
        picture.save(draft)


def check_writable(file: Path, flag: str) -> None:
    """Raises a `ValueError` unless a picture can be written to `file`; to be called before any work."""
    if file.suffix.lower() not in _PICTURES:
        raise ValueError(f"{flag} {file}: write it to a picture file, one of {', '.join(_PICTURES)}.")
    if file.is_dir() or not file.resolve().parent.is_dir():
        raise ValueError(f"{flag} {file}: no file can be written there; is {file.resolve().parent} a folder?")


def check_free(out: Path) -> None:
    """Raises a `ValueError` unless `out` is absent or an empty folder."""
    if os.path.ismount(out):
        raise ValueError(f"{out} is a mount point, which no folder can be renamed to: name a new folder in it.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"{out} is not an empty folder, and nothing is replaced: name another one, or delete this one first."
        )


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A new folder to fill; when the block ends without an error it is `out`, otherwise it is gone.

    The folder is filled beside `out`, and renamed at the end. Drafts of killed processes are removed first.

    Raises:
        ValueError: `out` was taken in the meantime.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{out.name}.partial-"
    for entry in out.parent.iterdir():
        if entry.name.startswith(prefix) and _is_abandoned(entry):
            _remove(entry)
    workshop = Path(tempfile.mkdtemp(prefix=prefix, dir=out.parent))
    try:
        (workshop / _OWNER).write_text(f"{platform.node()}\n{os.getpid()}\n")
        folder = workshop / "out"
        folder.mkdir()
        yield folder
        try:
            os.replace(folder, out)  # fails on a folder that is not empty
        except OSError:
            check_free(out)
            raise
    finally:
        _remove(workshop)


def _is_abandoned(workshop: Path) -> bool:
    """Whether a process of this machine made the workshop and has ended; in doubt not."""
    try:
        host, process = (workshop / _OWNER).read_text().splitlines()
    except (OSError, ValueError):
        return False
    # Signal 0 asks whether a process lives on POSIX only.
    if os.name != "posix" or host != platform.node() or not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _remove(workshop: Path) -> None:
    """The owner's name last, so that another process can take up a removal that is killed."""
    for entry in (workshop / "out", workshop):
        shutil.rmtree(entry, ignore_errors=True)
