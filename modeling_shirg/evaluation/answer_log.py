"""What an evaluation leaves while it runs: a JSON line per answered question, in files that a killed run goes on with.

    DIR/settings.json                               what every answer in DIR was given under
    DIR/weights.json                                fingerprint of the base weights that gave them
    DIR/answers/TASK/rows.json                      where the task's rows came from, and how many
    DIR/answers/TASK/SYSTEM/CONTROL.RANK.jsonl      answers of one process; another never writes there
    DIR/answers/TASK/SYSTEM/memory.json             peak memory of the first batch

A line is whole or it does not count: the unfinished one that a killed process left is cut off.
"""

import fcntl
import json
import os
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from modeling_shirg.running.files import write_whole

SETTINGS_FILE = "settings.json"
WEIGHTS_FILE = "weights.json"
ROWS_FILE = "rows.json"
MEMORY_FILE = "memory.json"


class Place(NamedTuple):
    """Whose answers: of one system to one task, under one of the benchmark's controls."""

    task: str
    system: str
    control: str

    def folder(self, root: Path) -> Path:
        """Where its files are."""
        return root / "answers" / self.task / quote(self.system, safe="=,.-")


class AnswerLog:
    """Answers of one process, appended.

    Use it as a context; two processes that would write to one file are an error.

    Args:
        root: folder of the evaluation.
        place: whose answers.
        rank: number of this process.
    """

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
                f"Another run is writing {self.file}: wait for it, or take another --out. With several processes, "
                "start them by `accelerate launch`."
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
    """All records of a place, of all processes, by row.

    Raises:
        ValueError: a row was answered twice, or a line is no record.
    """
    records: dict[int, dict] = {}
    for file in sorted(place.folder(root).glob(f"{place.control}.*.jsonl")):
        for number, line in enumerate(_whole_lines(file).splitlines(), start=1):
            record = _record(line, f"{file}, line {number}")
            if record["row"] in records:
                raise ValueError(
                    f"{file}, line {number}: row {record['row']} was answered before. Delete one of them."
                )
            records[record["row"]] = record
    return [records[row] for row in sorted(records)]


def _record(line: bytes, where: str) -> dict:
    """The record in a line; a `ValueError` if there is none."""
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is no answer ({error}): delete that line.") from None
    whole = isinstance(record, dict) and type(record.get("row")) is int
    if not whole or not ("bad" in record or isinstance(record.get("scores"), dict)):
        raise ValueError(f"{where} is no answer (it has no row with scores, got {line[:80]!r}): delete that line.")
    return record


def check_settings(file: Path, settings: dict[str, Any], answers: Path | None = None) -> None:
    """Keep `settings` in the file, or compare them with those in it, that the answers beside it were given under.

    Args:
        file: of the settings.
        settings: this run's.
        answers: folder of the answers. As long as there is none in it, what the file holds binds nobody and is
            replaced. By default it binds from the start.

    Raises:
        ValueError: they differ, naming how, or the file holds none.
    """
    settings = json.loads(json.dumps(settings))
    if not file.exists() or (answers is not None and not _any_answer(answers)):
        write_json(file, settings)
        return
    before = read_json(file)
    names = [name for name in before.keys() | settings.keys() if before.get(name) != settings.get(name)]
    if names:
        changes = "; ".join(f"{name} was {before.get(name)!r}, now {settings.get(name)!r}" for name in sorted(names))
        raise ValueError(
            f"{file.parent} holds answers under other settings: {changes}. Ask as before, or take another --out."
        )


def _any_answer(folder: Path) -> bool:
    return any(_whole_lines(file) for file in folder.rglob("*.jsonl"))


def read_json(file: Path) -> dict[str, Any]:
    """What `write_json` wrote of a dictionary; a `ValueError` if the file holds none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} cannot be read ({error}): bring it back, or remove its folder.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, no facts: bring it back, or remove its folder.")
    return content


def write_json(file: Path, content: Any) -> None:
    """Write a file that is always whole, whoever else writes it."""
    write_whole(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _whole_lines(file: Path) -> bytes:
    content = file.read_bytes()
    return content[: content.rfind(b"\n") + 1]
