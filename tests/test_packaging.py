"""The wheel carries the code, the command, the bundled checkpoint and the examples; nothing under a foreign name."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOP_LEVEL = {"configuration_shirg", "modeling_shirg", "shirg_hub_card", "shirg_scripts"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of the tracked files, built from a copy with the setuptools that is installed: no network."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in tracked.stdout.splitlines():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run = subprocess.run([*command, "--wheel-dir", folder, source], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    return next(folder.glob("*.whl"))


def test_nothing_lands_under_a_foreign_name_and_the_command_is_declared(wheel):
    archive = zipfile.ZipFile(wheel)
    files = archive.namelist()
    assert {name.split("/")[0] for name in files if ".dist-info/" not in name} == TOP_LEVEL
    assert "modeling_shirg/evaluation/metrics/anls/anls.py" in files
    (entry_points,) = [name for name in files if name.endswith("entry_points.txt")]
    declared = archive.read(entry_points).decode()
    assert "[console_scripts]\nshirg = shirg_scripts.cli:main" in declared
    assert "[lmms_eval.models]\nshirg = modeling_shirg.evaluation.lmms_eval_model:manifest" in declared


def test_the_wheel_alone_answers(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import sys, shirg_scripts.cli as cli\n"
        "from importlib.resources import files\n"
        f"assert cli.__file__.startswith({str(tmp_path)!r}), cli.__file__\n"
        "sys.exit(cli.main(['ask', str(files('shirg_hub_card') / 'examples' / 'grid.png'), 'What is in cell 5?']))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()
    assert str(tmp_path) not in run.stderr
