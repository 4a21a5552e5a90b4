"""A fresh process is a stranger: it cannot import the project, by any road, and starts with an empty cache."""

import subprocess
import sys
from pathlib import Path

import pytest

from fresh_process import BLOCKED, run_fresh

ROOT = str(Path(__file__).parents[1])


@pytest.mark.parametrize("name", BLOCKED)
def test_the_project_cannot_be_imported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", ROOT)
    for code in (f"import {name}", f"import sys; sys.path.insert(0, {ROOT!r}); import {name}.x"):
        with pytest.raises(RuntimeError, match=f"ModuleNotFoundError: {name} is blocked"):
            run_fresh(code)
    child = f"import sys; sys.path.insert(0, {ROOT!r}); import {name}"
    with pytest.raises(RuntimeError, match=f"{name} is blocked"):
        run_fresh(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)")


def test_output_comes_back_and_errors_are_shown() -> None:
    assert run_fresh("import sys; print(sys.prefix)") == f"{sys.prefix}\n"
    with pytest.raises(RuntimeError, match="(?s)before.*ValueError: because"):
        run_fresh("print('before')\nraise ValueError('because')")
    with pytest.raises(subprocess.TimeoutExpired):
        run_fresh("import time; time.sleep(30)", timeout=0.5)


def test_the_environment_is_clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("HF_HOME", "/nowhere")
    code = "import os; env = os.environ; print(os.listdir(), os.listdir(env['HF_HOME']), env.get('HF_TOKEN'))"
    assert run_fresh(code) == "[] [] None\n"
    shared = {"HF_HOME": str(tmp_path)}
    code = "import os; print(os.environ['HF_HOME'], os.environ['HF_HUB_OFFLINE'])"
    assert run_fresh(code, env=shared).strip() == f"{tmp_path} 1"
