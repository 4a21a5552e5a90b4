"""`python -m modeling_shirg.training.toy.bundle` puts a run into a checkout, as a whole or not at all."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adapter_runs import PROJECTOR, save_base, save_run
from modeling_shirg import ShirgLavidaForConditionalGeneration
from modeling_shirg.training.toy import bundle


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with a base and an old bundle, and a run that adapted this base."""
    monkeypatch.chdir(tmp_path)
    for name in ("configuration_shirg", "modeling_shirg"):
        (tmp_path / name).symlink_to(Path(__file__).parents[1] / name)
    save_base(tmp_path / bundle.BASE)
    (bundle.BASE / "training.json").write_text('{"seed": 0}')
    bundle.MERGED.mkdir()
    (bundle.MERGED / "old.txt").write_text("old")
    save_run(tmp_path / "run", tmp_path / bundle.BASE, PROJECTOR, None)
    return tmp_path


def _main(run) -> None:
    bundle.main(run)


def test_both_folders_are_replaced_and_load(checkout):
    _main(checkout / "run")
    assert not (bundle.MERGED / "old.txt").exists() and not list(bundle.FOLDER.glob(".bundle-*"))
    weights = load_file(bundle.MERGED / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    merged, adapted = (
        ShirgLavidaForConditionalGeneration.from_pretrained(str(folder)) for folder in (bundle.MERGED, bundle.ADAPTER)
    )
    assert merged.dtype == torch.float32
    name = "model.multi_modal_projector.linear_1"
    expected = adapted.get_submodule(name)
    delta = expected.lora_B["default"].weight @ expected.lora_A["default"].weight * expected.scaling["default"]
    whole = expected.base_layer.weight + delta
    assert torch.allclose(merged.get_submodule(name).weight, whole, rtol=2**-7, atol=1e-4)
    assert json.loads((bundle.MERGED / "training.json").read_text()) == {"seed": 0}
    for folder in (bundle.MERGED, bundle.ADAPTER):
        assert str(checkout) not in "".join(file.read_text() for file in folder.glob("*.[jm][sd]*"))


def test_a_run_on_another_base_is_refused_and_nothing_changes(checkout):
    shutil.rmtree(bundle.BASE)
    save_base(checkout / bundle.BASE, seed=1)
    (bundle.BASE / "training.json").write_text("{}")
    with pytest.raises(ValueError, match="adapted a base with fingerprint .* adapt the base that is there"):
        _main(checkout / "run")
    assert (bundle.MERGED / "old.txt").exists()


def test_without_the_base_it_says_where_to_run_it(checkout):
    (bundle.BASE / "training.json").unlink()
    with pytest.raises(ValueError, match="run this in a checkout"):
        _main(checkout / "run")


def test_what_fails_leaves_the_old_folder(checkout, monkeypatch):
    def fail(*args):
        raise OSError("no space left")

    monkeypatch.setattr(bundle, "round_weights", fail)
    with pytest.raises(OSError, match="no space left"):
        _main(checkout / "run")
    assert (bundle.MERGED / "old.txt").exists() and not list(bundle.FOLDER.glob(".bundle-*"))
