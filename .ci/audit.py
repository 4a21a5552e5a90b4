#!/usr/bin/env python3
"""Look up every version of constraints.txt in the advisory database, by pip-audit in an environment of its own.

    python .ci/audit.py

The last line says what came of it: AUDITED with counts, and exit status 1 if an advisory names a version; or NOT RUN
with the reason, where pip-audit cannot be installed or the database cannot be reached, and exit status 0. An audit
that looked up fewer packages than are pinned is an error. Needs the standard library only.
"""

import json
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
SECONDS = 180
# What pip's and pip-audit's errors say where the machine has no way out; any other failure is an error.
_UNREACHABLE = (
    "Max retries exceeded",
    "Failed to establish a new connection",
    "Name or service not known",
    "Temporary failure in name resolution",
    "Network is unreachable",
    "Connection refused",
    "Connection reset by peer",
    "Read timed out",
    "Cannot connect to proxy",
    "No matching distribution found for pip-audit",
)


class NotRun(Exception):
    """The audit could not be made; the message is the reason."""


def main() -> int:
    """Audit, say what came of it."""
    pins = pinned(CONSTRAINTS.read_text())
    try:
        with tempfile.TemporaryDirectory(prefix="shirg-audit-") as folder:
            report = audit(Path(folder), pins)
        status, lines = verdict(report, pins)
    except NotRun as reason:
        print(f"dependency audit: NOT RUN: {reason}")
        return 0
    print("\n".join(lines))
    return status


def pinned(text: str) -> dict[str, str]:
    """Versions by name; a version's local part (+cpu), which no advisory knows, is left out."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;+]+)", text, flags=re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def audit(folder: Path, pins: dict[str, str]) -> dict:
    """pip-audit's report on `pins`.

    Raises:
        NotRun: it cannot be installed, or the database cannot be reached.
        RuntimeError: it failed in another way.
    """
    python = folder / "venv" / "bin" / "python"
    venv.create(folder / "venv", with_pip=True)
    installed = _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "pip-audit"])
    if installed.returncode:
        _raise_if_unreachable("pip-audit cannot be installed", installed.stderr)
        raise RuntimeError(f"pip-audit could not be installed: {installed.stderr}")
    requirements, out = folder / "requirements.txt", folder / "report.json"
    requirements.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()))
    words = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json", "--output", out]
    audited = _run([python, "-m", "pip_audit", "--requirement", requirements, *words])
    if out.is_file() and out.stat().st_size:
        return json.loads(out.read_text())
    _raise_if_unreachable("the advisory database cannot be reached", audited.stderr)
    raise RuntimeError(f"pip-audit ended with {audited.returncode} and no report: {audited.stderr}")


def verdict(report: dict, pins: dict[str, str]) -> tuple[int, list[str]]:
    """Exit status and lines for pip-audit's report; it passes if all were looked up and no advisory names one.

    Raises:
        NotRun: nothing was looked up, as where a mirror of the index knows no advisories.
        RuntimeError: it says nothing of a pinned package.
    """
    looked_up = {re.sub(r"[-_.]+", "-", entry["name"]).lower(): entry for entry in report["dependencies"]}
    absent = sorted(set(pins) - set(looked_up))
    if absent or not pins:
        raise RuntimeError(f"the audit says nothing of {', '.join(absent) or 'any package'}: it is none.")
    skipped = {name: entry["skip_reason"] for name, entry in looked_up.items() if "skip_reason" in entry}
    if len(skipped) == len(pins):
        raise NotRun(f"the database knows none of {len(pins)} packages (such as {next(iter(skipped.items()))})")
    lines = [f"{name}: not looked up ({reason})" for name, reason in skipped.items()]
    advisories = 0
    for name, entry in looked_up.items():
        for advisory in entry.get("vulns", ()):
            advisories += 1
            fixed = ", ".join(advisory["fix_versions"]) or "no version yet"
            lines.append(f"{name} {entry['version']}: {advisory['id']}, fixed in {fixed}")
    lines.append(
        f"dependency audit: AUDITED {len(pins) - len(skipped)} of {len(pins)} packages, {advisories} advisories"
    )
    return int(advisories > 0 or len(skipped) > 0), lines


def _run(words: list) -> subprocess.CompletedProcess:
    try:
        return subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise NotRun(f"{' '.join(map(str, words[1:4]))} was not done after {SECONDS} s (timed out)") from None


def _raise_if_unreachable(what: str, errors: str) -> None:
    if any(words in errors for words in _UNREACHABLE):
        raise NotRun(f"{what} ({_last_line(errors)})")


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if not line.startswith("WARNING")]
    return lines[-1][:300] if lines else "no message"


if __name__ == "__main__":
    sys.exit(main())
