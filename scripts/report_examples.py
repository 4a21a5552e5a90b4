"""Examples of a report: questions as two systems look at them, drawn once and kept beside the run."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from modeling_shirg.evaluation.answer_log import ROWS_FILE, SETTINGS_FILE, write_json
from modeling_shirg.evaluation.report.blocks import Block, Paragraph, Picture
from modeling_shirg.evaluation.report.picks import Pick, pick_examples
from modeling_shirg.evaluation.report.source import Source
from modeling_shirg.evaluation.tasks import TASKS, Sample, TaskRows
from modeling_shirg.running.ask import answer_question
from modeling_shirg.running.load import Loaded, load
from modeling_shirg.running.systems import parse_row
from modeling_shirg.running.timing import StageClock

FOLDER, LIST_FILE = "examples", "examples.json"
_HEIGHT, _GAP, _LINE = 448, 12, 22


def draw_examples(source: Source, device: str) -> list[Block]:
    """A picture for each example, or a paragraph that says why there is none."""
    group = source.main
    picks = pick_examples(group) if group else []
    if not picks:
        return [Paragraph("There are none: no two systems answered the same questions.")]
    folder = source.folder / FOLDER
    files = [folder / f"{number}.png" for number in range(1, len(picks) + 1)]
    described = json.dumps([asdict(pick) for pick in picks], default=lambda root: os.path.relpath(root, source.folder))
    listed = json.loads(described)
    kept = folder / LIST_FILE
    if not (kept.exists() and json.loads(kept.read_text()) == listed and all(file.exists() for file in files)):
        try:
            _draw_all(picks, files, device)
        except (ValueError, OSError) as error:
            return [
                Paragraph(f"No overlays: {error}"),
                *(Paragraph(pick.caption) for pick in picks),
            ]
        write_json(kept, listed)
    return [Picture(file, pick.caption) for file, pick in zip(files, picks, strict=True)]


def _draw_all(picks: list[Pick], files: list[Path], device: str) -> None:
    """Draw the pictures; each checkpoint is loaded once."""
    systems = {(root, name) for pick in picks for root, name in zip(pick.roots, pick.logged, strict=True)}
    looked: dict[tuple, Image.Image] = {}
    for root, name in sorted(systems):
        settings = json.loads((root / SETTINGS_FILE).read_text())
        if Path(settings["model"] or ".").is_absolute() and not Path(settings["model"]).exists():
            raise ValueError(f"the checkpoint {settings['model']} is not there any more.")
        row = parse_row(name)
        loaded = load(
            settings["model"], row.preset, device, settings["dtype"], None, row.options, settings["revision"]
        )
        for pick in picks:
            if (root, name) in zip(pick.roots, pick.logged, strict=True):
                sample = _sample(root, settings, pick, loaded)
                looked[root, name, pick.task, pick.row] = _look(loaded, sample, settings, row.generation, pick.task)
    for pick, file in zip(picks, files, strict=True):
        pair = [looked[root, name, pick.task, pick.row] for root, name in zip(pick.roots, pick.logged, strict=True)]
        file.parent.mkdir(parents=True, exist_ok=True)
        _side_by_side(pair, (pick.baseline, pick.system)).save(file)


def _sample(root: Path, settings: dict[str, Any], pick: Pick, loaded: Loaded) -> Sample:
    from configuration_shirg.presets_shirg import GEOMETRIES

    place = json.loads((root / "answers" / pick.task / ROWS_FILE).read_text())["data"]
    scale = loaded.model.config.vision_config.image_size / GEOMETRIES["toy"]["image_size"]
    return TaskRows(pick.task, place, settings["split"], pick.row + 1, scale).sample(pick.row)


def _look(
    loaded: Loaded, sample: Sample, settings: dict[str, Any], generation: dict[str, Any], task: str
) -> Image.Image:
    """What the system looked at."""
    names = ("max_new_tokens", "steps", "prefix_kv", "prefix_dtype")
    given = {name: settings[name] for name in names if settings[name] is not None} | generation
    length = given.setdefault("max_new_tokens", TASKS[task].length)
    if "step_ratio" not in given:
        given.setdefault("steps", length)
    return answer_question(loaded, sample.image, sample.question, StageClock(), **given).overlay()


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
