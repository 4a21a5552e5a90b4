"""The data side of training: real files of every layout become rows, bad rows are counted, epochs are mixed.

What becomes of the rows (draws, labels, batches) is in test_training_batches.py.
"""

import json
import os
import subprocess
import sys
import zipfile
from collections import Counter
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard, skip_first_batches
from PIL import Image
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from transformers import HfArgumentParser

from modeling_shirg.scenes import scene
from modeling_shirg.training import mixture
from modeling_shirg.training.arguments import DataArguments
from modeling_shirg.training.encoder import RowEncoder
from modeling_shirg.training.mixture import load_rows
from modeling_shirg.training.reading import BadRow, ImageFiles
from modeling_shirg.training.sources import LCS_FILE
from tiny_model import noise_image, tiny_config, tiny_processor

ROOT = Path(__file__).parent.parent


def write_rows(folder: Path, count: int = 12, **changes) -> Path:
    """A JSONL file of `count` question-answer rows with an image each; `changes` are {row: {column: value}}."""
    lines = []
    for index in range(count):
        noise_image(index, 60 + index, 50).save(folder / f"{index}.png")
        row = {"image": f"{index}.png", "question": f"What is number {index}?", "answer": f"it is {index}"}
        lines.append(row | changes.get(f"row{index}", {}))
    return write_json(folder / "rows.json", lines)


def write_json(file: Path, values) -> Path:
    file.write_text(json.dumps(values))
    return file


def load_both(*data, seed: int = 0, encoder=None, **fields):
    return load_rows(DataArguments(data=list(map(str, data)), **fields), seed, encoder)


def load(*data, **fields):
    return load_both(*data, **fields)[0]


def items(rows) -> list[dict]:
    return [rows[place] for place in range(len(rows))]


def names(rows) -> list[str]:
    return [item["name"] for item in items(rows)]


def png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "png")
    return file.getvalue()


def text(message: dict) -> str:
    return "".join(block.get("text", "<image>") for block in message["content"])


# Layouts

IMAGE, STRING, INT = datasets.Image(), datasets.Value("string"), datasets.Value("int64")
STRINGS = datasets.List(STRING)
PHRASE = "\nAnswer the question using a single word or phrase."
WORD = "\nAnswer the question with a single word."
ANSWER = {"answer": STRING, "answer_id": INT}
# Source, columns as the Hub has them besides the image, a row of them, and the question and the answer it becomes.
SCHEMAS = {
    "chartqa (HuggingFaceM4)": (
        "chartqa",
        {"query": STRING, "label": STRINGS, "human_or_machine": datasets.ClassLabel(2)},
        {"query": "How many bars?", "label": ["7"], "human_or_machine": 1},
        (f"How many bars?{WORD}", "7"),
    ),
    "chartqa (lmms-lab)": (
        "chartqa",
        {"type": STRING, "question": STRING, "answer": STRING},
        {"type": "human_test", "question": "How many bars?", "answer": "7"},
        (f"How many bars?{WORD}", "7"),
    ),
    "docvqa": (
        "docvqa",
        {"questionId": STRING, "question": STRING, "question_types": STRINGS, "docId": INT, "answers": STRINGS},
        {"questionId": "1", "question": "Which date?", "docId": 3, "answers": ["1/8/93", "Jan 8, 1993"]},
        (f"Which date?{PHRASE}", "1/8/93"),
    ),
    "textvqa": (
        "textvqa",
        {"image_id": STRING, "question": STRING, "answers": STRINGS, "ocr_tokens": STRINGS},
        {"image_id": "a", "question": "What brand?", "answers": ["dell", "nokia", "nokia", "dell", "nokia"]},
        (f"What brand?{PHRASE}", "nokia"),
    ),
    "vqav2": (
        "vqav2",
        {"question": STRING, "multiple_choice_answer": STRING, "answers": datasets.List(ANSWER)},
        {"question": "Red?", "multiple_choice_answer": "yes", "answers": [{"answer": "no", "answer_id": 1}]},
        (f"Red?{PHRASE}", "yes"),
    ),
    "vqav2 (answers alone)": (
        "vqav2",
        {"question": STRING, "answers": datasets.List(ANSWER)},
        {"question": "Red?", "answers": [{"answer": each, "answer_id": 0} for each in ("no", "yes", "yes")]},
        (f"Red?{PHRASE}", "yes"),
    ),
}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_row_of_every_hub_schema_becomes_its_question_and_answer(tmp_path, schema):
    source, features, row, (question, answer) = SCHEMAS[schema]
    row = {name: row.get(name) for name in features} | {"image": noise_image(3, 70, 40)}
    table = datasets.Dataset.from_list([row] * 2, features=datasets.Features({**features, "image": IMAGE}))
    table.to_parquet(tmp_path / "train-00000-of-00001.parquet")
    rows = load(f"{source}:{tmp_path}")
    assert len(rows) == 2
    assert list(map(text, rows[0]["messages"])) == [f"<image>{question}", answer]
    assert [message["role"] for message in rows[0]["messages"]] == ["user", "assistant"]
    assert rows[0]["images"][0].tobytes() == noise_image(3, 70, 40).tobytes()


CONVERSATION = [
    {"from": "human", "value": "Describe the picture.\n<image>"},
    {"from": "gpt", "value": "noise"},
    {"from": "human", "value": "In one word?"},
    {"from": "gpt", "value": "chaos"},
]


@pytest.mark.parametrize("layout", ["stored zip", "deflated zip", "images", "beside"])
def test_lcs_reads_its_images_where_they_are_also_in_workers(tmp_path, layout):
    records = [{"id": str(i), "image": f"0000{i}/{i}.png", "conversations": CONVERSATION} for i in range(3)]
    write_json(tmp_path / LCS_FILE, records)
    images = {f"0000{i}/{i}.png": png(noise_image(i, 40, 30)) for i in range(3)}
    if "zip" in layout:
        kind = zipfile.ZIP_STORED if layout == "stored zip" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(tmp_path / "images.zip", "w", kind) as archive:
            for name, data in images.items():
                archive.writestr(name, data)
    else:
        for name, data in images.items():
            file = tmp_path / ("images" if layout == "images" else "") / name
            file.parent.mkdir(parents=True)
            file.write_bytes(data)
    before = sorted(tmp_path.rglob("*"))
    rows = load(f"lcs:{tmp_path}")
    for item in DataLoader(rows, None, num_workers=2):
        assert item["images"][0].tobytes() == noise_image(item["row"], 40, 30).tobytes()
        assert list(map(text, item["messages"])) == ["<image>Describe the picture.", "noise", "In one word?", "chaos"]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_truncated_zip_is_refused_and_a_damaged_or_missing_member_is_a_bad_row(tmp_path):
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(range(256)) * 50)
        directory = archive.fp.tell()
    whole = file.read_bytes()
    file.write_bytes(whole[:40] + b"\xff" * 30 + whole[70:])
    for name in ("a", "b"):
        with pytest.raises(BadRow, match=f"image: .*{name} in"):
            ImageFiles(file).find(name)
    file.write_bytes(whole[:directory])
    with pytest.raises(ValueError, match=f"{file}.*complete zip"):
        ImageFiles(file)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet", "csv"])
def test_a_local_file_of_rows(tmp_path, suffix):
    lines = json.loads(write_rows(tmp_path, 3).read_text())
    file = tmp_path / f"mine.{suffix}"
    if suffix == "jsonl":
        file.write_text("\n".join(map(json.dumps, lines)))
    else:
        getattr(datasets.Dataset.from_list(lines), f"to_{suffix}")(file)
    assert sorted(text(item["messages"][1]) for item in items(load(file))) == ["it is 0", "it is 1", "it is 2"]


@pytest.mark.parametrize("place", ["", "train"])
def test_an_imagefolder_with_metadata(tmp_path, place):
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    noise_image(0, 30, 30).save(folder / "a.png")
    lines = [{"file_name": name, "question": "Who?", "answer": "me"} for name in ("a.png", "gone.png")]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = load(tmp_path, max_bad_share=0.5)
    assert len(rows) == 1 and rows[0]["images"][0].size == (30, 30)
    assert [bad["row"] for bad in rows.report()["skipped"]] == [1]


def test_several_images_of_a_row_and_images_named_within_the_text(tmp_path):
    for i in range(2):
        noise_image(i, 30 + i, 30).save(tmp_path / f"{i}.png")
    pair = ["0.png", "1.png"]
    within = [{"from": "human", "value": "Is <image> like <image>?"}, {"from": "gpt", "value": "no"}]
    lines = [{"image": pair, "question": "Same?", "answer": "no"}, {"image": pair, "conversations": within}]
    found = {item["row"]: item for item in items(load(write_json(tmp_path / "rows.json", lines)))}
    assert [text(found[i]["messages"][0]) for i in range(2)] == ["<image><image>Same?", "Is<image>like<image>?"]
    assert [image.size for image in found[1]["images"]] == [(30, 30), (31, 30)]


def test_a_hub_data_set_is_read_over_http(hub, tmp_path):
    code = """
import datasets
from PIL import Image
from modeling_shirg.training.arguments import DataArguments
from modeling_shirg.training.mixture import load_rows

rows = [{"image": Image.new("RGB", (8, 8 + i)), "query": f"{i}?", "label": [str(i)]} for i in range(3)]
features = datasets.Features(
    {"image": datasets.Image(), "query": datasets.Value("string"), "label": datasets.List(datasets.Value("string"))}
)
datasets.Dataset.from_list(rows, features=features).push_to_hub("tester/charts", split="train")
rows, _ = load_rows(DataArguments(data=["chartqa:tester/charts,revision=main"]), 0)
found = [rows[place] for place in range(3)]
print(sorted((item["messages"][1]["content"][0]["text"], item["images"][0].height) for item in found))
print({name: rows.report()["sources"][0][name] for name in ("source", "dataset_id")})
try:
    load_rows(DataArguments(data=["chartqa:tester/missing"]), 0)
except ValueError as error:
    print(error)
"""
    environment = os.environ | hub.env | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    read, place, missing = run.stdout.strip().splitlines()
    assert read == "[('0', 8), ('1', 9), ('2', 10)]"
    assert place == str({"source": "tester/charts, revision=main", "dataset_id": "tester/charts"})
    assert "chartqa:tester/missing cannot be opened" in missing


# Bad rows

TURNS = {
    "nobody": [],
    "user, assistant, user": [*CONVERSATION[:2], CONVERSATION[2]],
    "assistant, user": [CONVERSATION[1], CONVERSATION[2]],
    "from 'bot'": [CONVERSATION[0], {"from": "bot", "value": "x"}],
    "empty answer": [CONVERSATION[0], {"from": "gpt", "value": ""}],
    "empty question": [{"from": "human", "value": "<image>\n"}, CONVERSATION[1]],
    "2 <image>": [{"from": "human", "value": "<image> <image> x"}, CONVERSATION[1]],
}
BAD = [
    ("missing image", {"image": "gone.png"}),
    ("missing image", {"image": None}),
    ("URL", {"image": "http://127.0.0.1:9/a.png"}),
    ("unreadable image", {"image": "truncated.png"}),
    ("unreadable image", {"image": "rows.json"}),
    ("missing image", {"image": []}),
    ("empty answer", {"answer": "  "}),
    ("empty answer", {"answer": []}),
    ("empty question", {"question": None}),
    ("unreadable question", {"question": 5.5}),
    ("unreadable fovea_box", {"fovea_box": [1, 2, 3]}),
    ("unreadable fovea_box", {"fovea_box": [5000, 0, 5001, 9]}),
    ("control token", {"question": "What is <|eot_id|>?"}),
    ("too long", {"answer": "x" * 400}),
    *((reason, {"conversations": turns}) for reason, turns in TURNS.items()),
]


@pytest.mark.parametrize("num_proc", [1, 2])
def test_bad_rows_are_left_out_counted_and_listed_with_their_reason(tmp_path, caplog, num_proc):
    total = 2 * len(BAD)
    file = write_rows(tmp_path, total, **{f"row{2 * i}": change for i, (_, change) in enumerate(BAD)})
    (tmp_path / "truncated.png").write_bytes(png(noise_image(0, 50, 50))[:2000])
    encoder = RowEncoder(tiny_processor(tiny_config()), answer_length=8, max_length=600)
    with caplog.at_level("WARNING"):
        rows = load(file, max_bad_share=0.5, encoder=encoder, num_proc=num_proc)
    assert f"{len(BAD)} of {total} rows" in caplog.text
    report = rows.report()
    assert [bad["row"] for bad in report["skipped"]] == list(range(0, total, 2))
    for bad, (reason, _) in zip(report["skipped"], BAD, strict=True):
        assert reason in bad["reason"], bad
    assert report["sources"][0]["skipped"] == len(BAD)
    assert sorted(item["row"] for item in items(rows)) == list(range(1, total, 2))


def test_too_many_bad_rows_are_an_error_that_names_share_limit_and_rows(tmp_path):
    file = write_rows(tmp_path, 20, **{f"row{i}": {"answer": ""} for i in (3, 7, 11)})
    with pytest.raises(ValueError, match=r"3 of 20 .* 15.00%: .*max_bad_share=10.00%(.|\n)*row 3: empty answer"):
        load(file, max_bad_share=0.1)
    assert len(load(file, max_bad_share=0.15)) == 17


def test_a_restart_does_not_read_good_rows_again_but_sees_mended_images(tmp_path, monkeypatch):
    file = write_rows(tmp_path, 10, row4={"image": "late.png"})
    assert len(load(file, max_bad_share=0.1)) == 9
    reads, original = [], mixture.read_row
    monkeypatch.setattr(mixture, "read_row", lambda *args: reads.append(1) or original(*args))
    assert len(load(file, max_bad_share=0.1)) == 9
    assert len(reads) == 1
    noise_image(0, 30, 30).save(tmp_path / "late.png")
    assert len(load(file, max_bad_share=0)) == 10


def test_a_row_that_breaks_after_the_check_is_an_error_and_not_replaced(tmp_path):
    rows = load(write_rows(tmp_path, 4))
    place = names(rows).index(f"2 of {tmp_path / 'rows.json'}")
    (tmp_path / "2.png").unlink()
    with pytest.raises(ValueError, match="Row 2 of .*missing image"):
        rows[place]


# Errors of the whole


@pytest.mark.parametrize(
    ("data", "fields", "message"),
    [
        (["chratqa"], {}, "'chratqa'.*'chartqa'"),
        (["nowhere/rows.json"], {}, "nowhere/rows.json"),
        (["lcs:nowhere"], {}, "nowhere/blip_laion_cc_sbu_558k.json"),
        (["synthetic:gird"], {}, "'gird'.*entity_grid"),
        (["synthetic"], {}, "synthetic:PLACE"),
        (["synthetic:chart,scale=0"], {}, "scale.*0.0"),
        (["synthetic:entity_grid,split=test"], {}, "split"),
        (["synthetic:entity_grid,weight=heavy"], {}, "weight=heavy"),
        (["synthetic:entity_grid,wieght=2"], {}, "'wieght'"),
        (["synthetic:entity_grid,weight=0"], {}, "weight.*0.0"),
        (["synthetic:entity_grid,weight=1", "synthetic:guard"], {}, "synthetic:guard has no weight"),
        (["synthetic:entity_grid", "synthetic:entity_grid"], {}, "Two sources.* synthetic:entity_grid"),
        (["synthetic:entity_grid"], {"ocr_share": 0.5}, "ocr_share=0.5.* all of"),
        (["synthetic:guard"], {"ocr_share": 0.5}, "ocr_share=0.5.* none of"),
        ([], {}, "--data or by --data_config"),
        ([], {"max_bad_share": 1.0}, "max_bad_share.* 1.0"),
        ([], {"ocr_share": 0}, "ocr_share.* 0"),
        ([], {"num_proc": 0}, "num_proc.* 0"),
        ([], {"validation_rows": -1}, "validation_rows.* -1"),
    ],
)
def test_wrong_wishes_are_refused_by_name(data, fields, message):
    with pytest.raises(ValueError, match=message):
        load(*data, **fields)


def test_no_row_a_missing_split_and_missing_columns_are_errors(tmp_path):
    row = {"image": noise_image(0, 20, 20), "question": "a", "answer": "b"}
    features = datasets.Features({"image": IMAGE, "question": STRING, "answer": STRING})
    write_json(tmp_path / "columns.json", [{"image": "a.png", "question": "a"}])
    (tmp_path / "broken.json").write_text("[{")
    datasets.Dataset.from_dict({name: [] for name in row}, features=features).to_parquet(tmp_path / "none.parquet")
    (tmp_path / "split").mkdir()
    datasets.Dataset.from_list([row], features=features).to_parquet(tmp_path / "split" / "test-0.parquet")
    named = {"columns.json": "image, question; needed.*answer", "broken.json": "", "none.parquet": "no rows"}
    for name, words in {**named, "split": "test"}.items():
        with pytest.raises(ValueError, match=f"{name}.*{words}"):
            load(tmp_path / name)
    assert len(load(f"chartqa:{tmp_path / 'split'},split=test")) == 1


# Mixtures


def test_without_weights_an_epoch_is_every_row_once_and_another_order_each_time(tmp_path):
    rows = load(write_rows(tmp_path, 12), "synthetic:guard,rows=8")
    orders = []
    for epoch in (0, 1, 0):
        rows.set_epoch(epoch)
        orders.append(names(rows))
    assert len(set(orders[0])) == 20 and sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1] and orders[0] == orders[2]
    assert names(load(tmp_path / "rows.json", "synthetic:guard,rows=8", seed=1)) != orders[0]


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
    assert [(each["weight"], each["rows"], each["per_epoch"]) for each in report] == [(0.75, 40, 40), (0.25, 40, 13)]


def test_a_longer_epoch_goes_through_a_small_source_again_all_of_it_each_time():
    rows = load("synthetic:entity_grid,rows=4,weight=1", "synthetic:guard,rows=90,weight=1", epoch_rows=20)
    drawn = items(rows)
    assert Counter(item["source"] for item in drawn) == {"synthetic:entity_grid": 10, "synthetic:guard": 10}
    uses = Counter((item["row"], item["repeat"]) for item in drawn if item["source"] == "synthetic:entity_grid")
    assert set(uses.values()) == {1} and uses.keys() >= {(row, repeat) for row in range(4) for repeat in (0, 1)}


@pytest.mark.parametrize("weights", [["", ""], [",weight=5", ",weight=1"]])
def test_ocr_share_is_the_share_of_rows_from_text_dense_sources(weights):
    data = [f"synthetic:entity_grid,rows=60{weights[0]}", f"synthetic:guard,rows=60{weights[1]}"]
    for changes, expected in ((("", ""), [20, 60]), ((",text_dense=false", ",text_dense=true"), [60, 20])):
        rows = load(*(source + change for source, change in zip(data, changes, strict=True)), ocr_share=0.25)
        assert [each["per_epoch"] for each in rows.report()["sources"]] == expected


def test_a_mixture_file_says_what_the_flags_of_the_command_say(tmp_path):
    grid, guard = "synthetic:entity_grid,rows=6,weight=2", "synthetic:guard,rows=6,weight=1"
    entry = {"source": "synthetic", "path": "entity_grid", "rows": 6, "weight": 2}
    write_json(tmp_path / "mix.json", {"data": [entry, guard]})
    (tmp_path / "mix.yaml").write_text(f"data:\n- {json.dumps(entry)}\n- {guard}\n")
    parse = HfArgumentParser(DataArguments).parse_args_into_dataclasses
    expected = names(load_rows(*parse(["--data", grid, guard]), 0)[0])
    for name in ("mix.json", "mix.yaml"):
        assert names(load_rows(*parse(["--data_config", str(tmp_path / name)]), 0)[0]) == expected
    (tmp_path / "mix.yaml").write_text("sources: []")
    with pytest.raises(ValueError, match="mix.yaml must hold one key, data"):
        load(data_config=str(tmp_path / "mix.yaml"))


# Validation


def contents(rows) -> list:
    return [(item["name"], item["epoch"], item["messages"], item["images"][0].tobytes()) for item in items(rows)]


def test_held_out_rows_are_never_trained_on_and_always_the_same(tmp_path):
    file = write_rows(tmp_path, 20)
    train, held = load_both(f"{file},weight=1", "synthetic:entity_grid,rows=20,weight=1", validation_rows=8)
    assert len(train) == 32 and len(held) == 8
    assert not {name for name in names(train) if "rows.json" in name} & set(names(held))
    before = contents(held)
    held.set_epoch(3)
    assert contents(held) == before
    assert not {image for *_, image in contents(train)} & {image for *_, image in before}


@pytest.mark.parametrize("family", ["chart", "document", "entity_grid", "guard"])
def test_the_benchmarks_families_can_be_trained_on(family):
    train, (larger, held) = (
        load(f"synthetic:{family},rows=8"),
        load_both(f"synthetic:{family},rows=8,scale=2", validation_rows=2),
    )
    pairs = zip(items(train), items(larger), strict=True)
    sides = [(max(one["images"][0].size), max(other["images"][0].size)) for one, other in pairs]
    assert all(384 <= one <= 512 and other == 2 * one for one, other in sides)
    assert [max(item["images"][0].size) for item in items(held)] == [896, 896]
    drawn = scene(family, "train", train[0]["row"])
    turns = [turn["content"][-1]["text"] for turn in train[0]["messages"]]
    assert tuple(turns) in {(question.text, question.answer) for question in drawn.questions}
    assert np.array_equal(train[0]["images"][0], drawn.image)


def test_validation_data_of_its_own(tmp_path):
    fields = {"validation_data": [str(write_rows(tmp_path, 10))]}
    assert len(load_both("synthetic:entity_grid", **fields)[1]) == 10
    assert len(load_both("synthetic:entity_grid", validation_rows=4, **fields)[1]) == 4
    assert load_both("synthetic:entity_grid")[1] is None
    with pytest.raises(ValueError, match="validation_rows=10 .* all 10"):
        load(*fields["validation_data"], validation_rows=10)


# Processes, workers, resuming


def _names_of(items: list[dict]) -> list[str]:
    return [f"{item['name']} in epoch {item['epoch']}" for item in items]


def test_workers_read_the_same_batches_see_a_new_epoch_and_skip_what_is_done():
    rows = load("synthetic:guard,rows=12")
    alone = DataLoader(rows, 3, collate_fn=_names_of)
    shared = DataLoader(rows, 3, collate_fn=_names_of, num_workers=2, persistent_workers=True)
    for epoch in (0, 1):
        rows.set_epoch(epoch)
        batches = list(alone)
        assert batches == list(shared)
        assert all(f"in epoch {epoch}" in name for batch in batches for name in batch)
    assert list(skip_first_batches(shared, 2)) == batches[2:] != []


def test_two_processes_read_the_batches_of_one():
    rows = load("synthetic:guard,rows=22")
    whole = list(DataLoader(rows, 4, collate_fn=_names_of, drop_last=True))
    halves = []
    for process in range(2):
        sampler = BatchSampler(SequentialSampler(rows), 2, drop_last=True)
        shard = BatchSamplerShard(sampler, num_processes=2, process_index=process)
        halves.append(list(DataLoader(rows, batch_sampler=shard, collate_fn=_names_of)))
    assert [first + second for first, second in zip(*halves, strict=True)] == whole
