"""Write the measured parts of README.md from the results that are stored beside it.

    python -m shirg_scripts.readme                # in a checkout
    shirg ask hub_card/examples/document.png "What is the value of V?" --overlay docs/overlay.png    # its picture

A part stands between `<!-- measured: NAME -->` and `<!-- end -->`; what is between them is replaced.
"""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path

_PART = re.compile(r"(?P<begin><!-- measured: (?P<name>\w+) -->\n).*?(?P<end><!-- end -->)", flags=re.DOTALL)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, default=Path(), help="folder of README.md; by default this one")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Replace every measured part."""
    file = args.checkout / "README.md"
    file.write_text(with_measured_parts(file.read_text(), args.checkout))


def with_measured_parts(text: str, checkout: Path) -> str:
    """`text` with its measured parts as the results in `checkout` say."""

    def written(match: re.Match) -> str:
        return f"{match['begin']}{PARTS[match['name']](checkout)}\n{match['end']}"

    return _PART.sub(written, text)


def toy_table(checkout: Path) -> str:
    """What the bundled checkpoint reads, by `python -m shirg_scripts.card_tiny`."""
    figures = json.loads((checkout / "hub_card/shirg-lavida-tiny/figures.json").read_text())
    rows = [
        f"| {row['family']}: {row['kind']} | {row['count']} | {row['accuracy']:.1%} "
        f"({row['low']:.1%} to {row['high']:.1%}) | {row['no_image']:.1%} | {row['majority']:.1%} |"
        for row in figures
    ]
    heading = "| question on held-out scenes | images | exact match (95% interval) | without the image | majority |"
    return "\n".join([heading, "|---|---:|---:|---:|---:|", *rows])


def exactness_sentence(checkout: Path) -> str:
    """How many cases of the original agree, by `python -m shirg_scripts.exactness`."""
    passed, cases = re.search(
        r"^(\d+) of (\d+) cases pass", _read(checkout, "docs/exactness.md"), re.MULTILINE
    ).groups()
    return (
        f"It is the same function: [{passed} of {cases} reference cases](docs/exactness.md) of the original code, "
        "from pixels to every generated token, training loss and gradients."
    )


def memory_sentence(checkout: Path) -> str:
    """What converting takes, by `python -m shirg_scripts.convert_memory`."""
    found = json.loads(_read(checkout, "docs/convert_memory.json"))
    return (
        f"The whole model is never in memory: converting {found['checkpoint_bytes'] / 1e9:.2f} GB peaked at "
        f"{found['peak_bytes'] / 1e6:.0f} MB, {found['baseline_bytes'] / 1e6:.0f} MB of which are imports "
        "([docs/convert_memory.json](docs/convert_memory.json), `python -m shirg_scripts.convert_memory`)."
    )


def speed_table(checkout: Path) -> str:
    """Systems on the CPU profile, by `python -m shirg_scripts.speed_page --measure`."""
    result = json.loads(_read(checkout, "docs/speed/cpu.json"))
    rows = [
        f"| `{name}` | {result['facts'][name]['image_tokens']:,} | {stages['total']['median']:.2f} s "
        f"| {result['ratios'][name]['total']:.2f} | {result['ratios'][name]['peak_memory_bytes']:.2f} |"
        for name, stages in result["systems"].items()
    ]
    heading = f"| on a CPU, random weights | image tokens | one answer | of `{result['baseline']}` | memory, of that |"
    return "\n".join([heading, "|---|---:|---:|---:|---:|", *rows])


def answer_memory_sentence(checkout: Path) -> str:
    """What loading and answering takes, by `python -m shirg_scripts.answer_memory`."""
    found = json.loads(_read(checkout, "docs/answer_memory.json"))
    weights, peak = (f"{found[name] / 1e9:.2f} GB" for name in ("weight_bytes", "peak_bytes"))
    return (
        f"Loading {weights} of {found['dtype']} weights ({found['model']}) and answering a question on "
        f"{found['device']} peaked at {peak}, {found['ratio']:.2f}x of them "
        "([docs/answer_memory.json](docs/answer_memory.json), `python -m shirg_scripts.answer_memory`)."
    )


def soak_sentence(checkout: Path) -> str:
    """What an hour of requests did, by `python -m shirg_scripts.soak`."""
    page = _read(checkout, "docs/soak.md")
    counts = re.search(r"answered ([\d,]+) requests \(([\d,]+) answers\) in ([\d.]+)", page)
    requests, answers, minutes = counts.groups()
    wrong, slope, interval = (
        re.search(rf"^\| {name} \| (.+) \|$", page, re.MULTILINE).group(1)
        for name in (
            "wrong answers, and bad requests that are answered",
            "slope after the warm-up",
            "its 95% interval",
        )
    )
    return (
        f"One process answered {requests} mixed requests ({answers} answers) in {minutes} minutes: {wrong} wrong, its "
        f"memory changed by {slope} ({interval}) ([docs/soak.md](docs/soak.md), `python -m shirg_scripts.soak`)."
    )


def faults_sentence(checkout: Path) -> str:
    """How bad and odd inputs end, by `python -m shirg_scripts.faults`."""
    page = _read(checkout, "docs/faults.md")
    inputs, passed = re.search(r"^(\d+) inputs, .*?: (\d+) gave", page, re.MULTILINE).groups()
    return (
        f"Of {inputs} bad and odd inputs, {passed} gave the error or the answer that they declare "
        "([docs/faults.md](docs/faults.md), `python -m shirg_scripts.faults`)."
    )


def study_table(checkout: Path) -> str:
    """What the adapted systems of the toy-scale study read, from the report in docs/study."""
    page = _read(checkout, "docs/study/REPORT.md")
    return re.search(r"^systems, adapted: percent.*\n\n((?:\|.*\n)+)", page, re.MULTILINE).group(1).strip()


def _read(checkout: Path, name: str) -> str:
    return (checkout / name).read_text()


PARTS: dict[str, Callable[[Path], str]] = {
    "toy": toy_table,
    "exactness": exactness_sentence,
    "memory": memory_sentence,
    "speed": speed_table,
    "soak": soak_sentence,
    "faults": faults_sentence,
    "answer_memory": answer_memory_sentence,
    "study": study_table,
}


if __name__ == "__main__":
    main(parse_args())
