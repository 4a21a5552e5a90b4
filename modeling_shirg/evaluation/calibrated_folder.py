"""A calibration in a checkpoint's folder: the config's field, and a section of the card. Weights are never touched."""

import json
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Template

from configuration_shirg import ShirgLavidaConfig
from configuration_shirg.calibration_shirg import map_of
from modeling_shirg.running.files import new_folder, write_whole

_TEMPLATE = "calibration_section.md"
_START, _END = "<!-- calibration: written by shirg calibrate -->", "<!-- end of calibration -->"
_CONFIG, _CARD = "config.json", "README.md"
_NOT_COPIED = shutil.ignore_patterns(".git", ".cache", "__pycache__")


def write_calibration(folder: Path, calibration: dict[str, Any]) -> None:
    """Put `calibration` into the folder's config, beside that of other views, and into its card if it has one."""
    fields = json.loads((folder / _CONFIG).read_text())
    fields["calibration"] = joined_calibration(fields.get("calibration"), calibration)
    ShirgLavidaConfig.from_dict(fields)  # an invalid calibration is not written
    write_whole(folder / _CONFIG, json.dumps(fields, indent=2, sort_keys=True) + "\n")
    card = folder / _CARD
    if card.is_file():
        write_whole(card, with_calibration_section(card.read_text(), fields["calibration"]))


def write_calibrated_copy(source: Path, out: Path, calibration: dict[str, Any]) -> None:
    """Write a copy of the folder `source` with `calibration`; `out`, new or empty, appears when it is complete."""
    with new_folder(out) as folder:
        shutil.copytree(source, folder, ignore=_NOT_COPIED, dirs_exist_ok=True)
        write_calibration(folder, calibration)


def joined_calibration(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """`old` with the entries of `new` in place of, or beside, its own."""
    old = old or {"relevance": {}, "attention": []}
    renewed = set(map(map_of, new["attention"]))
    kept = [entry for entry in old["attention"] if map_of(entry) not in renewed]
    return {"relevance": {**old["relevance"], **new["relevance"]}, "attention": kept + new["attention"]}


def with_calibration_section(card: str, calibration: dict[str, Any] | None) -> str:
    """The text of a model card with the section about `calibration`, in the old section's place or at the end."""
    before, _, rest = card.partition(_START)
    parts = [before.rstrip("\n"), rest.partition(_END)[2].strip("\n")]
    if calibration is not None:
        parts.insert(1, f"{_START}\n{_section(calibration)}\n{_END}")
    return "\n\n".join(part for part in parts if part) + "\n"


def calibration_table(calibration: dict[str, Any]) -> str:
    """The figures of a calibration, one line of Markdown for each signal."""
    return "\n".join(line for line in _section(calibration).splitlines() if line.startswith("|"))


def _section(calibration: dict[str, Any]) -> str:
    return Template((files("shirg_hub_card") / _TEMPLATE).read_text()).render(calibration=calibration)
