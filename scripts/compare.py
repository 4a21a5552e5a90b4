"""Put every system side by side on one image: answer, image tokens, seconds and the picture of what was kept.

    shirg compare photo.png "What is written on the sign?" --out sheet.png
    shirg compare page.png "What is the total?" --model me/my-lavida --systems shirg lavida-980 --out sheet.png

Systems run one after the other on the same weights, which were trained for one of them: the sheet shows what each
looks at, not which is best after training.
"""

import argparse
import json
import math
import sys
from pathlib import Path

_CELL = 448
_CAPTION = 72
_LINE_LENGTH = 58


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    from configuration_shirg.presets_shirg import PRESETS

    parser = argparse.ArgumentParser(
        prog="shirg compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", help="a file or a URL")
    parser.add_argument("question", help="the question, in plain words")
    parser.add_argument("--systems", nargs="+", choices=list(PRESETS), default=list(PRESETS), metavar="NAME")
    parser.add_argument("--model", help="folder or Hub id; by default the bundled toy checkpoint")
    parser.add_argument("--out", type=Path, required=True, metavar="SHEET.png", help="write the sheet here")
    parser.add_argument("--max_new_tokens", type=int, help="length of the answer in tokens")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ...")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--json", action="store_true", help="last line: one JSON object")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Ask with every system, print a table, draw the sheet."""
    from tqdm.auto import tqdm
    from transformers.utils import logging

    from modeling_shirg.evaluation.timing import StageClock

    from .answering import answer_question, check_writable, read_image
    from .loading import load

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # presets that have no use for a table of the checkpoint are no news here
    check_writable(args.out, "--out")
    cells, rows = [], {}
    for name in tqdm(args.systems, desc="Systems", file=sys.stderr):
        loaded = load(args.model, name, args.device, args.dtype)
        clock = StageClock()
        answer = answer_question(
            loaded, read_image(loaded, args.image), args.question, clock, max_new_tokens=args.max_new_tokens
        )
        seconds = sum(clock.seconds.values())
        rows[name] = {"answer": answer.text, "image_tokens": answer.num_image_tokens, "seconds": round(seconds, 4)}
        cells.append(_cell(answer.overlay(), name, rows[name]))
        print(f"{name:<16} {answer.num_image_tokens:>6} tokens {seconds:>8.2f} s  {answer.text}")
    _sheet(cells).save(args.out)
    if args.json:
        print(json.dumps({"systems": rows, "sheet": str(args.out)}))


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
