"""A folder of `shirg evaluate` or `shirg study`, opened as tables of systems."""

from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from modeling_shirg.evaluation.answer_log import SETTINGS_FILE, read_json
from modeling_shirg.evaluation.results import RESULTS_FILE, Logged, Plan, percent_interval, tabulate
from modeling_shirg.evaluation.study_plan import ADAPTED, STUDY_FILE, ZERO_SHOT, StudyPlan, read_study
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
    """A run to report on: its story is that of the first table, and of `adapted`, the same systems adapted.

    `aims` are outcomes by arm, `unfinished` the systems without complete answers.
    """

    folder: Path
    kind: str
    weights: str
    machine: dict[str, Any]
    tables: list[SystemTable]
    adapted: SystemTable | None = None
    aims: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)

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
    arms = {arm: plan.answers(arm) for arm in (ZERO_SHOT, ADAPTED)}
    tables, main = [], None
    for table in plan.tables:
        for arm, (complete, _) in arms.items():
            mine = {label: logged for label, logged in complete.items() if logged.system in table["systems"]}
            baseline = next((label for label, logged in mine.items() if logged.system == table["baseline"]), None)
            if baseline is not None and len(mine) > 1:
                tables.append(_tabled(plan, f"{table['name']}, {arm}", baseline, mine))
                main = tables[-1] if arm == ADAPTED and table is plan.tables[0] else main
    if not tables:
        raise ValueError(f"{folder}: no table has two finished systems yet; run shirg study again to go on.")
    aims = {
        arm: [row for aim in plan.aims for row in _aim(plan, aim, complete)] for arm, (complete, _) in arms.items()
    }
    unfinished = [label for _, labels in arms.values() for label in labels]
    told = []
    for table in tables:
        totals = [row for row in table.results["scores"] if row["by"] == ""]
        told.append({"title": table.title, "scores": totals, "efficiency": table.results["efficiency"]})
    write_json(folder / RESULTS_FILE, {"aims": aims, "unfinished": unfinished, "tables": told})
    return Report(folder, "Study", facts["base"], facts["machine"], tables, main, aims, unfinished)


def _tabled(plan: StudyPlan, title: str, baseline: str, logged: dict[str, Logged]) -> SystemTable:
    asked = Plan(plan.rows(logged[baseline].root), logged, ["none"], baseline)
    return SystemTable(title, baseline, tabulate(asked), logged)


def _aim(plan: StudyPlan, aim: dict[str, Any], logged: dict[str, Logged]) -> list[dict[str, Any]]:
    """One row per task: the paired difference in points, and whether it is met; of several seeds the first counts."""
    names = [
        next((label for label in logged if label.partition(", ")[0] == aim[key]), None) for key in ("over", "system")
    ]
    if None in names:
        return []
    pair = _tabled(plan, "", names[0], {name: logged[name] for name in names})
    by, target, rows = aim.get("by", ""), aim["at_least"], []
    for task in aim.get("tasks", pair.tasks):
        row = pair.scores(task, by).get((str(aim.get("group", "")), names[1]))
        if row is not None:
            is_met = row["difference"] >= target if target else row["difference"] > 0
            is_settled = row["difference_low"] > target if is_met else row["difference_high"] <= target
            where = f"{task}, {by} {row['group']}" if by else task
            words = {
                "aim": f"{aim['system']} over {aim['over']}: "
                + (f"{100 * target:+g} or more" if target else "above 0"),
                "where": where,
            }
            words["figure"] = percent_interval(row, "difference", "+.1f")
            status = ("met" if is_met else "missed") + ("" if is_settled else ", not settled")
            rows.append({**words, "n": row["n"], "status": status})
    return rows
