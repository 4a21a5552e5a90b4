"""What `shirg calibrate` found, as a config keeps it: plain JSON values, checked here and looked up here.

    {"relevance": {SOURCE: {"sign": 1 or -1, ...}},
     "attention": [{"view_policy": ..., "grid": G, "source": ..., "mean": [G * G numbers] or None, ...}]}

A sign belongs to one way of comparing patches with the question (`text_relevance`). A mean of the attention belongs to
the views, the grid and the `attention_source` that it was estimated on, and is used with no other: there may be one
for each. The remaining fields are facts for people: what was measured, on how many images of what.
"""

import math
from typing import Any, NamedTuple

_FACTS = {"verdict", "decided", "held_out", "held_out_corrected", "data", "prune_method"}
_RELEVANCE_FIELDS = {"sign", *_FACTS}
_ATTENTION_FIELDS = {"view_policy", "grid", "source", "mean", *_FACTS}
_CALIBRATE = "`shirg calibrate` writes it."


class AttentionMap(NamedTuple):
    """Which attention a mean was estimated on: two of them that differ in anything have nothing in common."""

    view_policy: str
    grid: int
    source: str

    def __str__(self) -> str:
        return f"attention_source={self.source!r} on {self.view_policy} views of {self.grid}x{self.grid} patches"


def check_calibration(calibration: dict[str, Any] | None) -> None:
    """Raises a `ValueError` unless `calibration` is `None` or as this module says."""
    if calibration is None:
        return
    if not isinstance(calibration, dict) or set(calibration) != {"relevance", "attention"}:
        held = sorted(calibration) if isinstance(calibration, dict) else calibration
        raise ValueError(f"calibration must be None or have the fields relevance and attention, got {held}.")
    relevance, attention = calibration["relevance"], calibration["attention"]
    if not isinstance(relevance, dict) or not isinstance(attention, list):
        raise ValueError(
            "calibration needs a dict of relevance and a list of attention, got a "
            f"{type(relevance).__name__} and a {type(attention).__name__}. {_CALIBRATE}"
        )
    for source, entry in relevance.items():
        name = f"calibration of text_relevance={source!r}"
        if source not in ("lm", "siglip"):
            raise ValueError(f"{name}: only 'lm' and 'siglip' have a sign.")
        _check_fields(name, entry, _RELEVANCE_FIELDS)
        if entry["sign"] not in (1, -1):
            raise ValueError(f"{name}: sign must be 1 or -1, got {entry['sign']!r}.")
    maps = []
    for entry in attention:
        _check_fields("calibration of the attention", entry, _ATTENTION_FIELDS)
        maps.append(_map_of(entry))
        _check_map(maps[-1])
        _check_mean(maps[-1], entry["mean"])
    if len(set(maps)) != len(maps):
        raise ValueError(f"calibration has two means of one attention: {', '.join(map(str, maps))}.")


def relevance_sign(calibration: dict[str, Any] | None, source: str) -> int:
    """1, or -1 where high relevance by `source` was found to lie outside of the boxes."""
    entry = None if calibration is None else calibration["relevance"].get(source)
    return 1 if entry is None else entry["sign"]


def attention_mean(calibration: dict[str, Any] | None, attention: AttentionMap) -> list[float] | None:
    """The mean to subtract at each position of this very attention; `None` where nothing is subtracted."""
    for entry in calibration["attention"] if calibration is not None else ():
        if _map_of(entry) == attention:
            return entry["mean"]
    return None


def foreign_means(calibration: dict[str, Any] | None, attention: AttentionMap) -> list[AttentionMap]:
    """The attentions that have a mean to subtract, if `attention` was not calibrated itself; else nothing."""
    entries = [] if calibration is None else calibration["attention"]
    if attention in map(_map_of, entries):
        return []
    return [_map_of(entry) for entry in entries if entry["mean"] is not None]


def joined_calibration(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """`old` with the entries of `new` in place of, or beside, its own."""
    if old is None:
        return new
    renewed = set(map(_map_of, new["attention"]))
    kept = [entry for entry in old["attention"] if _map_of(entry) not in renewed]
    return {"relevance": {**old["relevance"], **new["relevance"]}, "attention": kept + new["attention"]}


def _map_of(entry: dict[str, Any]) -> AttentionMap:
    return AttentionMap(entry["view_policy"], entry["grid"], entry["source"])


def _check_map(attention: AttentionMap) -> None:
    view_policy, grid, source = attention
    if not isinstance(grid, int) or grid < 1 or not isinstance(view_policy, str) or not isinstance(source, str):
        raise ValueError(
            "calibration of the attention needs the names of view_policy and source and a whole grid >= 1, got "
            f"{view_policy!r}, {source!r} and {grid!r}. {_CALIBRATE}"
        )


def _check_fields(name: str, entry: Any, fields: set[str]) -> None:
    if not isinstance(entry, dict) or set(entry) != fields:
        held = ", ".join(sorted(entry)) if isinstance(entry, dict) else repr(entry)
        raise ValueError(f"{name} must have exactly the fields {', '.join(sorted(fields))}, got {held}. {_CALIBRATE}")


def _check_mean(attention: AttentionMap, mean: Any) -> None:
    if mean is None:
        return
    if not isinstance(mean, list) or len(mean) != attention.grid**2:
        held = f"{len(mean)} values" if isinstance(mean, list) else repr(mean)
        raise ValueError(
            f"calibration of {attention}: mean needs {attention.grid**2} values, one for each patch, got {held}. "
            "Calibrate again for this grid."
        )
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in mean):
        raise ValueError(f"calibration of {attention}: every value of mean must be a finite number.")
