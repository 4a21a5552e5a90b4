"""A fresh process is a stranger: it cannot import the project, by any road, and starts with an empty cache."""

from pathlib import Path

import pytest

from fresh_process import BLOCKED, run_fresh

ROOT = str(Path(__file__).parents[1])


@pytest.mark.parametrize("name", BLOCKED)
def test_the_project_cannot_be_imported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", ROOT)
    here = f"import sys; sys.path.insert(0, {ROOT!r}); import {name}"
    for code in (here, f"import subprocess, sys; subprocess.run([sys.executable, '-c', {here!r}], check=True)"):
        with pytest.raises(RuntimeError, match=f"{name} is blocked"):
            run_fresh(code)


def test_the_environment_is_clean_and_output_comes_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("HF_HOME", "/nowhere")
    code = "import os; print(os.listdir(), os.listdir(os.environ['HF_HOME']), os.environ.get('HF_TOKEN'))"
    assert run_fresh(code) == "[] [] None\n"
    code = "import os; print(os.environ['HF_HOME'], os.environ['HF_HUB_OFFLINE'])"
    assert run_fresh(code, env={"HF_HOME": str(tmp_path)}).strip() == f"{tmp_path} 1"
