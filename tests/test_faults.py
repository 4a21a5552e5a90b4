"""Bad input of every kind ends in an error that names the value: no traceback, no wrong answer, nothing written."""

import json
import math
import shutil
import string
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from configuration_shirg import ShirgLavidaConfig
from modeling_shirg.generation_config_shirg import GENERATION_DEFAULTS
from modeling_shirg.running.load import load
from shirg_scripts import cli
from tiny_model import chat, encode, noise_image, tiny_config, tiny_model, tiny_processor

GRID = str(files("shirg_hub_card") / "examples" / "grid.png")
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
WORDS = st.text(string.ascii_lowercase, min_size=1, max_size=9)
NOT_POSITIVE = st.integers(max_value=0) | st.sampled_from([1.5, "8", math.nan, [], True])
NO_SHARE = st.floats(max_value=0) | st.floats(min_value=1, exclude_min=True) | st.sampled_from([math.nan, "a", []])
NO_BOOL = st.sampled_from(["yes", 1, 0, 3.5, []])
NO_TOKEN = st.integers(max_value=-1) | st.sampled_from([1.5, "a", [-1]])


def refused(act: Callable[[], Any], *named: str) -> None:
    """`act` is an error whose message has every one of `named`."""
    with pytest.raises((ValueError, TypeError, StrictDataclassError)) as caught:
        act()
    message = f"{caught.value} {caught.value.__cause__ or ''}"
    assert all(name in message for name in named), message


@cache
def model():
    return tiny_model(tiny_config())


@cache
def processor():
    return tiny_processor(tiny_config())


@cache
def inputs() -> dict[str, torch.Tensor]:
    return dict(encode(processor(), chat("Which?", noise_image(0))))


def written(kind: str) -> bytes:
    """A healthy file of a format."""
    held = BytesIO()
    noise_image(0).save(held, kind)
    return held.getvalue()


def look(image: Any, **options: Any) -> Any:
    return processor().image_processor(image, return_tensors="pt", **options)


@given(st.binary(max_size=200))
@example(b"")
@example(b"GIF89a" + written("PNG")[6:])
@example(written("PNG")[8:])
@example(written("PNG").replace(b"IDAT", b"IDAX", 1))
def test_bytes_that_are_no_image(content):
    refused(lambda: look(content), "Image 0")
    refused(lambda: look([noise_image(1), content]), "Image 1")


@given(st.sampled_from(FORMATS), st.floats(0, 0.95))
@settings(max_examples=40)
def test_files_that_are_cut(kind, share):
    content = written(kind)
    refused(lambda: look(content[: int(len(content) * share)]), "Image 0", "cannot be read")


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("", "Image 0"),
        ("file:///etc/passwd", "file:///etc/passwd"),
        ("http://localhost:99999/a.png", "Image 0"),
        ("http://127.0.0.1:9/a.png", "Connect"),
        ("data:image/png;base64,%%%", "base64"),
        ("data:text/plain;base64,aGVsbG8=", "Image 0"),
        ("\ud800.png", r"\ud800.png"),
        ("a/" * 5000, "Image 0"),
        (None, "NoneType"),
        (np.ones((9, 9, 3), dtype=complex), "complex"),
        (np.full((9, 9, 3), None), "object"),
        (torch.eye(9).to_sparse(), "parse"),
    ],
)
def test_what_is_no_image(source, named):
    refused(lambda: look(source), named)


@given(st.sampled_from([np.nan, np.inf, -np.inf, -3.0, 70_000.0]), st.booleans())
def test_pixels_out_of_range(value, as_tensor):
    array = np.full((9, 9, 3), 0.5, dtype=np.float32)
    array[3, 4, 1] = value
    refused(lambda: look(torch.from_numpy(array).movedim(-1, 0) if as_tensor else array), "Image 0", "must lie in")


@given(
    st.lists(st.floats() | st.sampled_from(["a", None]), max_size=6)
    | st.sampled_from([3, "abcd", (0, 9, 9, 0), (900, 900, 950, 950)])
)
def test_boxes_that_are_none(box):
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(edge, float) for edge in box)
    if numbers and box[0] < box[2] and box[1] < box[3] and all(map(math.isfinite, box)):
        return  # whether that lies in the image is the geometry's test
    refused(lambda: look(noise_image(0), fovea_boxes=[box]), "fovea_boxes[0]")


@given(st.sampled_from(sorted(ShirgLavidaConfig.__annotations__)), st.sampled_from([b"x", 1j, {1}]))
def test_config_fields_of_a_wrong_type(name, value):
    fields = {**tiny_config().to_dict(), name: value}
    refused(lambda: ShirgLavidaConfig.from_dict(fields), name)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        *(({name: value}, name) for name in ("text_weight", "attention_weight") for value in (math.nan, math.inf)),
        *(({"selection_budget": value}, "selection_budget") for value in (0, -1, None)),
        *(({"fovea_size": value}, "fovea_size") for value in (-224, 1_000_000)),
        *(({"selection_temperature": value}, "selection_temperature") for value in (0, -1, math.nan)),
        ({"image_token_id": 272}, "image_token_id=272"),
        ({"image_token_id": 258}, "258"),
        ({"vision_config": {"image_size": 100}}, "100"),
        ({"text_config": {"num_attention_heads": 0}}, "num_attention_heads=0"),
        ({"text_config": {"model_type": "gpt2"}}, "gpt2"),
        ({"calibration": {"relevance": {}}}, "calibration"),
    ],
)
def test_configs_that_contradict_themselves(fields, named):
    refused(lambda: tiny_config(**fields), named)


ARGUMENTS = {
    "max_new_tokens": NOT_POSITIVE,
    "block_length": NOT_POSITIVE | st.just(3),
    "steps": NOT_POSITIVE,
    "step_ratio": NO_SHARE,
    "schedule": WORDS.filter(lambda word: word not in ("linear", "cosine", "shift")),
    "shift": st.sampled_from([0, -1, "a", math.nan, math.inf]),
    "remasking": WORDS,
    "do_sample": NO_BOOL,
    "temperature": st.sampled_from([-1, "hot", math.nan, math.inf, 0.5]),
    "use_cache": NO_BOOL,
    "prefix_kv": NO_SHARE,
    "prefix_dtype": WORDS | st.sampled_from([8, []]),
    "confidence_threshold": st.sampled_from([-1, "a", math.nan]),
    "suppress_tokens": st.sampled_from([3, ["a"], [-1], [10**6], list(range(272))]),
    "return_dict_in_generate": NO_BOOL,
    "output_history": st.just(True),
    "output_selection": st.just(True),
    "eos_token_id": NO_TOKEN,
    "mask_token_id": NO_TOKEN | st.just(10**6),
    "draft_ids": st.sampled_from([3, "a", torch.zeros(4), torch.ones(1, 4, dtype=torch.int64) * 999]),
    "attention_mask": st.sampled_from([torch.ones(1, 3), "a"]),
    "position_ids": st.sampled_from([torch.ones(1, 3), "a"]),
    "generation_config": st.sampled_from([3, {"steps": 4}, "fast"]),
    "streamer": st.just(3),
    "pixel_values": st.just(torch.zeros(1, 3, 100, 100)),
    "input_ids": st.sampled_from(["Which?", torch.ones(4, dtype=torch.int64), torch.ones(1, 4)]),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_generation_arguments_out_of_range(name):
    @given(ARGUMENTS[name])
    @settings(max_examples=15)
    def check(value):
        refused(lambda: model().generate(**{**inputs(), "max_new_tokens": 4, name: value}), name)

    check()


@given(WORDS.filter(lambda word: word not in GENERATION_DEFAULTS and word not in ARGUMENTS))
@example("num_beams")
@example("max_length")
@example("labels")
@settings(max_examples=20)
def test_generation_arguments_that_do_not_exist(name):
    refused(lambda: model().generate(**inputs(), **{name: 3}), name)


CONTENTS = st.none() | st.integers() | st.binary(max_size=3)
PARTS = st.fixed_dictionaries({"type": WORDS | CONTENTS, "text": CONTENTS}) | CONTENTS | WORDS


@given(
    st.fixed_dictionaries({"role": WORDS.filter(lambda word: word not in ("system", "user", "assistant")) | CONTENTS})
    | st.fixed_dictionaries({"role": st.just("user"), "content": CONTENTS | st.lists(PARTS, min_size=1, max_size=3)})
    | CONTENTS
    | WORDS
)
def test_messages_that_are_none(message):
    refused(lambda: processor().apply_chat_template([message], tokenize=True, return_dict=True))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    model().save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors"])
def test_checkpoint_files_that_are_cut_or_something_else(saved, name):
    @given(st.floats(0, 0.99) | st.sampled_from([b"[]", b"hello", b"\xff\xfe\x00", b"version https://git-lfs"]))
    @settings(max_examples=8)
    def check(damage):
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(shutil.copytree(saved, Path(folder) / "copy"))
            content = (copy / name).read_bytes()
            (copy / name).write_bytes(damage if isinstance(damage, bytes) else content[: int(len(content) * damage)])
            refused(lambda: load(str(copy), device="cpu"), str(copy))

    check()


@pytest.mark.parametrize(("shard", "named"), [("../../etc/passwd", "passwd"), (3, "'a'")])
def test_an_index_that_leads_out_of_its_folder(saved, tmp_path, shard, named):
    copy = Path(shutil.copytree(saved, tmp_path / "copy"))
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    refused(lambda: load(str(copy), device="cpu"), named)


ASK, TRAIN = ("ask", GRID, "Which?"), ("train", "--output_dir", "run", "--data")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("ask",), "image, question"),
        (("ask", "text.png", "Which?"), "Image 0"),
        (("ask", GRID, "What is <image>?"), "2 <image>"),
        (("ask", GRID, "a\udc80"), "surrogates"),
        ((*ASK, "--device", "abacus"), "'abacus'"),
        ((*ASK, "--dtype", "int4"), "'int4'"),
        ((*ASK, "--max_new_tokens", "100000000"), "max_new_tokens=100000000"),
        ((*ASK, "--prefix_kv", "nan"), "prefix_kv=nan"),
        ((*ASK, "--fovea_box", "9", "9", "1", "1"), "fovea_boxes[0]"),
        ((*ASK, "--prune_method", "lavida", "--fovea_box", "0", "0", "9", "9"), "fovea"),
        ((*ASK, "--option", "selection_budget"), "FIELD=VALUE"),
        ((*ASK, "--option", "selection_buget=5"), "'selection_budget'"),
        ((*ASK, "--option", "selection_budget=lots"), "'lots'"),
        ((*ASK, "--overlay", "kept.psd"), ".png"),
        ((*ASK, "--overlay", "no/kept.png"), "no/kept.png"),
        (("compare", GRID, "Which?", "--out", "no/sheet.png"), "no/sheet.png"),
        (("convert", "missing", "new"), "missing"),
        (("convert", "bare", "out"), "out is not an empty folder"),
        (("calibrate", "--data", "missing.jsonl"), "missing.jsonl"),
        (("calibrate", "--out", "out"), "out is not an empty folder"),
        ((*TRAIN, "synthetic:guard", "--footprint", "everything"), "everything"),
        ((*TRAIN, "synthetic:guard", "--learning_rate", "fast"), "fast"),
        ((*TRAIN, "nothing:x"), "nothing"),
        ((*TRAIN, "no-image.jsonl"), "none.png"),
        ((*TRAIN, "cut.jsonl"), "cut.jsonl"),
        (("train", "missing.yaml"), "missing.yaml"),
        (("evaluate", "--out", "new", "--tasks", "chartqaa"), "chartqaa"),
        (("evaluate", "--out", "new", "--limit", "0"), "limit 0"),
        (("evaluate", "--out", "new", "--baseline", "lavida"), "lavida"),
        (("evaluate", "--out", "new", "--prune_method", "shirg:steps"), "steps"),
        (("bench", "--prune_method", "nothing"), "nothing"),
        (("push", "missing", "me/it"), "missing"),
        (("push", "bare", "me/it", "--merge", "--position_embeddings"), "not allowed"),
        (("report", "bare"), "bare"),
        (("serve", "--port", "70000"), "70000"),
    ],
)
def test_commands_end_in_one_line_and_status_2(words, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("text.png").write_text("no picture")
    Path("no-image.jsonl").write_text('{"image": "none.png", "question": "Which?", "answer": "red"}\n')
    Path("cut.jsonl").write_text('{"image": "none.png", "quest')
    for folder in ("bare", "out"):
        Path(folder).mkdir()
    Path("out", "mine.txt").write_text("keep")
    before = sorted(map(str, Path().rglob("*")))
    try:
        status = cli.main(list(words))
    except SystemExit as stopped:
        status = stopped.code
    errors = capsys.readouterr().err
    assert status == 2 and "Traceback" not in errors
    assert f"shirg {words[0]}: " in errors and named in errors.partition(f"shirg {words[0]}: ")[2]
    assert [name for name in sorted(map(str, Path().rglob("*"))) if name not in before and "run" not in name] == []
