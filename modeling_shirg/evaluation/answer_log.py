"""The files of an evaluation: a JSON line per answered question, so that a killed run can continue.

DIR/settings.json, DIR/weights.json             settings of every answer, fingerprint of the base weights
DIR/answers/TASK/rows.json                      where the task's rows came from, and how many
DIR/answers/TASK/SYSTEM/CONTROL.RANK.jsonl      answers of one process; its unfinished last line does not count
DIR/answers/TASK/SYSTEM/memory.json             peak memory of the first batch
"""

import fcntl
import json
import os
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from modeling_shirg.running.files import write_json

SETTINGS_FILE, WEIGHTS_FILE, ROWS_FILE, MEMORY_FILE = "settings.json", "weights.json", "rows.json", "memory.json"


class Place(NamedTuple):
    """A system's answers to a task, under one of the benchmark's controls."""

    task: str
    system: str
    control: str = "none"

    def folder(self, root: Path) -> Path:
        """The folder of its files."""
        return root / "answers" / self.task / quote(self.system, safe="=,.-")


class AnswerLog:
    """Appends the answers of process `rank`, as a context; a second writer of the same file is an error."""

    def __init__(self, root: Path, place: Place, rank: int):
        self.file = place.folder(root) / f"{place.control}.{rank}.jsonl"

    def __enter__(self) -> "AnswerLog":
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._open = self.file.open("ab")
        try:
            fcntl.flock(self._open, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._open.close()
            raise ValueError(
                f"Another run is writing {self.file}: wait for it, or take another --out. Start several processes by "
                "`accelerate launch`."
            ) from None
        os.truncate(self.file, len(_whole_lines(self.file)))
        return self

    def __exit__(self, *_: Any) -> None:
        self._open.close()

    def append(self, records: list[dict]) -> None:
        """Add records, at once and onto the disk."""
        self._open.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())
        self._open.flush()
        os.fsync(self._open.fileno())


def read_answers(root: Path, place: Place) -> list[dict]:
    """All records of a place, of all processes, by row; a row answered twice is a `ValueError`, as is a bad line."""
    records: dict[int, dict] = {}
    for file in sorted(place.folder(root).glob(f"{place.control}.*.jsonl")):
        for number, line in enumerate(_whole_lines(file).splitlines(), start=1):
            record = _record(line, f"{file}, line {number}")
            if record["row"] in records:
                raise ValueError(f"{file}, line {number}: row {record['row']} was answered before. Delete one.")
            records[record["row"]] = record
    return [records[row] for row in sorted(records)]


def _record(line: bytes, where: str) -> dict:
    try:
        record = json.loads(line)
        if type(record["row"]) is int and ("bad" in record or record["scores"] is not None):
            return record
    except (ValueError, TypeError, KeyError):
        pass
    raise ValueError(f"{where} is no answer (a row number with scores), got {line[:80]!r}: delete that line.")


def check_settings(file: Path, settings: dict[str, Any], answers: Path) -> None:
    """Write `settings` to the file, or raise a `ValueError` if other settings are there.

    `answers` is the folder of the answers: while it holds none, the file is replaced.
    """
    settings = json.loads(json.dumps(settings))
    if not file.exists() or not any(_whole_lines(log) for log in answers.rglob("*.jsonl")):
        write_json(file, settings)
        return
    before = read_json(file)
    names = sorted(name for name in before | settings if before.get(name) != settings.get(name))
    if names:
        changes = "; ".join(f"{name} was {before.get(name)!r}, now {settings.get(name)!r}" for name in names)
        raise ValueError(
            f"{file.parent} holds answers under other settings: {changes}. Ask as before, or take another --out."
        )


def read_json(file: Path) -> dict[str, Any]:
    """The dictionary in a JSON file; a `ValueError` if there is none."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} holds no facts ({error}): bring it back, or remove its folder.") from None


def _whole_lines(file: Path) -> bytes:
    content = file.read_bytes()
    return content[: content.rfind(b"\n") + 1]
