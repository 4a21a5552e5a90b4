"""Bad and odd command lines of `shirg`: exit status 2, one message, no traceback, nothing written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from shirg_hub_card import __file__ as _HUB_CARD

from .case import Case, CommandError, command
from .images import written

KIND = "command"
GRID = str(Path(_HUB_CARD).parent / "examples" / "grid.png")
_ASK = ("ask", GRID, "Which?")


def _bad(words: tuple[str, ...], says: str, prepare: Callable[[Path], Any] = lambda folder: None) -> Case:
    def ready(folder: Path) -> Callable[[], Any]:
        prepare(folder)
        return lambda: command(*words)

    shown = " ".join(word if word != GRID else "grid.png" for word in words)
    return Case(KIND, shown or "nothing", ready, CommandError, says)


def _text(folder: Path) -> None:
    (folder / "text.png").write_text("no picture")
    (folder / "out").mkdir()
    (folder / "out" / "mine.txt").write_text("keep")
    (folder / "bare").mkdir()
    (folder / "cut.png").write_bytes(written("PNG")[:300])


CASES = [
    _bad(("aks",), "unknown command 'aks'"),
    _bad(("--verbose",), "unknown command '--verbose'"),
    _bad(("ask",), "required: image, question"),
    _bad(("ask", GRID), "required: question"),
    _bad(("ask", "missing.png", "Which?"), "Image 0 .*'missing.png' is no file that exists"),
    _bad(("ask", "text.png", "Which?"), "text.png.*pass a PNG or JPEG file", _text),
    _bad(("ask", "cut.png", "Which?"), "Image 0 .*cannot be read", _text),
    _bad(("ask", "bare", "Which?"), "bare is a directory: pass the path of one image file", _text),
    _bad(("ask", "file:///etc/passwd", "Which?"), "no file that exists, no URL"),
    _bad(("ask", GRID, "What is <image>?"), "2 <image> tokens"),
    _bad(("ask", GRID, "a\udc80"), "half of a character"),
    _bad((*_ASK, "--prune_method", "shrig"), "Did you mean 'shirg'"),
    _bad((*_ASK, "--model", "missing"), "no checkpoint at 'missing'|There is no folder 'missing'"),
    _bad((*_ASK, "--model", "no//where"), "no folder 'no//where', and it is no Hub id"),
    _bad((*_ASK, "--model", "bare"), "no checkpoint at 'bare': give a folder", _text),
    _bad((*_ASK, "--device", "abacus"), "Unknown device 'abacus'"),
    _bad((*_ASK, "--dtype", "int4"), "invalid choice: 'int4'"),
    _bad((*_ASK, "--quantize", "int2"), "invalid choice: 'int2'"),
    _bad((*_ASK, "--text_relevance", "siglip"), "no relevance_text_config|needs SigLIP's text tower"),
    _bad((*_ASK, "--prune_method", "lavida", "--text_relevance", "lm"), "prune_method='lavida' scores none"),
    _bad((*_ASK, "--max_new_tokens", "0"), "max_new_tokens=0 must be an int > 0"),
    _bad((*_ASK, "--max_new_tokens", "many"), "invalid int value: 'many'"),
    _bad((*_ASK, "--max_new_tokens", "100000000"), "max_new_tokens=100000000 are more than the 2048 positions"),
    _bad((*_ASK, "--option", 'vision_config={"hidden_size":0}'), "vision_config.hidden_size=0 must be at least 1"),
    _bad((*_ASK, "--steps", "-1"), "steps=-1 must be an int > 0"),
    _bad((*_ASK, "--prefix_kv", "2"), r"prefix_kv=2.0 must be a number in \(0, 1\]"),
    _bad((*_ASK, "--prefix_kv", "nan"), "prefix_kv=nan must be a number"),
    _bad((*_ASK, "--prefix_dtype", "int4"), "invalid choice: 'int4'"),
    _bad((*_ASK, "--fovea_box", "1", "2", "3"), "expected 4 arguments"),
    _bad((*_ASK, "--fovea_box", "9", "9", "1", "1"), r"fovea_boxes\[0\]"),
    _bad((*_ASK, "--fovea_box", "nan", "0", "9", "9"), r"fovea_boxes\[0\]"),
    _bad((*_ASK, "--prune_method", "lavida", "--fovea_box", "0", "0", "9", "9"), "has no fovea, got fovea_boxes"),
    _bad((*_ASK, "--option", "selection_budget"), "write it as FIELD=VALUE"),
    _bad((*_ASK, "--option", "selection_buget=5"), "Did you mean 'selection_budget'"),
    _bad((*_ASK, "--option", "selection_budget=lots"), "selection_budget.*'lots'"),
    _bad((*_ASK, "--option", "selection_budget=0"), "selection_budget=0 must be between 1"),
    _bad((*_ASK, "--option", "vision_config=3"), "vision_config"),
    _bad((*_ASK, "--option", "calibration=3"), "calibration"),
    *[
        _bad((*_ASK, "--overlay", name), "write it to a picture file, one of .png")
        for name in ("kept", "k.psd", "k.mpg")
    ],
    _bad((*_ASK, "--overlay", "no/kept.png"), "--overlay no/kept.png: no file can be written there"),
    _bad((*_ASK, "--jsn"), "unrecognized arguments: --jsn"),
    _bad(("compare", GRID), "required"),
    _bad(("compare", GRID, "Which?", "--out", "no/sheet.png"), "--out no/sheet.png: no file can be written there"),
    _bad(("compare", GRID, "Which?", "--systems", "shirg", "nothing"), "Unknown prune_method 'nothing'"),
    _bad(("convert",), "required: SRC, OUT"),
    _bad(("convert", "missing", "new"), "missing"),
    _bad(("convert", "bare", "new"), "has no config.json: give the folder or the Hub id of a whole checkpoint", _text),
    _bad(("convert", "bare", "out"), "out is not an empty folder, and nothing is replaced", _text),
    _bad(("convert", "bare", "new", "--dtype", "int4"), "int4|config.json", _text),
    _bad(("calibrate", "--data", "missing.jsonl"), "missing.jsonl cannot be read"),
    _bad(("calibrate", "--images", "0"), "--images 0: give a number of images above 0"),
    _bad(("calibrate", "--in_place"), "--in_place needs --model FOLDER"),
    _bad(("calibrate", "--out", "out"), "out is not an empty folder, and nothing is replaced", _text),
    _bad(("train", "--output_dir", "run", "--footprint", "everything", "--data", "synthetic:guard"), "everything"),
    _bad(("train", "--output_dir", "run", "--data", "synthetic:guard", "--learning_rate", "fast"), "fast"),
    _bad(
        ("train", "--output_dir", "run", "--data", "synthetic:guard", "--learning_rate", "inf"),
        "Learning rates must be above 0 and finite",
    ),
    _bad(("train", "--output_dir", "run", "--data", "nothing:x"), "There is no source 'nothing'"),
    _bad(
        ("train", "--output_dir", "out", "--data", "synthetic:guard"),
        "out is not empty and holds no arguments.json",
        _text,
    ),
    _bad(("train", "missing.yaml"), "missing.yaml"),
    _bad(("plan", "--devices", "0"), "devices"),
    _bad(("evaluate",), "required"),
    _bad(("evaluate", "--systems", "shirg", "--out", "new", "--tasks", "chartqaa"), "chartqaa"),
    _bad(("evaluate", "--systems", "shirg", "--out", "new", "--limit", "0"), "--limit 0: it must be 1 or more"),
    _bad(("evaluate", "--systems", "shirg", "--out", "new", "--baseline", "lavida"), "lavida"),
    _bad(("evaluate", "--systems", "shirg", "--out", "new", "--data", "chartqa"), "write it as TASK=PLACE"),
    _bad(
        ("evaluate", "--systems", "shirg", "--out", "new", "--max_bad_share", "1"),
        "--max_bad_share 1.0: it is a share",
    ),
    _bad(("bench", "--systems", "nothing"), "nothing"),
    _bad(("bench", "--profile", "abacus"), "abacus"),
    _bad(("push",), "required: RUN_OR_FOLDER, REPO_ID"),
    _bad(("push", "missing", "me/it"), "missing"),
    _bad(("push", "bare", "me/it"), "bare", _text),
    _bad(("push", "bare", "me/it", "--merge", "--position_embeddings"), "not allowed with argument"),
    _bad(("serve", "--port", "none"), "'none' must be an integer from 0 to 65535"),
    _bad(("serve", "--port", "99999"), "'99999' must be an integer from 0 to 65535"),
    _bad(("demo", "--port", "99999"), "'99999' must be an integer from 0 to 65535"),
    _bad(("serve", "--max_requests", "0"), "max_requests=0 must be a finite number > 0"),
    _bad(("serve", "--body_seconds", "nan"), "body_seconds=nan must be a finite number > 0"),
    _bad(("demo", "--step_seconds", "nan"), "'nan' must be a number of seconds, 0 or more"),
    _bad(("demo", "--host", "nosuch.invalid"), "--host nosuch.invalid --port 7860: "),
    Case(
        KIND,
        "hyphens instead of underscores",
        lambda folder: lambda: command(*_ASK, "--max-new-tokens", "4"),
        same_as=lambda: command(*_ASK, "--max_new_tokens", "4"),
    ),
    Case(
        KIND,
        "an option that is the default",
        lambda folder: lambda: command(*_ASK, "--option", "text_relevance=lm"),
        same_as=lambda: command(*_ASK),
    ),
]
