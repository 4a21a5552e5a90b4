"""What `--data` and a mixture file say: which sources, from where, how much of each."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from configuration_shirg.presets_shirg import did_you_mean
from modeling_shirg.training.data.adapters import ADAPTERS
from modeling_shirg.training.data.scenes import TEXTLESS_FAMILY
from modeling_shirg.training.settings_file import read_settings

_FILES = (".json", ".jsonl", ".parquet", ".csv")
GRAMMAR = "NAME[:PLACE][,FIELD=VALUE...] or a file or folder"


@dataclass
class SourceSpec:
    """One source of a mixture.

    Attributes:
        source: a name in the registry (adapters.py).
        path: a Hub id, a folder or a file; by default the source's own place on the Hub. For `synthetic` the family.
        name: what reports call it; by default what it was written as.
        weight: its share of the rows, in proportion to the other sources' weights; all have one or none has.
        rows: use so many of its rows, drawn by the run's seed; by default all.
        split: the split to read, instead of the one that is asked for.
        config: the configuration of a Hub data set.
        revision: the revision of a Hub data set.
        images: the folder or zip archive where its image files lie; by default the folder of the file that names them.
        text_dense: whether it counts as text-dense for `ocr_share`.
        suffix: what is appended to every question, instead of the source's own suffix.
        scale: of rendered scenes, 1 for the toy geometry's views and 2 for the full geometry's.
    """

    source: str
    path: str | None = None
    name: str = ""
    weight: float | None = None
    rows: int | None = None
    split: str | None = None
    config: str | None = None
    revision: str | None = None
    images: str | None = None
    text_dense: bool | None = None
    suffix: str | None = None
    scale: float = 1.0

    def __post_init__(self):
        if self.source not in ADAPTERS:
            hint = did_you_mean(self.source, ADAPTERS)
            raise ValueError(f"There is no source {self.source!r}; there are {', '.join(ADAPTERS)}.{hint}")
        adapter = ADAPTERS[self.source]
        if self.path is None and adapter.path is None:
            raise ValueError(f"Source {self.source!r} has no place of its own: write {self.source}:PLACE.")
        self.name = self.name or (self.source if self.path is None else f"{self.source}:{self.path}")
        if self.path is None or self.path == adapter.path:
            self.config = self.config or adapter.config
        self.path = self.path or adapter.path
        if self.text_dense is None:
            has_text = self.source == "synthetic" and self.path != TEXTLESS_FAMILY
            self.text_dense = adapter.text_dense or has_text
        self.suffix = adapter.suffix if self.suffix is None else self.suffix
        if self.weight is not None and not self.weight > 0:
            raise ValueError(f"{self.name}: weight must be above 0, got {self.weight}.")
        if self.rows is not None and self.rows < 1:
            raise ValueError(f"{self.name}: rows must be at least 1, got {self.rows}.")
        if self.scale != 1 and (self.source != "synthetic" or not self.scale > 0):
            raise ValueError(f"{self.name}: scale is of rendered scenes and above 0, got {self.scale}.")


_TYPES = {
    "weight": float,
    "scale": float,
    "rows": int,
    "text_dense": lambda text: {"true": True, "false": False}[str(text).lower()],
}


def read_specs(data: list, config: str | None, flag: str) -> list[SourceSpec]:
    """The sources of `--data` (texts or mappings), or else those that the mixture file `config` lists.

    Raises:
        ValueError: both or neither are given, or what they say is no source; `flag` is what `data` was written as.
    """
    if bool(data) == (config is not None):
        raise ValueError(f"Say what to read, by {flag} or by --data_config, got {'both' if data else 'neither'}.")
    entries = data or _entries_of(Path(config))
    specs = [_of_mapping(entry) if isinstance(entry, dict) else _of_text(entry) for entry in entries]
    names = [spec.name for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"Two sources are called {twice[0]}: give them different names by the field name.")
    return specs


def _entries_of(file: Path) -> list:
    content = read_settings(file)
    if not isinstance(content, dict) or set(content) != {"data"} or not isinstance(content["data"], list):
        raise ValueError(f"--data_config {file} must hold one key, data, with a list of sources.")
    for entry in content["data"]:
        if not isinstance(entry, (str, dict)):
            raise ValueError(f"--data_config {file}: a source is {GRAMMAR}, or its fields by name; got {entry!r}.")
    return content["data"]


def _of_mapping(entry: dict[str, Any]) -> SourceSpec:
    known = [field.name for field in fields(SourceSpec)]
    unknown = [name for name in entry if name not in known]
    if unknown or "source" not in entry:
        what = f"has the unknown field {unknown[0]!r}" if unknown else "has no field 'source'"
        raise ValueError(f"The source {entry} {what}; there are {', '.join(known)}.")
    return SourceSpec(**{name: _typed(name, value, entry) for name, value in entry.items()})


def _typed(name: str, value: Any, source: Any) -> Any:
    """The value of a field of `source`, of the field's type."""
    if value is None:
        return None
    try:
        return _TYPES.get(name, str)(value)
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{source!r}: {name}={value} is no value for {name}.") from None


def _of_text(text: str) -> SourceSpec:
    """`NAME[:PLACE]`, or a local path, and fields after commas."""
    head, *settings = text.split(",")
    values = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"{text!r}: {setting!r} is no FIELD=VALUE. A source is {GRAMMAR}.")
        values[name] = value
    name, colon, place = head.partition(":")
    if name not in ADAPTERS and not colon and _is_place(head):
        return _of_mapping({"source": "plain", "path": head, "name": head} | values)
    return _of_mapping({"source": name, "path": place or None} | values)


def _is_place(text: str) -> bool:
    """Whether the text is a local path or looks like one, or like a Hub id."""
    return Path(text).exists() or text.endswith(_FILES) or "/" in text
