"""A calibration in a checkpoint's folder: the config's field, and the section of the card that says so.

Weights are never touched. Files are replaced whole, the config first; a section that is there is renewed.
"""

import json
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Template

from configuration_shirg import ShirgLavidaConfig
from configuration_shirg.calibration_shirg import joined_calibration
from modeling_shirg.running.files import new_folder, write_whole

_TEMPLATE = "calibration_section.md"
_START, _END = "<!-- calibration: written by shirg calibrate -->", "<!-- end of calibration -->"
_CONFIG, _CARD = "config.json", "README.md"
# What a folder has besides the checkpoint's own files.
_NOT_COPIED = shutil.ignore_patterns(".git", ".cache", "__pycache__")


def write_calibration(folder: Path, calibration: dict[str, Any]) -> None:
    """Put `calibration` into the folder's config, beside what other views have, and into its card if it has one."""
    fields = json.loads((folder / _CONFIG).read_text())
    fields["calibration"] = joined_calibration(fields.get("calibration"), calibration)
    ShirgLavidaConfig.from_dict(fields)  # nothing is written that would not load
    write_whole(folder / _CONFIG, json.dumps(fields, indent=2, sort_keys=True) + "\n")
    card = folder / _CARD
    if card.is_file():
        write_whole(card, with_calibration_section(card.read_text(), fields["calibration"]))


def write_calibrated_copy(source: Path, out: Path, calibration: dict[str, Any]) -> None:
    """Write a copy of the folder `source` with `calibration`; `out` appears when it is complete.

    Raises:
        ValueError: `out` is not new or empty.
    """
    with new_folder(out) as folder:
        shutil.copytree(source, folder, ignore=_NOT_COPIED, dirs_exist_ok=True)
        write_calibration(folder, calibration)


def with_calibration_section(card: str, calibration: dict[str, Any] | None) -> str:
    """The text of a model card with the section about `calibration`, in the old one's place or at the end."""
    before, _, rest = card.partition(_START)
    after = rest.partition(_END)[2].strip("\n")
    parts = [before.rstrip("\n"), after]
    if calibration is not None:
        section = Template((files("shirg_hub_card") / _TEMPLATE).read_text()).render(
            table=calibration_table(calibration)
        )
        parts.insert(1, f"{_START}\n{section}\n{_END}")
    return "\n\n".join(part for part in parts if part) + "\n"


def calibration_table(calibration: dict[str, Any]) -> str:
    """What was found, one line of Markdown for each signal."""
    lines = [
        "| signal | AUC as it is | AUC corrected | what the other half of the images decided | images | of |",
        "|---|---|---|---|---|---|",
    ]
    for source, entry in calibration["relevance"].items():
        decision = f"{entry['verdict']}, AUC {_figure(entry['decided'])}: sign {entry['sign']:+d}"
        lines.append(_line(f"`s`, `text_relevance={source!r}`", entry, entry["sign"] < 0, decision))
    for entry in calibration["attention"]:
        name = f"`a`, `attention_source={entry['source']!r}`, {entry['view_policy']} views, grid {entry['grid']}"
        used = "as it is" if entry["mean"] is None else "mean subtracted"
        decision = f"{entry['verdict']} without its mean at each position, by {_figure(entry['decided'], '+')}: {used}"
        lines.append(_line(name, entry, True, decision))
    return "\n".join(lines)


def _line(name: str, entry: dict[str, Any], corrected: bool, decision: str) -> str:
    images = entry["decided"]["images"] + entry["held_out"]["images"]
    after = _figure(entry["held_out_corrected"]) if corrected else "-"
    return f"| {name} | {_figure(entry['held_out'])} | {after} | {decision} | {images} | {entry['data']} |"


def _figure(figure: dict[str, Any], sign: str = "") -> str:
    mean, low, high = (format(figure[name], f"{sign}.3f") for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"
