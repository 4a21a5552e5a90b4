"""Write the measured parts of README.md from the results that are stored beside it, in the folder of a checkout.

    python -m shirg_scripts.readme

A part stands between `<!-- measured: NAME -->` and `<!-- end -->`, and is replaced.
"""

import re
from collections.abc import Callable
from pathlib import Path

_PART = re.compile(r"(?P<begin><!-- measured: (?P<name>\w+) -->\n).*?(?P<end><!-- end -->)", flags=re.DOTALL)


def with_measured_parts(text: str, checkout: Path) -> str:
    """`text` with its measured parts as the results in `checkout` say."""
    return _PART.sub(lambda part: f"{part['begin']}{PARTS[part['name']](checkout)}\n{part['end']}", text)


def exactness_sentence(checkout: Path) -> str:
    """How many cases of the original agree, by `python tests/exactness.py`."""
    page = (checkout / "docs/exactness.md").read_text()
    passed, cases = re.search(r"^(\d+) of (\d+) cases pass", page, re.MULTILINE).groups()
    return (
        f"It is the same function: [{passed} of {cases} reference cases](docs/exactness.md) of the original code, "
        "from pixels to every generated token, training loss and gradients."
    )


def study_table(checkout: Path) -> str:
    """What every adapted system of the toy-scale study reads, from the report in docs/study."""
    page = (checkout / "docs/study/REPORT.md").read_text()
    return re.search(r"^systems, adapted: percent.*\n\n((?:\|.*\n)+)", page, re.MULTILINE).group(1).strip()


PARTS: dict[str, Callable[[Path], str]] = {"exactness": exactness_sentence, "study": study_table}


if __name__ == "__main__":
    page = Path("README.md")
    page.write_text(with_measured_parts(page.read_text(), page.parent))
