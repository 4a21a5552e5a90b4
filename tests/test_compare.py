"""`shirg compare`: every system on one image, with exact counts, and the sheet."""

import json
from importlib.resources import files
from pathlib import Path

import pytest
from PIL import Image

from configuration_shirg import PRESETS
from shirg_scripts.cli import main

GRID = str(Path(str(files("shirg_hub_card"))) / "examples" / "grid.png")


def test_all_systems_on_one_sheet(capsys, tmp_path):
    out = tmp_path / "sheet.png"
    assert main(["compare", GRID, "What is in cell 5?", "--out", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert list(report["systems"]) == list(PRESETS)
    counts = {name: row["image_tokens"] for name, row in report["systems"].items()}
    others = {"shirg-fixed": 228, "shirg-mixed": 192, "siglip-672": 576, "lavida": 259, "lavida-full": 845}
    adaptive = counts.pop("shirg-adaptive")
    assert 155 <= adaptive <= 245
    assert counts == {name: others.get(name, 245) for name in counts}
    assert Image.open(out).width == 5 * 448


def test_what_cannot_be_written_or_is_unknown_is_named_before_any_work(capsys, tmp_path):
    assert main(["compare", GRID, "?", "--out", str(tmp_path / "none" / "sheet.png")]) == 2
    assert "none" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["compare", GRID, "?", "--out", "sheet.png", "--systems", "shrig"])
    assert "shrig" in capsys.readouterr().err
