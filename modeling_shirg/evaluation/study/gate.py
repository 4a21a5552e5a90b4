"""Whether the base of a study reads well enough for its comparisons to mean something.

A model at chance proves nothing: where it cannot read the largest signs, no choice of image tokens can help it.
"""

from typing import Any

from modeling_shirg.evaluation.scenes import FAMILIES
from modeling_shirg.evaluation.scenes.benchmark import largest_size
from modeling_shirg.evaluation.study.config import Gate

_METRIC = "exact_match"


def gate_verdict(gate: Gate, results: dict[str, Any]) -> dict[str, Any]:
    """What the base's evaluation says about the gate.

    Args:
        gate: what is asked.
        results: tables of `shirg evaluate` with the gate's system and the control `blank`.

    Returns:
        `passes`, the gate, and under `families` one row per task: the largest size (`None` where a family has none,
        then all of its questions), `value` with its interval, `majority` and `blank`, `passes`.
    """
    families = [_family(gate, task, results) for task in results["tasks"]]
    return {
        "passes": all(row["passes"] for row in families),
        "system": gate.system,
        "at_least": gate.at_least,
        "margin": gate.margin,
        "families": families,
    }


def _family(gate: Gate, task: str, results: dict[str, Any]) -> dict[str, Any]:
    size = largest_size(task) if task in FAMILIES else None
    largest = None if size is None else f"{size:g}"
    table, by = ("scores", "") if largest is None else ("groups", "glyph_px")
    rows = [r for r in results[table] if (r["task"], r["by"], r["system"]) == (task, by, gate.system)]
    rows = [row for row in rows if largest in (None, row["group"])]
    if largest is not None and not rows:
        raise ValueError(f"The gate needs {task} at {largest} px, which is not asked: take a larger limit and --out.")
    seen, blank = (_only(rows, task, control) for control in ("none", "blank"))
    # A family's majority stands beside its own metric, whichever that is.
    majority = max(row["majority"] or 0.0 for row in rows if row["control"] == "none")
    chance = max(majority, blank["value"])
    return {
        "task": task,
        "glyph_px": largest,
        "n": seen["n"],
        **{name: seen[name] for name in ("value", "low", "high")},
        "majority": majority,
        "blank": blank["value"],
        "passes": seen["value"] >= gate.at_least and seen["low"] >= chance + gate.margin,
    }


def _only(rows: list[dict], task: str, control: str) -> dict:
    found = [row for row in rows if (row["control"], row["metric"]) == (control, _METRIC)]
    if not found:
        raise ValueError(f"The gate needs {_METRIC} of {task} under the control {control!r}, which was not asked.")
    return found[0]
