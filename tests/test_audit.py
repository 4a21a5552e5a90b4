"""The dependency audit of continuous integration: what it says of a report, of a part of one, and of none."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

AUDIT = Path(__file__).parents[1] / ".ci" / "audit.py"
PINNED = (AUDIT.parents[1] / "constraints.txt").read_text()
PINS = {"pillow": "12.0.0", "typing-extensions": "4.15.0"}


@pytest.fixture
def audit() -> dict:
    spec = importlib.util.spec_from_file_location("audit", AUDIT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return vars(module)


def report(*vulns: dict) -> dict:
    return {
        "dependencies": [
            {"name": "Pillow", "version": "12.0.0", "vulns": list(vulns)},
            {"name": "typing_extensions", "version": "4.15.0", "vulns": []},
        ]
    }


def test_every_pin_of_the_constraints_is_read(audit):
    lines = [line for line in PINNED.splitlines() if "==" in line and not line.lstrip().startswith("#")]
    assert len(audit["pinned"](PINNED)) == len(lines) > 20
    assert audit["pinned"]("torch==2.13.0+cpu\nA_b.c==1 ; x\n# d==2\n") == {"torch": "2.13.0", "a-b-c": "1"}


def test_an_advisory_fails_and_none_passes_with_counts(audit):
    status, lines = audit["verdict"](report(), PINS)
    assert status == 0 and lines == ["dependency audit: AUDITED 2 of 2 packages, 0 advisories"]
    status, lines = audit["verdict"](report({"id": "PYSEC-1", "fix_versions": ["12.0.1"]}), PINS)
    assert status == 1 and lines[0] == "pillow 12.0.0: PYSEC-1, fixed in 12.0.1"
    assert lines[-1] == "dependency audit: AUDITED 2 of 2 packages, 1 advisories"


def test_an_audit_of_less_than_all_is_no_pass(audit):
    with pytest.raises(RuntimeError, match="says nothing of typing-extensions"):
        audit["verdict"]({"dependencies": report()["dependencies"][:1]}, PINS)
    with pytest.raises(RuntimeError, match="any package"):
        audit["verdict"]({"dependencies": []}, {})
    part = {"dependencies": [report()["dependencies"][0], {"name": "typing-extensions", "skip_reason": "unknown"}]}
    status, lines = audit["verdict"](part, PINS)
    assert status == 1 and lines[-1].startswith("dependency audit: AUDITED 1 of 2")


def test_a_mirror_without_advisories_is_no_audit(audit, monkeypatch, capsys):
    skipped = {"dependencies": [{"name": name, "skip_reason": "not on PyPI"} for name in audit["pinned"](PINNED)]}
    monkeypatch.setitem(audit, "audit", lambda folder, pins: skipped)
    assert audit["main"]() == 0
    assert "NOT RUN: the database knows none of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("pip", "tool", "says"),
    [
        ("No matching distribution found for pip-audit", None, "NOT RUN: pip-audit cannot be installed (No matching"),
        ("ReadTimeoutError: Read timed out.", None, "NOT RUN: pip-audit cannot be installed (ReadTimeoutError"),
        ("ERROR: Could not install packages due to an OSError: No space left on device", None, None),
        (None, "ConnectionError: Max retries exceeded with url", "NOT RUN: the advisory database cannot be reached"),
        (None, "KeyError: 'a mistake of its own'", None),
        (None, "pip_audit._service.interface.ServiceError: 500 Server Error", None),
        (None, "AttributeError: 'Connection' object has no attribute 'Proxy'", None),
    ],
)
def test_what_cannot_be_looked_up_is_said(audit, monkeypatch, capsys, pip, tool, says):
    answers = iter(
        [
            subprocess.CompletedProcess([], int(pip is not None), "", pip),
            subprocess.CompletedProcess([], 1, "", tool),
        ]
    )
    monkeypatch.setattr(audit["venv"], "create", lambda *args, **kwargs: None)
    monkeypatch.setattr(audit["subprocess"], "run", lambda *args, **kwargs: next(answers))
    if says is None:
        with pytest.raises(RuntimeError, match=f"(installed|no report): {re.escape(tool or pip)}"):
            audit["main"]()
        return
    assert audit["main"]() == 0
    assert says in capsys.readouterr().out
