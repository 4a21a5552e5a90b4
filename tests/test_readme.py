"""What README and docs tell people to paste works."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configuration_shirg import PRESETS
from shirg_scripts import cli
from shirg_scripts.readme import PARTS, with_measured_parts

ROOT = Path(__file__).parents[1]
PAGES = {page.name: page.read_text() for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
README = PAGES["README.md"]
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", "".join(PAGES.values()), flags=re.DOTALL)
COMMANDS = sorted(
    {
        part.strip()
        for language, block in BLOCKS
        if language == "bash"
        for line in block.replace("\\\n", " ").splitlines()
        for part in re.split(r"&& |\| ", line.split("  #")[0])
        if part.startswith("shirg ")
    }
)


def test_the_commands_are_told_of():
    assert {command.split()[1] for command in COMMANDS} == set(cli.COMMANDS)


def test_the_python_of_the_readme_runs_from_top_to_bottom():
    program = "\n".join(re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL))
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0 and run.stdout.strip(), run.stderr


def test_its_measured_parts_are_what_is_stored():
    assert with_measured_parts(README, ROOT) == README
    assert set(PARTS) == set(re.findall(r"<!-- measured: (\w+) -->", README))


def _arguments(command: str) -> list[str]:
    """The words behind `shirg`, with paths in this checkout."""
    return [str(ROOT / word) if word.startswith("hub_card/") else word for word in shlex.split(command)[1:]]


def test_its_picture_is_what_the_command_beside_it_draws(tmp_path):
    (command,) = re.findall(r"`(shirg ask .* --overlay) docs/overlay.png`", README)
    assert cli.main([*_arguments(command), str(tmp_path / "drawn.png")]) == 0
    shown, drawn = (
        np.asarray(Image.open(path), float) for path in (ROOT / "docs/overlay.png", tmp_path / "drawn.png")
    )
    assert shown.shape == drawn.shape and np.abs(shown - drawn).mean() < 2  # a patch at the cut may differ


@pytest.mark.parametrize("command", COMMANDS)
def test_arguments_are_understood(command, tmp_path, monkeypatch):
    name, *arguments = _arguments(command)
    monkeypatch.chdir(tmp_path)
    for model in re.findall(r"--(?:model|base) ([\w.-]+)(?= |$)", command):  # folders that the reader has
        Path(model).mkdir()
        Path(model, "config.json").write_text("{}")
    for file in re.findall(r"(?:scripts/configs/\S+\.yaml|\b[\w-]+\.(?:png|jpg))", command):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_bytes((ROOT / file).read_bytes() if (ROOT / file).is_file() else b"")
    parsed = importlib.import_module(f"shirg_scripts.{name}").parse_args(cli.with_underscores(arguments))
    understood = {}
    for part in parsed if isinstance(parsed, tuple) else (parsed,):
        understood |= vars(part)
    understood |= {"prune_method": understood.get("systems", understood.get("prune_method"))}
    for flag, value in re.findall(r"--(\w+) ([\w./-]+)", command):
        given = understood.get(flag)
        assert value in map(str, given) if isinstance(given, list) else given is None or str(given).endswith(value)


def test_every_preset_is_in_the_table_of_systems_and_no_other():
    rows = re.findall(r"^\| (`.+?) \|", PAGES["systems.md"], flags=re.MULTILINE)
    named = set(re.findall(r"`([\w-]+)`", " ".join(rows)))
    assert named - {"--prune_method"} == set(PRESETS)
