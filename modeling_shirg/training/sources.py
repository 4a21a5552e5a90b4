"""What `--data` and a mixture file name: sources, their tables of rows, and where their image files lie."""

import re
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from datasets.exceptions import DatasetsError

from configuration_shirg.presets_shirg import did_you_mean
from modeling_shirg.scenes import FAMILIES, scene
from modeling_shirg.training.arguments import read_settings
from modeling_shirg.training.reading import ANSWERS, IMAGES, QUESTIONS, ImageFiles

LCS_FILE = "blip_laion_cc_sbu_558k.json"
_BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SCENES = 10_000
# The only family of scenes without text.
_TEXTLESS = "guard"
_GRAMMAR = "NAME[:PLACE][,FIELD=VALUE...] or a file or folder"


class KnownSource(NamedTuple):
    """A named source: its Hub id and configuration, whether its images are full of text, the end of its questions."""

    path: str | None = None
    config: str | None = None
    text_dense: bool = False
    suffix: str = ""


# The prompts that the public harnesses ask these data sets with.
_SINGLE_WORD = "\nAnswer the question with a single word."
_WORD_OR_PHRASE = "\nAnswer the question using a single word or phrase."
SOURCES = {
    "plain": KnownSource(),
    "lcs": KnownSource(),
    "chartqa": KnownSource("HuggingFaceM4/ChartQA", None, True, _SINGLE_WORD),
    "docvqa": KnownSource("lmms-lab/DocVQA", "DocVQA", True, _WORD_OR_PHRASE),
    "infographicvqa": KnownSource("lmms-lab/DocVQA", "InfographicVQA", True, _WORD_OR_PHRASE),
    "textvqa": KnownSource("lmms-lab/textvqa", None, True, _WORD_OR_PHRASE),
    "vqav2": KnownSource("lmms-lab/VQAv2", None, False, _WORD_OR_PHRASE),
    "synthetic": KnownSource(),
}


@dataclass
class SourceSpec:
    """One source of a mixture; docs/train.md describes the fields."""

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
        if self.source not in SOURCES:
            known, hint = ", ".join(SOURCES), did_you_mean(self.source, SOURCES)
            raise ValueError(f"There is no source {self.source!r}; there are {known}.{hint}")
        known = SOURCES[self.source]
        if self.path is None and known.path is None:
            raise ValueError(f"Source {self.source!r} has no place of its own: write {self.source}:PLACE.")
        self.name = self.name or (self.source if self.path is None else f"{self.source}:{self.path}")
        self.path = self.path or known.path
        if self.path == known.path:
            self.config = self.config or known.config
        if self.text_dense is None:
            self.text_dense = known.text_dense or self.source == "synthetic" and self.path != _TEXTLESS
        self.suffix = known.suffix if self.suffix is None else self.suffix
        for field in ("weight", "rows", "scale"):
            value = getattr(self, field)
            if value is not None and not value > 0:
                raise ValueError(f"{self.name}: {field} must be above 0, got {value}.")

    @property
    def dataset_id(self) -> str | None:
        """The data set on the Hub that the source is; `None` for files, folders and rendered scenes."""
        place = Path(self.path)
        local = self.source in ("synthetic", "lcs") or place.exists() or place.suffix
        return None if local or not _HUB_ID.fullmatch(self.path) else self.path

    @property
    def place(self) -> str:
        """Where the rows come from, for reports."""
        parts = {"config": self.config, "split": self.split, "revision": self.revision}
        return ", ".join([self.path, *(f"{name}={value}" for name, value in parts.items() if value is not None)])


_TYPES = {
    "weight": float,
    "scale": float,
    "rows": int,
    "text_dense": lambda text: {"true": True, "false": False}[str(text).lower()],
}


def read_specs(data: list, config: str | None = None) -> list[SourceSpec]:
    """The sources of `--data` (texts or mappings), or else those that the mixture file `config` lists.

    Raises:
        ValueError: both or neither are given, or what they say is no source.
    """
    if bool(data) == (config is not None):
        raise ValueError(f"Say what to read, by --data or by --data_config, got {'both' if data else 'neither'}.")
    if config is not None:
        data = read_settings(Path(config))
        if not isinstance(data, dict) or set(data) != {"data"} or not isinstance(data["data"], list):
            raise ValueError(f"--data_config {config} must hold one key, data, with a list of sources.")
        data = data["data"]
    specs = [_of_mapping(entry) if isinstance(entry, dict) else _of_text(str(entry)) for entry in data]
    names = [spec.name for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"Two sources are called {twice[0]}: give them different names by the field name.")
    weights = {spec.name: spec.weight for spec in specs}
    if None in weights.values() and set(weights.values()) != {None}:
        without = next(name for name, weight in weights.items() if weight is None)
        raise ValueError(f"{without} has no weight and other sources have: give all of them one, or none.")
    return specs


def _of_mapping(entry: dict[str, Any]) -> SourceSpec:
    known = [field.name for field in fields(SourceSpec)]
    unknown = [name for name in entry if name not in known]
    if unknown or "source" not in entry:
        what = f"has the unknown field {unknown[0]!r}" if unknown else "has no field 'source'"
        raise ValueError(f"The source {entry} {what}; there are {', '.join(known)}.")
    values = {}
    for name, value in entry.items():
        try:
            values[name] = None if value is None else _TYPES.get(name, str)(value)
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"The source {entry}: {name}={value} is no value for {name}.") from None
    return SourceSpec(**values)


def _of_text(text: str) -> SourceSpec:
    """`NAME[:PLACE]`, or a local path or a Hub id, and fields after commas."""
    head, *settings = text.split(",")
    values = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"{text!r}: {setting!r} is no FIELD=VALUE. A source is {_GRAMMAR}.")
        values[name] = value
    name, colon, place = head.partition(":")
    is_place = Path(head).exists() or head.endswith(tuple(_BUILDERS)) or "/" in head
    if name not in SOURCES and not colon and is_place:
        return _of_mapping({"source": "plain", "path": head, "name": head} | values)
    return _of_mapping({"source": name, "path": place or None} | values)


def open_table(spec: SourceSpec, split: str) -> tuple[datasets.Dataset, ImageFiles]:
    """The rows of a source's split, images undecoded, and its image files.

    Raises:
        ValueError: there is no such place, split or column, or the files cannot be read.
    """
    if spec.source == "synthetic":
        return _scenes(spec, split), ImageFiles(Path())
    split, place = spec.split or split, Path(spec.path)
    file = place / LCS_FILE if spec.source == "lcs" else place if place.is_file() else _metadata(place, split)
    if file is not None:
        if not file.is_file() or not file.stat().st_size or file.suffix not in _BUILDERS:
            raise ValueError(f"{spec.name}: {file} is missing, is empty or is none of {', '.join(_BUILDERS)}.")
        table = _load(spec, split, _BUILDERS[file.suffix], data_files={split: str(file)})
    elif place.is_dir() or spec.dataset_id is not None:
        table = _load(spec, split, spec.path, name=spec.config, revision=spec.revision)
    else:
        raise ValueError(f"{spec.name}: there is no file or folder {spec.path}, and it is no Hub id (owner/name).")
    names = set(table.column_names)
    has_turns = "conversations" in names or bool(names & {*QUESTIONS} and names & {*ANSWERS})
    if not names & {*IMAGES} or not has_turns:
        raise ValueError(
            f"{spec.name} has the columns {', '.join(table.column_names)}; needed are one of {', '.join(IMAGES)}, and "
            f"conversations, or one of {', '.join(QUESTIONS)} with one of {', '.join(ANSWERS)}."
        )
    return table, ImageFiles(_image_place(spec, file))


def _scenes(spec: SourceSpec, split: str) -> datasets.Dataset:
    """Rendered scenes: row i is scene i of the split with one question about it, in every run."""
    if spec.path not in FAMILIES:
        raise ValueError(f"There is no family {spec.path!r} of scenes; synthetic:FAMILY takes {', '.join(FAMILIES)}.")
    if spec.split is not None:
        raise ValueError(f"{spec.name}: scenes take no split; training and validation have scenes of their own.")
    table = datasets.Dataset.from_dict({"scene": range(spec.rows or _SCENES)})
    return table.with_transform(partial(_rendered, family=spec.path, split=split, scale=spec.scale))


def _rendered(batch: dict[str, list], family: str, split: str, scale: float) -> dict[str, list]:
    columns = {"image": [], "question": [], "answer": []}
    for index in batch["scene"]:
        drawn = scene(family, split, index, scale)
        asked = np.random.default_rng([index, *family.encode()]).integers(len(drawn.questions))
        question = drawn.questions[int(asked)]
        for name, value in zip(columns, (drawn.image, question.text, question.answer), strict=True):
            columns[name].append(value)
    return columns


def _load(spec: SourceSpec, split: str, *args: Any, **options: Any) -> datasets.Dataset:
    try:
        table = datasets.load_dataset(*args, split=split, **options)
    except (DatasetsError, ValueError) as error:
        if "corresponds to no data" in str(error):
            raise ValueError(f"{spec.name} cannot be opened: it has no rows.") from error
        raise ValueError(f"{spec.name} cannot be opened: {error}: {error.__cause__}") from error
    for name, feature in table.features.items():
        if _undecoded(feature) != feature:
            table = table.cast_column(name, _undecoded(feature))
    return table


def _undecoded(feature: Any) -> Any:
    """The feature with images left as the bytes that they are stored in."""
    if isinstance(feature, datasets.Image):
        return datasets.Image(mode=feature.mode, decode=False)
    return datasets.List(_undecoded(feature.feature)) if isinstance(feature, datasets.List) else feature


def _metadata(folder: Path, split: str) -> Path | None:
    """The metadata file of an imagefolder: of the split's folder if there is one."""
    candidates = [place / name for place in (folder / split, folder) for name in _METADATA]
    return next((file for file in candidates if file.is_file()), None)


def _image_place(spec: SourceSpec, file: Path | None) -> Path:
    """The folder or archive that file names are looked up in."""
    if spec.images is not None:
        return Path(spec.images)
    if spec.source == "lcs":
        candidates = [file.parent / "images.zip", file.parent / "images", file.parent]
        return next(place for place in candidates if place.exists())
    return Path() if file is None else file.parent
