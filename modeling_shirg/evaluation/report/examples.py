"""Single answers of two systems, with pictures of the patches that each kept."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from configuration_shirg.presets_shirg import GEOMETRIES
from modeling_shirg.evaluation.answer_log import ROWS_FILE, SETTINGS_FILE, Place, read_answers, read_json
from modeling_shirg.evaluation.asking import generation_of
from modeling_shirg.evaluation.report.reported import SystemTable
from modeling_shirg.evaluation.tasks import TASKS, TaskRows
from modeling_shirg.generation_config_shirg import GENERATION_DEFAULTS
from modeling_shirg.running.ask import ask
from modeling_shirg.running.load import load
from modeling_shirg.running.systems import parse_row

_HEIGHT, _GAP, _LINE = 448, 12, 22


@dataclass(frozen=True)
class PickedExample:
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


def pick_examples(table: SystemTable) -> list[PickedExample]:
    """The first question of each kind; none without a second system."""
    others = [system for system in table.systems if system != table.baseline]
    if not others:
        return []
    pair = (table.baseline, next((each for each in others if each.partition(",")[0] == "shirg"), others[0]))
    kinds = {(False, True): f"only {pair[1]} is right", (True, False): f"only {pair[0]} is right"}
    kinds |= {(False, False): "neither is right", (True, True): "both are right"}
    found: dict[str, PickedExample] = {}
    roots, names = (tuple(values) for values in zip(*(table.logged[system] for system in pair), strict=True))
    for task in table.tasks:
        answers = (read_answers(root, Place(task, name)) for root, name in zip(roots, names, strict=True))
        for both in zip(*answers, strict=True):
            if not any("bad" in record for record in both):
                kind = kinds[tuple(record["scores"][TASKS[task].metric] >= 0.5 for record in both)]
                question = (both[0]["row"], both[0]["question"], both[0]["answers"][0])
                given = tuple(record["prediction"] for record in both)
                found.setdefault(kind, PickedExample(kind, task, *question, given, pair, roots, names))
    return [found[kind] for kind in kinds.values() if kind in found]


def draw_examples(folder: Path, examples: list[PickedExample], device: str) -> list[Path]:
    """A picture of each example in `folder`/examples, for which the model answers once more.

    Raises:
        ValueError, OSError: the checkpoint cannot be loaded.
    """
    looked: dict[tuple, Image.Image] = {}
    for root, name in sorted({pair for e in examples for pair in zip(e.roots, e.logged, strict=True)}):
        settings, row = read_json(root / SETTINGS_FILE), parse_row(name)
        model, dtype, revision = (settings[key] for key in ("model", "dtype", "revision"))
        loaded = load(model, row.preset, device, dtype, None, row.options, revision)
        given = {key: value for key, value in settings.items() if key in GENERATION_DEFAULTS} | row.generation
        for example in examples:
            place = read_json(root / "answers" / example.task / ROWS_FILE)["data"]
            scale = loaded.model.config.vision_config.image_size / GEOMETRIES["toy"]["image_size"]
            sample = TaskRows(example.task, place, settings["split"], example.row + 1, scale).sample(example.row)
            answers = ask(loaded, [sample.chat], **generation_of(example.task, given))
            looked[root, name, example] = answers.overlay(sample.image)
    files = []
    for number, example in enumerate(examples, start=1):
        files.append(folder / "examples" / f"{number}.png")
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        pair = [looked[root, name, example] for root, name in zip(example.roots, example.logged, strict=True)]
        _side_by_side(pair, example.systems).save(files[-1], optimize=True)
    return files


def _side_by_side(pair: list[Image.Image], names: tuple[str, str]) -> Image.Image:
    """Two pictures of one size, each under its system's name."""
    width = round(pair[0].width * _HEIGHT / pair[0].height)
    sheet = Image.new("RGB", (2 * width + _GAP, _HEIGHT + _LINE), "white")
    for left, image, name in zip((0, width + _GAP), pair, names, strict=True):
        ImageDraw.Draw(sheet).text((left, 3), name, fill="black", font_size=15)
        sheet.paste(image.resize((width, _HEIGHT)), (left, _LINE))
    return sheet
