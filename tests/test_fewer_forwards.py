"""The flags and the page of fewer forwards."""

import json

import pytest

from shirg_scripts.fewer_forwards import SETTINGS, ask, main, parse_args, summary
from shirg_scripts.loading import load
from test_ask import GRID, QUESTION, _report


def test_the_flags_of_ask_reach_generate(capsys):
    assert _report(capsys, GRID, QUESTION)["forwards"] == 8
    assert _report(capsys, GRID, QUESTION, "--confidence_threshold", "1e-9")["forwards"] == 1
    assert _report(capsys, GRID, QUESTION, "--confidence_factor", "1000")["forwards"] == 1
    blocks = _report(capsys, GRID, QUESTION, "--block_length", "4", "--dual_cache", "--stop_at_eos")
    assert blocks["forwards"] <= 8


def test_every_setting_of_a_question_is_answered():
    loaded = load(None, device="cpu")
    found = ask(loaded, "entity_grid", 0, ({}, {"steps": 2}, {"confidence_threshold": 1e-9}), tokens=8)
    assert [each["forwards"] for each in found] == [8, 2, 1]
    assert all(isinstance(each["text"], str) and isinstance(each["right"], bool) for each in found)


def test_the_table_counts_questions():
    def found(text: str, right: bool, forwards: int) -> dict:
        return {"text": text, "right": right, "forwards": forwards}

    asked = [
        [found("a", True, 8), found("a", True, 2)],
        [found("b", True, 8), found("c", False, 4)],
    ]
    lines = summary(asked, ({}, {"stop_at_eos": True})).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert cells[0][:2] == ["defaults", "1.000"] and cells[0][3:] == ["1.000", "8.00"]
    assert cells[1][:2] == ["stop_at_eos=true", "0.500"] and cells[1][3:] == ["0.500", "3.00"]


def test_the_page_has_every_setting(tmp_path, monkeypatch, capsys):
    def answered(loaded, family, index, settings, tokens):
        return [{"text": "x", "right": True, "forwards": tokens}] * len(settings)

    monkeypatch.setattr("shirg_scripts.fewer_forwards.ask", answered)
    main(parse_args(["--images", "1", "--out", str(tmp_path / "page.md")]))
    written = (tmp_path / "page.md").read_text()
    names = [", ".join(f"{key}={json.dumps(value)}" for key, value in setting.items()) for setting in SETTINGS]
    assert all(f"| {name} " in written for name in names if name)
    assert "8 tokens of answer, 4 held-out" in written and "chart, document, entity_grid, guard" in written
    with pytest.raises(ValueError, match="--images 0: it must be 1 or more"):
        main(parse_args(["--images", "0"]))
