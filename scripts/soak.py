"""Ask the bundled model mixed questions for an hour: do its memory and its answers stay what they are?

    python -m shirg_scripts.soak --minutes 60 --out docs/soak.md

Distinct requests are drawn from a seed: all systems, pictures of all sizes and modes, one to four rows, own budgets,
boxes, prefix caches, streams, and some that are bad on purpose. Each row is answered first by a model that is loaded
for it alone, in another process. Then one process with one model per system answers the requests again and again, in
another order each time, and after each of them looks at its resident memory. It passes if no answer differs, every
bad request is refused, no file or thread is left, and the slope's interval ends below --most_growth; else the exit
status is 1. The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import as_file, files
from multiprocessing import get_context
from pathlib import Path

_MIB = 2**20

PAGE = """\
# Soak

Written by `python -m shirg_scripts.soak --minutes {minutes:g}`; do not edit. The bundled toy checkpoint on the CPU:
{machine}, {date}.

One process answered {requests:,} requests ({rows:,} answers) in {took:.1f} minutes: {distinct} distinct ones over all
{systems} systems, pictures of 12 to 1,600 pixels a side in six modes, again and again in changing order.

| | |
|---|---:|
| answers compared with those of a model loaded for that row alone | {rows:,} |
| wrong answers, and bad requests that are answered | {differing} |
| requests that are bad on purpose, and refused | {refused:,} |
| resident memory after the warm-up of {warm_up:.1f} minutes | {memory_warm:.0f} MiB |
| resident memory at the end | {memory_end:.0f} MiB |
| slope after the warm-up | {slope:+.2f} MiB/hour |
| its 95% interval | {low:+.2f} to {high:+.2f} |
| open files, threads, entries of the temporary folder: change | {files:+d}, {threads:+d}, {temporary:+d} |

The slope is by least squares through the means of 20 equal parts of what follows the warm-up. The run **{verdict}**:
no answer may differ, nothing may be left, and the interval has to end below {most_growth:g} MiB/hour.

| asked | requests |
|---|---:|
{asked}
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long to ask (default: 60)")
    parser.add_argument("--requests", type=int, default=132, help="number of distinct requests (default: 132)")
    parser.add_argument("--seed", type=int, default=0, help="of the requests and their order")
    parser.add_argument("--warm_up", type=float, default=0.2, help="share of the time before the slope (default: 0.2)")
    parser.add_argument(
        "--most_growth", type=float, default=10.0, help="MiB/hour that the slope may be at most (default: 10)"
    )
    parser.add_argument("--out", type=Path, metavar="PAGE.md", help="write the page here")
    args = parser.parse_args(argv)
    if not args.minutes > 0 or args.requests < 1 or not 0 <= args.warm_up < 1:
        parser.error(
            f"--minutes {args.minutes}, --requests {args.requests} and --warm_up {args.warm_up} must be above 0, at "
            "least 1, and at least 0 and below 1."
        )
    if args.out is not None and not args.out.resolve().parent.is_dir():
        parser.error(f"--out {args.out}: {args.out.resolve().parent} is no folder.")
    return args


def main(args: argparse.Namespace) -> int:
    """Ask, compare, write; returns the exit status."""
    with tempfile.TemporaryDirectory(prefix="shirg-soak-") as folder:
        tempfile.tempdir = folder  # one that no other process writes to
        try:
            facts, result = _measure(args)
        finally:
            tempfile.tempdir = None
    for line in result.wrong:
        print(line, file=sys.stderr)
    if args.out is not None:
        counts = (result.features + result.systems).items()
        args.out.write_text(PAGE.format(**facts, asked="\n".join(f"| {name} | {count:,} |" for name, count in counts)))
    print(json.dumps({**facts, "wrong": result.wrong, "asked": result.features + result.systems}))
    return 0 if facts["verdict"] == "passes" else 1


def _measure(args: argparse.Namespace) -> tuple:
    """The figures of the page, and what the soak saw."""
    import psutil

    from modeling_shirg.evaluation.soak import draw_request, growth_per_hour, soak

    _quiet()
    loaded = _load_all()
    config = next(iter(loaded.values()))[0].config
    requests = [draw_request(args.seed, index, config) for index in range(args.requests)]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_quiet) as pool:
        references = list(pool.map(_reference, requests))
    process = psutil.Process()
    before = _held(process)
    for result in soak(requests, references, loaded, _pictures(), 60 * args.minutes, args.seed):
        if len(result.samples) == len(requests):
            before = _held(process)  # what is opened once, by the first of its kind, stays
    left = {name: count - before[name] for name, count in _held(process).items()}
    took = result.samples[-1][0]
    settled = [(second, size / _MIB) for second, size in result.samples if second >= args.warm_up * took]
    slope = growth_per_hour(settled)
    passed = not result.wrong and slope.high <= args.most_growth and max(left.values()) <= 0
    return {
        "minutes": args.minutes,
        "took": took / 60,
        "requests": len(result.samples),
        "rows": result.rows,
        "distinct": len(requests),
        "systems": len(loaded),
        "differing": len(result.wrong),
        "refused": result.refused,
        "warm_up": args.warm_up * took / 60,
        "memory_warm": settled[0][1],
        "memory_end": settled[-1][1],
        "slope": slope.value,
        "low": slope.low,
        "high": slope.high,
        **left,
        "most_growth": args.most_growth,
        "verdict": "passes" if passed else "fails",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {platform.system()}, torch {version('torch')}, transformers "
        f"{version('transformers')}, one thread",
    }, result


def _quiet() -> None:
    """One thread, and nothing said about loading."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.get_logger("modeling_shirg").setLevel("ERROR")


def _load_all() -> dict:
    """Model and processor of each system."""
    from configuration_shirg import PRESETS

    return {system: _load(system) for system in PRESETS}


def _load(system: str) -> tuple:
    from .loading import load

    loaded = load(None, system, device="cpu")
    return loaded.model, loaded.processor


def _reference(request) -> list[str] | None:
    """What models say that are loaded for one row each; `None` for a request that is bad."""
    from modeling_shirg.evaluation.soak import answer

    if request.bad is not None:
        return None
    return [answer(row, *_load(request.system), _pictures())[0] for row in request.alone()]


def _pictures() -> list:
    """The package's example images."""
    from PIL import Image

    pictures = []
    with as_file(files("shirg_hub_card") / "examples") as folder:
        for path in sorted(folder.glob("*.png")):
            with Image.open(path) as opened:
                pictures.append(opened.convert("RGB"))
    return pictures


def _held(process) -> dict[str, int]:
    """What a request could leave behind."""
    return {
        "files": len(process.open_files()),
        "threads": process.num_threads(),
        "temporary": len(os.listdir(tempfile.gettempdir())),
    }


if __name__ == "__main__":
    sys.exit(main(parse_args()))
