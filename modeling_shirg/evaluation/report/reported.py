"""A folder of `shirg evaluate` or `shirg study`, opened as tables of systems."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modeling_shirg.evaluation.answer_log import SETTINGS_FILE, read_json
from modeling_shirg.evaluation.results import RESULTS_FILE, Logged, tabulate
from modeling_shirg.evaluation.study_plan import ARMS, STUDY_FILE, ZERO_SHOT, StudyPlan, check_aims, read_study
from modeling_shirg.evaluation.tasks import TASKS
from modeling_shirg.running.files import write_json


@dataclass(frozen=True)
class SystemTable:
    """Systems side by side.

    Attributes:
        title, baseline, systems: of the table.
        results: from `tabulate`.
        logged: the evaluations with each system's answers.
        seeds: scores of single adapters.
    """

    title: str
    baseline: str
    systems: list[str]
    results: dict[str, Any]
    logged: dict[str, Logged]
    seeds: list[dict[str, Any]] = field(default_factory=list)

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return list(self.results["tasks"])

    def rows(self, table: str, **wanted: Any) -> list[dict[str, Any]]:
        """The rows of a table in which these columns have these values."""
        return [row for row in self.results[table] if all(row[name] == value for name, value in wanted.items())]

    def scores(self, task: str, by: str = "", control: str = "none") -> list[dict[str, Any]]:
        """Scores by the task's own metric, by a key of `GROUPINGS`."""
        wanted = {"task": task, "by": by, "control": control, "metric": TASKS[task].metric}
        return [*self.rows("scores", **wanted), *self.rows("groups", **wanted)]

    def total(self, system: str, task: str) -> dict[str, Any]:
        """A system's score over all questions of a task."""
        return next(row for row in self.scores(task) if row["system"] == system)


@dataclass(frozen=True)
class Report:
    """A run to report on.

    Attributes:
        folder, weights, machine: of the run.
        tables: of systems; the story is told of the first, and of `adapted` if there is one.
        study: `None` for an evaluation.
        aims: outcomes by arm.
        unfinished: systems and seeds of a study without complete answers.
    """

    folder: Path
    weights: str
    machine: dict[str, Any]
    tables: list[SystemTable]
    adapted: SystemTable | None = None
    study: StudyPlan | None = None
    aims: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    gains: list[dict[str, Any]] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The name of the run."""
        return f"{'Study' if self.study else 'Evaluation'} {self.folder.resolve().name}"

    @property
    def main(self) -> SystemTable:
        """The table of the story: the first, adapted if that was asked."""
        return self.adapted or self.tables[0]


def open_report(folder: Path) -> Report:
    """The evaluation or study in `folder`; a study's results.json is written anew from its answers.

    Raises:
        ValueError: the folder holds neither, or no table can be made yet.
    """
    if (folder / STUDY_FILE).exists():
        return _study(folder)
    if not (folder / RESULTS_FILE).exists():
        unfinished = " The evaluation there is not finished." if (folder / SETTINGS_FILE).exists() else ""
        raise ValueError(f"{folder} holds neither {STUDY_FILE} nor {RESULTS_FILE}.{unfinished}")
    results = read_json(folder / RESULTS_FILE)
    logged = {system: Logged((folder,), system) for system in results["systems"]}
    table = SystemTable("all systems", results["baseline"], results["systems"], results, logged)
    return Report(folder, _weights(results["settings"]["model"]), results["machine"], [table])


def _study(folder: Path) -> Report:
    facts = read_json(folder / STUDY_FILE)
    plan = read_study(folder / STUDY_FILE, folder)
    tables, adapted = [], None
    for table in plan.tables:
        for arm in ARMS:
            asked = plan.table(table, arm)
            if asked is None:
                continue
            results = _retimed(tabulate(folder, asked), plan, asked.logged)
            seeds = [] if arm == ZERO_SHOT else plan.seeds(asked.systems)
            made = SystemTable(f"{table['name']}, {arm}", asked.baseline, asked.systems, results, asked.logged, seeds)
            tables.append(made)
            if arm != ZERO_SHOT and adapted is None and table is plan.tables[0]:
                adapted = made
    if not tables:
        raise ValueError(f"{folder}: no table has two finished systems yet; run shirg study again to go on.")
    aims = {arm: check_aims(plan, arm) for arm in ARMS if plan.aims and plan.logged(arm)}
    kept = ("scores", "guard", "efficiency")
    told = [
        {"title": table.title, "baseline": table.baseline} | {name: table.results[name] for name in kept}
        for table in tables
    ]
    gains, unfinished = plan.gains(), plan.unfinished()
    write_json(folder / RESULTS_FILE, {"aims": aims, "gains": gains, "unfinished": unfinished, "tables": told})
    return Report(folder, _weights(facts["base"]), facts["machine"], tables, adapted, plan, aims, gains, unfinished)


def _retimed(results: dict[str, Any], plan: StudyPlan, logged: dict[str, Logged]) -> dict[str, Any]:
    """The results with the seconds of the run that timed all systems: evaluations ran at different times."""
    timed = {(row["task"], row["system"]): row["seconds"] for row in (plan.timing() or {}).get("efficiency", [])}
    costs = results["efficiency"]
    return results | {
        "efficiency": [
            {**row, "seconds": timed.get((row["task"], logged[row["system"]].system), row["seconds"])} for row in costs
        ]
    }


def _weights(model: str | None) -> str:
    return model or "the bundled toy checkpoint"
