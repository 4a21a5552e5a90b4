"""REPORT.md, REPORT.html and DECK.html: the blocks of an evaluation or a study, rendered by templates/.

A block is a `TextTable`, or a dictionary with its `kind`: heading, paragraph, bullets or picture.
"""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape

from modeling_shirg.evaluation.costs import machine_words
from modeling_shirg.evaluation.report import text_tables
from modeling_shirg.evaluation.report.deck import slides
from modeling_shirg.evaluation.report.figures import BY, COSTS, grouped_figure, pareto_figure, shown
from modeling_shirg.evaluation.report.reported import Report, SystemTable
from modeling_shirg.evaluation.report.text_tables import GROUPINGS, TextTable
from modeling_shirg.running.files import write_whole
from modeling_shirg.scenes.benchmark import PER_CELL

FIGURES = "figures"
Block = dict[str, Any] | TextTable


def write_pages(report: Report, examples: list[Block]) -> list[Path]:
    """Draw the figures and write both pages and the slides into the report's folder; returns the files.

    Args:
        report: an opened run.
        examples: blocks about single answers.
    """
    figures = _figures(report)
    blocks = [*_opening(report), *_tables(report, figures)]
    if examples:
        blocks += [_heading("Examples"), *examples]
    blocks += [_heading("How to read this"), {"kind": "bullets", "items": _notes(report)}]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["embedded"] = lambda file: base64.b64encode(file.read_bytes()).decode()
    pictures = [block for blocks in figures.values() for block in blocks]
    told = {"title": report.title, "folder": report.folder, "blocks": blocks}
    told["slides"] = slides(report, pictures, examples, [*_warnings(report), _machine_line(report)])
    files = []
    for name in ("REPORT.md", "REPORT.html", "DECK.html"):
        files.append(report.folder / name)
        write_whole(files[-1], environment.get_template(f"{name.lower()}").render(told).rstrip("\n") + "\n")
    return files


def picture(file: Path, caption: str) -> Block:
    """A picture with what it shows."""
    return {"kind": "picture", "file": file, "caption": caption}


def paragraph(text: str, notice: bool = False) -> Block:
    """Plain text; a notice stands out."""
    return {"kind": "paragraph", "text": text, "notice": notice}


def _heading(text: str, level: int = 2) -> Block:
    return {"kind": "heading", "text": text, "level": level}


def _warnings(report: Report) -> list[str]:
    """What a reader of any figure must know first."""
    lines = [f"Not finished, so not in the tables: {'; '.join(report.unfinished)}."] if report.unfinished else []
    for task, counts in report.tables[0].results["tasks"].items():
        if counts["bad"]:
            first = counts["bad"][0]
            bad = f"{len(counts['bad'])} of {counts['rows']} rows could not be asked"
            lines.append(f"{task}: {bad}, the first, row {first['row']}: {first['reason']}.")
    return lines


def _machine_line(report: Report) -> str:
    return f"Weights: {report.weights}. Machine: {machine_words(report.machine)}."


def _opening(report: Report) -> list[Block]:
    blocks = [_heading(report.title, 1), *(paragraph(line, notice=True) for line in _warnings(report))]
    blocks.append(paragraph(_machine_line(report)))
    if report.aims:
        tables = [text_tables.aims_table(rows, arm) for arm, rows in report.aims.items()]
        blocks += [_heading("Aims of the study"), *tables]
    return blocks


def _tables(report: Report, figures: dict[str, list[Block]]) -> list[Block]:
    blocks: list[Block] = []
    for table in report.tables:
        blocks += [_heading(table.title.capitalize()), text_tables.score_table(table)]
        if len(table.systems) > 1:
            blocks.append(text_tables.difference_table(table))
        seeds = [text_tables.seed_table(table)] if table.seeds else []
        blocks += [*filter(None, (text_tables.guard_table(table), text_tables.control_table(table))), *seeds]
        if table.title in figures:
            blocks += [*figures[table.title], _heading(f"{table.title}: by kind, size and place", 3)]
            found = (text_tables.grouped_table(table, task, by) for task in table.tasks for by in GROUPINGS)
            blocks += filter(None, found)
        blocks.append(text_tables.cost_table(table))
    if report.gains:
        blocks += [_heading("The effect of adaptation"), text_tables.gain_table(report.gains, report.tables[0].tasks)]
    return blocks


def _figures(report: Report) -> dict[str, list[Block]]:
    """The pictures by title of their table: of the first table, and of the same systems adapted. Six at most."""
    told = [report.tables[0], *([report.adapted] if report.adapted else [])]
    groups = ["glyph_px_in_fovea", "glyph_px_outside_fovea", *([] if report.adapted else ["eccentricity"])]
    costs = list(COSTS)[:1] if report.adapted else list(COSTS)
    return {table.title: _pictures(report, table, groups, costs) for table in told}


def _pictures(report: Report, table: SystemTable, groups: list[str], costs: list[str]) -> list[Block]:
    left_out = len(table.systems) - len(shown(table))
    more = f" {left_out} systems more are in the tables." if left_out else ""
    slug = table.title.lower().replace(",", "").replace(" ", "-")
    blocks = []
    for by in groups:
        file = report.folder / FIGURES / f"{slug}_{by}.png"
        if grouped_figure(file, table, by):
            blocks.append(picture(file, f"{table.title}: accuracy by {BY[by]}.{more}"))
    for cost in costs:
        file = report.folder / FIGURES / f"{slug}_against_{cost}.png"
        if pareto_figure(file, table, cost):
            front = "no system is above and left of the dashed line"
            blocks.append(picture(file, f"{table.title}: accuracy against {COSTS[cost]}; {front}."))
    return blocks


def _notes(report: Report) -> list[str]:
    notes = [
        "Intervals are 95% percentile intervals by a bootstrap over questions. Differences are paired: both systems "
        "answered the same questions.",
        f"Rendered families have {PER_CELL} questions per cell when they are whole; training draws other scenes.",
        "Seconds and memory are of the machine above, and of whatever else ran on it.",
    ]
    timed = report.study and report.study.timing()
    if timed:
        rows = ", ".join(f"{counts['answered']} of {task}" for task, counts in timed["tasks"].items())
        notes[2] = (
            f"Seconds are of one run of all systems on the base's weights ({rows}): {machine_words(timed['machine'])}. "
            "A merged adapter costs per forward as much as its base."
        )
    if any(table.seeds for table in report.tables):
        notes.append("Scores of several seeds are means, question by question; intervals do not cover training.")
    return notes
