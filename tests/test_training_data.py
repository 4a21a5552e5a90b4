"""The data side of training: real files of every layout become rows, bad rows are counted, epochs are mixed.

What becomes of the rows (draws, labels, batches) is in test_training_batches.py.
"""

import json
import os
import re
import subprocess
import sys
import zipfile
from collections import Counter
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard, IterableDatasetShard, skip_first_batches
from PIL import Image
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from transformers import HfArgumentParser

from modeling_shirg.scenes import scene
from modeling_shirg.training.data.bad_rows import BadRow
from modeling_shirg.training.data.image_files import ZipIndex
from modeling_shirg.training.data.mixing import EpochPlan, mixture_shares, rows_per_source
from modeling_shirg.training.data.reading import RowReader
from modeling_shirg.training.data.specs import read_specs
from modeling_shirg.training.data.tables import LCS_FILE
from modeling_shirg.training.draws import named_generator
from modeling_shirg.training.encoder import RowEncoder
from modeling_shirg.training.mixture import DataArguments, load_rows
from tiny_model import noise_image, tiny_config, tiny_processor

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(tiny_config())


def write_rows(folder: Path, count: int = 12, **changes) -> Path:
    """A JSONL file of `count` question-answer rows with an image each; `changes` are {row: {column: value}}."""
    lines = []
    for index in range(count):
        noise_image(index, 60 + index, 50).save(folder / f"{index}.png")
        row = {"image": f"{index}.png", "question": f"What is number {index}?", "answer": f"it is {index}"}
        lines.append(row | changes.get(f"row{index}", {}))
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    return file


def load(*data: str, split: str = "train", seed: int = 0, encoder=None, **fields):
    return load_rows(DataArguments(data=list(data), **fields), split, seed, encoder)


def names(rows, places=None) -> list[str]:
    return [rows[place]["name"] for place in (range(len(rows)) if places is None else places)]


def png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "png")
    return file.getvalue()


def text(message: dict) -> str:
    return "".join(block.get("text", "<image>") for block in message["content"])


# Layouts

IMAGE = datasets.Image()
STRING = datasets.Value("string")
INT = datasets.Value("int64")
STRINGS = datasets.List(STRING)
# Source, columns as the Hub has them, one row of them without its image, the question and the answer it becomes.
SCHEMAS = {
    "chartqa (HuggingFaceM4)": (
        "chartqa",
        {"image": IMAGE, "query": STRING, "label": STRINGS, "human_or_machine": datasets.ClassLabel(2)},
        {"query": "How many bars?", "label": ["7"], "human_or_machine": 1},
        ("<image>How many bars?\nAnswer the question with a single word.", "7"),
    ),
    "chartqa (lmms-lab)": (
        "chartqa",
        {"type": STRING, "question": STRING, "answer": STRING, "image": IMAGE},
        {"type": "human_test", "question": "How many bars?", "answer": "7"},
        ("<image>How many bars?\nAnswer the question with a single word.", "7"),
    ),
    "docvqa": (
        "docvqa",
        {
            "questionId": STRING,
            "question": STRING,
            "question_types": STRINGS,
            "image": IMAGE,
            "docId": INT,
            "answers": STRINGS,
            "data_split": STRING,
        },
        {
            "questionId": "1",
            "question": "What is the date?",
            "question_types": ["form"],
            "docId": 3,
            "answers": ["1/8/93", "Jan 8, 1993"],
            "data_split": "val",
        },
        ("<image>What is the date?\nAnswer the question using a single word or phrase.", "1/8/93"),
    ),
    "textvqa": (
        "textvqa",
        {"image_id": STRING, "question": STRING, "image": IMAGE, "answers": STRINGS, "ocr_tokens": STRINGS},
        {"image_id": "a", "question": "What brand?", "answers": ["dell", "nokia", "nokia", "dell", "nokia"]},
        ("<image>What brand?\nAnswer the question using a single word or phrase.", "nokia"),
    ),
    "vqav2": (
        "vqav2",
        {
            "question": STRING,
            "multiple_choice_answer": STRING,
            "answers": datasets.List(
                {"answer": STRING, "answer_confidence": STRING, "answer_id": datasets.Value("int64")}
            ),
            "image": IMAGE,
        },
        {
            "question": "Is it red?",
            "multiple_choice_answer": "yes",
            "answers": [{"answer": "no", "answer_confidence": "yes", "answer_id": 1}],
        },
        ("<image>Is it red?\nAnswer the question using a single word or phrase.", "yes"),
    ),
    "vqav2 (answers alone)": (
        "vqav2",
        {
            "question": STRING,
            "answers": datasets.List({"answer": STRING, "answer_id": INT}),
            "image": IMAGE,
        },
        {
            "question": "Is it red?",
            "answers": [{"answer": each, "answer_id": i} for i, each in enumerate(["no", "yes", "yes"])],
        },
        ("<image>Is it red?\nAnswer the question using a single word or phrase.", "yes"),
    ),
}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_row_of_every_hub_schema_becomes_its_question_and_answer(tmp_path, schema):
    source, features, row, expected = SCHEMAS[schema]
    row = {name: row.get(name) for name in features} | {"image": noise_image(3, 70, 40)}
    table = datasets.Dataset.from_list([row] * 2, features=datasets.Features(features))
    table.to_parquet(tmp_path / "train-00000-of-00001.parquet")
    rows = load(f"{source}:{tmp_path}")
    item = rows[0]
    assert len(rows) == 2
    assert tuple(map(text, item["messages"])) == expected
    assert [message["role"] for message in item["messages"]] == ["user", "assistant"]
    assert item["images"][0].tobytes() == noise_image(3, 70, 40).tobytes()
    assert stream_contents(f"{source}:{tmp_path}") == contents(rows)


def contents(rows) -> list:
    """What the rows hold, whatever their order."""
    items = [rows[place] for place in range(len(rows))] if hasattr(rows, "__len__") else list(rows)
    return sorted((item["row"], item["messages"], [image.tobytes() for image in item["images"]]) for item in items)


def stream_contents(*data: str, **fields) -> list:
    return contents(load(*data, streaming=True, **fields))


CONVERSATION = [
    {"from": "human", "value": "Describe the picture.\n<image>"},
    {"from": "gpt", "value": "noise"},
    {"from": "human", "value": "In one word?"},
    {"from": "gpt", "value": "chaos"},
]


@pytest.mark.parametrize("layout", ["stored zip", "deflated zip", "images", "beside"])
def test_lcs_reads_its_images_where_they_are(tmp_path, layout):
    records = [{"id": str(i), "image": f"0000{i}/{i}.png", "conversations": CONVERSATION} for i in range(3)]
    (tmp_path / LCS_FILE).write_text(json.dumps(records))
    images = {f"0000{i}/{i}.png": png(noise_image(i, 40, 30)) for i in range(3)}
    if "zip" in layout:
        kind = zipfile.ZIP_STORED if layout == "stored zip" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(tmp_path / "images.zip", "w", kind) as archive:
            archive.mkdir("00000")
            for name, data in images.items():
                archive.writestr(name, data)
    else:
        for name, data in images.items():
            file = tmp_path / ("images" if layout == "images" else "") / name
            file.parent.mkdir(parents=True)
            file.write_bytes(data)
    before = sorted(tmp_path.rglob("*"))
    rows = load(f"lcs:{tmp_path}")
    for item in (rows[place] for place in range(3)):
        assert item["images"][0].tobytes() == noise_image(item["row"], 40, 30).tobytes()
        assert [text(message) for message in item["messages"]] == [
            "<image>Describe the picture.",
            "noise",
            "In one word?",
            "chaos",
        ]
    assert stream_contents(f"lcs:{tmp_path}") == contents(rows)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_zip_reads_what_python_reads(tmp_path):
    data = {f"{i}/ü {i}.bin": np.random.default_rng(i).bytes(i * 37) for i in range(40)}
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in data.items():
            info = zipfile.ZipInfo(name)
            info.extra = b"\xfe\xca\x02\x00ab"  # a field that only some tools write, between header and data
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    index = ZipIndex(tmp_path / "a.zip")
    assert len(index) == 40
    assert {name: index.read(name) for name in data} == data
    with pytest.raises(BadRow, match="no file 41/x"):
        index.read("41/x")


def test_a_truncated_zip_is_refused_and_a_damaged_member_is_a_bad_row(tmp_path):
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(range(256)) * 50)
        directory = archive.fp.tell()
    whole = file.read_bytes()
    index = ZipIndex(file)
    file.write_bytes(whole[:40] + b"\xff" * 30 + whole[70:])
    with pytest.raises(BadRow, match="unreadable image: a in"):
        index.read("a")
    file.write_bytes(whole[:directory])
    with pytest.raises(ValueError, match="no complete zip"):
        ZipIndex(file)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet", "csv"])
def test_a_local_file_of_rows(tmp_path, suffix):
    lines = [json.loads(line) for line in write_rows(tmp_path, 3).read_text().splitlines()]
    file = tmp_path / f"mine.{suffix}"
    if suffix == "json":
        file.write_text(json.dumps(lines))
    elif suffix == "jsonl":
        file.write_text("\n".join(map(json.dumps, lines)))
    else:
        getattr(datasets.Dataset.from_list(lines), f"to_{suffix}")(file)
    rows = load(str(file))
    assert sorted(text(rows[i]["messages"][1]) for i in range(3)) == ["it is 0", "it is 1", "it is 2"]
    assert stream_contents(str(file)) == contents(rows)


@pytest.mark.parametrize("place", ["", "train"])
def test_an_imagefolder_with_metadata(tmp_path, place):
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    noise_image(0, 30, 30).save(folder / "a.png")
    lines = [{"file_name": name, "question": "Who?", "answer": "me"} for name in ("a.png", "gone.png")]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = load(str(tmp_path), max_bad_share=0.5)
    assert len(rows) == 1 and rows[0]["images"][0].size == (30, 30)
    assert [bad["row"] for bad in rows.report()["skipped"]] == [1]


def test_several_images_of_a_row_and_images_named_within_the_text(tmp_path):
    for i in range(2):
        noise_image(i, 30 + i, 30).save(tmp_path / f"{i}.png")
    pair = ["0.png", "1.png"]
    within = [{"from": "human", "value": "Is <image> like <image>?"}, {"from": "gpt", "value": "no"}]
    lines = [{"image": pair, "question": "Same?", "answer": "no"}, {"image": pair, "conversations": within}]
    (tmp_path / "rows.json").write_text(json.dumps(lines))
    rows = load(str(tmp_path / "rows.json"))
    items = {rows[i]["row"]: rows[i] for i in range(2)}
    assert [text(items[i]["messages"][0]) for i in range(2)] == ["<image><image>Same?", "Is<image>like<image>?"]
    assert [image.size for image in items[1]["images"]] == [(30, 30), (31, 30)]


def test_exif_rotation_and_transparency_are_read_as_at_inference(tmp_path):
    file = write_rows(tmp_path, 2)
    exif = Image.Exif()
    exif[0x0112] = 6
    noise_image(0, 60, 40).save(tmp_path / "0.png", exif=exif)
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "1.png")
    rows = load(str(file))
    images = {rows[i]["row"]: rows[i]["images"][0] for i in range(2)}
    assert images[0].size == (40, 60)
    assert images[1].mode == "RGB" and images[1].getpixel((0, 0)) == (255, 255, 255)


def test_a_hub_data_set_is_read_over_http_whole_or_as_a_stream(hub, tmp_path):
    code = """
import datasets
from PIL import Image
from modeling_shirg.training.mixture import DataArguments, load_rows

rows = [{"image": Image.new("RGB", (8, 8 + i)), "query": f"{i}?", "label": [str(i)]} for i in range(3)]
features = datasets.Features(
    {"image": datasets.Image(), "query": datasets.Value("string"), "label": datasets.List(datasets.Value("string"))}
)
datasets.Dataset.from_list(rows, features=features).push_to_hub("tester/charts", split="train")
for streaming in (False, True):
    args = DataArguments(data=["chartqa:tester/charts,revision=main"], streaming=streaming)
    rows = load_rows(args, "train", 0)
    items = list(rows) if streaming else [rows[i] for i in range(len(rows))]
    print(sorted((item["messages"][1]["content"][0]["text"], item["images"][0].height) for item in items))
print(rows.report()["sources"][0]["source"])
try:
    load_rows(DataArguments(data=["chartqa:tester/missing"]), "train", 0)
except ValueError as error:
    print(error)
"""
    environment = os.environ | hub.env | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    whole, stream, place, missing = run.stdout.strip().splitlines()
    assert whole == stream == "[('0', 8), ('1', 9), ('2', 10)]"
    assert place == "tester/charts, revision=main"
    assert "chartqa:tester/missing cannot be opened" in missing


# Bad rows

BAD = {
    "missing image": {"image": "gone.png"},
    "missing image: the row names none": {"image": None},
    "which training does not fetch": {"image": "http://127.0.0.1:9/a.png"},
    "unreadable image": {"image": "truncated.png"},
    "cannot identify image file": {"image": "rows.jsonl"},
    "no image": {"image": []},
    "empty answer": {"answer": "  "},
    "empty question": {"question": None},
    "unreadable question": {"question": 5.5},
    "unreadable answer": {"answer": ["a", "b"]},
    "is not \\(left, top, right, bottom\\)": {"fovea_box": [1, 2, 3]},
    "has no area": {"fovea_box": [5000, 0, 5001, 9]},
    "control token": {"question": "What is <|eot_id|>?"},
}


@pytest.mark.parametrize("streaming", [False, True])
def test_bad_rows_are_skipped_counted_and_listed_with_their_reason(tmp_path, processor, streaming):
    changes = {f"row{2 * i}": change for i, change in enumerate(BAD.values())}
    file = write_rows(tmp_path, 30, **changes)
    (tmp_path / "truncated.png").write_bytes(png(noise_image(0, 50, 50))[:2000])
    encoder = RowEncoder(processor, answer_length=8)
    rows = load(str(file), max_bad_share=0.5, encoder=encoder, streaming=streaming)
    good = [item["row"] for item in (rows if streaming else (rows[i] for i in range(len(rows))))]
    report = rows.report()
    assert [bad["row"] for bad in report["skipped"]] == list(range(0, 2 * len(BAD), 2))
    for bad, reason in zip(report["skipped"], BAD, strict=True):
        assert re.search(reason, bad["reason"]), bad
    assert report["sources"][0]["skipped"] == len(BAD)
    assert sorted(good) == sorted(set(range(30)) - {bad["row"] for bad in report["skipped"]})


@pytest.mark.parametrize("streaming", [False, True])
def test_too_many_bad_rows_are_an_error_that_names_share_limit_and_rows(tmp_path, streaming):
    file = write_rows(tmp_path, 20, **{f"row{i}": {"answer": ""} for i in (3, 7, 11)})
    with pytest.raises(ValueError, match=r"3 of 20 rows of .* 15.00%: .*max_bad_share=10.00%(.|\n)*: empty answer"):
        list(iter_rows(load(str(file), max_bad_share=0.1, streaming=streaming)))
    assert len(list(iter_rows(load(str(file), max_bad_share=0.15, streaming=streaming)))) == 17


def iter_rows(rows):
    return rows if hasattr(rows, "__iter__") else (rows[i] for i in range(len(rows)))


def test_a_truncated_image_in_a_parquet_file_is_a_bad_row(tmp_path):
    whole = png(noise_image(0, 50, 50))
    lines = [{"image": {"bytes": data, "path": None}, "question": "a", "answer": "b"} for data in (whole, whole[:900])]
    features = datasets.Features({"image": IMAGE, "question": STRING, "answer": STRING})
    datasets.Dataset.from_list(lines, features=features).to_parquet(tmp_path / "rows.parquet")
    rows = load(str(tmp_path / "rows.parquet"), max_bad_share=0.5)
    assert [(bad["row"], bad["reason"][:16]) for bad in rows.report()["skipped"]] == [(1, "unreadable image")]


TURNS = {
    "nobody": [],
    "user, assistant, user": [*CONVERSATION[:2], CONVERSATION[2]],
    "assistant, user": [CONVERSATION[1], CONVERSATION[2]],
    "a turn from 'bot'": [CONVERSATION[0], {"from": "bot", "value": "x"}],
    "empty answer": [CONVERSATION[0], {"from": "gpt", "value": ""}],
    "empty question": [{"from": "human", "value": "<image>\n"}, CONVERSATION[1]],
    "2 <image> in the turns for 1 images": [{"from": "human", "value": "<image> <image> x"}, CONVERSATION[1]],
    "no image": [CONVERSATION[2], CONVERSATION[3]],
}


@pytest.mark.parametrize("reason", TURNS)
def test_conversations_that_are_none_are_bad_rows(tmp_path, reason):
    noise_image(0, 30, 30).save(tmp_path / "a.png")
    good = {"image": "a.png", "conversations": CONVERSATION}
    bad = {"image": None if reason == "no image" else "a.png", "conversations": TURNS[reason]}
    (tmp_path / "rows.json").write_text(json.dumps([good, bad]))
    rows = load(str(tmp_path / "rows.json"), max_bad_share=0.5)
    assert len(rows) == 1
    assert reason in rows.report()["skipped"][0]["reason"]


def test_a_restart_does_not_read_good_rows_again_but_sees_mended_images(tmp_path, monkeypatch):
    file = write_rows(tmp_path, 10, row4={"image": "late.png"})
    assert len(load(str(file), max_bad_share=0.1)) == 9
    reads = []
    original = RowReader.item
    monkeypatch.setattr(RowReader, "item", lambda self, row, index: reads.append(1) or original(self, row, index))
    assert len(load(str(file), max_bad_share=0.1)) == 9
    assert len(reads) == 1
    noise_image(0, 30, 30).save(tmp_path / "late.png")
    assert len(load(str(file), max_bad_share=0)) == 10


def test_a_row_that_breaks_after_the_check_is_an_error_and_not_replaced(tmp_path):
    rows = load(str(write_rows(tmp_path, 4)))
    (tmp_path / "2.png").unlink()
    (place,) = [i for i in range(4) if rows._ordered(0)[i, 1] == 2]
    with pytest.raises(ValueError, match="Row 2 of .* cannot be now: missing image"):
        rows[place]


def test_checking_in_parallel_finds_the_same(tmp_path):
    file = write_rows(tmp_path, 12, row5={"answer": ""}, row9={"image": "gone.png"})
    together, alone = (load(str(file), max_bad_share=0.5, num_proc=count) for count in (2, 1))
    assert alone.report() == together.report()
    assert names(alone) == names(together)


# Errors of the whole


@pytest.mark.parametrize(
    ("data", "fields", "message"),
    [
        (["chratqa"], {}, "no source 'chratqa'.*Did you mean 'chartqa'"),
        (["nowhere/rows.json"], {}, "no file or folder nowhere/rows.json"),
        (["lcs:nowhere"], {}, "no file nowhere/blip_laion_cc_sbu_558k.json"),
        (["synthetic:gird"], {}, "no family 'gird'.*entity_grid"),
        (["synthetic"], {}, "write synthetic:PLACE"),
        (["synthetic:chart,scale=0"], {}, "above 0, got 0.0"),
        (["synthetic:entity_grid,split=test"], {}, "scenes take no split"),
        (["synthetic:entity_grid,weight=heavy"], {}, "weight=heavy is no value"),
        (["synthetic:entity_grid,wieght=2"], {}, "unknown field 'wieght'"),
        (["synthetic:entity_grid,weight=0"], {}, "weight must be above 0"),
        (["synthetic:entity_grid,weight=1", "synthetic:guard"], {}, "synthetic:guard has no weight"),
        (["synthetic:entity_grid", "synthetic:entity_grid"], {}, "Two sources are called synthetic:entity_grid"),
        (["synthetic:entity_grid"], {"ocr_share": 0.5}, "all of them text-dense"),
        (["synthetic:guard"], {"ocr_share": 0.5}, "none of them text-dense"),
        ([], {}, "--data or by --data_config, got neither"),
        (["synthetic:entity_grid"], {"skip_long": True}, "skip_long needs the encoder"),
        (["synthetic:entity_grid", "synthetic:guard"], {"streaming": True}, "need weights"),
    ],
)
def test_wrong_wishes_are_refused(data, fields, message):
    with pytest.raises(ValueError, match=message):
        load(*data, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_bad_share": 1.0}, "max_bad_share"),
        ({"ocr_share": 0}, "ocr_share"),
        ({"num_proc": 0}, "num_proc"),
        ({"validation_rows": -1}, "validation_rows"),
    ],
)
def test_arguments_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DataArguments(**fields)


def test_no_usable_row_a_missing_split_and_missing_columns_are_errors(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{"image": "a.png", "question": "a"}]))
    with pytest.raises(
        ValueError, match=r"has the columns image, question; 'plain' needs \(image, conversations\) or"
    ):
        load(str(file))
    file.write_text("[{")
    with pytest.raises(ValueError, match=f"{file} cannot be opened"):
        load(str(file))
    row = {"image": noise_image(0, 20, 20), "question": "a", "answer": "b"}
    features = datasets.Features({"image": IMAGE, "question": STRING, "answer": STRING})
    datasets.Dataset.from_dict({name: [] for name in row}, features=features).to_parquet(tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="none.parquet cannot be opened: it has no rows"):
        load(str(tmp_path / "none.parquet"))
    (tmp_path / "test-only").mkdir()
    datasets.Dataset.from_list([row], features=features).to_parquet(tmp_path / "test-only" / "test-0.parquet")
    with pytest.raises(ValueError, match="chartqa:.* cannot be opened.*test"):
        load(f"chartqa:{tmp_path / 'test-only'}")
    assert len(load(f"chartqa:{tmp_path / 'test-only'},split=test")) == 1


# Mixtures


def test_without_weights_an_epoch_is_every_row_once_and_another_order_each_time(tmp_path):
    rows = load(str(write_rows(tmp_path, 12)), "synthetic:guard,rows=8")
    orders = []
    for epoch in (0, 1, 0):
        rows.set_epoch(epoch)
        orders.append(names(rows))
    assert len(set(orders[0])) == 20 and sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1] and orders[0] == orders[2]
    other_seed = load(str(tmp_path / "rows.jsonl"), "synthetic:guard,rows=8", seed=1)
    assert names(other_seed) != orders[0]


def test_weights_set_the_counts_and_no_row_comes_twice():
    rows = load("synthetic:entity_grid,rows=40,weight=3", "synthetic:guard,rows=40,weight=1")
    seen = set()
    for epoch in range(6):
        rows.set_epoch(epoch)
        order = names(rows)
        assert Counter(name.split()[-1] for name in order) == {"synthetic:entity_grid": 40, "synthetic:guard": 13}
        assert len(set(order)) == 53
        seen |= set(order)
    assert len(seen) > 65
    report = rows.report()["sources"]
    assert [(each["name"], each["weight"], each["rows"], each["per_epoch"]) for each in report] == [
        ("synthetic:entity_grid", 0.75, 40, 40),
        ("synthetic:guard", 0.25, 40, 13),
    ]


def test_a_longer_epoch_goes_through_a_small_source_again_all_of_it_each_time():
    rows = load("synthetic:entity_grid,rows=4,weight=1", "synthetic:guard,rows=90,weight=1", epoch_rows=20)
    items = [rows[i] for i in range(20)]
    uses = Counter((item["row"], item["repeat"]) for item in items if item["source"] == "synthetic:entity_grid")
    assert set(uses) == {(row, repeat) for row in range(4) for repeat in (0, 1)} | set(uses)
    assert set(uses.values()) == {1} and len(uses) == 10
    assert Counter(item["source"] for item in items) == {"synthetic:entity_grid": 10, "synthetic:guard": 10}


@pytest.mark.parametrize("weights", [["", ""], [",weight=5", ",weight=1"]])
def test_ocr_share_is_the_share_of_rows_from_text_dense_sources(weights):
    data = [f"synthetic:entity_grid,rows=60{weights[0]}", f"synthetic:guard,rows=60{weights[1]}"]
    rows = load(*data, ocr_share=0.25)
    assert Counter(name.split()[-1] for name in names(rows)) == {"synthetic:entity_grid": 20, "synthetic:guard": 60}
    turned = load(data[0] + ",text_dense=false", data[1] + ",text_dense=true", ocr_share=0.25)
    assert [each["per_epoch"] for each in turned.report()["sources"]] == [60, 20]


def test_shares_add_up_and_counts_never_exceed_what_there_is():
    rng = np.random.default_rng(0)
    for _ in range(200):
        counts = rng.integers(1, 50, size=4).tolist()
        weights = rng.uniform(0.1, 3, size=4).round(2).tolist()
        dense = [True, *rng.integers(0, 2, size=2).astype(bool).tolist(), False]
        shares = mixture_shares(list("abcd"), counts, weights, dense, rng.choice([None, 0.3]))
        assert sum(shares) == 1
        rows = rows_per_source(counts, shares, None)
        assert all(row <= count for row, count in zip(rows, counts, strict=True))
        assert all(abs(row - sum(rows) * share) < 1 for row, share in zip(rows, shares, strict=True))
        fuller = sum(rows) + 1
        assert any(fuller * share > count for share, count in zip(shares, counts, strict=True))


def test_rows_of_a_source_are_a_draw_of_the_seed(tmp_path):
    file = write_rows(tmp_path, 30)
    draws = [set(names(load(f"{file},rows=7", seed=seed))) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2] and len(draws[2]) == 7


def test_flags_are_read_by_the_parser_of_the_command():
    (args,) = HfArgumentParser(DataArguments).parse_args_into_dataclasses(
        [
            "--data",
            "synthetic:entity_grid,rows=3,weight=1",
            "synthetic:guard,weight=2",
            "--ocr_share",
            "0.2",
            "--augment",
        ]
    )
    assert [spec.weight for spec in read_specs(args.data, None, "--data")] == [1.0, 2.0]
    assert (args.ocr_share, args.augment, args.streaming) == (0.2, True, False)
    assert "synthetic" in HfArgumentParser(DataArguments).format_help()


def test_a_mixture_file_says_what_the_flags_say(tmp_path):
    entries = [
        {"source": "synthetic", "path": "entity_grid", "rows": 6, "weight": 2},
        "synthetic:guard,rows=6,weight=1",
    ]
    (tmp_path / "mix.json").write_text(json.dumps({"data": entries}))
    (tmp_path / "mix.yaml").write_text(
        "data:\n- {source: synthetic, path: entity_grid, rows: 6, weight: 2}\n- synthetic:guard,rows=6,weight=1\n"
    )
    flags = load("synthetic:entity_grid,rows=6,weight=2", entries[1])
    for name in ("mix.json", "mix.yaml"):
        assert names(load(data_config=str(tmp_path / name))) == names(flags)
    (tmp_path / "mix.yaml").write_text("sources: []")
    with pytest.raises(ValueError, match="mix.yaml must hold one key, data"):
        load(data_config=str(tmp_path / "mix.yaml"))


def test_the_plans_mixture_has_558_thousand_rows_and_50_thousand_text_dense_ones():
    specs = read_specs([], str(ROOT / "scripts/configs/mixture_608k.yaml"), "--data")
    assert [spec.source for spec in specs if not spec.text_dense] == ["lcs"]
    assert sum(spec.rows for spec in specs if spec.text_dense) == 50_000


# Validation


def test_held_out_rows_are_never_trained_on_and_always_the_same(tmp_path):
    file = write_rows(tmp_path, 20)
    data = [f"{file},weight=1", "synthetic:entity_grid,rows=20,weight=1"]
    train = load(*data, validation_rows=8)
    validation = load(*data, validation_rows=8, split="validation")
    assert len(train) == 32 and len(validation) == 8
    assert not {name for name in names(train) if "rows.jsonl" in name} & set(names(validation))
    before = contents(validation), names(validation)
    validation.set_epoch(3)
    assert (contents(validation), names(validation)) == before
    assert all(validation[i]["epoch"] == 0 for i in range(8))


def test_held_out_rows_stay_apart_where_training_and_validation_measure_rows_differently(tmp_path, processor):
    file = write_rows(tmp_path, 30, **{f"row{i}": {"answer": "long " * 9} for i in range(0, 30, 3)})
    messages = [{"role": role, "content": [{"type": "text", "text": "What?"}]} for role in ("user", "assistant")]
    limit = RowEncoder(processor, 1).lengths(messages, []).total + 280
    apart = {}
    for split, encoder in (("train", RowEncoder(processor, 1, limit)), ("validation", RowEncoder(processor, 1))):
        rows = load(str(file), validation_rows=12, max_bad_share=0.5, skip_long=True, encoder=encoder, split=split)
        apart[split] = set(names(rows))
    assert len(apart["validation"]) == 12 and 0 < len(apart["train"]) < 18
    assert not apart["train"] & apart["validation"]


def test_validation_scenes_are_no_training_scenes():
    train = load("synthetic:entity_grid,rows=10")
    validation = load("synthetic:entity_grid,rows=10", validation_rows=5, split="validation")
    assert len(load("synthetic:entity_grid,rows=10", validation_rows=5)) == 10
    seen = {image for _, _, images in contents(train) for image in images}
    assert not seen & {image for _, _, images in contents(validation) for image in images}


@pytest.mark.parametrize("family", ["chart", "document", "entity_grid", "guard"])
def test_the_benchmarks_families_can_be_trained_on(family):
    train, larger = load(f"synthetic:{family},rows=8"), load(f"synthetic:{family},rows=8,scale=2")
    held = load(f"synthetic:{family},rows=8,scale=2", validation_rows=2, split="validation")
    pairs = [(train[place], larger[place]) for place in range(8)]
    sides = [(max(one["images"][0].size), max(other["images"][0].size)) for one, other in pairs]
    assert all(384 <= one <= 512 and other == 2 * one for one, other in sides)
    assert {max(held[place]["images"][0].size) for place in range(2)} == {896}
    drawn = scene(family, "train", train[0]["row"])
    asked = {(question.text, question.answer) for question in drawn.questions}
    turns = [turn["content"][-1]["text"] for turn in train[0]["messages"]]
    assert tuple(turns) in asked and np.array_equal(train[0]["images"][0], drawn.image)


def test_validation_data_of_its_own(tmp_path):
    file = write_rows(tmp_path, 10)
    fields = {"validation_data": [str(file)], "split": "validation"}
    assert len(load("synthetic:entity_grid", **fields)) == 10
    assert len(load("synthetic:entity_grid", validation_rows=4, **fields)) == 4
    assert len(load("synthetic:entity_grid", validation_rows=4, streaming=True, **fields)) == 4
    with pytest.raises(ValueError, match="how many rows of --validation_data"):
        load("synthetic:entity_grid", streaming=True, **fields)
    assert load("synthetic:entity_grid", split="validation") is None


def test_what_validation_cannot_have(tmp_path):
    file = write_rows(tmp_path, 5)
    with pytest.raises(ValueError, match="hold out all 5 usable rows"):
        load(str(file), validation_rows=5)
    drawn = int(named_generator(0, "held out", 0).permutation(5)[0])
    file.write_text(file.read_text().replace(f'"it is {drawn}"', '""'))
    with pytest.raises(ValueError, match="None of the validation_rows=1 rows can be used"):
        load(str(file), validation_rows=1, max_bad_share=0.5, split="validation")
    with pytest.raises(ValueError, match="cannot be held out: give --validation_data"):
        load(str(file), validation_rows=2, streaming=True)


# Processes, workers, resuming


def batches_of(rows, size: int, **options) -> list[list[str]]:
    return [names_ for names_ in DataLoader(rows, size, collate_fn=_names_of, drop_last=True, **options)]


def _names_of(items: list[dict]) -> list[str]:
    return [f"{item['name']} in epoch {item['epoch']}" for item in items]


def test_workers_read_the_same_batches_and_see_a_new_epoch():
    rows = load("synthetic:guard,rows=12")
    loaders = [
        DataLoader(rows, 3, collate_fn=_names_of),
        DataLoader(rows, 3, collate_fn=_names_of, num_workers=2, persistent_workers=True),
    ]
    for epoch in (0, 1):
        rows.set_epoch(epoch)
        alone, shared = (list(loader) for loader in loaders)
        assert alone == shared
        assert all(f"in epoch {epoch}" in name for batch in alone for name in batch)


def test_a_resumed_run_skips_to_the_rows_it_had_left(tmp_path):
    file = write_rows(tmp_path, 20, row4={"answer": ""})
    for rows in (load(str(file), max_bad_share=0.5), load(str(file), max_bad_share=0.5, streaming=True)):
        rows.set_epoch(1)
        loader = DataLoader(rows, 3, collate_fn=_names_of, num_workers=1)
        whole = list(loader)
        assert list(skip_first_batches(loader, 4)) == whole[4:] != []


def test_two_processes_read_the_batches_of_one():
    rows = load("synthetic:guard,rows=22")
    whole = batches_of(rows, 4)
    halves = []
    for process in range(2):
        sampler = BatchSampler(SequentialSampler(rows), 2, drop_last=True)
        shard = BatchSamplerShard(sampler, num_processes=2, process_index=process)
        halves.append([names_ for names_ in DataLoader(rows, batch_sampler=shard, collate_fn=_names_of)])
    assert [first + second for first, second in zip(*halves, strict=True)] == whole


@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_read_the_batches_of_one_from_a_stream(tmp_path, workers):
    file = write_rows(tmp_path, 33, row4={"answer": ""}, row11={"image": "gone.png"})

    def stream():
        return load(str(file), streaming=True, max_bad_share=0.5, shuffle_buffer=5)

    whole = batches_of(stream(), 4, num_workers=workers)
    halves = [
        batches_of(
            IterableDatasetShard(stream(), 2, drop_last=True, num_processes=2, process_index=process),
            2,
            num_workers=workers,
        )
        for process in range(2)
    ]
    assert len(whole) >= 6
    assert [first + second for first, second in zip(*halves, strict=True)] == whole


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_share_a_stream_and_report_what_they_skip(tmp_path):
    features = datasets.Features({"image": IMAGE, "question": STRING, "answer": STRING})
    for shard in range(4):
        lines = [{"image": noise_image(i, 20, 20), "question": f"{shard}?", "answer": "x" * (i > 0)} for i in range(5)]
        table = datasets.Dataset.from_list(lines, features=features)
        table.to_parquet(tmp_path / f"train-{shard}.parquet")
    report = None
    for workers in (0, 1, 2, 5):
        rows = load(f"chartqa:{tmp_path}", streaming=True, max_bad_share=0.5)
        found = [name for batch in DataLoader(rows, 1, collate_fn=_names_of, num_workers=workers) for name in batch]
        assert len(found) == len(set(found)) == 16
        report = report or rows.report()
        assert rows.report() == report
    assert len(report["skipped"]) == report["sources"][0]["skipped"] == 4
    log = rows._log.file
    del rows
    assert not log.exists()


def test_a_stream_mixes_by_weight_and_shuffles_by_epoch():
    data = ["synthetic:entity_grid,rows=400,weight=3", "synthetic:guard,rows=400,weight=1"]
    rows = load(*data, streaming=True, shuffle_buffer=20)
    orders = []
    for epoch in (0, 0, 1):
        rows.set_epoch(epoch)
        orders.append([item["row"] for item, _ in zip(rows, range(80), strict=False)])
    assert orders[0] == orders[1] != orders[2]
    share = np.mean([row < 2**40 for order in orders for row in order])
    assert 0.6 < share < 0.9
    assert orders[0] != sorted(orders[0])


def test_the_order_of_an_epoch_is_the_same_in_every_process():
    """Numbers that another process printed."""
    plan = EpochPlan([6, 5], [Fraction(6, 11), Fraction(5, 11)], None, seed=3)
    assert plan.order(2)[:5, :2].tolist() == [[1, 2], [0, 5], [0, 2], [1, 1], [0, 1]]
