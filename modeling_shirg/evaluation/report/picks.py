"""Which answers are shown as examples: what one system reads and the other does not, and what neither does."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_shirg.evaluation.answer_log import Place, read_answers
from modeling_shirg.evaluation.report.source import GroupView
from modeling_shirg.evaluation.tasks import TASKS

_OURS = "shirg"
_PER_KIND = 2


@dataclass(frozen=True)
class Pick:
    """One question, answered by the baseline and by the system that is compared with it.

    Attributes:
        kind: who is right, in words.
        task, row: which question; `question` and `golds` are its text and its right answers.
        baseline, system: names in the tables; `given` are their answers, in that order.
        roots: the evaluations that hold those answers; `logged` the systems' names there.
    """

    kind: str
    task: str
    row: int
    question: str
    golds: tuple[str, ...]
    baseline: str
    system: str
    given: tuple[str, str]
    roots: tuple[Path, Path]
    logged: tuple[str, str]

    @property
    def caption(self) -> str:
        """What is seen, in words."""
        answers = f"{self.baseline}: {self.given[0]!r}, {self.system}: {self.given[1]!r}"
        return f"{self.task}, row {self.row}: {self.question} Right: {self.golds[0]!r}. {answers}. ({self.kind})"


def pick_examples(group: GroupView) -> list[Pick]:
    """The first rows of each kind, of different tasks as far as there are; nothing without a second system."""
    system = _compared(group)
    if system is None:
        return []
    found: dict[str, list[Pick]] = {}
    for task in group.tables["tasks"]:
        for kind, pick in _first_of_each(group, system, task).items():
            found.setdefault(kind, []).append(pick)
    kinds = (f"only {system} is right", f"only {group.baseline} is right", "neither is right", "both are right")
    return [pick for kind in kinds for pick in found.get(kind, [])[:_PER_KIND]]


def _compared(group: GroupView) -> str | None:
    others = [system for system in group.systems if system != group.baseline]
    return _OURS if _OURS in others else next(iter(others), None)


def _first_of_each(group: GroupView, system: str, task: str) -> dict[str, Pick]:
    """Of each kind the first row of a task."""
    logged = (group.logged[group.baseline], group.logged[system])
    records = [
        {record["row"]: record for record in read_answers(each.roots[0], Place(task, each.system, "none"))}
        for each in logged
    ]
    found: dict[str, Pick] = {}
    for row in sorted(records[0].keys() & records[1].keys()):
        pair = (records[0][row], records[1][row])
        if any("bad" in record for record in pair):
            continue
        kind = _kind(group.baseline, system, [_is_right(task, record) for record in pair])
        if kind not in found:
            found[kind] = Pick(
                kind,
                task,
                row,
                pair[0]["question"],
                tuple(pair[0]["answers"]),
                group.baseline,
                system,
                (pair[0]["prediction"], pair[1]["prediction"]),
                (logged[0].roots[0], logged[1].roots[0]),
                (logged[0].system, logged[1].system),
            )
    return found


def _kind(baseline: str, system: str, right: list[bool]) -> str:
    if right[0] == right[1]:
        return "both are right" if right[0] else "neither is right"
    return f"only {baseline if right[0] else system} is right"


def _is_right(task: str, record: dict[str, Any]) -> bool:
    return record["scores"][TASKS[task].metric] >= 0.5
