"""Measure speed on a quiet machine, and write the page of it.

    python -m shirg_scripts.speed_page --measure                          # everything that this machine can, an hour
    python -m shirg_scripts.speed_page --measure cpu selection            # some of it
    python -m shirg_scripts.speed_page                                    # docs/speed/*.json -> docs/speed.md

Each measurement is one `shirg bench` command, named below, whose JSON object is stored as docs/speed/NAME.json. What
a person has to say of it, in docs/speed/notes.md, comes after the table of aims.
"""

import argparse
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ROWS = (
    "--systems lavida-980 lavida shirg lavida-full shirg:use_cache=false shirg:prefix_kv=0.6 shirg:prefix_dtype=int8"
)
MEASUREMENTS = {
    "cpu": f"--profile cpu --threads 1 {_ROWS} --repeats 10 --limits",
    "cpu_126464": f"--profile cpu --threads 1 --vocab_size 126464 {_ROWS} --repeats 10 --limits",
    "latency": "--profile cpu --threads 1 --systems lavida-980 shirg --steps 30 --repeats 50",
    "selection": "--profile cpu --threads 1 --stage selection --repeats 5",
    "batch": "--profile cpu --threads 1 --curve batch --systems lavida-980 shirg --repeats 3",
    "steps": "--profile cpu --threads 1 --curve steps --repeats 3",
    "response": "--profile cpu --threads 1 --curve response --repeats 3",
    "tokens": "--profile cpu --threads 1 --curve tokens --repeats 3",
    "gpu": f"--profile gpu {_ROWS} --repeats 50 --limits",
    "gpu_selection": "--profile gpu --stage selection --repeats 10",
}

INTRODUCTION = """\
# Speed

Written by `python -m shirg_scripts.speed_page` from the JSON files in `speed/`; do not edit. Each section names the
`shirg bench` command that measured it.

Weights are random, which costs what trained ones cost. All systems of one run share them, and are timed in turn. The
stages of a run sum to its total. `select` is everything that choosing tokens adds: signals, scores, choice and gather,
and joining with the whole view. `project` is the projector, of dropped patches too, and pooling where nothing is
selected. `evict` is what a smaller prefix cache adds once. `rest` is embedding, splice and decoding of text. Memory is
the weights and the most that torch's allocator held beside them.
"""

LIMITS = """\
## Limits

The floor of a stage is the larger of its bytes (weights once per forward, prefix cache once per step) over the
measured bandwidth, and of its matrix products over the measured rate. Norms, softmax, copies and activations are not
in it, so a factor of 1 cannot be reached.
"""


@dataclass(frozen=True)
class Aim:
    """One row of the table of aims.

    Args:
        text: what is compared.
        most: what it may be at most.
        value: of one run's result, or `None` where it says nothing about it.
        digits: after the point, to which the value is told and judged.
    """

    text: str
    most: float
    value: Callable[[dict[str, Any]], float | None]
    digits: int = 2


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("docs/speed"), help="where the JSON files are")
    parser.add_argument("--out", type=Path, default=Path("docs/speed.md"), help="write the page here")
    parser.add_argument(
        "--measure", nargs="*", choices=list(MEASUREMENTS), metavar="NAME", help="measure first; by default all"
    )
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Measure what is asked for, then write the page from all that is stored."""
    if args.measure is not None:
        for name in args.measure or measurable():
            measure(name, args.folder)
    results = {name: _stored(args.folder / f"{name}.json") for name in MEASUREMENTS}
    notes = args.folder / "notes.md"
    args.out.write_text(page(results, notes.read_text() if notes.exists() else ""))


def measurable() -> list[str]:
    """The measurements that this machine can make."""
    import torch

    return [name for name in MEASUREMENTS if torch.cuda.is_available() or not _needs_gpu(name)]


def _needs_gpu(name: str) -> bool:
    return "--profile gpu" in MEASUREMENTS[name]


def measure(name: str, folder: Path) -> None:
    """Run one `shirg bench` command and store what it found."""
    from . import bench

    folder.mkdir(parents=True, exist_ok=True)
    bench.main(bench.parse_args([*shlex.split(MEASUREMENTS[name]), "--out", str(folder / f"{name}.json")]))


def page(results: dict[str, dict[str, Any] | None], notes: str = "") -> str:
    """The page: the aims, then every measurement, those that were not made too.

    Args:
        results: by the name of the measurement; `None` is not made.
        notes: Markdown that follows the aims.
    """
    from .bench_tables import limit_table, operator_lines, render

    parts = [INTRODUCTION, "## Aims", aims_table(results), notes]
    for name, result in results.items():
        if result:
            parts += [f"## {name}", f"`{result['settings']['command']}`", render({**result, "limits": None})]
        else:
            parts += [f"## {name}", f"`shirg bench {MEASUREMENTS[name]}`", "Not run."]
    parts.append(LIMITS)
    for name, result in results.items():
        if result and result.get("limits"):
            parts += [f"### {name}", limit_table(result["limits"]), operator_lines(result["limits"])]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _stored(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def _over(system: str, other: str, quantity: str) -> Callable[[dict[str, Any]], float | None]:
    """What `system` has of a quantity over what `other` has: a stage's median, or a fact."""

    def value(result: dict[str, Any]) -> float | None:
        if result["measured"] != "answers" or not {system, other} <= set(result["systems"]):
            return None
        first, second = (
            result["systems"][name][quantity]["median"]
            if quantity in result["systems"][name]
            else result["facts"][name][quantity]
            for name in (system, other)
        )
        return first / second

    return value


def _selection_of_total(result: dict[str, Any]) -> float | None:
    if result["measured"] != "answers" or "shirg" not in result["systems"]:
        return None
    stages = result["systems"]["shirg"]
    return stages["select"]["median"] / stages["total"]["median"]


def _counted_selection(result: dict[str, Any]) -> float | None:
    return result["full_size"]["share_with_dropped"] if result["measured"] == "selection" else None


def _step_over_floor(result: dict[str, Any]) -> float | None:
    return result["limits"]["systems"]["shirg"]["step"]["factor"] if result.get("limits") else None


def _answer_over_floors(result: dict[str, Any]) -> float | None:
    """Prefix pass and all steps, over the sum of their floors."""
    if not result.get("limits"):
        return None
    stages = [result["limits"]["systems"]["shirg"][name] for name in ("prefix", "denoise")]
    return sum(each["reached"] for each in stages) / sum(each["floor"] for each in stages)


_TIME, _MEMORY, _BESIDE = "total", "peak_memory_bytes", "activation_bytes"
_CPU_SHARE, _GPU_SHARE = 0.05, 0.02
_COMPARED = (
    Aim("time of `shirg` over `lavida-980`", 1.0, _over("shirg", "lavida-980", _TIME)),
    Aim("memory of `shirg` over `lavida-980`, weights included", 1.0, _over("shirg", "lavida-980", _MEMORY)),
    Aim("memory of `shirg` over `lavida-980`, beside the weights", 1.0, _over("shirg", "lavida-980", _BESIDE)),
    Aim("time of `shirg` over `lavida-full`", 0.5, _over("shirg", "lavida-full", _TIME)),
)
_SHARE = "selection of `shirg` over its total"
_COUNTED = "selection of `shirg` over encode + prefix, operations counted at full size"
# Measurement -> its aims, in the order of the page.
AIMS = {
    "cpu": (*_COMPARED, Aim(_SHARE, _CPU_SHARE, _selection_of_total, digits=3)),
    "cpu_126464": (*_COMPARED, Aim(_SHARE, _CPU_SHARE, _selection_of_total, digits=3)),
    "selection": (Aim(_COUNTED, _GPU_SHARE, _counted_selection, digits=3),),
    "gpu": (
        *_COMPARED,
        Aim(_SHARE, _GPU_SHARE, _selection_of_total, digits=3),
        Aim("a denoising step over its floor", 1.3, _step_over_floor),
        Aim("prefix pass and all steps over the sum of their floors", 1.5, _answer_over_floors),
    ),
}


def aims_table(results: dict[str, dict[str, Any] | None]) -> str:
    """What was aimed for, what was measured, and whether it is met."""
    from .bench_tables import table

    rows = []
    for name, aims in AIMS.items():
        for aim in aims:
            value = aim.value(results[name]) if results.get(name) else None
            missing = "not measured" if results.get(name) else "not run"
            told = missing if value is None else f"{value:.{aim.digits}f}"
            verdict = "" if value is None else "met" if round(value, aim.digits) <= aim.most else "**missed**"
            rows.append([aim.text, name, f"{aim.most:.{aim.digits}f}", told, verdict])
    return table(["aim", "measured by", "at most", "measured", ""], rows)


if __name__ == "__main__":
    main(parse_args())
