"""Corrections that `shirg calibrate` estimates, as a config keeps them: plain JSON values.

    {"relevance": {SOURCE: {"sign": 1 or -1, ...}},
     "attention": [{"view_policy": ..., "grid": G, "source": ..., "mean": [G * G numbers] or None, ...}]}

A sign belongs to one way of comparing patches with the question (`text_relevance`). A mean belongs to the views, the
grid and the `attention_source` that it was estimated on; it may only be used with exactly the same settings. The
remaining fields are facts for people: what was measured, on how many images of what.
"""

import math
from typing import Any, NamedTuple


class AttentionMap(NamedTuple):
    """Settings of an attention map: a mean may only be used with exactly the same ones."""

    view_policy: str
    grid: int
    source: str

    def __str__(self) -> str:
        return f"attention_source={self.source!r} on {self.view_policy} views of {self.grid}x{self.grid} patches"


def check_calibration(calibration: dict[str, Any] | None) -> None:
    """Raises a `ValueError` unless `calibration` is `None` or has signs and means as this module says."""
    if calibration is None:
        return
    if not isinstance(calibration, dict) or set(calibration) != {"relevance", "attention"}:
        raise ValueError(f"calibration must be None or have the fields relevance and attention, got {calibration}.")
    for source, entry in calibration["relevance"].items():
        if source not in ("lm", "siglip") or entry.get("sign") not in (1, -1):
            raise ValueError(f"calibration of relevance: lm and siglip have a sign of 1 or -1, got {source}: {entry}.")
    for entry in calibration["attention"]:
        if not {*AttentionMap._fields, "mean"} <= {*entry}:
            raise ValueError(
                f"calibration of the attention needs {', '.join(AttentionMap._fields)}, mean, got {entry}."
            )
        mean, count = entry["mean"], entry["grid"] ** 2
        if mean is not None and (len(mean) != count or not all(map(math.isfinite, mean))):
            held = f"{len(mean)} values: {mean!r:.100}"
            raise ValueError(f"calibration of {map_of(entry)}: mean must be {count} finite numbers, got {held}.")


def map_of(entry: dict[str, Any]) -> AttentionMap:
    """Settings of an entry of `calibration["attention"]`."""
    return AttentionMap(entry["view_policy"], entry["grid"], entry["source"])
