"""The memory of loading and answering: what the command counts, and that nothing holds the weights twice."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from modeling_shirg.conversion.safetensors_stream import read_header
from shirg_scripts import answer_memory
from test_ask import BUNDLED


def figures(tmp_path: Path, *arguments: str) -> dict:
    """What the command prints, in a process that is as small as a user's."""
    out = tmp_path / "memory.json"
    command = [sys.executable, "-m", "shirg_scripts.answer_memory", "--device", "cpu", *arguments, "--out", str(out)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert json.loads(out.read_text()) == found
    return found


def test_it_counts_weights_the_whole_process_and_its_imports(tmp_path):
    found = figures(tmp_path, "--max_new_tokens", "4", "--steps", "2")
    stored = sum(each.stop - each.start for each in read_header(BUNDLED / "model.safetensors").values())
    # Stored in bfloat16, loaded in float32; buffers are not stored.
    assert found["weight_bytes"] == pytest.approx(2 * stored, rel=0.01) and found["dtype"] == "float32"
    assert found["forwards"] == 2 and found["image_tokens"] == 245 and found["prefix_bytes"] > 0
    assert 1e8 < found["imports_bytes"] < found["peak_bytes"] == found["host_peak_bytes"]
    assert found["ratio"] == pytest.approx(found["peak_bytes"] / found["weight_bytes"], abs=1e-4)
    beside = (found["peak_bytes"] - found["imports_bytes"]) / found["weight_bytes"]
    assert found["ratio_without_imports"] == pytest.approx(beside, abs=1e-4)
    assert (found["model"], found["prune_method"], found["max_new_tokens"]) == ("bundled", "shirg", 4)


@pytest.mark.slow
def test_full_width_is_held_once(tmp_path):
    arguments = ("--folder", str(tmp_path), "--max_new_tokens", "4", "--steps", "2")
    found = figures(tmp_path, "--blocks", "2", *arguments)
    assert found["weight_bytes"] > 3.5e9 and found["dtype"] == "bfloat16" and found["image_tokens"] == 980
    assert found["ratio"] < 1.15
    assert [path.name for path in tmp_path.iterdir()] == ["memory.json"]


def test_weights_come_from_one_place():
    with pytest.raises(ValueError, match="--blocks 2 and --model here: both are weights"):
        answer_memory.main(answer_memory.parse_args(["--blocks", "2", "--model", "here"]))
