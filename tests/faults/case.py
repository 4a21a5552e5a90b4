"""What a case is, and how one is run: within a time limit, leaving nothing behind."""

import contextlib
import hashlib
import io
import os
import re
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modeling_shirg import ShirgLavidaForConditionalGeneration
from shirg_scripts import cli
from tiny_model import noise_image, tiny_config, tiny_model, tiny_processor

# Of an input, on a machine that others use too.
SECONDS = 120


@dataclass(frozen=True)
class Case:
    """One input.

    Args:
        kind: what is bad or odd: an image, a prompt, ...
        name: of the input, unique within its kind.
        prepare: gets an empty folder, writes what the input needs, and returns what is then done.
        error: the type that has to be raised; `None` if the input is odd and not bad.
        says: pattern of the error's message: the value, and what to do.
        same_as: what an odd input has to give.
    """

    kind: str
    name: str
    prepare: Callable[[Path], Callable[[], Any]]
    error: type[BaseException] | None = None
    says: str = ""
    same_as: Callable[[], Any] | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


def refused(kind: str, name: str, act: Callable[[], Any], error: type[BaseException], says: str) -> Case:
    """A case that needs no files and is an error."""
    return Case(kind, name, lambda folder: act, error, says)


def check(case: Case, folder: Path, temporary: Path) -> None:
    """Runs a case in `folder`, while `temporary` is where temporary files go; an `AssertionError` if it fails."""
    assert (case.error is None) == (case.same_as is not None), "a case is an error or has an equal"
    with contextlib.chdir(folder):
        act = case.prepare(folder)
        before = contents(folder)
        with time_limit(SECONDS):
            found, error = _outcome(act)
    assert os.listdir(temporary) == [], "temporary files are left"
    if case.error is None:
        if error is not None:
            raise error
        assert equal(found, case.same_as()), f"got {found!r}"
        return
    assert error is not None, f"it was taken: {found!r}"
    assert isinstance(error, case.error), f"{type(error).__name__}: {error}"
    assert re.search(case.says, message_of(error), re.DOTALL), f"the message is: {message_of(error)}"
    assert contents(folder) == before, "something was written, or is gone"


def _outcome(act: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return act(), None
    except Exception as error:  # whatever comes is what the case is about
        return None, error


def message_of(error: BaseException) -> str:
    """What a user reads: of a wrong config field, the cause that huggingface_hub wraps."""
    return str(error.__cause__ or error) if type(error).__name__.startswith("StrictDataclass") else str(error)


class CommandError(Exception):
    """A command ended with status 2; the message is what it wrote to standard error."""


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


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """What takes longer is a `TimeoutError`."""

    def late(number, frame):
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Temporary files of this process go there."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def contents(folder: Path) -> dict[str, str]:
    """Every entry below a folder with a digest of what is in it; the hash of a link is its target's name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


def equal(found: Any, expected: Any) -> bool:
    """Equality, of arrays entry by entry."""
    if isinstance(expected, torch.Tensor | np.ndarray):
        return type(found) is type(expected) and found.shape == expected.shape and bool((found == expected).all())
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(equal(found[key], expected[key]) for key in expected)
    return found == expected


# What the cases are done to: made once, and changed by none of them


@cache
def model() -> ShirgLavidaForConditionalGeneration:
    """A tiny model of system `shirg`."""
    return tiny_model(tiny_config())


@cache
def processor(prune_method: str = "shirg"):
    """The processor of a tiny model."""
    return tiny_processor(tiny_config(prune_method))


@cache
def picture():
    """A healthy image; wider than high, larger than the fovea."""
    return noise_image(7, 300, 240)


@cache
def checkpoint() -> Path:
    """A saved tiny model, in the session's Hugging Face home, which is removed with it."""
    folder = Path(os.environ["HF_HOME"]) / "faults" / "checkpoint"
    model().save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder
