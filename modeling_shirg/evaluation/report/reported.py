"""A folder of `shirg evaluate` or `shirg study`, opened as tables of systems."""

from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from modeling_shirg.evaluation.answer_log import SETTINGS_FILE, read_json
from modeling_shirg.evaluation.results import RESULTS_FILE, Logged, Plan, tabulate
from modeling_shirg.evaluation.study_plan import ADAPTED, STUDY_FILE, TIMING, ZERO_SHOT, check_aim, read_study
from modeling_shirg.evaluation.tasks import TASKS
from modeling_shirg.running.files import write_json


@dataclass
class SystemTable:
    """Systems side by side: `results` from `tabulate`, `logged` the evaluations with each system's answers."""

    title: str
    baseline: str
    results: dict[str, Any]
    logged: dict[str, Logged]

    def __post_init__(self):
        self.systems, self.tasks = list(self.logged), list(self.results["tasks"])
        self.controls = list({row["control"]: None for row in self.results["scores"] if row["control"] != "none"})

    def scores(self, task: str, by: str = "", control: str = "none") -> dict[tuple[str, str], dict[str, Any]]:
        """Scores by the task's own metric, by (group, system); `by` is a key of `GROUPINGS`."""
        rows = [*self.results["scores"], *self.results["groups"]]
        wanted = (task, by, control, TASKS[task].metric)
        mine = [row for row in rows if (row["task"], row["by"], row["control"], row["metric"]) == wanted]
        return {(row["group"], row["system"]): row for row in mine}

    def total(self, system: str, task: str, control: str = "none") -> dict[str, Any]:
        """A system's score over all questions of a task."""
        return self.scores(task, control=control)["", system]

    def costs(self, name: str, system: str) -> list[float]:
        """A cost by task, where it was measured."""
        rows = [row for row in self.results["efficiency"] if row["system"] == system]
        return [row[name] for row in rows if row.get(name) is not None]

    def tokens(self, system: str) -> str:
        """Image tokens, as a range where they differ."""
        least, most = min(self.costs("image_tokens_min", system)), max(self.costs("image_tokens_max", system))
        return f"{least:,}" if least == most else f"{least:,} to {most:,}"

    def cost(self, name: str, system: str, factor: float, form: str) -> str:
        """The mean over tasks of a cost times `factor`, or "-"."""
        values = self.costs(name, system)
        return format(factor * fmean(values), form) if values else "-"


@dataclass
class Report:
    """A run to report on: the story is told of the first table, and of `adapted`, its systems adapted, if there is one.

    `aims` are outcomes by arm, `gains` adapted minus zero-shot by system and task, `unfinished` the systems without
    complete answers, `timed` the results of the run that timed a study's systems.
    """

    folder: Path
    kind: str
    weights: str
    machine: dict[str, Any]
    tables: list[SystemTable]
    adapted: SystemTable | None = None
    aims: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    gains: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)
    timed: dict[str, Any] | None = None

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
    logged = {system: Logged(folder, system) for system in results["systems"]}
    table = SystemTable("all systems", results["baseline"], results, logged)
    return Report(folder, "Evaluation", results["settings"]["model"] or "bundled", results["machine"], [table])


def _study(folder: Path) -> Report:
    facts, plan = read_json(folder / STUDY_FILE), read_study(folder / STUDY_FILE, folder)
    timing = folder / TIMING / RESULTS_FILE
    timed = read_json(timing) if timing.exists() else None
    (zero_shot, missing), (adapted, more) = plan.answers(ZERO_SHOT), plan.answers(ADAPTED)
    tables, main = [], None
    for table in plan.tables:
        for arm, logged in ((ZERO_SHOT, zero_shot), (ADAPTED, adapted)):
            mine = {label: each for label, each in logged.items() if each.system in table["systems"]}
            baseline = next((label for label, each in mine.items() if each.system == table["baseline"]), None)
            if baseline is not None and len(mine) > 1:
                results = tabulate(folder, _plan(plan.rows(mine[baseline].root), mine, baseline))
                tables.append(SystemTable(f"{table['name']}, {arm}", baseline, _timed(results, timed, mine), mine))
                main = tables[-1] if arm == ADAPTED and table is plan.tables[0] else main
    if not tables:
        raise ValueError(f"{folder}: no table has two finished systems yet; run shirg study again to go on.")
    aims = {
        arm: [check_aim(aim, logged) for aim in plan.aims]
        for arm, logged in ((ZERO_SHOT, zero_shot), (ADAPTED, adapted))
    }
    aims = {arm: rows for arm, rows in aims.items() if any(row["n"] for row in rows)}
    gains: dict[str, dict[str, dict[str, Any]]] = {}
    for label, logged in adapted.items():
        if logged.system in zero_shot:
            pair = {ZERO_SHOT: zero_shot[logged.system], label: logged}
            results = tabulate(folder, _plan(plan.rows(logged.root), pair, ZERO_SHOT))
            table = SystemTable(label, ZERO_SHOT, results, pair)
            gains[label] = {task: table.total(label, task) for task in table.tasks}
    told = [
        {"title": table.title, **{name: table.results[name] for name in ("scores", "guard", "efficiency")}}
        for table in tables
    ]
    write_json(folder / RESULTS_FILE, {"aims": aims, "gains": gains, "unfinished": missing + more, "tables": told})
    return Report(folder, "Study", facts["base"], facts["machine"], tables, main, aims, gains, missing + more, timed)


def _plan(rows: dict[str, int], logged: dict[str, Logged], baseline: str) -> Plan:
    return Plan(rows, list(logged), ["none"], baseline, logged=logged)


def _timed(results: dict[str, Any], timed: dict[str, Any] | None, logged: dict[str, Logged]) -> dict[str, Any]:
    """The results with the seconds of the run that timed all systems: evaluations ran at different times."""
    seconds = {(row["task"], row["system"]): row["seconds"] for row in timed["efficiency"]} if timed else {}
    for row in results["efficiency"]:
        row["seconds"] = seconds.get((row["task"], logged[row["system"]].system), row["seconds"])
    return results
