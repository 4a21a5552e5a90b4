"""DECK.html: nine slides in one file, every figure from the run's results.

Motivation, upper bound, landscape, method, results, efficiency, ablations, failures and limits, roadmap. A slide whose
figures were not measured says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from modeling_shirg.evaluation.aims import BOUND, OURS
from modeling_shirg.evaluation.report import figures, tables
from modeling_shirg.evaluation.report.blocks import Block, Bullets, Paragraph, Picture, Table, page, to_html
from modeling_shirg.evaluation.report.pages import machine_line, missing_line, picture_file, title, warnings
from modeling_shirg.evaluation.report.source import GroupView, Source
from modeling_shirg.evaluation.tasks import TASKS

_STYLE = """
html { scroll-snap-type: y mandatory; }
body { margin: 0; background: #3b4148; font: 17px/1.4 system-ui, sans-serif; }
section { box-sizing: border-box; width: 1280px; min-height: 720px; margin: 24px auto; padding: 36px 56px 44px;
  background: #fff; color: #1b1f24; scroll-snap-align: start; position: relative; break-after: page; }
h1 { margin: 0 0 18px; font-size: 34px; }
.columns { display: flex; gap: 36px; }
.columns > div { flex: 1 0 auto; max-width: 100%; }
.columns > div:first-child:not(:last-child) { flex: 1 0 34%; max-width: 50%; }
.columns > .wide { flex: 1.5 1 0; min-width: 0; }
table { border-collapse: collapse; font-size: 14px; margin-bottom: 14px; }
caption { text-align: left; font-weight: 600; }
th, td { padding: 2px 8px; border-bottom: 1px solid #d8dee4; text-align: right; }
th:first-child, td:first-child { text-align: left; }
td { white-space: nowrap; }
td.text { white-space: normal; min-width: 11em; }
figure { margin: 0 0 12px; }
img { max-width: 100%; max-height: 500px; }
figcaption { font-size: 13px; color: #59636e; }
ul { padding-left: 1.1em; }
li { margin-bottom: .35em; }
footer { position: absolute; bottom: 12px; right: 56px; color: #59636e; font-size: 13px; }
.notice { background: #fff3cd; border-left: 4px solid #d39e00; padding: 6px 12px; }
@media print { body { background: none; } section { margin: 0; } @page { size: 1280px 720px; margin: 0; } }
"""
_MOST_ROWS, _MOST_ITEMS, _LONGEST = 20, 9, 150


@dataclass
class Slide:
    """A title, text and tables on the left, pictures and tables on the right."""

    title: str
    left: list[Block] = field(default_factory=list)
    right: list[Block] = field(default_factory=list)


def write_deck(source: Source, examples: Sequence[Block]) -> Path:
    """Write the slides; the pictures of `write_pages` are there already."""
    group = source.main
    if group is None:
        nothing = Paragraph("Not measured: no group of systems has a table yet.", notice=True)
        slides = [Slide(name, [nothing]) for name in _SLIDES]
    else:
        slides = [make(source, group, examples) for make in _SLIDES.values()]
    file = source.folder / "DECK.html"
    body = "\n".join(_section(slide, number, source) for number, slide in enumerate(slides, start=1))
    file.write_text(page(title(source), _STYLE, body), encoding="utf-8")
    return file


def _section(slide: Slide, number: int, source: Source) -> str:
    columns = [f"<div>{to_html(slide.left)}</div>"] if slide.left else []
    columns += [f'<div class="wide">{to_html(slide.right)}</div>'] if slide.right else []
    foot = f"<footer>{escape(title(source))} &middot; {number} / {len(_SLIDES)}</footer>"
    return f'<section><h1>{escape(slide.title)}</h1><div class="columns">{"".join(columns)}</div>{foot}</section>'


def _motivation(source: Source, group: GroupView, examples: Sequence[Block]) -> Slide:
    rows = [
        [task, tables.score(sizes[0]), f"{sizes[0]['group']} px", tables.score(sizes[-1]), f"{sizes[-1]['group']} px"]
        for task in group.tables["tasks"]
        if (sizes := group.rows("groups", task=task, by="glyph_px", system=group.baseline, metric=TASKS[task].metric))
    ]
    left: list[Block] = [
        *(Paragraph(line, notice=True) for line in warnings(source)),
        Paragraph(
            "A fixed number of image tokens spreads over the whole image. What is small in it can fall below what the "
            f"pooled tokens of {group.baseline} resolve; more tokens cost memory and time in every layer."
        ),
    ]
    if rows:
        header = ["family", "smallest", "size", "largest", "size"]
        left.append(Table(header, rows, f"{group.baseline} reads, percent"))
    return Slide("Motivation: small signs are lost", left, _drawn(source, group, "glyph_px", [group.baseline], "base"))


def _upper_bound(source: Source, group: GroupView, examples: Sequence[Block]) -> Slide:
    group = next((each for each in source.main_arms() if BOUND in each.systems), group)
    if BOUND not in group.systems:
        return Slide("Upper bound: every token kept", [_not_asked(group, BOUND)])
    pair = list(dict.fromkeys((group.baseline, BOUND)))
    left: list[Block] = [
        Paragraph(
            f"{BOUND} keeps all tokens of LaViDa's views: no choice among them has more to read from. Where it is "
            f"behind {group.baseline}, that is not for want of tokens."
        ),
        _turned(tables.score_table(group, pair)),
        *([_turned(tables.difference_table(group, pair))] if len(pair) > 1 else []),
    ]
    return Slide("Upper bound: every token kept", left, _drawn(source, group, "glyph_px", pair, "bound"))


def _landscape(source: Source, group: GroupView, examples: Sequence[Block]) -> Slide:
    table = tables.score_table(max(source.main_arms(), key=lambda each: len(each.systems)))
    left_out = len(table.rows) - _MOST_ROWS
    more = [Paragraph(f"{left_out} systems more are in REPORT.html.")] if left_out > 0 else []
    return Slide(
        "Landscape: systems side by side", [Table(table.header, table.rows[:_MOST_ROWS], table.caption), *more]
    )


def _method(source: Source, group: GroupView, examples: Sequence[Block]) -> Slide:
    left: list[Block] = [
        Bullets(
            [
                "The whole image at low resolution, pooled after the projector.",
                "A fovea at high resolution; of its patches the best by attention, relevance to the question and "
                "non-redundancy are kept.",
                "Chosen once per image and question, so that the prefix cache stays valid.",
                f"Image tokens: {OURS} {tables.tokens(group, OURS)}, {group.baseline} "
                f"{tables.tokens(group, group.baseline)}."
                if OURS in group.systems
                else f"{OURS} was not asked here.",
            ]
        )
    ]
    return Slide("Method: the whole, and a fovea of what matters", left, _first_picture(examples))


def _results(source: Source, group: GroupView, examples: Sequence[Block]) -> Slide:
    rows = [[row["aim"], tables.aim_figure(row), _status(row), row["arm"]] for row in _told_aims(source)]
    columns = 4 if len(source.aims) > 1 else 3
    left: list[Block] = [Table(["aim", "figure", "status", "arm"][:columns], [row[:columns] for row in rows])]
    return Slide("Results: the aims of the study", left, _drawn(source, group, "glyph_px_in_fovea", None, "results"))


def _efficiency(source: Source, group: GroupView, examples: Sequence[Block]) -> Slide:
    bars = {"latency": "time of an answer by stage", "memory": "memory of a batch"}
    pareto = {"against_image_tokens": "Accuracy against image tokens", "against_seconds": "Accuracy against seconds"}
    left = [(picture_file(source, group, name), f"{group.title}: {what}.") for name, what in bars.items()]
    right = [(picture_file(source, group, name), f"{what} per image.") for name, what in pareto.items()]
    sides = [[Picture(file, what) for file, what in side if file.exists()] for side in (left, right)]
    return Slide("Efficiency: tokens, time, memory", *sides)


def _ablations(source: Source, group: GroupView, examples: Sequence[Block]) -> Slide:
    found = [each for each in source.others() if len(each.systems) > 1]
    if not found:
        return Slide("Ablations", [Paragraph("Not measured: no group beside the main one has tables.", notice=True)])
    told = [(each, tables.difference_table(each)) for each in found]
    rows = [
        [row[0], each.baseline, each.arm, *(cell.replace(" to ", "..") for cell in row[1:])]
        for each, table in told
        for row in table.rows
    ]
    header = ["system", "minus", "arm", *(name.partition(",")[0] for name in told[0][1].header[1:])]
    more = [Paragraph(f"{len(rows) - _MOST_ROWS} more are in REPORT.html.")] if len(rows) > _MOST_ROWS else []
    caption = "Paired differences in points, with 95% intervals"
    return Slide("Ablations", [Table(header, rows[:_MOST_ROWS], caption), *more])


def _failures(source: Source, group: GroupView, examples: Sequence[Block]) -> Slide:
    study = source.study
    items = [*warnings(source), *(study["cuts"] if study else []), *filter(None, map(missing_line, source.groups))]
    items += [f"{row['aim']}: missed, {tables.aim_figure(row)}." for row in _aims(source, "missed")]
    failures = [each for each in examples if isinstance(each, Picture) and "neither is right" in each.caption]
    left = [Bullets(_shortened([*items, machine_line(source)])), *([] if failures else [Paragraph(_NO_FAILURE)])]
    return Slide("Failures and limits", left, failures[:1])


def _roadmap(source: Source, group: GroupView, examples: Sequence[Block]) -> Slide:
    missing = sum(len(each.missing) for each in source.groups)
    items = [f"Measure: {row['aim']} ({row['why']})." for row in _aims(source, "not measured")]
    items += [f"Find out why it is missed: {row['aim']}." for row in _aims(source, "missed")]
    items += [f"Settle with more questions: {row['aim']}." for row in _aims(source, "met") if not row["settled"]]
    items += [f"Finish {missing} entries of the study."] if missing else []
    items += ["Run what was cut from the plan."] if source.study and source.study["cuts"] else []
    return Slide("Roadmap", [Bullets(_shortened(items or ["Every aim is met and nothing is missing."]))])


_NO_FAILURE = "No example shows a question that neither system reads."
_SLIDES = {
    "Motivation": _motivation,
    "Upper bound": _upper_bound,
    "Landscape": _landscape,
    "Method": _method,
    "Results": _results,
    "Efficiency": _efficiency,
    "Ablations": _ablations,
    "Failures and limits": _failures,
    "Roadmap": _roadmap,
}


def _status(row: dict) -> str:
    """Met, missed or not measured, in few words."""
    unsure = row["status"] != "not measured" and (row["why"] or not row["settled"])
    return f"{row['status']}, not settled" if unsure else row["status"]


def _told_aims(source: Source) -> list[dict]:
    """Every aim once, with its `arm`: after adaptation where that was measured, else zero-shot."""
    arms = [[{**row, "arm": arm} for row in rows] for arm, rows in reversed(source.aims.items())]
    return [
        next((row for row in rows if row["status"] != "not measured"), rows[-1]) for rows in zip(*arms, strict=True)
    ]


def _aims(source: Source, status: str) -> list[dict]:
    return [row for row in _told_aims(source) if row["status"] == status]


def _not_asked(group: GroupView, system: str) -> Block:
    return Paragraph(f"Not measured: {system} is not among the systems of {group.title}.", notice=True)


def _drawn(source: Source, group: GroupView, by: str, systems: list[str] | None, name: str) -> list[Block]:
    """A picture of its own for a slide, or a line that says what is missing."""
    file = figures.grouped_figure(picture_file(source, group, f"slide_{name}"), group, by, systems)
    if file is None:
        return [Paragraph("No rendered family was asked, so there are no sizes to tell apart.")]
    return [Picture(file, f"{group.title}: accuracy by {figures.BY[by]}.")]


def _first_picture(examples: Sequence[Block]) -> list[Block]:
    pictures = [each for each in examples if isinstance(each, Picture)]
    return [pictures[0]] if pictures else [Paragraph("No overlay could be drawn; REPORT.html says why.")]


def _turned(table: Table) -> Table:
    """The table with rows and columns swapped, for a narrow column."""
    columns = list(zip(table.header, *table.rows, strict=True))
    return Table(columns[0], columns[1:], table.caption)


def _shortened(items: Sequence[str]) -> list[str]:
    """The first items, each of a length that fits a slide."""
    more = len(items) - _MOST_ITEMS
    kept = [item if len(item) <= _LONGEST else f"{item[: _LONGEST - 3]}..." for item in items[:_MOST_ITEMS]]
    return [*kept, f"{more} points more are in REPORT.html."] if more > 0 else kept
