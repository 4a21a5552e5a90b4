"""`shirg train`: one run from its first step to its report, killed and resumed, on one process and on two."""

import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from command_runs import contents
from full_disk import full_beyond
from modeling_shirg.training.run_folder import last_complete_checkpoint
from training_run import facts, flags, log, losses, output_of, run, run_and_kill, save_base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """A run that nothing happened to."""
    return run(model=base, output_dir=tmp_path_factory.mktemp("runs") / "whole", then_evaluate=True)


def _adapter(folder):
    return load_file(folder / "adapter_model.safetensors")


def _assert_same_weights(one, other):
    one, other = _adapter(one), _adapter(other)
    assert set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def _until(entries, step):
    return [entry for entry in entries if entry["step"] <= step]


def test_a_run_leaves_the_best_adapter_and_its_report(whole, base):
    report = facts(whole)
    assert report["status"] == "finished" and report["steps"] == 6
    assert report["epochs"] == 2, "2 of 14 rows fill no step of 4 and wait"
    validation = losses(whole, "eval_loss")
    assert set(validation) == {2, 4, 6}
    assert report["metrics"]["eval_loss"] == min(validation.values())
    assert report["metrics"]["best_step"] == min(validation, key=validation.get)
    assert report["metrics"]["train_loss"] == losses(whole)[6]
    _assert_same_weights(whole, whole / f"checkpoint-{report['metrics']['best_step']}")
    assert any("foveal_position_embedding" in name for name in _adapter(whole))
    assert report["base_model"]["name_or_path"] == str(base) and report["base_model"]["revision"] is None
    assert report["footprint"] == {"name": "shirg-extra", "rank": 4, "alpha": 8}
    assert report["trainable"]["total"] == sum(weight.numel() for weight in _adapter(whole).values())
    (source,) = report["data"]
    assert (source["name"], source["rows"], source["skipped"]) == ("synthetic:guard", 14, 0)
    (figure,) = report["evaluation"]
    assert figure["n"] == 5 and 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
    assert (whole / "processor_config.json").exists() and (whole / "skipped_rows.jsonl").read_text() == ""


def test_the_loss_goes_down(whole):
    validation = losses(whole, "eval_loss")
    assert validation[6] < validation[4] < validation[2]


def test_a_run_that_meets_a_full_disk_keeps_its_checkpoint_and_continues(base, whole, tmp_path):
    arguments = {"model": base, "output_dir": tmp_path / "full"}
    folder = run_and_kill(3, **arguments)
    last = Path(last_complete_checkpoint(folder))
    held = contents(last)
    room = max(file.stat().st_size for file in folder.iterdir() if file.is_file())
    with full_beyond(room):  # what is in the folder fits again, an adapter does not
        status, said = output_of(**arguments)
    assert status == 2 and re.search(r"shirg train: .*(File too large|No space left|os error 27)", said), said
    assert "Traceback" not in said and contents(last) == held
    run(**arguments)
    assert losses(folder) == losses(whole)


@pytest.mark.parametrize(("step", "workers"), [(3, 0), (5, 2)], ids=["in the first epoch", "in the second, workers"])
def test_a_killed_run_continues_exactly(base, whole, tmp_path, step, workers):
    arguments = {"model": base, "output_dir": tmp_path / "killed", "dataloader_num_workers": workers}
    folder = run_and_kill(step, **arguments, then_evaluate=True)
    assert facts(folder)["status"] == "running" and not (folder / "adapter_model.safetensors").exists()
    before, reached = log(folder), int(last_complete_checkpoint(folder).rpartition("-")[2])
    run(**arguments, then_evaluate=True)
    after = log(folder)
    assert _until(before, reached) == _until(after, reached), "what was done is not done again"
    assert losses(folder) == losses(whole) and losses(folder, "eval_loss") == losses(whole, "eval_loss")
    _assert_same_weights(folder, whole)
    assert facts(folder)["evaluation"] == facts(whole)["evaluation"]
    assert len(after) == len(log(whole))
    seconds = [entry["seconds"] for entry in after]
    assert seconds == sorted(seconds)


def test_two_processes_are_one(base, whole, tmp_path):
    two = run(2, model=base, output_dir=tmp_path / "two", per_device_train_batch_size=1)
    assert facts(two)["machine"]["processes"] == 2
    assert losses(two) == pytest.approx(losses(whole), rel=1e-5)
    assert losses(two, "eval_loss") == pytest.approx(losses(whole, "eval_loss"), rel=1e-5)


def test_two_processes_share_every_draw_and_checkpointed_activations_change_nothing(base, whole, tmp_path):
    drawn = {"fovea_sizes": [224, 256, 336], "budgets": [100, 181], "train_selection": "gumbel", "token_dropout": 0.3}
    alone = run(model=base, output_dir=tmp_path / "one", **drawn)
    recomputed = {"per_device_train_batch_size": 1, "activation_checkpointing": True}
    two = run(2, model=base, output_dir=tmp_path / "two", **drawn, **recomputed)
    assert losses(two) == pytest.approx(losses(alone), rel=1e-5)
    assert losses(alone)[1] != pytest.approx(losses(whole)[1], rel=1e-3)


def test_a_checkpoint_of_two_processes_is_resumed_by_one(base, whole, tmp_path):
    folder = run_and_kill(3, 2, model=base, output_dir=tmp_path / "killed")
    assert last_complete_checkpoint(folder) is not None
    run(model=base, output_dir=folder)
    assert losses(folder) == pytest.approx(losses(whole), rel=1e-5)
    assert losses(folder, "eval_loss") == pytest.approx(losses(whole, "eval_loss"), rel=1e-5)


def test_sharded_by_fsdp2_is_one_process(base, whole, tmp_path):
    arguments = {"model": base, "output_dir": tmp_path / "sharded", "per_device_train_batch_size": 1}
    folder = run_and_kill(3, 2, sharded=True, **arguments)
    run(2, sharded=True, **arguments)
    assert losses(folder) == pytest.approx(losses(whole), rel=1e-5)
    assert losses(folder, "eval_loss") == pytest.approx(losses(whole, "eval_loss"), rel=1e-5)
    one, other = _adapter(folder), _adapter(whole)
    assert set(one) == set(other)
    for name, weight in one.items():
        assert torch.allclose(weight, other[name], atol=1e-4), name


def test_a_run_killed_after_its_last_step_was_saved_takes_no_other(base, tmp_path):
    arguments = {"model": base, "output_dir": tmp_path / "run", "save_steps": 1, "eval_steps": 1, "max_steps": 5}
    folder = run(**arguments)
    weights, logged = _adapter(folder), losses(folder)
    (folder / "adapter_model.safetensors").unlink()
    (folder / "run.json").write_text(json.dumps(facts(folder) | {"status": "running"}))
    run(**arguments)
    assert losses(folder) == logged and facts(folder)["steps"] == len(logged) == 5
    assert all(torch.equal(weight, weights[name]) for name, weight in _adapter(folder).items())


@pytest.mark.slow
def test_fsdp2_takes_bfloat16_weights_with_float32_adapters(base, tmp_path):
    half = {"model": base, "dtype": "bfloat16", "bf16": True, "activation_checkpointing": True, "max_steps": 2}
    alone = run(output_dir=tmp_path / "one", **half)
    two = run(2, sharded=True, output_dir=tmp_path / "two", per_device_train_batch_size=1, **half)
    assert losses(two) == pytest.approx(losses(alone), rel=1e-2)
    assert {weight.dtype for weight in _adapter(two).values()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_the_launchers_start_it_unchanged(base, whole, tmp_path, launcher):
    config = files("shirg_scripts") / "configs" / "accelerate" / "cpu.yaml"
    words = {
        "accelerate": ["accelerate.commands.launch", "--config_file", str(config)],
        "torchrun": ["torch.distributed.run", "--nproc_per_node", "2"],
    }[launcher]
    arguments = flags(model=base, output_dir=tmp_path / "run", per_device_train_batch_size=1, use_cpu=True)
    command = [sys.executable, "-m", *words, "-m", "shirg_scripts.cli", "train", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert facts(tmp_path / "run")["machine"]["processes"] == 2
    assert losses(tmp_path / "run") == pytest.approx(losses(whole), rel=1e-5)


@pytest.mark.slow
def test_the_bundled_checkpoint_learns_another_system(tmp_path):
    config = files("shirg_scripts") / "configs" / "tiny.yaml"
    command = [sys.executable, "-m", "shirg_scripts.cli", "train", str(config), "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr
    (figure,) = facts(tmp_path / "run")["evaluation"]
    assert figure["low"] > max(0.25, figure["baseline"], figure["majority"])
    assert f"{figure['value']:.1%}" in done.stdout and f"{figure['baseline']:.1%} before training" in done.stdout
    assert (tmp_path / "run" / "loss.png").stat().st_size > 10_000
