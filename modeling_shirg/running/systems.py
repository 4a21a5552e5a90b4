"""The grammar of systems on a command line: `NAME`, or `NAME:FIELD=VALUE,...` for a preset that differs."""

import json
import re
from dataclasses import dataclass, field
from typing import Any

from configuration_shirg.presets_shirg import PRESETS, did_you_mean
from modeling_shirg.generation_config_shirg import GENERATION_DEFAULTS
from modeling_shirg.running.load import parse_options

# A comma before the next FIELD=; other commas belong to a value, which may be JSON.
_SEPARATOR = re.compile(r",(?=\s*[A-Za-z_][\w-]*=)")


@dataclass
class Row:
    """A system, a row of a table.

    Args:
        label: as it was written; the row's name in every table.
        preset: name of the system.
        options: fields of the config.
        generation: arguments of `generate`.
        batch: number of pictures at once; `None` is the number of the other rows.
    """

    label: str
    preset: str
    options: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    batch: int | None = None


def parse_row(text: str) -> Row:
    """A row from `NAME` or `NAME:FIELD=VALUE,...`; a field is `batch`, an argument of `generate`, or of the config.

    Raises:
        ValueError: an unknown preset or field, or a value that does not fit.
    """
    preset, _, rest = text.partition(":")
    if preset not in PRESETS:
        raise ValueError(f"Unknown system {preset!r}.{did_you_mean(preset, PRESETS)} Known: {', '.join(PRESETS)}.")
    entries = [_entry(text, entry) for entry in filter(None, _SEPARATOR.split(rest.rstrip(",")))]
    values = dict(entries)
    if len(values) < len(entries):
        raise ValueError(f"{text}: a field is given twice, in {', '.join(name for name, _ in entries)}.")
    batch = values.pop("batch", None)
    if batch is not None and (not isinstance(batch, int) or batch < 1):
        raise ValueError(f"{text}: batch={batch} must be a whole number of pictures, 1 or more.")
    generation = {name: values.pop(name) for name in list(values) if name in GENERATION_DEFAULTS}
    options = parse_options([f"{name}={json.dumps(value)}" for name, value in values.items()])
    return Row(text, preset, options, generation, batch)


def _entry(text: str, entry: str) -> tuple[str, Any]:
    name, equals, value = entry.partition("=")
    if not equals:
        raise ValueError(f"{text}: write {entry!r} as FIELD=VALUE, for example prefix_kv=0.6.")
    try:
        return name.strip().replace("-", "_"), json.loads(value)
    except json.JSONDecodeError:
        if "," in value:
            raise ValueError(f"{text}: {value!r} is no value; write every field as FIELD=VALUE.") from None
        return name.strip().replace("-", "_"), value
