"""Put every system side by side on one image: answer, image tokens, seconds and the picture of what was kept.

    shirg compare photo.png "What is written on the sign?" --out sheet.png
    shirg compare page.png "What is the total?" --model me/my-lavida --systems shirg lavida-980 --out sheet.png
    shirg compare photo.png "What is written on the sign?" --quality --prefix_kv 0.5 --out sheet.png
    shirg compare photo.png "What is written on the sign?" --systems shirg shirg-v1 --option text_weight=0 --out s.png

Systems run one after the other on the same weights, which were trained for one of them: the sheet shows what each
looks at, not which is best after training. Seconds are of one answer, after one of the first system that does not
count; `shirg bench` repeats and interleaves.

--quality adds, for every system that selects: the Gini coefficient of the scores; the mean relevance of the kept
tokens over that of a random draw; the share of kept tokens with a kept neighbour (coherence); the share of 4x4 blocks
of patches with a kept one; and how features at an interpolated grid correlate with those of the same view at the base
grid. A figure that a system has no notion of is "-".
"""

import argparse
import json
import logging
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_CELL = 448
_CAPTION = 72
_LINE_LENGTH = 58
_HEADINGS = {
    "gini": "gini",
    "relevance_over_random": "relevance",
    "coherence": "coherence",
    "block_coverage": "4x4 blocks",
    "grid_correlation": "grid corr.",
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    from configuration_shirg.presets_shirg import PRESETS

    from .arguments import (
        add_answer_arguments,
        add_model_arguments,
        add_option_argument,
        add_quantize_argument,
        preset_name,
    )

    parser = argparse.ArgumentParser(
        prog="shirg compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", help="a file or a URL")
    parser.add_argument("question", help="the question, in plain words")
    parser.add_argument(
        "--systems", nargs="+", type=preset_name, default=list(PRESETS), metavar="NAME", help="by default all"
    )
    add_model_arguments(parser)
    add_quantize_argument(parser)
    add_option_argument(parser)
    add_answer_arguments(parser)
    parser.add_argument("--quality", action="store_true", help="add figures about what each system selects")
    parser.add_argument("--out", type=Path, required=True, metavar="SHEET.png", help="write the sheet here")
    parser.add_argument("--json", action="store_true", help="last line: one JSON object")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Ask with every system, print a table, draw the sheet."""
    from tqdm.auto import tqdm
    from transformers.utils.logging import disable_progress_bar

    from modeling_shirg.evaluation.selection_quality import system_quality
    from modeling_shirg.running.ask import answer_question, check_writable, read_image, save_picture
    from modeling_shirg.running.load import load, parse_options
    from modeling_shirg.running.timing import StageClock

    from .arguments import answer_arguments

    disable_progress_bar()
    check_writable(args.out, "--out")
    options = parse_options(args.option)
    print(_line("system", "tokens", "seconds", _HEADINGS.values() if args.quality else (), "answer"))
    cells, rows = [], {}
    for number, name in enumerate(tqdm(args.systems, desc="Systems", file=sys.stderr)):
        with errors_alone():
            place = {"device": args.device, "dtype": args.dtype, "quantize": args.quantize}
            loaded = load(args.model, name, options=options, revision=args.revision, **place)
        image = read_image(loaded, args.image)
        for _ in range(2 if number == 0 else 1):
            clock = StageClock()
            answer = answer_question(loaded, image, args.question, clock, **answer_arguments(args))
        rows[name] = _row(answer, sum(clock.seconds.values()))
        if args.quality:
            found = system_quality(loaded.model, answer.inputs)
            rows[name]["quality"] = {figure: found.get(figure) for figure in _HEADINGS}
        figures = ["-" if value is None else f"{value:.3f}" for value in rows[name].get("quality", {}).values()]
        tqdm.write(_line(name, answer.num_image_tokens, f"{rows[name]['seconds']:.2f}", figures, answer.text))
        cells.append(_cell(answer.overlay(), name, rows[name]))
    save_picture(_sheet(cells), args.out)
    if args.json:
        print(json.dumps({"systems": rows, "sheet": str(args.out)}))


@contextmanager
def errors_alone() -> Iterator[None]:
    """No warnings: that a preset has no use for a table of the checkpoint, or derives its own, is no news here."""
    loggers = [logging.getLogger(name) for name in ("transformers", "modeling_shirg")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _row(answer, seconds: float) -> dict:
    """What the JSON object says of one system."""
    held = answer.outputs.prefix_bytes
    return {
        "answer": answer.text,
        "image_tokens": answer.num_image_tokens,
        "seconds": round(seconds, 4),
        "prefix_bytes": None if held is None else sum(held),
    }


def _line(system: str, tokens: int | str, seconds: str, figures: Iterable[str], answer: str) -> str:
    """One line of the table."""
    columns = [
        f"{system:<16}",
        f"{tokens:>6}",
        f"{seconds:>8}",
        *(f"{figure:>10}" for figure in figures),
        f" {answer}",
    ]
    return " ".join(columns)


def _cell(overlay, name: str, row: dict):
    """One system's picture with its caption."""
    from PIL import Image, ImageDraw, ImageFont

    cell = Image.new("RGB", (_CELL, _CELL + _CAPTION), "white")
    overlay.thumbnail((_CELL, _CELL))
    cell.paste(overlay, ((_CELL - overlay.width) // 2, _CAPTION + (_CELL - overlay.height) // 2))
    draw = ImageDraw.Draw(cell)
    draw.text((8, 6), name, fill="black", font=ImageFont.load_default(20))
    answer = row["answer"] if len(row["answer"]) <= _LINE_LENGTH else row["answer"][: _LINE_LENGTH - 3] + "..."
    facts = f"{row['image_tokens']} image tokens, {row['seconds']:.2f} s"
    draw.text((8, 30), facts, fill="dimgray", font=ImageFont.load_default(14))
    draw.text((8, 50), answer, fill="black", font=ImageFont.load_default(14))
    return cell


def _sheet(cells: list):
    """The cells in reading order, about as wide as high."""
    from PIL import Image

    columns = math.ceil(math.sqrt(len(cells)))
    rows = math.ceil(len(cells) / columns)
    width, height = cells[0].size
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for index, cell in enumerate(cells):
        sheet.paste(cell, (index % columns * width, index // columns * height))
    return sheet


if __name__ == "__main__":
    main(parse_args())
