"""How commands begin and end: help without torch, mistakes said before a model is loaded, quiet libraries, Ctrl-C."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from importlib.resources import files
from pathlib import Path

import pytest

from shirg_scripts import cli

GRID = str(files("shirg_hub_card") / "examples" / "grid.png")
SHIRG = [sys.executable, "-m", "shirg_scripts.cli"]
HEAVY = {"torch", "transformers", "numpy", "datasets", "peft", "gradio", "configuration_shirg", "modeling_shirg"}


def _imported(*arguments: str) -> tuple[subprocess.CompletedProcess, set[str]]:
    """A command in a process of its own, and the top-level packages that it imported."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", *SHIRG[1:], *arguments], capture_output=True, text=True, timeout=300
    )
    names = re.findall(r"^import time:.*\| *([\w.]+)$", run.stderr, flags=re.MULTILINE)
    return run, {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_help_imports_neither_torch_nor_transformers(command):
    run, imported = _imported(*filter(None, [command, "--help"]))
    assert run.returncode == 0 and f"shirg {command}".strip() in run.stdout
    assert imported & HEAVY == set()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["ask", "no-such-file.png", "?"], "'no-such-file.png'"),
        (["ask", GRID, "?", "--prune-method", "lavida980"], "'lavida980'. Did you mean 'lavida-980'?"),
        (["compare", GRID, "?", "--out", "s.png", "--systems", "shirg", "shrig"], "'shrig'. Did you mean 'shirg'?"),
        (["calibrate", "--prune-method=lavida980"], "Did you mean 'lavida-980'?"),
        (["convert", "somewhere", "elsewhere", "--prune_method", "lavida980"], "Did you mean 'lavida-980'?"),
        (["ask", GRID, "?", "--model", "my-lavida"], "'my-lavida'"),
        (["evaluate", "--out", "out", "--model", "runs/charst"], "'runs/charst', and it is no Hub id (OWNER/NAME)"),
        (["ask", GRID, "?", "--model", "runs"], "'runs' has no config.json"),
        (["ask", GRID, "?", "--stepz", "3"], "--stepz"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_imported(arguments, named, tmp_path, monkeypatch):
    (tmp_path / "runs" / "charts").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    run, imported = _imported(*arguments)
    assert run.returncode == 2 and run.stdout == "" and imported & HEAVY == set()
    (line,) = [line for line in run.stderr.splitlines() if not line.startswith("import time:")]
    assert line.startswith(f"shirg {arguments[0]}: ") and named in line


def test_unknown_commands_and_no_command(capsys):
    assert cli.main(["aks"]) == 2 and "'aks'" in capsys.readouterr().err
    assert cli.main([]) == 2 and "ask" in capsys.readouterr().out


def test_hyphens_become_underscores_in_flag_names_only():
    given = ["--prune-method=shirg-v1", "my-file.png", "--some-flag", "a-b", "--what is this-thing", "--", "--as-is"]
    assert cli.with_underscores(given) == ["--prune_method=shirg-v1", "my-file.png", "--some_flag", *given[3:]]


def test_libraries_say_nothing_and_no_escape_sequence_reaches_a_pipe(tmp_path):
    sheet, systems = str(tmp_path / "sheet.png"), ["shirg", "lavida", "shirg-mixed"]
    words = [["ask", GRID, "What?", "--stream", "--json"]]
    words += [["compare", GRID, "What?", "--prune_method", *systems, "--out", sheet]]
    ask, compare = (subprocess.run([*SHIRG, *each], capture_output=True, timeout=300) for each in words)
    assert ask.returncode == 0 and ask.stdout.startswith(b'{"answer"') and ask.stdout.count(b"\n") == 1
    assert ask.stderr == b"Model: shirg-lavida-tiny (bundled), system: shirg\n"
    assert compare.returncode == 0 and compare.stderr == b"" and Path(sheet).is_file()
    assert [line.split()[0].decode() for line in compare.stdout.splitlines()] == ["system", *systems]
    assert b"\033" not in ask.stdout + compare.stdout


@pytest.mark.parametrize("command", ["ask", "serve", "demo"])
def test_ctrl_c_is_one_line_and_status_130(command, monkeypatch, capsys):
    module = __import__(f"shirg_scripts.{command}", fromlist=["main"])
    threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()

    def work_until_interrupted(args) -> None:
        """A server ends quietly at an interrupt."""
        with contextlib.suppress(KeyboardInterrupt) if command != "ask" else contextlib.nullcontext():
            time.sleep(60)

    monkeypatch.setattr(module, "parse_args", lambda argv: None)
    monkeypatch.setattr(module, "main", work_until_interrupted)
    before = signal.getsignal(signal.SIGINT)
    assert cli.main([command]) == 130 and signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().err.strip() == f"shirg {command}: interrupted"


def test_ctrl_c_while_a_model_answers(tmp_path):
    command = [*SHIRG, "compare", GRID, "What?", "--out", str(tmp_path / "sheet.png")]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not run.stdout.readline().startswith("shirg "):
        assert run.poll() is None
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130 and errors.strip() == "shirg compare: interrupted"
