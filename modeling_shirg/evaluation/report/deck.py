"""DECK.html: at most nine slides; a slide without content is left out."""

from dataclasses import dataclass, field
from typing import Any

from modeling_shirg.evaluation.report import text_tables
from modeling_shirg.evaluation.report.reported import Report
from modeling_shirg.evaluation.report.text_tables import TextTable

_OURS, _BOUND = "shirg", "lavida-full"
_MOST_ROWS, _MOST_ITEMS, _LONGEST = 20, 9, 150


@dataclass
class Slide:
    """A title; text and tables on the left, pictures on the right."""

    title: str
    left: list[Any] = field(default_factory=list)
    right: list[Any] = field(default_factory=list)


def slides(report: Report, pictures: list[Any], examples: list[Any], limits: list[str]) -> list[Slide]:
    """The slides with content.

    Args:
        report: an opened run.
        pictures: the report's figures as blocks.
        examples: its examples as blocks.
        limits: sentences about the run that its readers must know.
    """
    drawn = [block for block in examples if block["kind"] == "picture"]
    told = [picture for picture in pictures if picture["caption"].startswith(report.main.title)]
    by_size = [picture for picture in told if "inside the centre fovea" in picture["caption"]]
    made = [
        Slide("Motivation: small signs are lost", _motivation(report), by_size if report.adapted is None else []),
        Slide("Upper bound: every token kept", _upper_bound(report)),
        Slide("Landscape: systems side by side", [_landscape(report)]),
        Slide("Method: the whole, and a fovea of what matters", _method(report), drawn[:1]),
        Slide("Results", _results(report), by_size),
        Slide(
            "Efficiency: tokens, time, memory",
            [text_tables.cost_table(report.main)],
            [picture for picture in told if "against" in picture["caption"]],
        ),
        Slide("Ablations", _ablations(report)),
        Slide(
            "Failures and limits",
            _bullets([*limits, *(f"{aim['aim']}: missed, {aim['figure']}." for aim in _aims(report, "missed"))]),
            [block for block in drawn if "neither is right" in block["caption"]],
        ),
        Slide("Roadmap", _bullets(_roadmap(report))),
    ]
    return [slide for slide in made if slide.left]


def _motivation(report: Report) -> list[Any]:
    table = report.main
    text = (
        "A fixed number of image tokens spreads over the whole image. Small signs can fall below the resolution of the "
        f"pooled tokens of {table.baseline}; more tokens cost memory and time in every layer."
    )
    rows = []
    for task in table.tasks:
        sizes = [row for row in table.scores(task, "glyph_px") if row["system"] == table.baseline]
        if sizes:
            cells = [[text_tables.score(row), f"{row['group']} px"] for row in (sizes[0], sizes[-1])]
            rows.append([task, *cells[0], *cells[1]])
    header = ["family", "smallest", "size", "largest", "size"]
    caption = f"{table.baseline} reads, percent"
    return [{"kind": "paragraph", "text": text}, *([TextTable(header, rows, caption)] if rows else [])]


def _upper_bound(report: Report) -> list[Any]:
    tables = [table for table in (report.main, report.tables[0]) if _BOUND in table.systems]
    if not tables or tables[0].baseline == _BOUND:
        return []
    table = tables[0]
    pair = [table.baseline, _BOUND]
    text = f"{_BOUND} keeps all tokens of LaViDa's views: no selection among them has more to read from."
    scores, differences = text_tables.score_table(table, pair), text_tables.difference_table(table, pair)
    return [{"kind": "paragraph", "text": text}, scores.turned(), differences.turned()]


def _landscape(report: Report) -> TextTable:
    table = text_tables.score_table(max((report.main, report.tables[0]), key=lambda each: len(each.systems)))
    return _first_rows(table)


def _method(report: Report) -> list[Any]:
    table = report.main
    if _OURS not in table.systems:
        return []
    return _bullets(
        [
            "The whole image at low resolution, pooled after the projector.",
            "A fovea at high resolution; its best patches by attention, relevance and non-redundancy are kept.",
            "Chosen once per image and question, so that the prefix cache stays valid.",
            f"Image tokens: {_OURS} {text_tables.tokens(table, _OURS)}, {table.baseline} "
            f"{text_tables.tokens(table, table.baseline)}.",
        ]
    )


def _results(report: Report) -> list[Any]:
    rows = [[aim["aim"], aim["figure"], aim["status"], aim["arm"]] for aim in _aims(report)]
    if rows:
        return [TextTable(["aim", "figure", "status", "arm"], rows)]
    differences = text_tables.difference_table(report.main)
    return [_first_rows(differences)] if differences.rows else []


def _ablations(report: Report) -> list[Any]:
    others = [table for table in report.tables if table not in (report.tables[0], report.adapted)]
    rows = [
        [row[0], table.title, *(cell.replace(" to ", "..") for cell in row[1:])]
        for table in others
        for row in text_tables.difference_table(table).rows
    ]
    header = ["system", "table", *report.tables[0].tasks]
    return [_first_rows(TextTable(header, rows, "Paired differences in points, with 95% intervals"))] if rows else []


def _roadmap(report: Report) -> list[str]:
    items = [f"Measure: {aim['aim']}." for aim in _aims(report, "not measured")]
    items += [f"Find the cause of the miss: {aim['aim']}." for aim in _aims(report, "missed")]
    items += [f"Settle with more questions: {aim['aim']}." for aim in _aims(report, "met") if not aim["settled"]]
    return [*items, *([f"Finish {len(report.unfinished)} parts of the study."] if report.unfinished else [])]


def _aims(report: Report, status: str = "") -> list[dict[str, Any]]:
    """Every aim of this status once: of the last arm that measured it."""
    told: dict[str, dict[str, Any]] = {}
    for arm, aims in report.aims.items():
        for aim in aims:
            if aim["n"] or aim["aim"] not in told:
                told[aim["aim"]] = {**aim, "arm": arm}
    return [aim for aim in told.values() if aim["status"].startswith(status)]


def _first_rows(table: TextTable) -> TextTable:
    left_out = len(table.rows) - _MOST_ROWS
    more = f" ({left_out} rows more are in REPORT.html)" if left_out > 0 else ""
    return TextTable(table.header, table.rows[:_MOST_ROWS], table.caption + more)


def _bullets(items: list[str]) -> list[Any]:
    """The first items, each short enough for a slide."""
    kept = [item if len(item) <= _LONGEST else f"{item[: _LONGEST - 3]}..." for item in items[:_MOST_ITEMS]]
    more = len(items) - _MOST_ITEMS
    kept += [f"{more} points more are in REPORT.html."] if more > 0 else []
    return [{"kind": "bullets", "items": kept}] if kept else []
