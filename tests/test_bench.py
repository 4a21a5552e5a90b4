"""`shirg bench`: what is timed and counted, and how it is told. No test is about how long something takes."""

import json
from pathlib import Path

import pytest
import torch

from modeling_shirg.evaluation import side_by_side
from modeling_shirg.evaluation.costs import peak_memory
from modeling_shirg.evaluation.side_by_side import STAGES, Timed, measure, ratios, spread
from modeling_shirg.running.load import Loaded
from shirg_scripts.cli import main
from tiny_model import tiny_config, tiny_model, tiny_processor

COUNTS = ["--profile", "toy", "--threads", "1", "--repeats", "2", "--device", "cpu"]
BUNDLED = str(Path(__file__).parents[1] / "hub_card" / "shirg-lavida-tiny")
ROWS = ("lavida-980", "shirg", "lavida-980:prefix_kv=0.6", "shirg:prefix_kv=0.6")


def _timed(preset: str) -> Timed:
    config = tiny_config(preset)
    return Timed(Loaded(tiny_model(config), tiny_processor(config), preset), {"max_new_tokens": 8, "steps": 4})


def test_repeats_are_taken_in_turn_on_the_same_pictures_and_the_warm_up_does_not_count(monkeypatch):
    systems, asked = {"a": _timed("lavida-980"), "b": _timed("shirg")}, []
    ask = side_by_side.ask

    def noted(loaded, chats, *arguments, **generation):
        asked.append((loaded.name, chats[0][0]["content"][0]["image"].tobytes()))
        return ask(loaded, chats, *arguments, **generation)

    monkeypatch.setattr(side_by_side, "ask", noted)
    found = measure(systems, repeats=2, warmup=1)
    names, pictures = zip(*asked, strict=True)
    assert names[:6] == ("lavida-980", "shirg") * 3 and len(names) == 6 + 2 * 3  # stages, FLOPs and memory
    assert len(set(pictures)) == 1
    for system in found.values():
        assert system["seconds"]["min"] <= system["seconds"]["median"] <= system["seconds"]["max"]
        assert (system["forwards"], system["image_tokens"]) == (4, 245) and tuple(system["stages"]) == STAGES
        assert system["peak_memory_bytes"] == system["weight_bytes"] + system["activation_bytes"]
    assert found["b"]["flops"] > 0


def test_spread_and_ratios():
    assert spread([3.0, 1.0, 2.0, 5.0, 4.0]) == {"median": 3.0, "min": 1.0, "max": 5.0, "q1": 2.0, "q3": 4.0}
    one, other = ({"seconds": spread([each]), "prefix_bytes": held} for each, held in ((2.0, 10), (3.0, None)))
    assert ratios({"a": one, "b": other}, "a") == {"a": {"seconds": 1.0, "prefix_bytes": 1.0}, "b": {"seconds": 1.5}}


def test_peak_memory_is_that_of_the_tensors():
    model, megabyte = tiny_model(tiny_config("shirg")), 1 << 20

    def run() -> None:
        torch.ones(megabyte // 4)
        both = [torch.ones(megabyte // 4), torch.ones(2 * megabyte // 4)]
        both.clear()
        torch.ones(megabyte // 4)

    memory = peak_memory(model, run)
    assert memory["weight_bytes"] == sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert 3 * megabyte <= memory["activation_bytes"] < 3 * megabyte + 4096


def test_the_last_line_is_one_object_and_every_row_has_a_line(capsys, tmp_path):
    out, threads = tmp_path / "toy.json", torch.get_num_threads()
    rows = ["--systems", *ROWS, "--baseline", "lavida-980", "--steps", "3"]
    assert main(["bench", *COUNTS, *rows, "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert json.loads(out.read_text()) == result and torch.get_num_threads() == threads
    assert tuple(result["systems"]) == tuple(result["ratios"]) == ROWS
    assert all(any(line.split()[:1] == [name] for line in lines) for name in ROWS)
    assert {system["forwards"] for system in result["systems"].values()} == {3}
    assert set(result["ratios"]["lavida-980"].values()) == {1.0}
    assert result["ratios"]["lavida-980:prefix_kv=0.6"]["prefix_bytes"] == pytest.approx(0.6, abs=0.01)
    assert (result["settings"]["weights"], result["machine"]["threads"]) == ("random weights", 1)


def test_real_weights_are_named(capsys):
    words = ["--model", BUNDLED, "--systems", "shirg", "shirg:batch=2", "--steps", "2"]
    assert main(["bench", *COUNTS, *words]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["settings"]["weights"] == BUNDLED and result["systems"]["shirg"]["image_tokens"] == 245


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--baseline", "lavida"], "'lavida'"),
        (["--repeats", "0"], "--repeats 0"),
        (["--out", "nowhere/x.json"], "nowhere"),
        (["--device", "tpu"], "tpu"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(capsys, words, named):
    assert main(["bench", *COUNTS, *words]) == 2
    assert named in capsys.readouterr().err
