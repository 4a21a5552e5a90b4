"""The registry of tasks: their rows, length of answer and scores.

Rows of data sets are read by training's adapters, so that a question is written as in training.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from configuration_shirg.presets_shirg import did_you_mean
from modeling_shirg.evaluation.metrics.answer_scores import anls, exact_match, relaxed_accuracy, token_f1
from modeling_shirg.evaluation.metrics.vqa_scores import gold_texts, vqa_accuracy
from modeling_shirg.running.ask import conversation
from modeling_shirg.scenes.benchmark import PER_CELL, blank_image, build_benchmark, cells_of, with_control
from modeling_shirg.training.reading import BadRow, ImageFiles, read_messages, read_row, text_of
from modeling_shirg.training.sources import SourceSpec, open_table, read_specs

Score = Callable[[str, Sequence[str]], float]


class Task(NamedTuple):
    """How a task is asked and scored.

    `scores` of one answer are 0..1, the first is the task's own metric. `length` is tokens of an answer, and steps.
    `golds` are the accepted texts of a data set's row, `None` for a rendered family; `facts` are kept with the answer.
    With `has_cider`, CIDEr is a secondary column (extra `eval`).
    """

    scores: dict[str, Score]
    length: int
    split: str
    golds: Callable[[dict], list[str]] | None = None
    facts: Callable[[dict], dict[str, Any]] = lambda row: {}
    has_cider: bool = False

    @property
    def metric(self) -> str:
        """Name of the task's own metric."""
        return next(iter(self.scores))


def _chartqa_golds(row: dict) -> list[str]:
    return list(row["label"]) if "label" in row else [text_of(row["answer"], "answer")]


def _chartqa_facts(row: dict) -> dict[str, Any]:
    """`subset`: who wrote the question, in either repository's column."""
    if "human_or_machine" in row:
        return {"subset": ("human", "augmented")[row["human_or_machine"]]}
    return {"subset": row["type"].removesuffix("_test")} if "type" in row else {}


def _vqa_golds(row: dict) -> list[str]:
    return gold_texts(row["answers"] or [])


_CHARTQA = {"relaxed_accuracy": relaxed_accuracy, "exact_match": exact_match}
_DOCVQA = {"anls": anls, "exact_match": exact_match}
TASKS: dict[str, Task] = {
    "chartqa": Task(_CHARTQA, 16, "test", _chartqa_golds, _chartqa_facts, has_cider=True),
    "docvqa": Task(_DOCVQA, 32, "validation", _vqa_golds),
    "infographicvqa": Task(_DOCVQA, 32, "validation", _vqa_golds),
    "textvqa": Task({"vqa_accuracy": partial(vqa_accuracy, keep_unanimous=False)}, 16, "validation", _vqa_golds),
    "vqav2": Task({"vqa_accuracy": vqa_accuracy}, 16, "validation", _vqa_golds),
    "chart": Task({"exact_match": exact_match, "relaxed_accuracy": relaxed_accuracy}, 8, "test"),
    "document": Task({"exact_match": exact_match, "anls": anls}, 8, "test"),
    "entity_grid": Task({"exact_match": exact_match, "token_f1": token_f1}, 8, "test"),
    "guard": Task({"vqa_accuracy": vqa_accuracy, "exact_match": exact_match}, 8, "test"),
}
_FAMILY_FACTS = (
    "kind cell_glyph_px cell_place glyph_px glyph_px_global glyph_px_fovea eccentricity in_fovea crosses_slice box"
).split()


class Sample(NamedTuple):
    """One question with its image and accepted answers."""

    row: int
    question_id: str
    question: str
    golds: list[str]
    image: Image.Image
    facts: dict[str, Any]

    @property
    def chat(self) -> list[dict]:
        """The prompt."""
        return conversation(self.image, self.question)


class TaskRows:
    """The rows of a task, read one by one.

    Args:
        name: a key of `TASKS`.
        place: `PLACE[,FIELD=VALUE...]` as after the colon of training's `--data`; `None` is the task's own place.
        split, limit: the task's own split, and all rows, where `None`.
        scale: of rendered scenes, 1 for the toy geometry.
    """

    def __init__(
        self, name: str, place: str | None = None, split: str | None = None, limit: int | None = None, scale=1.0
    ):
        self.name, self.task = check_task(name), TASKS[name]
        self.is_rendered = self.task.golds is None
        split = split or self.task.split
        if self.is_rendered:
            if place is not None:
                raise ValueError(f"--data {name}={place}: {name} is rendered here and takes no place.")
            per_cell = PER_CELL if limit is None else min(PER_CELL, math.ceil(limit / len(cells_of(name))))
            self.table = build_benchmark(name, split, per_cell, scale)
            self._suffix, self._files = "", ImageFiles(Path())
        else:
            spec = SourceSpec(name) if place is None else read_specs([f"{name}:{place}"])[0]
            self.table, self._files = open_table(spec, split)
            self._suffix = spec.suffix
        self._count = len(self.table) if limit is None else min(limit, len(self.table))
        if not self._count:
            raise ValueError(f"{name} has no row in {place or name}, split {split!r}.")
        self._shuffled: Any = None

    def __len__(self) -> int:
        return self._count

    def sample(self, row: int, control: str = "none") -> Sample:
        """Row number `row`, under a control of `with_control`; a `BadRow` if it cannot be asked or judged."""
        raw = self.table[row]
        item = read_row(raw, self._suffix, self._files)
        image, question = item["images"][0], item["messages"][0]["content"][-1]["text"]
        if control == "shuffled_question":
            question = self._other_question(row)
        golds = [raw["answer"]] if self.is_rendered else [gold.strip() for gold in self.task.golds(raw)]
        if self.name == "guard":
            golds = gold_texts(raw["answers"])
        if not any(golds):
            raise BadRow("empty answer")
        if self.task.metric == "vqa_accuracy" and len(golds) < 2:
            raise BadRow(f"one answer, {golds[0]!r}: VQA accuracy needs those of several people")
        facts = {name: raw[name] for name in _FAMILY_FACTS} if self.is_rendered else self.task.facts(raw)
        number = raw.get("question_id", raw.get("questionId"))
        image = blank_image(image) if control == "blank" else image
        return Sample(row, str(row if number is None else number), question, golds, image, facts)

    def _other_question(self, row: int) -> str:
        if self.is_rendered:
            if self._shuffled is None:
                self._shuffled = list(with_control(self.table, "shuffled_question")["question"])
            return self._shuffled[row]
        own = read_messages(self.table[row], self._suffix)
        for other in (*range(row + 1, len(self.table)), *range(row)):
            try:
                messages = read_messages(self.table[other], self._suffix)
            except BadRow:
                continue
            if messages[0] != own[0] and messages[1] != own[1]:
                return messages[0]["content"][-1]["text"]
        raise ValueError(f"{self.name}: no row has another question and another answer than row {row}.")


def check_task(name: str) -> str:
    """`name`, if it is a task; else a `ValueError` with the nearest."""
    if name not in TASKS:
        raise ValueError(f"There is no task {name!r}; there are {', '.join(TASKS)}.{did_you_mean(name, TASKS)}")
    return name
