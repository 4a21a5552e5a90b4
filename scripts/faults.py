"""Run the corpus of bad and odd inputs, and write how many of each kind there are and what came of them.

    python -m shirg_scripts.faults --out docs/faults.md

The cases are in tests/faults and run by pytest, so this needs a checkout of the repository and what its tests need.
The exit status is 1 if a case failed.
"""

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

_TESTS = Path("tests") / "test_faults.py"

PAGE = """\
# Faults

Written by `python -m shirg_scripts.faults`; do not edit. The corpus is in `tests/faults`.

{cases} inputs, and random ones by hypothesis: {passed} gave what they declare, {failed} did not. A bad input has to be
an error of a declared type whose message matches a declared pattern, with the value and the remedy; an odd one has to
give exactly what its healthy equivalent gives. In each case nothing may hang, print a traceback, write or remove a
file, or leave a temporary one.

| input | bad: a clear error | odd: the right answer | failed |
|---|---:|---:|---:|
{rows}
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="PAGE.md", help="write the page here; by default print it")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    """Run, count, write; returns the exit status."""
    root = Path(__file__).resolve().parents[1]
    if not (root / _TESTS).is_file():
        raise ValueError(f"There is no {_TESTS} in {root}: run this in a checkout of the repository.")
    with tempfile.TemporaryDirectory(prefix="shirg-faults-") as folder:
        report = Path(folder) / "report.xml"
        words = [sys.executable, "-m", "pytest", str(_TESTS), "-q", "--tb=short", f"--junitxml={report}"]
        status = subprocess.run(words, cwd=root).returncode
        counts = counted(report.read_text())
    page = page_of(counts)
    if args.out is None:
        print(page)
    else:
        args.out.write_text(page)
    return int(status != 0)


def counted(report: str) -> Counter:
    """How many cases there are of each (kind, what is expected, whether it came), from pytest's report."""
    counts = Counter()
    for test in ElementTree.fromstring(report).iter("testcase"):
        facts = {entry.get("name"): entry.get("value") for entry in test.iter("property")}
        if "kind" in facts:
            bad = test.find("failure") is not None or test.find("error") is not None
            counts[facts["kind"], facts["expects"], not bad] += 1
    return counts


def page_of(counts: Counter) -> str:
    """The page.

    Raises:
        ValueError: nothing was counted.
    """
    if not counts:
        raise ValueError("pytest reported no case: see what it printed.")
    rows = []
    for kind in dict.fromkeys(kind for kind, _, _ in counts):
        failed = counts[kind, "an error", False] + counts[kind, "an answer", False]
        rows.append(f"| {kind} | {counts[kind, 'an error', True]} | {counts[kind, 'an answer', True]} | {failed} |")
    passed = sum(count for (_, _, came), count in counts.items() if came)
    return PAGE.format(cases=counts.total(), passed=passed, failed=counts.total() - passed, rows="\n".join(rows))


if __name__ == "__main__":
    sys.exit(main(parse_args()))
