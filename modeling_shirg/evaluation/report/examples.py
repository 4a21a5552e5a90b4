"""Single answers of two systems, with pictures of the patches that each kept; drawn once and kept beside the run."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from configuration_shirg.presets_shirg import GEOMETRIES
from modeling_shirg.evaluation.answer_log import ROWS_FILE, SETTINGS_FILE, Place, read_answers, read_json
from modeling_shirg.evaluation.asking import generation_of
from modeling_shirg.evaluation.report.reported import SystemTable
from modeling_shirg.evaluation.tasks import TASKS, TaskRows
from modeling_shirg.generation_config_shirg import GENERATION_DEFAULTS
from modeling_shirg.running.ask import ask
from modeling_shirg.running.files import write_json
from modeling_shirg.running.load import load
from modeling_shirg.running.systems import parse_row

FOLDER, LIST_FILE = "examples", "examples.json"
_HEIGHT, _GAP, _LINE = 448, 12, 22


@dataclass(frozen=True)
class Example:
    """One question, answered by the baseline and by another system: `kind` says which of the two is right.

    `systems`, `given`, `roots` and `logged` are of the two: names in the tables, answers, the evaluations with those
    answers, and the systems' names there.
    """

    kind: str
    task: str
    row: int
    question: str
    gold: str
    given: tuple[str, str]
    systems: tuple[str, str]
    roots: tuple[Path, Path]
    logged: tuple[str, str]

    @property
    def caption(self) -> str:
        """The question and both answers in words."""
        answers = ", ".join(f"{name}: {text!r}" for name, text in zip(self.systems, self.given, strict=True))
        return f"{self.task}, row {self.row}: {self.question} Right: {self.gold!r}. {answers}. ({self.kind})"


def pick_examples(table: SystemTable) -> list[Example]:
    """The first question of each kind, of different tasks if possible; none without a second system."""
    others = [system for system in table.systems if system != table.baseline]
    if not others:
        return []
    pair = (table.baseline, "shirg" if "shirg" in others else others[0])
    kinds = {
        (False, True): f"only {pair[1]} is right",
        (True, False): f"only {pair[0]} is right",
        (False, False): "neither is right",
        (True, True): "both are right",
    }
    found: dict[str, list[Example]] = {kind: [] for kind in kinds.values()}
    logged = [table.logged[system] for system in pair]
    roots, names = (tuple(values) for values in zip(*logged, strict=True))
    for task in table.tasks:
        one, other = (read_answers(root, Place(task, name)) for root, name in zip(roots, names, strict=True))
        taken = set()
        for mine, theirs in zip(one, other, strict=True):
            if "bad" in mine or "bad" in theirs:
                continue
            kind = kinds[tuple(record["scores"][TASKS[task].metric] >= 0.5 for record in (mine, theirs))]
            if kind not in taken:
                given = (mine["prediction"], theirs["prediction"])
                told = (kind, task, mine["row"], mine["question"], mine["answers"][0], given)
                found[kind].append(Example(*told, pair, roots, names))
                taken.add(kind)
    chosen: list[Example] = []
    for examples in found.values():
        told = [example.task for example in chosen]
        chosen += sorted(examples, key=lambda example: told.count(example.task))[:1]
    return chosen


def draw_examples(folder: Path, examples: list[Example], device: str) -> list[Path]:
    """A picture of each example in `folder`/examples; the model answers once more, unless they are there already.

    Raises:
        ValueError, OSError: the checkpoint cannot be loaded.
    """
    files = [folder / FOLDER / f"{number}.png" for number in range(1, len(examples) + 1)]
    as_text = json.dumps([asdict(example) for example in examples], default=lambda root: os.path.relpath(root, folder))
    kept, listed = folder / FOLDER / LIST_FILE, json.loads(as_text)
    if kept.exists() and json.loads(kept.read_text()) == listed and all(file.exists() for file in files):
        return files
    looked: dict[tuple, Image.Image] = {}
    for root, name in sorted({pair for e in examples for pair in zip(e.roots, e.logged, strict=True)}):
        settings = read_json(root / SETTINGS_FILE)
        row = parse_row(name)
        model, revision = settings["model"], settings["revision"]
        loaded = load(model, row.preset, device, settings["dtype"], None, row.options, revision)
        for example in examples:
            if (root, name) in zip(example.roots, example.logged, strict=True):
                given = {name: settings[name] for name in settings if name in GENERATION_DEFAULTS} | row.generation
                sample = _sample(root, settings, example, loaded.model.config)
                answers = ask(loaded, [sample.chat], **generation_of(example.task, given))
                looked[root, name, example.task, example.row] = answers.overlay(sample.image)
    for example, file in zip(examples, files, strict=True):
        keys = [(*pair, example.task, example.row) for pair in zip(example.roots, example.logged, strict=True)]
        file.parent.mkdir(parents=True, exist_ok=True)
        _side_by_side([looked[key] for key in keys], example.systems).save(file, optimize=True)
    write_json(kept, listed)
    return files


def _sample(root: Path, settings: dict[str, Any], example: Example, config: Any) -> Any:
    place = read_json(root / "answers" / example.task / ROWS_FILE)["data"]
    scale = config.vision_config.image_size / GEOMETRIES["toy"]["image_size"]
    return TaskRows(example.task, place, settings["split"], example.row + 1, scale).sample(example.row)


def _side_by_side(pair: list[Image.Image], names: tuple[str, str]) -> Image.Image:
    """Two pictures of one height, each under its system's name."""
    scaled = [image.resize((round(image.width * _HEIGHT / image.height), _HEIGHT)) for image in pair]
    sheet = Image.new("RGB", (sum(image.width for image in scaled) + _GAP, _HEIGHT + _LINE), "white")
    draw, left = ImageDraw.Draw(sheet), 0
    for image, name in zip(scaled, names, strict=True):
        draw.text((left, 3), name, fill="black", font_size=15)
        sheet.paste(image, (left, _LINE))
        left += image.width + _GAP
    return sheet
