"""A folder that appears as a whole or not at all, where nothing was: nothing is ever replaced.

It is built in a new folder beside OUT, whose first file says which process builds it, and renamed at the end. What a
killed run left there is removed by the next one.
"""

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RECORD = "conversion.json"
_OWNER = ".shirg-convert-process"


def check_free(out: Path) -> None:
    """`out` is absent or an empty folder.

    Raises:
        ValueError: it is anything else.
    """
    if os.path.ismount(out):
        raise ValueError(f"{out} is a mount point, which no folder can be renamed to: name a new folder in it.")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    what = "not an empty folder"
    if (out / RECORD).is_file():
        what = f"a conversion already (it has a {RECORD})"
    raise ValueError(f"{out} is {what}, and nothing is replaced: name another OUT, or delete this one first.")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A new folder to fill; when the block ends without an error it is `out`, otherwise it is gone.

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
            os.replace(folder, out)  # fails by itself on a folder that is not empty
        except OSError:
            check_free(out)
            raise
    finally:
        _remove(workshop)


def write_record(folder: Path, facts: dict) -> None:
    """Note `facts`."""
    (folder / RECORD).write_text(json.dumps(facts, indent=2) + "\n")


def _is_abandoned(workshop: Path) -> bool:
    """Whether a run on this machine made it and was killed since; in doubt not."""
    try:
        host, process = (workshop / _OWNER).read_text().splitlines()
    except (OSError, ValueError):
        return False
    # Elsewhere than on POSIX, signal 0 is not a question.
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
    """The owner's name last, so that a removal that is killed can be taken up; another run may be at it too."""
    for entry in (workshop / "out", workshop):
        shutil.rmtree(entry, ignore_errors=True)
