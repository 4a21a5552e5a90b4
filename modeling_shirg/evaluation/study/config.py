"""What a study runs, as its YAML file says it: groups of systems, the recipe, the gate, a grid over the score weights.

    tasks, limit, batch_size   of every evaluation, as for `shirg evaluate`
    timed_rows                 rows of each task in the one run in which all systems are timed
    gate                       what the base must read before anything is adapted
    train                      the recipe of every adaptation, arguments of `shirg train`
    groups                     each a table: a name, a baseline, systems and the seeds to adapt them with
    grid                       points of score weights, on validation rows

A system is written as for `shirg evaluate`, or as a mapping {system, adapt, train}: seeds of its own, and arguments of
`shirg train` that differ from the recipe's.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from modeling_shirg.evaluation.tasks import check_task
from modeling_shirg.training.settings_file import read_settings

Arm = Literal["zero-shot", "adapted"]
# Of the recipe, what the study itself decides: the same number of samples for all, and what is trained from what.
_OWN = ("model", "prune_method", "option", "seed", "output_dir", "early_stopping_patience", "num_train_epochs")
_SAMPLES = ("max_steps", "effective_batch_size")


@dataclass(frozen=True)
class Variant:
    """One line of a table: a system, the seeds that it is adapted with, and how its recipe differs."""

    system: str
    adapt: tuple[int, ...] = ()
    train: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        _refuse(self.train, (*_OWN, *_SAMPLES), f"system {self.system}")

    @property
    def label(self) -> str:
        """Its name in tables."""
        return ", ".join([self.system, *(f"{name}={value}" for name, value in self.train.items())])


@dataclass(frozen=True)
class Group:
    """A table: variants, and the one that differences are to."""

    name: str
    baseline: str
    variants: tuple[Variant, ...]

    def of(self, arm: Arm) -> list[Variant]:
        """Its lines in an arm: without adaptation, recipes do not count; the others need a seed."""
        if arm == "adapted":
            return [variant for variant in self.variants if variant.adapt]
        first = {variant.system: variant for variant in reversed(self.variants)}
        return [variant for variant in self.variants if first[variant.system] is variant]

    def baseline_of(self, arm: Arm) -> Variant:
        """The line that differences are to."""
        return next(variant for variant in self.of(arm) if variant.system == self.baseline)


@dataclass(frozen=True)
class Gate:
    """What the base must reach at the largest size of every family, in shares.

    Args:
        system: under which it is asked, as it was trained.
        at_least: exact match.
        margin: how far the lower end of its interval must be above the majority answer and the blank image.
    """

    system: str
    at_least: float = 0.9
    margin: float = 0.1


@dataclass(frozen=True)
class Grid:
    """Points of score weights of one system: every combination of `values`."""

    system: str
    tasks: tuple[str, ...]
    values: dict[str, list[float]]
    limit: int | None = None

    def systems(self) -> list[str]:
        """The points, as systems."""
        joint = ":" if ":" not in self.system else ","
        points = itertools.product(*self.values.values())
        named = [",".join(f"{n}={v:g}" for n, v in zip(self.values, point, strict=True)) for point in points]
        return [f"{self.system}{joint}{point}" for point in named]


@dataclass(frozen=True)
class Entry:
    """One evaluation of a study: a system on the base's weights, or on those of an adapter that was trained for it."""

    variant: Variant
    seed: int | None = None
    split: Literal["test", "validation"] = "test"

    @property
    def arm(self) -> Arm:
        return "zero-shot" if self.seed is None else "adapted"

    @property
    def title(self) -> str:
        """As it is called in reports."""
        label = self.variant.system if self.seed is None else f"{self.variant.label}, seed {self.seed}"
        return label if self.split == "test" else f"{label}, {self.split}"

    @property
    def name(self) -> str:
        """Of its folder."""
        return quote(self.title.replace(", ", ",").replace(" ", "-"), safe="=,.-")


@dataclass(frozen=True)
class StudyConfig:
    """A study; see the top of this file."""

    tasks: tuple[str, ...]
    groups: tuple[Group, ...]
    gate: Gate
    train: dict[str, Any] = field(default_factory=dict)
    grid: Grid | None = None
    limit: int | None = None
    batch_size: int = 8
    timed_rows: int = 64

    def __post_init__(self):
        for task in (*self.tasks, *(self.grid.tasks if self.grid else ())):
            check_task(task)
        for name in ("batch_size", "timed_rows"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} {value!r}: it must be an integer, 1 or more.")
        _refuse(self.train, _OWN, "train")
        if self.seeds() and not all(isinstance(self.train.get(name), int) for name in _SAMPLES):
            raise ValueError(f"train: give {' and '.join(_SAMPLES)}, so that all adaptations see as many samples.")
        names = [group.name for group in self.groups]
        if len(set(names)) < len(names):
            raise ValueError(f"Two groups have one name: {', '.join(names)}.")

    @property
    def samples(self) -> int:
        """Rows that every adaptation sees."""
        return self.train["max_steps"] * self.train["effective_batch_size"]

    def seeds(self) -> list[int]:
        """All seeds of adaptations."""
        return sorted({seed for group in self.groups for variant in group.variants for seed in variant.adapt})

    def variants(self, arm: Arm) -> list[Variant]:
        """Every line of the tables once, with all the seeds that groups adapt it with."""
        lines: dict[str, Variant] = {}
        for variant in (variant for group in self.groups for variant in group.of(arm)):
            known = lines.get(variant.label, variant)
            lines[variant.label] = replace(known, adapt=tuple(sorted({*known.adapt, *variant.adapt})))
        return list(lines.values())

    def zero_shot(self) -> list[Entry]:
        """What is asked on the base's weights; the gate's system first."""
        asked = [Entry(Variant(self.gate.system))]
        asked += [Entry(Variant(variant.system)) for group in self.groups for variant in group.variants]
        return _once(asked)

    def grid_points(self) -> list[Entry]:
        """What is asked on validation rows."""
        return [Entry(Variant(system), split="validation") for system in (self.grid.systems() if self.grid else ())]

    def adapted(self) -> list[Entry]:
        """What is asked after adaptation, seed by seed."""
        asked = [Entry(variant, seed) for group in self.groups for variant in group.variants for seed in variant.adapt]
        return _once(sorted(asked, key=lambda entry: entry.seed))


def read_content(file: Path) -> dict[str, Any]:
    """What a YAML or JSON file says, for `config_of`.

    Raises:
        ValueError: the file cannot be read, or holds no names.
    """
    content = read_settings(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a study by names, got {type(content).__name__}.")
    return content


def config_of(content: dict[str, Any]) -> StudyConfig:
    """The study that a mapping describes.

    Raises:
        ValueError: it has an unknown name, or what it asks for does not fit together.
    """
    content = dict(content)
    for name in ("tasks", "groups", "gate"):
        if not content.get(name):
            raise ValueError(f"A study needs {name}; scripts/configs/study/plan.yaml has an example.")
    groups, gate, grid = (content.pop(name, None) for name in ("groups", "gate", "grid"))
    content["tasks"] = tuple(content["tasks"])
    parts: dict[str, Any] = {"groups": tuple(map(_group, groups)), "gate": _made(Gate, gate, "gate")}
    if grid:
        parts["grid"] = _made(Grid, {**grid, "tasks": tuple(grid.get("tasks", content["tasks"]))}, "grid")
    return _made(StudyConfig, {**content, **parts}, "the study")


def _group(content: dict[str, Any]) -> Group:
    known = ("name", "baseline", "adapt", "systems")
    _check_names(content, known, f"group {content.get('name')}")
    missing = [name for name in ("name", "baseline", "systems") if not content.get(name)]
    if missing:
        raise ValueError(f"group {content.get('name')}: it needs {missing[0]}.")
    seeds = content.get("adapt", [])
    entries = [entry if isinstance(entry, dict) else {"system": entry} for entry in content["systems"]]
    variants = tuple(
        _made(Variant, {**entry, "adapt": tuple(entry.get("adapt", seeds))}, f"group {content['name']}")
        for entry in entries
    )
    labels = [variant.label for variant in variants]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise ValueError(f"group {content['name']}: {twice} is there twice.")
    if content["baseline"] not in [variant.system for variant in variants]:
        raise ValueError(f"group {content['name']}: its baseline {content['baseline']} is none of its systems.")
    group = Group(content["name"], content["baseline"], variants)
    adapted = group.of("adapted")
    if adapted and all(variant.system != group.baseline for variant in adapted):
        raise ValueError(
            f"group {group.name}: {adapted[0].label} is adapted and the baseline {group.baseline} is not: give it a "
            "seed under `adapt` too."
        )
    return group


def _made(kind: type, content: dict[str, Any], where: str) -> Any:
    """An object of a dataclass from a mapping."""
    _check_names(content, [each.name for each in fields(kind)], where)
    try:
        return kind(**content)
    except TypeError as error:
        raise ValueError(f"{where}: {str(error).partition('() ')[2] or error}.") from None


def _check_names(content: Any, known: Iterable[str], where: str) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{where}: write it by names ({', '.join(known)}), got {content!r}.")
    unknown = next((name for name in content if name not in known), None)
    if unknown is not None:
        hint = "".join(f" Did you mean {near!r}?" for near in get_close_matches(unknown, list(known), n=1))
        raise ValueError(f"{where}: there is no {unknown!r}; there are {', '.join(known)}.{hint}")


def _refuse(train: dict[str, Any], names: Iterable[str], where: str) -> None:
    """Raises a `ValueError` if a recipe sets what it may not."""
    wrong = next((name for name in names if name in train), None)
    if wrong is not None:
        raise ValueError(
            f"{where}: {wrong}={train[wrong]!r} is for the study to say: all adaptations see as many samples, from "
            "one base; seeds stand in `adapt`, fields of the config behind the system's name."
        )


def _once(entries: list[Entry]) -> list[Entry]:
    return list({entry.name: entry for entry in entries}.values())
