"""REPORT.md and DECK.html, through templates/."""

import base64
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from modeling_shirg.evaluation.costs import machine_words
from modeling_shirg.evaluation.report import frames
from modeling_shirg.evaluation.report.figures import COSTS, grouped_figure, pareto_figure, shown
from modeling_shirg.evaluation.report.reported import Report, SystemTable
from modeling_shirg.running.files import write_whole
from modeling_shirg.scenes.benchmark import PER_CELL

FIGURES = "figures"


def write_pages(report: Report, examples: list[dict[str, Any]]) -> list[Path]:
    """Draw the figures and write page and slides into the report's folder; returns the files.

    Args:
        report: an opened run.
        examples: `caption`, and `file` of the picture or `None`.
    """
    told = {
        "report": report,
        "examples": examples,
        "figures": _figures(report),
        "frames": frames,
        "per_cell": PER_CELL,
    }
    told["title"] = f"{report.kind} {report.folder.resolve().name}"
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=lambda name: ".html" in name,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "machine": machine_words,
        "markdown": frames.markdown,
        "beside": lambda file: file.relative_to(report.folder).as_posix(),
        "embedded": lambda file: base64.b64encode(file.read_bytes()).decode(),
    }
    files = []
    for name in ("REPORT.md", "DECK.html"):
        files.append(report.folder / name)
        text = environment.get_template(f"{name.lower()}.jinja").render(told).strip()
        write_whole(files[-1], re.sub(r"\n{3,}", "\n\n", text) + "\n")
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
            pictures.append(
                {"file": file, "about": by, "caption": f"{table.title}: accuracy by {frames.GROUPINGS[by]}.{more}"}
            )
    for cost in costs:
        file = folder / f"{slug}_against_{cost}.png"
        if pareto_figure(file, table, cost):
            caption = f"{table.title}: accuracy against {COSTS[cost]}; no system is above and left of the dashed line."
            pictures.append({"file": file, "about": cost, "caption": caption})
    return pictures
