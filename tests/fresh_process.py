"""Run code as a stranger would: in a new process that cannot import this project and has never seen the Hub.

An imported package hides what is missing from a saved folder, because its classes win over the folder's own code, and
a warm cache hides what is missing from a repository. Here neither is there.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

BLOCKED = ("configuration_shirg", "modeling_shirg", "shirg_scripts", "shirg_hub_card")

# Python imports `sitecustomize` at start-up, in this process and in any it starts. The blocker goes to the front
# of the finders, ahead of the one that an editable install of this project leaves in site-packages.
_BLOCKER = f"""
import sys

BLOCKED = {BLOCKED!r}


class Blocker:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{{name}} is blocked in a fresh process", name=name)
        return None


sys.meta_path.insert(0, Blocker)
"""

# Of the parent's environment, nothing that steers Python's imports or the Hugging Face libraries is handed on.
_DROPPED = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP")


def run_fresh(code: str, *, env: Mapping[str, str] | None = None, timeout: float = 300) -> str:
    """Run Python code in a fresh process and return what it printed.

    The working directory is empty and is not on `sys.path`; `HF_HOME` is new and empty; the Hub is offline. `env` adds
    to the environment or overrides it: `hub.env` of a `LoopbackHub`, or an `HF_HOME` that two calls share.

    Raises:
        RuntimeError: the code failed; the message holds its output and its standard error.
        subprocess.TimeoutExpired: it ran longer than `timeout` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="shirg-fresh-") as folder:
        root = Path(folder)
        for name in ("home", "site", "work"):
            (root / name).mkdir()
        (root / "site" / "sitecustomize.py").write_text(_BLOCKER)
        (root / "code.py").write_text(code)
        run = subprocess.run(
            [sys.executable, "-P", str(root / "code.py")],
            cwd=root / "work",
            env=_environment(root) | dict(env or {}),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    if run.returncode:
        raise RuntimeError(f"the fresh process failed with {run.returncode}\n{run.stdout}\n{run.stderr}")
    return run.stdout


def _environment(root: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_DROPPED)}
    return kept | {
        "PYTHONPATH": str(root / "site"),
        "HF_HOME": str(root / "home"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "2",
    }
