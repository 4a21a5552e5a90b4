"""What the README tells people to paste works."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from shirg_scripts.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    line.split("  #")[0].strip()
    for language, block in BLOCKS
    if language == "bash"
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("shirg ask hub_card/")
]


def test_the_readme_has_commands_and_python():
    assert COMMANDS
    assert [language for language, _ in BLOCKS].count("python") >= 2


def test_the_python_of_the_readme_runs_from_top_to_bottom():
    program = "\n".join(block for language, block in BLOCKS if language == "python")
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_readme_run(command, monkeypatch, tmp_path, capsys):
    arguments = [str(ROOT / word) if word.startswith("hub_card/") else word for word in shlex.split(command)[1:]]
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.strip()


def test_every_preset_of_the_systems_table_exists_and_none_is_missing():
    from configuration_shirg import PRESETS

    rows = re.findall(r"^\| (`.+?) \|", README.split("## Systems")[1].split("##")[0], flags=re.MULTILINE)
    assert sorted(re.findall(r"`([\w-]+)`", " ".join(rows)[len("`--prune_method`") :])) == sorted(PRESETS)
