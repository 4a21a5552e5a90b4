"""Where a checkpoint comes from: a folder, or a repository on the Hub, down to the headers of its tensors."""

import json
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging
from yaml import YAMLError

from modeling_shirg.publishing.licences import licence_fields

from .safetensors_stream import INDEX, StoredTensor, read_header

logger = logging.get_logger(__name__)

_SMALL = ("config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "README.md", "*.index.json")
_WEIGHTS = ("*.safetensors",)
# What loading a tokenizer from a folder leaves in what it saves.
_TRACES = ("chat_template", "is_local", "local_files_only", "name_or_path", "vocab_file")
# Most entries of a list in an error.
_LISTED = 100


@dataclass(frozen=True)
class Source:
    """A folder on this machine, and what it is a copy of.

    Args:
        name: the folder or the Hub id, as it was given.
        folder: where its files are.
        revision: the commit, if it came from the Hub.
    """

    name: str
    folder: Path
    revision: str | None

    @property
    def label(self) -> str:
        """What a published folder may say: the Hub id, or the folder's own name without its path."""
        return self.folder.resolve().name if self.revision is None else self.name

    def read_json(self, name: str) -> dict:
        """One of its JSON files.

        Raises:
            ValueError: the file is missing or holds no JSON object.
        """
        path = self.folder / name
        if not path.is_file():
            raise ValueError(f"{self.name} has no {name}: give the folder or the Hub id of a whole checkpoint.")
        try:
            fields = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} does not parse: {error}.") from None
        if not isinstance(fields, dict):
            raise ValueError(f"{path} holds a {type(fields).__name__}, not a JSON object.")
        return fields

    def license(self) -> dict[str, str]:
        """The licence fields of its card's metadata; empty where the card states none."""
        card = self.folder / "README.md"
        if not card.is_file():
            return {}
        try:
            data = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
        except YAMLError:
            logger.warning(f"{card} has metadata that cannot be read: no licence is taken from it.")
            return {}
        return licence_fields(data)


def open_source(name: str | Path, revision: str | None = None) -> Source:
    """The config, tokenizer and card of a folder or a Hub id, without its weights.

    Raises:
        ValueError: there is no such folder, and no such repository that can be reached.
    """
    if not str(name):
        raise ValueError("'' is no folder and no Hub id: name the checkpoint.")
    folder = Path(name)
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"revision={revision!r} belongs to a Hub id, but {name} is a folder.")
        return Source(str(name), folder, None)
    snapshot = _download(str(name), revision, _SMALL)
    return Source(str(name), snapshot, snapshot.name)


def with_weights(source: Source) -> Source:
    """The same with its weights, downloaded at the same commit if it is a Hub id."""
    if source.revision is None:
        return source
    return Source(source.name, _download(source.name, source.revision, _SMALL + _WEIGHTS), source.revision)


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The tokenizer of its tokenizer.json, without a chat template and without traces of the folder.

    Raises:
        ValueError: the file holds no tokenizer.
    """
    if not isinstance(source.read_json("tokenizer.json").get("model"), dict):
        raise ValueError(
            f"{source.folder / 'tokenizer.json'} holds no tokenizer (it has no model): bring the whole file."
        )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(source.folder)
    for trace in _TRACES:
        tokenizer.init_kwargs.pop(trace, None)
    tokenizer.chat_template = None
    return tokenizer


def read_tensors(source: Source) -> dict[str, StoredTensor]:
    """All tensors by name, from the headers of one safetensors file or of an index's shards.

    Raises:
        ValueError: there are no safetensors, or shards are missing, cut off or at odds with the index.
    """
    if (source.folder / INDEX).is_file():
        return _read_shards(source)
    files = sorted(source.folder.glob("*.safetensors"))
    if len(files) == 1:
        return read_header(files[0])
    if files:
        raise ValueError(
            f"{source.name} has {len(files)} safetensors files ({', '.join(file.name for file in files)}) and no "
            f"{INDEX} that says which belong together."
        )
    pickles = sorted({file.name for suffix in ("*.bin", "*.bin.index.json") for file in source.folder.glob(suffix)})
    found = f"only {', '.join(pickles)}" if pickles else "no weights"
    raise ValueError(
        f"{source.name} has {found}: only safetensors is read, because a pickle file can run code. Use a revision "
        "that has safetensors, or load the checkpoint with its own code and save it with "
        "save_pretrained(folder, safe_serialization=True), then convert that folder."
    )


def _read_shards(source: Source) -> dict[str, StoredTensor]:
    places = weight_map(source)
    names = sorted(set(places.values()))
    missing = [name for name in names if not (source.folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{source.name} lacks {len(missing)} of {len(names)} shards that {INDEX} names: {', '.join(missing)}."
        )
    tensors: dict[str, StoredTensor] = {}
    for shard in names:
        for name, tensor in read_header(source.folder / shard).items():
            if places.get(name) != shard:
                raise ValueError(
                    f"{source.name}: {shard} holds {name!r}, {INDEX} has it in {places.get(name)!r}. "
                    "Files of two checkpoints in one folder?"
                )
            tensors[name] = tensor
    absent = sorted(set(places) - set(tensors))
    if absent:
        raise ValueError(f"{source.name}: {INDEX} names tensors that no shard holds.{listed('absent', absent)}")
    return tensors


def listed(what: str, entries: list[str]) -> str:
    """The lines of an error that count and name `entries`, the first hundred of them; empty without any."""
    if not entries:
        return ""
    lines = entries[:_LISTED] + ([f"and {len(entries) - _LISTED} more"] if len(entries) > _LISTED else [])
    return f"\n{len(entries)} {what}:\n  " + "\n  ".join(lines)


def weight_map(source: Source) -> dict[str, str]:
    """Which file of the folder holds each tensor, by the index.

    Raises:
        ValueError: the index says something else, or names files elsewhere.
    """
    places = source.read_json(INDEX).get("weight_map")
    if not isinstance(places, dict):
        raise ValueError(f"{source.folder / INDEX} has no weight_map from tensor names to files, got {places!r}.")
    for name, file in places.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise ValueError(
                f"{source.folder / INDEX} has {name!r} in {file!r}, which is not the name of a file beside it."
            )
    return places


def _download(name: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise ValueError(f"There is no folder {name!r}, and it is no Hub id either.") from None
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns), ignore_patterns=["*/*"]))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ValueError(
            f"There is no folder {name!r}, and the Hub does not give a repository of this name"
            f"{'' if revision is None else f' at revision {revision!r}'}: {str(error).splitlines()[0]}"
        ) from None
