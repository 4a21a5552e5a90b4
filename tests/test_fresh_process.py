"""A fresh process is a stranger: it cannot import the project, by any road, and starts with an empty cache."""

import subprocess
import sys
from pathlib import Path

import pytest

from fresh_process import BLOCKED, run_fresh

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", BLOCKED)
def test_the_project_cannot_be_imported(name: str) -> None:
    with pytest.raises(RuntimeError, match=f"ModuleNotFoundError: {name} is blocked"):
        run_fresh(f"import {name}")


def test_not_even_with_the_checkout_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    code = (
        f"import sys; assert {str(ROOT)!r} not in sys.path; sys.path.insert(0, {str(ROOT)!r}); import modeling_shirg.x"
    )
    with pytest.raises(RuntimeError, match="modeling_shirg is blocked"):
        run_fresh(code)


def test_the_blocker_reaches_child_processes() -> None:
    child = "import sys; sys.path.insert(0, sys.argv[1]); import configuration_shirg"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}, {str(ROOT)!r}], check=True)"
    with pytest.raises(RuntimeError, match="configuration_shirg is blocked"):
        run_fresh(code)


def test_output_comes_back_and_errors_are_shown() -> None:
    assert run_fresh("print('answer')") == "answer\n"
    with pytest.raises(RuntimeError, match="(?s)before.*ValueError: because"):
        run_fresh("print('before')\nraise ValueError('because')")
    with pytest.raises(subprocess.TimeoutExpired):
        run_fresh("import time; time.sleep(30)", timeout=0.5)


def test_the_environment_is_clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("HF_HOME", "/nowhere")
    code = "import os; env = os.environ; print(os.listdir(), os.listdir(env['HF_HOME']), env.get('HF_TOKEN'))"
    assert run_fresh(code) == "[] [] None\n"
    assert run_fresh("import os; print(os.environ['HF_HUB_OFFLINE'])") == "1\n"
    shared = {"HF_HOME": str(tmp_path)}
    assert run_fresh("import os; print(os.environ['HF_HOME'])", env=shared).strip() == str(tmp_path)


def test_it_is_this_python() -> None:
    assert run_fresh("import sys; print(sys.prefix)").strip() == sys.prefix
