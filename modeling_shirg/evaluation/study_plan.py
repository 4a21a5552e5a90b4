"""A study: a YAML file of systems, adaptations and aims, the folder of its evaluations, and its tables.

    tasks, limit, batch_size   of every evaluation, as for `shirg evaluate`; `split` too
    timed_rows                 rows of each task in the run that times all systems
    tables                     [{name, baseline, systems}]; a system is written as for `shirg evaluate`
    adapt                      [{system, seeds, train}]; `train` replaces arguments of the recipe
    train                      the recipe of every adaptation, arguments of `shirg train`
    bound                      the system whose readable sizes `where: readable_in_fovea` means
    aims                       [{system, over | share_of, at_least, where, tasks, lower_end}], see `_aim`

    RUN/zero-shot, RUN/timing  evaluations of all systems on the base's weights
    RUN/adapters/NAME          output folders of `shirg train`
    RUN/adapted/NAME           the evaluation of each adapter
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import quote

from modeling_shirg.evaluation.answer_log import ROWS_FILE, Place, read_answers, read_json
from modeling_shirg.evaluation.intervals import mean_interval, ratio_interval
from modeling_shirg.evaluation.results import (
    GUARD_ROWS,
    RESULTS_FILE,
    Logged,
    Plan,
    Records,
    logged_answers,
    majority,
    missing,
)
from modeling_shirg.evaluation.tasks import TASKS, check_task
from modeling_shirg.training.settings_file import read_settings

STUDY_FILE, ZERO_SHOT, TIMING = "study.json", "zero-shot", "timing"
ARMS = (ZERO_SHOT, "adapted")
READING = ("chart", "document", "entity_grid")


@dataclass(frozen=True)
class Adaptation:
    """A system that is adapted with each of the seeds; `train` replaces arguments of the recipe."""

    system: str
    seeds: tuple[int, ...] = (0,)
    train: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The name in tables."""
        return ", ".join([self.system, *(f"{name}={value}" for name, value in self.train.items())])

    def name(self, seed: int) -> str:
        """The name of the folders."""
        return quote(f"{self.label}, seed {seed}".replace(", ", ",").replace(" ", "-"), safe="=,.-")


@dataclass(frozen=True)
class StudyPlan:
    """A study in the folder `run`; the fields are described at the top of this file."""

    run: Path
    tasks: list[str]
    tables: list[dict[str, Any]]
    adapt: list[Adaptation] = field(default_factory=list)
    train: dict[str, Any] = field(default_factory=dict)
    aims: list[dict[str, Any]] = field(default_factory=list)
    bound: str | None = None
    limit: int | None = None
    batch_size: int = 8
    split: str = "test"
    timed_rows: int | None = None

    @property
    def systems(self) -> list[str]:
        """All systems of the tables and adaptations, once."""
        return list(dict.fromkeys([*(s for t in self.tables for s in t["systems"]), *(a.system for a in self.adapt)]))

    def logged(self, arm: str) -> dict[str, Logged]:
        """The finished systems of an arm, by their names in tables."""
        if arm == ZERO_SHOT:
            asked = {system: Logged((self.run / ZERO_SHOT,), system) for system in self.systems}
            return {label: logged for label, logged in asked.items() if self._rows(logged)}
        found = {}
        for adaptation in self.adapt:
            roots = [self.run / "adapted" / adaptation.name(seed) for seed in adaptation.seeds]
            finished = tuple(root for root in roots if self._rows(Logged((root,), adaptation.system)))
            if finished:
                found[adaptation.label] = Logged(finished, adaptation.system)
        return found

    def _rows(self, logged: Logged) -> dict[str, int]:
        """The number of rows of each task; empty before all are answered."""
        files = {task: logged.roots[0] / "answers" / task / ROWS_FILE for task in self.tasks}
        if not all(file.exists() for file in files.values()):
            return {}
        rows = {task: read_json(file)["rows"] for task, file in files.items()}
        return {} if missing(logged.roots[0], Plan(rows, [logged.system], ["none"], "")) else rows

    def table(self, table: dict[str, Any], arm: str) -> Plan | None:
        """The systems of a table that are finished in an arm; `None` without the baseline or a second system."""
        logged = self.logged(arm)
        labels = [label for label, each in logged.items() if each.system in table["systems"]]
        if table["baseline"] not in labels or len(labels) < 2:
            return None
        mine = {label: logged[label] for label in labels}
        return Plan(self._rows(mine[table["baseline"]]), labels, ["none"], table["baseline"], logged=mine)

    def unfinished(self) -> list[str]:
        """The systems and seeds without complete answers."""
        lines = [f"{system}, zero-shot" for system in self.systems if system not in self.logged(ZERO_SHOT)]
        for adaptation in self.adapt:
            for seed in adaptation.seeds:
                root = self.run / "adapted" / adaptation.name(seed)
                if not self._rows(Logged((root,), adaptation.system)):
                    lines.append(f"{adaptation.label}, seed {seed}")
        return lines

    def timing(self) -> dict[str, Any] | None:
        """Results of the run that timed all systems, once finished."""
        file = self.run / TIMING / RESULTS_FILE
        return read_json(file) if file.exists() else None

    def scores(self, arm: str) -> Callable[[str, str], Records]:
        """A function of (system, task): the usable answers in an arm, empty where there are none."""
        logged = self.logged(arm)
        plan = Plan({}, [], [], "", logged=logged)

        @cache
        def read(system: str, task: str) -> Records:
            records = logged_answers(self.run, plan, Place(task, system)) if system in logged else []
            return [record for record in records if "bad" not in record]

        return read

    def gains(self) -> list[dict[str, Any]]:
        """Adapted minus zero-shot, question by question, of every adaptation and task."""
        before, after = (self.scores(arm) for arm in ARMS)
        rows = []
        for adaptation in self.adapt:
            for task in self.tasks:
                pairs = _pairs(after(adaptation.label, task), before(adaptation.system, task), task)
                if pairs:
                    values = [one - other for one, other in pairs]
                    low, high = mean_interval(values, 0)
                    gain = {"system": adaptation.label, "task": task, "n": len(values), "difference": fmean(values)}
                    rows.append({**gain, "low": low, "high": high})
        return rows

    def seeds(self, labels: list[str]) -> list[dict[str, Any]]:
        """By task, the score of every single adapter of these systems."""
        rows = []
        for adaptation in self.adapt:
            for seed in adaptation.seeds if adaptation.label in labels and len(adaptation.seeds) > 1 else ():
                root, tasks = self.run / "adapted" / adaptation.name(seed), {}
                for task in self.tasks:
                    records = read_answers(root, Place(task, adaptation.system))
                    tasks[task] = fmean(_score(record) for record in records if "bad" not in record)
                rows.append({"system": adaptation.label, "seed": seed, "tasks": tasks})
        return rows


def read_study(file: Path, run: Path) -> StudyPlan:
    """The study of a YAML or JSON file, in the folder `run`.

    Raises:
        ValueError: the file cannot be read, or has a name that is unknown or missing.
    """
    content = dict(read_settings(file))
    try:
        content["adapt"] = [
            Adaptation(entry["system"], tuple(entry.get("seeds", (0,))), entry.get("train", {}))
            for entry in content.get("adapt", [])
        ]
        plan = StudyPlan(run=run, **content)
        baselines = [table["baseline"] for table in plan.tables if table["baseline"] not in table["systems"]]
    except (TypeError, KeyError) as error:
        raise ValueError(f"{file}: {error}. See scripts/configs/study/plan.yaml for the names of a study.") from None
    for task in plan.tasks:
        check_task(task)
    if baselines:
        raise ValueError(f"{file}: the baseline {baselines[0]} is none of the systems of its table.")
    if plan.adapt and not {"max_steps", "effective_batch_size"} <= plan.train.keys():
        raise ValueError(f"{file}: train needs max_steps and effective_batch_size: adaptations see equal samples.")
    return plan


def check_aims(plan: StudyPlan, arm: str) -> list[dict[str, Any]]:
    """One row per aim: `aim` and `where` in words, `status`, `n`, `figure` with its interval; `settled` is whether
    the whole interval is on that side of the target."""
    read = plan.scores(arm)
    sizes = _readable_sizes(plan, read)
    return [_aim(aim, read, sizes) for aim in plan.aims]


def _readable_sizes(plan: StudyPlan, read: Callable[[str, str], Records]) -> dict[str, float]:
    """Per family, the smallest size at which the bound reads better in the fovea than the most frequent answer."""
    sizes = {}
    for task in READING if plan.bound else ():
        inside = [r for r in read(plan.bound, task) if r["in_fovea"] and r["cell_glyph_px"] is not None]
        for size in sorted({record["cell_glyph_px"] for record in inside}):
            mine = [record for record in inside if record["cell_glyph_px"] == size]
            if mean_interval([_score(record) for record in mine], 0)[0] > majority(mine):
                sizes[task] = size
                break
    return sizes


def _aim(aim: dict[str, Any], read: Callable[[str, str], Records], sizes: dict[str, float]) -> dict[str, Any]:
    """The outcome of one aim.

    `over` takes the difference to a system, `share_of` the ratio; `where` is `in_fovea`, `outside_fovea`,
    `readable_in_fovea` or nothing; with `lower_end` the interval's lower end has to reach `at_least`.
    """
    system, target, where = aim["system"], aim["at_least"], aim.get("where")
    other, is_ratio = aim.get("over") or aim["share_of"], "share_of" in aim
    wanted = {
        None: lambda record: True,
        "in_fovea": lambda record: record["in_fovea"],
        "outside_fovea": lambda record: not record["in_fovea"],
        "readable_in_fovea": lambda r: r["in_fovea"] and r["cell_glyph_px"] == sizes.get(r["task"], -1.0),
    }[where]
    place = (where or "all questions").replace("_", " ")
    if where == "readable_in_fovea":
        place = "in fovea, " + (", ".join(f"{task} {size:g} px" for task, size in sizes.items()) or "no readable size")
    name = f"{system} at least {target:.0%} of {other}" if is_ratio else f"{system} over {other}: {100 * target:+g}"
    row = {"aim": name + (" by the interval's lower end" if aim.get("lower_end") else ""), "where": place}
    pairs = []
    for task in aim.get("tasks", READING):
        mine = [record for record in read(system, task) if wanted(record)]
        pairs += _pairs(mine, read(other, task), task)
    if not pairs or is_ratio and not any(base for _, base in pairs):
        return {**row, "n": 0, "figure": "-", "status": "not measured", "settled": None}
    ours, theirs = zip(*pairs, strict=True)
    if is_ratio:
        value, (low, high) = sum(ours) / sum(theirs), ratio_interval(ours, theirs, 0)
        figure = f"{100 * value:.1f}% ({100 * low:.1f} to {100 * high:.1f})"
    else:
        differences = [one - base for one, base in pairs]
        value, (low, high) = fmean(differences), mean_interval(differences, 0)
        figure = f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    decides = low if aim.get("lower_end") else value
    is_met = decides > 0 if target == 0 else decides >= target
    settled = low > target if is_met else high <= target
    if aim.get("lower_end"):
        settled = len(pairs) >= GUARD_ROWS
    status = ("met" if is_met else "missed") + ("" if settled else ", not settled")
    numbers = {"value": value, "low": low, "high": high, "n": len(pairs), "figure": figure}
    return {**row, **numbers, "status": status, "settled": settled}


def _pairs(mine: Records, theirs: Records, task: str) -> list[tuple[float, float]]:
    """Scores of two systems on the questions that both answered."""
    other = {record["row"]: _score(record) for record in theirs}
    return [(_score(record), other[record["row"]]) for record in mine if record["row"] in other]


def _score(record: dict) -> float:
    return record["scores"][TASKS[record["task"]].metric]
