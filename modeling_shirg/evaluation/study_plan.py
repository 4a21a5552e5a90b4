"""A study: a YAML file of systems, adaptations and aims, and the folder of its evaluations.

tasks, limit, batch_size, split   of every evaluation, as for `shirg evaluate`
timed_rows                 rows of each task in the run that times all systems
tables                     [{name, baseline, systems}]; a system is written as for `shirg evaluate`
adapt                      [{system, seeds, train}]; `train` replaces arguments of the recipe
train                      the recipe of every adaptation, arguments of `shirg train`
aims                       [{system, over or share_of, at_least, tasks, where, sizes, lower_end}], see `check_aim`

RUN/zero-shot, RUN/timing  evaluations of all systems on the base's weights
RUN/adapters/NAME          output folders of `shirg train`
RUN/adapted/NAME           the evaluation of each adapter
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from modeling_shirg.evaluation.answer_log import ROWS_FILE, read_json
from modeling_shirg.evaluation.results import Logged, Plan, missing
from modeling_shirg.evaluation.tasks import check_task
from modeling_shirg.training.arguments import read_settings

STUDY_FILE, ZERO_SHOT, ADAPTED = "study.json", "zero-shot", "adapted"


class Adaptation(NamedTuple):
    """A system that is adapted with a seed; `train` replaces arguments of the recipe."""

    system: str
    seed: int
    train: dict[str, Any]

    @property
    def label(self) -> str:
        """The name in tables."""
        changes = (f"{name}={value}" for name, value in self.train.items())
        return ", ".join([self.system, *changes, f"seed {self.seed}"])

    @property
    def name(self) -> str:
        """The name of its folders."""
        return quote(self.label.replace(", ", ",").replace(" ", "-"), safe="=,.-")


@dataclass(frozen=True)
class StudyPlan:
    """A study in the folder `run`; the fields are described at the top of this file."""

    run: Path
    tasks: list[str]
    tables: list[dict[str, Any]]
    adapt: list[Adaptation] = field(default_factory=list)
    train: dict[str, Any] = field(default_factory=dict)
    aims: list[dict[str, Any]] = field(default_factory=list)
    limit: int | None = None
    batch_size: int = 8
    split: str = "test"

    @property
    def systems(self) -> list[str]:
        """All systems, once."""
        return list(dict.fromkeys([*(s for t in self.tables for s in t["systems"]), *(a.system for a in self.adapt)]))

    def answers(self, arm: str) -> tuple[dict[str, Logged], list[str]]:
        """The systems of an arm with complete answers, by their labels, and the labels of the others."""
        asked = {system: Logged(self.run / ZERO_SHOT, system) for system in self.systems}
        if arm == ADAPTED:
            asked = {each.label: Logged(self.run / ADAPTED / each.name, each.system) for each in self.adapt}
        complete = {label: logged for label, logged in asked.items() if self._is_complete(logged)}
        return complete, [f"{label}, {arm}" for label in asked if label not in complete]

    def rows(self, root: Path) -> dict[str, int]:
        """The number of rows of each task of an evaluation; empty before all tasks are there."""
        files = [root / "answers" / task / ROWS_FILE for task in self.tasks]
        if not all(file.exists() for file in files):
            return {}
        return {task: read_json(file)["rows"] for task, file in zip(self.tasks, files, strict=True)}

    def _is_complete(self, logged: Logged) -> bool:
        rows = self.rows(logged.root)
        return bool(rows) and not missing(Plan(rows, {"": logged}, ["none"], ""))


def read_study(file: Path, run: Path) -> StudyPlan:
    """The study of a YAML file, or of the STUDY_FILE of a run, in the folder `run`; a wrong one is a `ValueError`."""
    content = read_settings(file)
    try:
        content = dict(content.get("plan", content))
        adapt = content.get("adapt", [])
        content["adapt"] = [Adaptation(a["system"], s, a.get("train", {})) for a in adapt for s in a.get("seeds", [0])]
        plan = StudyPlan(run=run, **content)
        strangers = [table["baseline"] for table in plan.tables if table["baseline"] not in table["systems"]]
    except (AttributeError, TypeError, KeyError) as error:
        raise ValueError(f"{file}: {error}. See scripts/configs/study/plan.yaml for the names of a study.") from None
    for task in plan.tasks:
        check_task(task)
    if strangers:
        raise ValueError(f"{file}: the baseline {strangers[0]} is none of the systems of its table.")
    if plan.adapt and not {"max_steps", "effective_batch_size"} <= plan.train.keys():
        raise ValueError(f"{file}: train needs max_steps and effective_batch_size: adaptations see equal samples.")
    return plan
