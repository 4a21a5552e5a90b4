"""Bad and odd data: rows to train and to evaluate on, labelled boxes, mixtures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modeling_shirg.evaluation.labelled_boxes import read_boxes
from modeling_shirg.training.mixture import DataArguments, load_rows

from .case import Case, picture, refused
from .images import written

KIND = "row"
_GOOD = {"image": "a.png", "question": "Which?", "answer": "red"}


def _read(folder: Path, **options: Any) -> list[dict]:
    """The questions and answers that training reads from a folder's rows, a half of which may be bad."""
    arguments = {"data": [str(folder / "rows.jsonl")], "max_bad_share": 0.6, **options}
    rows = load_rows(DataArguments(**arguments), "train", 0)
    return [rows[number]["messages"] for number in range(len(rows))]


def _folder(folder: Path, rows: list[Any] | bytes) -> Path:
    (folder / "a.png").write_bytes(written("PNG", picture().resize((20, 20))))
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "folder.png").mkdir()
    content = rows if isinstance(rows, bytes) else "".join(json.dumps(row) + "\n" for row in rows).encode()
    (folder / "rows.jsonl").write_bytes(content)
    return folder


def _bad(name: str, rows: list[Any] | bytes, says: str, **options: Any) -> Case:
    def prepare(folder: Path) -> Callable[[], Any]:
        _folder(folder, rows)
        return lambda: _read(folder, **options)

    return Case(KIND, name, prepare, ValueError, says)


def _skipped(name: str, row: dict[str, Any]) -> Case:
    """A bad row beside a good one is left out; alone it is an error that gives the reason."""
    return Case(
        KIND,
        f"{name}, beside a good one",
        lambda folder: (
            lambda: [
                [turn["role"] for turn in messages] for messages in _read(_folder(folder, [_GOOD, {**_GOOD, **row}]))
            ]
        ),
        same_as=lambda: [["user", "assistant"]],
    )


def _boxes(name: str, content: Any, says: str) -> Case:
    def prepare(folder: Path) -> Callable[[], Any]:
        _folder(folder, content if isinstance(content, bytes) else [content])
        return lambda: read_boxes(folder / "rows.jsonl")

    return Case(KIND, f"boxes: {name}", prepare, ValueError, says)


def _mixture(name: str, says: str, **arguments: Any) -> Case:
    return refused(
        KIND, f"mixture: {name}", lambda: load_rows(DataArguments(**arguments), "train", 0), ValueError, says
    )


_ROWS = {
    "image is missing": ({"image": "none.png"}, "none.png"),
    "image is None": ({"image": None}, "missing image|names none"),
    "image is empty": ({"image": ""}, "missing image: the row names none"),
    "image is no picture": ({"image": "broken.png"}, "unreadable image.*broken.png|unreadable image"),
    "image is a folder": ({"image": "folder.png"}, "folder.png"),
    "image lies outside": ({"image": "../../../etc/passwd"}, "passwd"),
    "image is a URL": ({"image": "http://127.0.0.1:9/a.png"}, "a.png"),
    "question is None": ({"question": None}, "question"),
    "question is empty": ({"question": "  "}, "question"),
    "answer is None": ({"answer": None}, "answer"),
    "answer is empty": ({"answer": ""}, "answer"),
}
ROWS = [
    *[_bad(f"{name}, alone", [{**_GOOD, **row}], says) for name, (row, says) in _ROWS.items()],
    *[_skipped(name, row) for name, (row, _) in _ROWS.items()],
    _bad("more bad ones than allowed", [_GOOD, {**_GOOD, "image": "none.png"}], "1 of .*2|50", max_bad_share=0.1),
    _bad("an empty file", b"", "rows.jsonl is empty"),
    _bad("no JSON", b"What is this?\n", "cannot be opened"),
    _bad("a cut line", json.dumps(_GOOD).encode()[:-9], "cannot be opened"),
    _bad("binary", b"\xff\xfe\x00\x01" * 40, "cannot be opened"),
    _bad("a list in a line", b"[1, 2]\n", "cannot be opened|columns"),
    _bad("no known columns", [{"picture": "a.png", "text": "Which?"}], "has the columns picture, text; .* needs"),
    Case(
        KIND,
        "a question that is a number",
        lambda folder: lambda: _read(_folder(folder, [{**_GOOD, "question": 3}]))[0][0]["content"][1],
        same_as=lambda: {"type": "text", "text": "3"},
    ),
    _bad("no file", b"{}", "no file or folder .*missing.jsonl|missing.jsonl", data=["missing.jsonl"]),
]

BOXES = [
    _boxes("an empty file", b"", "holds no record"),
    _boxes("no JSON", b"Which?\n", "line 1: neither a JSON list nor one JSON object per line"),
    _boxes("binary", b"\xff\xfe", "cannot be read as a text file"),
    _boxes("a number", b"3\n", "line 1: needs the fields image, question, box, got 3"),
    _boxes("no box", {"image": "a.png", "question": "Which?"}, "line 1: needs the fields"),
    _boxes(
        "an empty question", {"image": "a.png", "question": " ", "box": [0, 0, 1, 1]}, "line 1: there is no question"
    ),
    _boxes("three edges", {"image": "a.png", "question": "Which?", "box": [0, 0, 1]}, "line 1: the box must be"),
    _boxes("edges that are words", {"image": "a.png", "question": "Which?", "box": ["a"] * 4}, "the box must be"),
    _boxes("no image", {"image": "none.png", "question": "Which?", "box": [0, 0, 1, 1]}, "no image file .*none.png"),
    refused(
        KIND, "boxes: no file", lambda: read_boxes(Path("missing.jsonl")), ValueError, "missing.jsonl cannot be read"
    ),
]

MIXTURES = [
    _mixture("nothing", "by --data or by --data_config, got neither"),
    _mixture("both", "got both", data=["synthetic:guard"], data_config="a.yaml"),
    _mixture("an unknown source", "There is no source 'chartq'.*Did you mean 'chartqa'", data=["chartq:x"]),
    _mixture("an unknown field", "unknown field 'wieght'", data=["synthetic:guard,wieght=2"]),
    _mixture("a field without a value", "'weight' is no FIELD=VALUE|is no value", data=["synthetic:guard,weight"]),
    _mixture("a weight that is a word", "weight=much is no value", data=["synthetic:guard,weight=much"]),
    _mixture("a weight of 0", "weight must be above 0, got 0", data=["synthetic:guard,weight=0"]),
    _mixture("a weight that is no number", "weight must be above 0, got nan", data=["synthetic:guard,weight=nan"]),
    _mixture("rows of -1", "rows must be at least 1, got -1", data=["synthetic:guard,rows=-1"]),
    _mixture("an unknown family", "guards", data=["synthetic:guards"]),
    _mixture("a share of bad rows of 2", "max_bad_share must be at least 0 and below 1, got 2", max_bad_share=2),
    _mixture("an OCR share of 1", "ocr_share must lie between 0 and 1, got 1", ocr_share=1),
    _mixture("one source twice", "Two sources are called", data=["synthetic:guard", "synthetic:guard"]),
    _mixture("a config that is not there", "missing.yaml cannot be read", data_config="missing.yaml"),
    *[
        Case(
            KIND,
            f"mixture: a config that is {name}",
            lambda folder, c=content: (
                (folder / "mix.yaml").write_bytes(c),
                lambda: load_rows(DataArguments(data_config=str(folder / "mix.yaml")), "train", 0),
            )[1],
            ValueError,
            says,
        )
        for name, content, says in (
            ("empty", b"", "must hold one key, data"),
            ("no YAML", b"data: [", "mix.yaml cannot be read"),
            ("binary", b"\xff\xfe\x00", "mix.yaml cannot be read"),
            ("of another kind", b"rows: 3", "must hold one key, data"),
            ("a list of numbers", b"data: [3]", "a source is NAME.*; got 3"),
            ("a source without a name", b"data: [{path: x}]", "has no field 'source'"),
            (
                "a weight as text",
                b"data: [{source: synthetic, path: guard, weight: much}]",
                "weight=much is no value",
            ),
        )
    ],
]

CASES = [*ROWS, *BOXES, *MIXTURES]
