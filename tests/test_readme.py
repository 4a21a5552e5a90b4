"""What the README tells people to paste works."""

import importlib
import json
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shirg_scripts.cli import main, with_underscores
from shirg_scripts.readme import PARTS, with_measured_parts

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    line.split("  #")[0].strip()
    for language, block in BLOCKS
    if language == "bash"
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("shirg ")
]
BUNDLED_COMMANDS = [
    command for command in COMMANDS if command.startswith("shirg ask hub_card/") and "--model" not in command
]


def test_the_readme_has_commands_and_python():
    assert {command.split()[1] for command in COMMANDS} == {
        "ask",
        "calibrate",
        "convert",
        "demo",
        "evaluate",
        "plan",
        "push",
        "report",
        "serve",
        "study",
        "train",
    }
    assert BUNDLED_COMMANDS
    assert [language for language, _ in BLOCKS].count("python") >= 2


def test_the_python_of_the_readme_runs_from_top_to_bottom():
    program = "\n".join(block for language, block in BLOCKS if language == "python")
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


def test_its_measured_parts_are_what_is_stored():
    assert with_measured_parts(README, ROOT) == README
    assert set(PARTS) == set(re.findall(r"<!-- measured: (\w+) -->", README))


def test_a_measured_part_follows_its_results(tmp_path):
    folder = tmp_path / "hub_card" / "shirg-lavida-tiny"
    folder.mkdir(parents=True)
    row = {"count": 7, "accuracy": 0.5, "low": 0.25, "high": 0.75, "no_image": 0.1, "majority": 0}
    row |= {"family": "grid", "kind": "count"}
    (folder / "figures.json").write_text(json.dumps([row]))
    text = with_measured_parts("a\n<!-- measured: toy -->\nold\n<!-- end -->\nz\n", tmp_path)
    assert "| grid: count | 7 | 50.0% (25.0% to 75.0%) | 10.0% | 0.0% |" in text
    assert (
        "old" not in text and text.startswith("a\n<!-- measured: toy -->\n|") and text.endswith("|\n<!-- end -->\nz\n")
    )


def test_the_report_of_the_study_follows_from_the_answers_that_are_stored_with_it(tmp_path):
    with tarfile.open(ROOT / "docs" / "study" / "run.tar.gz") as stored:
        stored.extractall(tmp_path, filter="data")
    (run,) = tmp_path.iterdir()
    assert f"shirg report runs/{run.name} --no_examples" in README
    assert main(["report", str(run), "--no_examples"]) == 0
    written, shown = ((folder / "REPORT.md").read_text() for folder in (run, ROOT / "docs" / "study"))
    assert written.partition("## Examples")[0] == shown.partition("## Examples")[0]


def test_its_picture_is_what_the_command_beside_it_draws(tmp_path):
    (command,) = re.findall(r"`(shirg ask .* --overlay docs/overlay.png)`", README)
    arguments = [str(ROOT / part) if part.startswith("hub_card/") else part for part in shlex.split(command)[1:-1]]
    assert main([*arguments, str(tmp_path / "drawn.png")]) == 0
    shown, drawn = (
        np.asarray(Image.open(path), float) for path in (ROOT / "docs/overlay.png", tmp_path / "drawn.png")
    )
    assert shown.shape == drawn.shape and np.abs(shown - drawn).mean() < 2  # a patch at the cut may differ


@pytest.mark.parametrize("command", COMMANDS)
def test_the_arguments_of_the_readme_are_understood(command):
    name, *arguments = shlex.split(command)[1:]
    args = importlib.import_module(f"shirg_scripts.{name}").parse_args(with_underscores(arguments))
    understood = {}
    for part in args if isinstance(args, tuple) else (args,):
        understood |= vars(part)
    for flag, value in re.findall(r"--(\w+) ([\w./-]+)", command):
        given = understood[flag]
        assert str(given[0] if isinstance(given, list) else given) == value


def test_the_flags_that_the_readme_explains_exist(capsys):
    (usage,) = [block for _, block in BLOCKS if block.startswith("shirg ask IMAGE QUESTION")]
    with pytest.raises(SystemExit, match="0"):
        main(["ask", "--help"])
    known = set(re.findall(r"--\w+", capsys.readouterr().out))
    flags = set(re.findall(r"--\w+", usage))
    assert len(flags) > 5 and flags <= known


def test_the_readme_counts_the_cases_that_the_docs_list():
    docs = (ROOT / "docs" / "exactness.md").read_text()
    (passed, total) = re.search(r"^(\d+) of (\d+) cases pass\.", docs, flags=re.MULTILINE).groups()
    assert f"[{passed} of {total} reference cases](docs/exactness.md)" in README


@pytest.mark.parametrize("command", BUNDLED_COMMANDS)
def test_the_commands_of_the_readme_run(command, monkeypatch, tmp_path, capsys):
    arguments = [str(ROOT / word) if word.startswith("hub_card/") else word for word in shlex.split(command)[1:]]
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.strip()


def test_every_preset_of_the_systems_table_exists_and_none_is_missing():
    from configuration_shirg import PRESETS

    rows = re.findall(r"^\| (`.+?) \|", README.split("## Systems")[1].split("##")[0], flags=re.MULTILINE)
    assert sorted(re.findall(r"`([\w-]+)`", " ".join(rows)[len("`--prune_method`") :])) == sorted(PRESETS)
