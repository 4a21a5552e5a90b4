"""A folder to report on, of `shirg evaluate` or `shirg study`: groups of tables, and where their answers are."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_shirg.evaluation.aims import check_aims
from modeling_shirg.evaluation.answer_log import SETTINGS_FILE, Place, read_answers, read_json
from modeling_shirg.evaluation.results import RESULTS_FILE, Logged
from modeling_shirg.evaluation.study.config import StudyConfig, Variant, config_of
from modeling_shirg.evaluation.study.tables import STUDY_FILE, logged_variants, write_study_results
from modeling_shirg.evaluation.tasks import TASKS

AS_GIVEN = "all systems"


@dataclass(frozen=True)
class GroupView:
    """One table's worth of systems.

    Attributes:
        name, arm, baseline: of the group; an evaluation is one group, `AS_GIVEN`.
        systems: that have answers.
        tables: what `tabulate` returned; `None` where the baseline is missing.
        missing: entries that are not finished.
        logged: where the answers of each system are.
        seeds: values of single runs.
    """

    name: str
    arm: str
    baseline: str
    systems: list[str]
    tables: dict[str, Any] | None
    missing: list[str]
    logged: dict[str, Logged]
    seeds: list[dict[str, Any]]

    @property
    def title(self) -> str:
        return self.name if self.arm == AS_GIVEN else f"{self.name}, {self.arm}"

    def rows(self, table: str, **wanted: Any) -> list[dict[str, Any]]:
        """The rows of a table in which these columns have these values."""
        rows = (self.tables or {}).get(table, [])
        return [row for row in rows if all(row[name] == value for name, value in wanted.items())]

    def total(self, system: str, task: str) -> dict[str, Any] | None:
        """A system's score by the task's own metric over all questions; `None` where it was not asked."""
        found = self.rows("scores", system=system, task=task, by="", control="none", metric=TASKS[task].metric)
        return found[0] if found else None


@dataclass(frozen=True)
class Source:
    """What is reported on. Of an evaluation, `results` is its results.json; of a study, its own."""

    folder: Path
    results: dict[str, Any]
    groups: list[GroupView]
    aims: dict[str, list[dict[str, Any]]]

    @property
    def study(self) -> dict[str, Any] | None:
        """Facts of the study; `None` for an evaluation."""
        return self.results.get("study")

    @property
    def tasks(self) -> list[str]:
        return list(next((group.tables["tasks"] for group in self.groups if group.tables), {}))

    @property
    def machine(self) -> dict[str, Any]:
        return self.study["machine"] if self.study else self.results["machine"]

    @property
    def main(self) -> GroupView | None:
        """The group that the story is told of: the first, adapted if it was; `None` where none has tables."""
        return next(iter(self.main_arms()), None)

    def main_arms(self) -> list[GroupView]:
        """The group of that name in every arm that has tables, adapted first."""
        told = [group for group in self.groups if group.tables]
        same = [group for group in told if group.name == told[0].name]
        return sorted(same, key=lambda group: group.arm != "adapted")

    def others(self) -> list[GroupView]:
        """Groups beside those of the main name, that have tables."""
        return [group for group in self.groups if group.tables and group.name != self.main.name]


def open_source(folder: Path) -> Source:
    """The evaluation or the study in `folder`; a study's tables are made anew from its entries.

    Raises:
        ValueError: the folder is neither, or its evaluation has no tables yet.
    """
    if (folder / STUDY_FILE).exists():
        facts = read_json(folder / STUDY_FILE)
        config = config_of(facts["config"])
        return _study(folder, config, write_study_results(folder, facts, config))
    if not (folder / RESULTS_FILE).exists():
        unfinished = " It is an evaluation that is not finished." if (folder / SETTINGS_FILE).exists() else ""
        raise ValueError(
            f"{folder} holds neither {STUDY_FILE} nor {RESULTS_FILE}.{unfinished} Give a folder of shirg "
            "evaluate or shirg study."
        )
    return _evaluation(folder, read_json(folder / RESULTS_FILE))


def _evaluation(folder: Path, results: dict[str, Any]) -> Source:
    logged = {system: Logged((folder,), system) for system in results["systems"]}
    view = GroupView(AS_GIVEN, AS_GIVEN, results["baseline"], results["systems"], results, [], logged, [])

    def read(system: str, task: str) -> list[dict] | None:
        return read_answers(folder, Place(task, system, "none")) or None

    return Source(folder, results, [view], {AS_GIVEN: check_aims(read, results.get("seed", 0))})


def _study(folder: Path, config: StudyConfig, results: dict[str, Any]) -> Source:
    by_name = {group.name: group for group in config.groups}
    views = [
        _view(each, logged_variants(folder, by_name[each["name"]].of(each["arm"]), each["arm"]))
        for each in results["groups"]
    ]
    chosen = results["chosen"]
    if chosen is not None:
        views.append(_view(chosen, logged_variants(folder, list(map(Variant, chosen["systems"])), chosen["arm"])))
    return Source(folder, results, views, results["aims"])


def _view(group: dict[str, Any], logged: dict[str, Logged]) -> GroupView:
    return GroupView(
        group["name"],
        group["arm"],
        group["baseline"],
        group["systems"],
        group["tables"],
        group["missing"],
        logged,
        group["seeds"],
    )
