"""Where a checkpoint comes from: a folder, or a repository on the Hub, down to the headers of its tensors."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from modeling_shirg.publishing.checkpoint import Checkpoint, stated_licence

INDEX = "model.safetensors.index.json"
_FILES = ["*.json", "*.txt", "*.safetensors", "README.md"]
# Traces of the folder in a tokenizer that was loaded from it.
_TRACES = ("chat_template", "is_local", "local_files_only", "name_or_path", "vocab_file")


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a safetensors file, and nothing of its values; `code` is its type, such as `"BF16"`."""

    file: Path
    name: str
    code: str
    shape: tuple[int, ...]

    def load(self) -> torch.Tensor:
        """The tensor, mapped from the file."""
        with safe_open(self.file, "pt") as opened:
            return opened.get_tensor(self.name)


def open_source(source: str | Path) -> tuple[Path, Checkpoint]:
    """A folder, or the downloaded `REPO_ID[@REVISION]` of the Hub, and where it is from.

    Raises:
        ValueError: there is no such folder, and no such repository that can be reached.
    """
    if str(source) and Path(source).is_dir():
        return Path(source), Checkpoint(str(source), None, stated_licence(Path(source)))
    name, _, revision = str(source).partition("@")
    try:
        options = {"allow_patterns": _FILES, "ignore_patterns": ["*/*"]}
        folder = Path(snapshot_download(name, revision=revision or None, **options))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ValueError(
            f"There is no folder {str(source)!r}, and the Hub gives no such repository: {str(error).splitlines()[0]}"
        ) from None
    return folder, Checkpoint(name, folder.name, stated_licence(folder))


def read_json(path: Path) -> dict:
    """A JSON object in a file; a `ValueError` if the file is missing or holds something else."""
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}: give the folder or the Hub id of a whole checkpoint.")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} does not parse: {error}.") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path} holds a {type(fields).__name__}, not a JSON object.")
    return fields


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of tokenizer.json, without a chat template and without traces of the folder."""
    if not isinstance(read_json(folder / "tokenizer.json").get("model"), dict):
        raise ValueError(f"{folder / 'tokenizer.json'} holds no tokenizer (it has no model): bring the whole file.")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    for trace in _TRACES:
        tokenizer.init_kwargs.pop(trace, None)
    tokenizer.chat_template = None
    return tokenizer


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """All tensors by name, from the headers of one safetensors file or of an index's shards.

    Raises:
        ValueError: there are no safetensors, or the index or a file is broken.
    """
    if (folder / INDEX).is_file():
        places = read_json(folder / INDEX).get("weight_map")
        if not isinstance(places, dict) or any(Path(str(file)).name != file for file in places.values()):
            raise ValueError(f"{folder / INDEX} has no weight_map from tensor names to files beside it: {places!r}")
    tensors = {}
    for file, metadata in Checkpoint(str(folder)).headers.files_metadata.items():
        try:
            safe_open(folder / file, "pt")
        except SafetensorError as error:
            raise ValueError(f"{folder / file} is no whole safetensors file ({error}): a broken download?") from None
        for name, tensor in metadata.tensors.items():
            tensors[name] = StoredTensor(folder / file, name, tensor.dtype, tuple(tensor.shape))
    return tensors
