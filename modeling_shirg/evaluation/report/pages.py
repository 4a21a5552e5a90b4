"""REPORT.md, REPORT.html and DECK.html, through the templates beside this file.

content.jinja and deck.jinja say what is told; markdown.jinja and html.jinja how headings, tables and pictures look.
"""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from modeling_shirg.evaluation.costs import machine_words
from modeling_shirg.evaluation.report.figures import BY, COSTS, grouped_figure, pareto_figure, shown
from modeling_shirg.evaluation.report.reported import Report, SystemTable
from modeling_shirg.evaluation.results import percent_interval
from modeling_shirg.evaluation.tasks import TASKS
from modeling_shirg.running.files import write_whole
from modeling_shirg.scenes.benchmark import PER_CELL

FIGURES = "figures"
GROUPINGS = {
    "kind": "kind of question",
    "glyph_px": "glyph height in px of the toy geometry",
    "glyph_px_in_fovea": "glyph height inside the centre fovea",
    "glyph_px_outside_fovea": "glyph height outside the centre fovea",
    "eccentricity": "distance from the centre",
    "place": "place on the grid",
}
_PAGES = {"REPORT.md": ("page.md.jinja", "markdown"), "REPORT.html": ("page.html.jinja", "html")}
_PAGES["DECK.html"] = ("deck.jinja", "html")


def write_pages(report: Report, examples: list[dict[str, Any]]) -> list[Path]:
    """Draw the figures and write both pages and the slides into the report's folder; returns the files.

    Args:
        report: an opened run.
        examples: `caption`, and `file` of the picture or `None`.
    """
    told = {
        "report": report,
        "title": f"{report.kind} {report.folder.resolve().name}",
        "examples": examples,
        "figures": _figures(report),
        "groupings": GROUPINGS,
        "per_cell": PER_CELL,
    }
    files = []
    for name, (template, form) in _PAGES.items():
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=form == "html",
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters |= {
            "embedded": lambda file: base64.b64encode(file.read_bytes()).decode(),
            "beside": lambda file: file.relative_to(report.folder).as_posix(),
            "metric": lambda task: f"{task}, {TASKS[task].metric.replace('_', ' ')}",
            "machine": machine_words,
            "percent": lambda value: f"{100 * value:.1f}",
            "score": lambda row: percent_interval(row) if row else "-",
            "points": lambda row: percent_interval(row, "difference", "+.1f"),
        }
        files.append(report.folder / name)
        write_whole(files[-1], environment.get_template(template).render(told, form=f"{form}.jinja").strip() + "\n")
    return files


def _figures(report: Report) -> dict[str, list[dict[str, Any]]]:
    """Pictures by title of their table: of the first table, and of the same systems adapted. Six at most."""
    tables = [report.tables[0], *([report.adapted] if report.adapted else [])]
    groups = ["glyph_px_in_fovea", "glyph_px_outside_fovea", *([] if report.adapted else ["eccentricity"])]
    costs = list(COSTS)[:1] if report.adapted else list(COSTS)
    return {table.title: _pictures(report.folder / FIGURES, table, groups, costs) for table in tables}


def _pictures(folder: Path, table: SystemTable, groups: list[str], costs: list[str]) -> list[dict[str, Any]]:
    left_out = len(table.systems) - len(shown(table))
    more = f" {left_out} systems more are in the tables." if left_out else ""
    slug, pictures = table.title.lower().replace(",", "").replace(" ", "-"), []
    for by in groups:
        file = folder / f"{slug}_{by}.png"
        if grouped_figure(file, table, by):
            pictures.append({"file": file, "about": by, "caption": f"{table.title}: accuracy by {BY[by]}.{more}"})
    for cost in costs:
        file = folder / f"{slug}_against_{cost}.png"
        if pareto_figure(file, table, cost):
            caption = f"{table.title}: accuracy against {COSTS[cost]}; no system is above and left of the dashed line."
            pictures.append({"file": file, "about": cost, "caption": caption})
    return pictures
