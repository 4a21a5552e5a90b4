"""REPORT.md and REPORT.html: all tables and pictures of an evaluation or a study."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from modeling_shirg.evaluation.report import figures, tables
from modeling_shirg.evaluation.report.blocks import (
    Block,
    Bullets,
    Heading,
    Paragraph,
    Picture,
    page,
    to_html,
    to_markdown,
)
from modeling_shirg.evaluation.report.source import GroupView, Source
from modeling_shirg.scenes.benchmark import PER_CELL

FIGURES = "figures"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; }
h1, h2, h3 { line-height: 1.25; margin-top: 2em; } h1 { margin-top: 0; }
.table { overflow-x: auto; } table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .3em; }
th, td { padding: .25em .7em; border-bottom: 1px solid #d8dee4; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } td.text { white-space: normal; min-width: 14em; }
figure { margin: 1.5em 0; } img { max-width: 100%; } figcaption { color: #59636e; font-size: .9em; }
.notice { background: #fff3cd; border-left: 4px solid #d39e00; padding: .6em 1em; font-weight: 600; }
"""
_GROUPINGS = {
    "kind": "kind of question",
    "glyph_px": "glyph height in px of the toy geometry",
    "glyph_px_in_fovea": "glyph height inside the centre fovea",
    "glyph_px_outside_fovea": "glyph height outside the centre fovea",
    "eccentricity": "distance from the centre",
    "place": "place on the grid",
}


def write_pages(source: Source, examples: Sequence[Block]) -> list[Path]:
    """Draw the pictures and write both pages into the source's folder.

    Args:
        source: what is reported on.
        examples: what is shown of single answers.
    """
    blocks = [*_opening(source), *_tables_and_pictures(source), Heading("Examples"), *examples, *_closing(source)]
    written = [source.folder / "REPORT.md", source.folder / "REPORT.html"]
    written[0].write_text(to_markdown(blocks, source.folder), encoding="utf-8")
    written[1].write_text(page(title(source), _STYLE, to_html(blocks)), encoding="utf-8")
    return written


def title(source: Source) -> str:
    return f"{'Study' if source.study else 'Evaluation'} {source.folder.resolve().name}"


def warnings(source: Source) -> list[str]:
    """What whoever reads any figure must know first: a gate that fails, entries that are missing, what was cut."""
    lines, study = [], source.study
    if study is not None:
        gate = study["gate"]
        if gate is None:
            lines.append("The base has not been asked yet: whether it passes the gate is not known.")
        elif not gate["passes"]:
            failed = ", ".join(row["task"] for row in gate["families"] if not row["passes"])
            adaptations = "were not run" if study["status"] == "stopped at the gate" else "are shown nonetheless"
            lines.append(
                f"The base does not pass the gate ({failed}): it reads too little for comparisons on it to count. "
                f"Adaptations {adaptations}."
            )
        if study["status"] == "running":
            lines.append("The study is not finished: tables have what there is.")
    return lines


def machine_line(source: Source) -> str:
    """What ran, on what, when."""
    weights = source.study["base"]["name"] if source.study else source.results["settings"]["model"]
    return f"Weights: {weights or 'the bundled toy checkpoint'}. Machine: {_machine_words(source.machine)}."


def _machine_words(machine: dict[str, Any]) -> str:
    where = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
    return (
        f"{where}, load average {machine['load_average']} at the start, torch {machine['torch']}, transformers "
        f"{machine['transformers']}, {machine['date']}"
    )


def missing_line(group: GroupView) -> str | None:
    """Which entries of a group are missing."""
    return f"Missing from {group.title}: {'; '.join(group.missing)}." if group.missing else None


def _opening(source: Source) -> list[Block]:
    study = source.study
    blocks: list[Block] = [Heading(title(source), 1), *(Paragraph(line, notice=True) for line in warnings(source))]
    blocks.append(Paragraph(machine_line(source)))
    if study is not None:
        blocks += [Heading("The base"), *([tables.gate_table(study["gate"])] if study["gate"] else [])]
        blocks += [Heading("What was cut from the plan"), Bullets(study["cuts"] or ["Nothing."])]
    missing = list(filter(None, map(missing_line, source.groups)))
    if missing:
        blocks += [Heading("What is missing"), Bullets(missing)]
    blocks.append(Heading("Aims of the study"))
    blocks += [tables.aims_table(rows, arm) for arm, rows in source.aims.items()]
    return blocks


def _tables_and_pictures(source: Source) -> list[Block]:
    blocks: list[Block] = []
    for group in source.groups:
        blocks += [Heading(group.title.capitalize()), *_group_blocks(source, group)]
    if source.study and source.results["gains"]:
        blocks += [Heading("What adaptation brought"), tables.gain_table(source.results["gains"])]
    if source.study and source.results["grid"]:
        blocks += [Heading("Weights of the score"), tables.grid_table(source.results["grid"])]
    return blocks


def _group_blocks(source: Source, group: GroupView) -> list[Block]:
    if group.tables is None:
        return [Paragraph(f"The baseline {group.baseline} is missing, so there is no table.", notice=True)]
    blocks: list[Block] = [tables.score_table(group)]
    if len(group.systems) > 1:
        blocks.append(tables.difference_table(group))
    blocks += [table for table in [tables.guard_table(group)] if table]
    if group.seeds:
        blocks.append(tables.seed_table(group))
    blocks += _pictures(source, group)
    blocks.append(Heading(f"{group.title}: by kind, size and place", 3))
    for task in group.tables["tasks"]:
        found = (tables.grouped_table(group, task, by, what) for by, what in _GROUPINGS.items())
        blocks += [table for table in found if table]
    return [
        *blocks,
        Heading(f"{group.title}: cost", 3),
        tables.efficiency_table(group),
        *_cost_pictures(source, group),
    ]


def picture_file(source: Source, group: GroupView, name: str) -> Path:
    """Where a picture of a group is."""
    slug = re.sub(r"[^a-z0-9]+", "-", group.title.lower()).strip("-")
    return source.folder / FIGURES / f"{slug}_{name}.png"


def _pictures(source: Source, group: GroupView) -> list[Block]:
    left_out = len(group.systems) - len(figures.shown(group))
    more = f" {left_out} systems more are in the tables." if left_out else ""
    blocks: list[Block] = []
    for by, label in figures.BY.items():
        what = f"{group.title}: accuracy by {label}.{more}"
        blocks += _drawn(figures.grouped_figure, picture_file(source, group, by), group, by, what=what)
    return blocks


def _cost_pictures(source: Source, group: GroupView) -> list[Block]:
    parts = {
        "latency": (figures.latency_figure, "time of an answer by stage"),
        "memory": (figures.memory_figure, "memory of a batch"),
    }
    blocks: list[Block] = []
    for name, (draw, what) in parts.items():
        blocks += _drawn(draw, picture_file(source, group, name), group, what=f"{group.title}: {what}.")
    for cost, label in {"image_tokens": "image tokens", "seconds": "seconds per image"}.items():
        caption = f"{group.title}: accuracy against {label}; no system is above and left of the dashed line."
        file = picture_file(source, group, f"against_{cost}")
        blocks += _drawn(figures.pareto_figure, file, group, cost, label, what=caption)
    return blocks


def _drawn(draw: Callable[..., Path | None], file: Path, *arguments: Any, what: str) -> list[Block]:
    """The picture, or nothing where nothing was measured; then none of an earlier report stays."""
    if draw(file, *arguments) is None:
        file.unlink(missing_ok=True)
        return []
    return [Picture(file, what)]


def _closing(source: Source) -> list[Block]:
    notes = [
        "Intervals are 95% percentile intervals by a bootstrap over questions. Differences are paired: both systems "
        "answered the same questions.",
        f"Rendered families have {PER_CELL} questions per cell when they are whole; their seeds are not those of "
        "training.",
        _about_seconds(source),
    ]
    if source.study:
        notes.append(
            "Where a system was adapted with several seeds, its scores are means over them, question by question; "
            "intervals do not cover training. Single runs have a table of their own."
        )
    blocks: list[Block] = [Heading("How to read this"), Bullets(notes)]
    if source.study:
        blocks += [Heading("Entries"), tables.entry_table(source.results["entries"])]
    return blocks


def _about_seconds(source: Source) -> str:
    if source.study is None:
        return "Seconds and memory are of the machine above, and of whatever else ran on it."
    run = source.results["timing"]
    if run is None:
        return "Seconds are not measured yet: all systems are timed in one run, when everything else is finished."
    rows = ", ".join(f"{count} of {task}" for task, count in run["rows"].items())
    return (
        f"Seconds are of one run for all systems, on the base's weights, in batches of {run['batch_size']} ({rows}): "
        f"{_machine_words(run['machine'])}. A merged adapter costs per forward what its base does."
    )
