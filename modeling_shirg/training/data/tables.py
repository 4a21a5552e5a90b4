"""Opening a source: its table of rows, images undecoded, and where its image files lie."""

import re
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetsError

from modeling_shirg.training.data.adapters import ADAPTERS
from modeling_shirg.training.data.image_files import ImageFiles
from modeling_shirg.training.data.scenes import DEFAULT_ROWS, SceneTable
from modeling_shirg.training.data.specs import SourceSpec

LCS_FILE = "blip_laion_cc_sbu_558k.json"
_BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_OPTIONAL_COLUMNS = ("fovea_box",)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def open_table(spec: SourceSpec, split: str, streaming: bool) -> tuple[Any, ImageFiles]:
    """The rows of a source's split, with the columns that its adapter reads, and its image files.

    The table is a `datasets.Dataset`, with `streaming` a `datasets.IterableDataset`, or a `SceneTable`.

    Raises:
        ValueError: there is no such place, split or column, or the files cannot be read.
    """
    if spec.source == "synthetic":
        if spec.split is not None:
            raise ValueError(f"{spec.name}: scenes take no split; training and validation have scenes of their own.")
        return SceneTable(spec.path, split, spec.rows or DEFAULT_ROWS, spec.scale), ImageFiles(Path())
    table, files = open_whole_table(spec, split, streaming)
    return _readable_columns(spec, table), files


def open_whole_table(spec: SourceSpec, split: str, streaming: bool) -> tuple[Any, ImageFiles]:
    """The same with all columns that there are; scenes are no such table."""
    split = spec.split or split
    place = Path(spec.path)
    if spec.source == "lcs":
        place = place / LCS_FILE
    file = place if place.is_file() or spec.source == "lcs" else _metadata_file(place, split)
    if file is not None and file.is_file() and not file.stat().st_size:
        raise ValueError(f"{spec.name} cannot be opened: {file} is empty.")
    if file is not None:
        table = _load(spec, streaming, _builder(spec, file), data_files={split: str(file)}, split=split)
    elif place.is_dir():
        table = _load(spec, streaming, str(place), name=spec.config, split=split)
    elif hub_id(spec) is not None:
        table = _load(spec, streaming, spec.path, name=spec.config, revision=spec.revision, split=split)
    else:
        raise ValueError(f"{spec.name}: there is no file or folder {spec.path}, and it is no Hub id (owner/name).")
    _check_columns(spec, table)
    return table, ImageFiles(_image_place(spec, file))


def hub_id(spec: SourceSpec) -> str | None:
    """The data set on the Hub that the source is; `None` for files, folders and rendered scenes."""
    place = Path(spec.path)
    local = spec.source in ("synthetic", "lcs") or place.exists() or place.suffix
    return None if local or not _HUB_ID.fullmatch(spec.path) else spec.path


def _load(spec: SourceSpec, streaming: bool, *args: Any, **kwargs: Any) -> Any:
    try:
        table = datasets.load_dataset(*args, streaming=streaming, **kwargs)
    except (DatasetsError, ValueError) as error:
        if "corresponds to no data" in str(error):
            raise ValueError(f"{spec.name} cannot be opened: it has no rows.") from error
        cause = f": {error.__cause__}" if error.__cause__ is not None else ""
        raise ValueError(f"{spec.name} cannot be opened: {error}{cause}") from error
    for name, feature in (table.features or {}).items():  # a stream of JSON has none before it is read
        if _undecoded(feature) != feature:
            table = table.cast_column(name, _undecoded(feature))
    return table


def _undecoded(feature: Any) -> Any:
    """The feature with images left as the bytes that they are stored in."""
    if isinstance(feature, datasets.Image):
        return datasets.Image(mode=feature.mode, decode=False)
    if isinstance(feature, datasets.List):
        return datasets.List(_undecoded(feature.feature), length=feature.length)
    return feature


def _readable_columns(spec: SourceSpec, table: Any) -> Any:
    """The table with only the columns that the adapter reads."""
    known = {*_OPTIONAL_COLUMNS, *(name for needed in ADAPTERS[spec.source].columns for name in needed)}
    return table.select_columns([name for name in _column_names(table) if name in known])


def _check_columns(spec: SourceSpec, table: Any) -> None:
    names, choices = _column_names(table), ADAPTERS[spec.source].columns
    if not any(set(needed) <= set(names) for needed in choices):
        wanted = " or ".join("(" + ", ".join(needed) + ")" for needed in choices)
        raise ValueError(f"{spec.name} has the columns {', '.join(names)}; {spec.source!r} needs {wanted}.")


def _column_names(table: Any) -> list[str]:
    return table.column_names or list(next(iter(table.iter(1)), {}))


def _builder(spec: SourceSpec, file: Path) -> str:
    if not file.is_file():
        raise ValueError(f"{spec.name}: there is no file {file}.")
    if not file.stat().st_size:
        raise ValueError(f"{spec.name} cannot be opened: {file} is empty.")
    if file.suffix not in _BUILDERS:
        raise ValueError(f"{spec.name}: {file.name} is none of {', '.join(_BUILDERS)}.")
    return _BUILDERS[file.suffix]


def _metadata_file(folder: Path, split: str) -> Path | None:
    """The metadata file of an imagefolder: of the split's folder if there is one."""
    candidates = [place / name for place in (folder / split, folder) for name in _METADATA]
    return next((file for file in candidates if file.is_file()), None)


def _image_place(spec: SourceSpec, file: Path | None) -> Path:
    """The folder or archive that file names are looked up in."""
    if spec.images is not None:
        place = Path(spec.images)
        if not place.exists():
            raise ValueError(f"{spec.name}: there is no folder or zip archive {place} (images).")
        return place
    if spec.source == "lcs":
        candidates = [file.parent / "images.zip", file.parent / "images", file.parent]
        return next(place for place in candidates if place.exists())
    return Path() if file is None else file.parent
