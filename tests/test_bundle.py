"""`python -m modeling_shirg.training.toy.bundle` puts what a run made of the toy base into a checkout."""

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


def test_both_folders_are_replaced_and_load(checkout):
    bundle.main(checkout / "run")
    assert not (bundle.MERGED / "old.txt").exists()
    merged, adapted = (
        ShirgLavidaForConditionalGeneration.from_pretrained(str(folder)) for folder in (bundle.MERGED, bundle.ADAPTER)
    )
    stored = load_file(bundle.MERGED / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16} and merged.dtype == torch.float32
    name = "model.multi_modal_projector.linear_1"
    expected = adapted.get_submodule(name)
    delta = expected.lora_B["default"].weight @ expected.lora_A["default"].weight * expected.scaling["default"]
    whole = expected.base_layer.weight + delta
    assert torch.allclose(merged.get_submodule(name).weight, whole, rtol=2**-7, atol=1e-4)
    assert json.loads((bundle.MERGED / "training.json").read_text()) == {"seed": 0}
    for folder in (bundle.MERGED, bundle.ADAPTER):
        assert str(checkout) not in "".join(file.read_text() for file in folder.glob("*.[jm][sd]*"))
        assert all(file.is_symlink() and file.is_file() for file in folder.glob("*.py"))


def test_a_run_on_another_base_is_refused_and_nothing_changes(checkout):
    shutil.rmtree(bundle.BASE)
    save_base(checkout / bundle.BASE, seed=1)
    with pytest.raises(ValueError, match="fingerprint .*shirg-lavida-tiny-base"):
        bundle.main(checkout / "run")
    assert (bundle.MERGED / "old.txt").exists()
