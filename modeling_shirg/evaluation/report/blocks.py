"""What a report is made of, written as Markdown or as HTML that needs no other file."""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

_LONG = 28


@dataclass(frozen=True)
class Heading:
    """A title; level 1 is the page's."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Plain text; `notice` is what must not be overlooked."""

    text: str
    notice: bool = False


@dataclass(frozen=True)
class Bullets:
    """A list; nothing if it is empty."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Cells are text; all columns but the first are aligned to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """An image file, and what it shows."""

    file: Path
    caption: str


Block = Heading | Paragraph | Bullets | Table | Picture


def to_markdown(blocks: Iterable[Block], folder: Path) -> str:
    """The blocks as Markdown in `folder`, which pictures are linked from."""
    return "\n\n".join(_markdown(block, folder) for block in blocks) + "\n"


def to_html(blocks: Iterable[Block]) -> str:
    """The blocks as the inside of an HTML body, pictures included."""
    return "\n".join(map(_html, blocks))


def page(title: str, style: str, body: str) -> str:
    """A whole HTML file."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _markdown(block: Block, folder: Path) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Paragraph(text, notice):
            return f"> **{text}**" if notice else text
        case Bullets(items):
            return "\n".join(f"- {item}" for item in items)
        case Picture(file, caption):
            return f"![{caption}]({file.relative_to(folder).as_posix()})\n\n*{caption}*"
    rule = ["---", *["---:"] * (len(block.header) - 1)]
    rows = [block.header, rule, *([cell.replace("|", "\\|") for cell in row] for row in block.rows)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{block.caption}\n\n{table}" if block.caption else table


def _cell(text: str) -> str:
    """A cell of an HTML table; text that is longer than figures are may break."""
    return f'<td class="text">{escape(text)}</td>' if len(text) > _LONG else f"<td>{escape(text)}</td>"


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Paragraph(text, notice):
            return f'<p class="notice">{escape(text)}</p>' if notice else f"<p>{escape(text)}</p>"
        case Bullets(items):
            return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"
        case Picture(file, caption):
            data = base64.b64encode(file.read_bytes()).decode()
            image = f'<img src="data:image/png;base64,{data}" alt="{escape(caption)}">'
            return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"
    caption = f"<caption>{escape(block.caption)}</caption>" if block.caption else ""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in block.header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in block.rows)
    return f'<div class="table"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
