"""REPORT.md and DECK.html, through templates/."""

import base64
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from modeling_shirg.evaluation.costs import machine_words
from modeling_shirg.evaluation.report import frames
from modeling_shirg.evaluation.report.figures import COSTS, grouped_figure, pareto_figure, shown
from modeling_shirg.evaluation.report.reported import Report
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
    drawn: dict[str, list[dict[str, Any]]] = {}
    for table in [report.tables[0], *([report.adapted] if report.adapted else [])]:
        abouts = ["glyph_px_in_fovea", "glyph_px_outside_fovea", "image_tokens"]
        more = len(table.systems) - len(shown(table))
        for about in abouts if report.adapted else [*abouts, "eccentricity", "seconds"]:
            slug = table.title.lower().replace(",", "").replace(" ", "-")
            file, draw = report.folder / FIGURES / f"{slug}_{about}.png", grouped_figure
            caption = f"{table.title}: accuracy by {frames.GROUPINGS.get(about)}."
            caption += f" {more} systems more are in the tables." if more else ""
            if about in COSTS:
                draw, front = pareto_figure, "no system is above and left of the dashed line"
                caption = f"{table.title}: accuracy against {COSTS[about]}; {front}."
            if draw(file, table, about):
                drawn.setdefault(table.title, []).append({"file": file, "about": about, "caption": caption})
    return drawn
