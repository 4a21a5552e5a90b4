"""Checkpoints in a folder or on the Hub: single tensors are read in place, without a download of the files."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from huggingface_hub import HfApi, HfFileSystem, ModelCard, ModelCardData, get_local_safetensors_metadata
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError
from huggingface_hub.utils import SafetensorsRepoMetadata
from torch import nn
from yaml import YAMLError

from configuration_shirg import ShirgLavidaConfig
from modeling_shirg.fingerprint_shirg import FINGERPRINT_ROWS, FINGERPRINT_TENSORS, digest, fingerprint

# Types of the tensors that are read, by their names in a safetensors file.
FLOAT_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, as cards name it and as its tensors are read.

    Args:
        name: a folder, or a Hub id.
        revision: the commit of a Hub id; `None` for a folder, which nobody else can load.
        licence: the licence fields of the card; empty if the card states none.
    """

    name: str
    revision: str | None = None
    licence: dict[str, str] = field(default_factory=dict)

    @classmethod
    def find(cls, source: str) -> "Checkpoint":
        """The checkpoint in a folder, or at `REPO_ID[@REVISION]` on the Hub."""
        if Path(source).is_dir():
            return cls(source, None, stated_licence(Path(source)))
        name, _, revision = source.partition("@")
        info = HfApi().model_info(name, revision=revision or None)
        return cls(name, info.sha, _licence_fields(info.card_data or {}))

    @property
    def label(self) -> str:
        """The name for strangers: the Hub id, or the last part of the folder's path."""
        return self.name if self.revision else Path(self.name).resolve().name

    @cached_property
    def headers(self) -> SafetensorsRepoMetadata:
        """The headers of the weight files; a `ValueError` if there are none."""
        try:
            if self.revision is None:
                return get_local_safetensors_metadata(self.name)
            return HfApi().get_safetensors_metadata(self.name, revision=self.revision)
        except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
            why = "only safetensors is read, because a pickle file can run code"
            raise ValueError(f"{self.name} has no weights that can be read ({why}): {error}") from None

    def config(self) -> ShirgLavidaConfig:
        """The config beside the weights."""
        return ShirgLavidaConfig.from_pretrained(self.name, revision=self.revision)

    def read(self, tensor: str, rows: int | None = None) -> tuple[torch.Tensor, tuple[int, ...]]:
        """A tensor in its stored type, or its first `rows` rows, and the whole tensor's shape."""
        file = self.headers.weight_map.get(tensor)
        if file is None:
            raise ValueError(f"{self.name} has no tensor {tensor}: it is no whole SHIRG-LaViDa checkpoint.")
        info = self.headers.files_metadata[file].tensors[tensor]
        start, stop = info.data_offsets
        if rows is not None and info.shape[0] > rows:
            stop = start + (stop - start) // info.shape[0] * rows
        if self.revision is None:
            opened = Path(self.name, file).open("rb")
        else:
            opened = HfFileSystem().open(f"{self.name}/{file}", "rb", revision=self.revision, block_size=1 << 20)
        with opened:
            opened.seek(8 + int.from_bytes(opened.read(8), "little") + start)
            raw = bytearray(opened.read(stop - start))
        if len(raw) != stop - start or info.dtype not in FLOAT_TYPES:
            raise ValueError(f"{self.name}: {tensor} ({info.dtype}) cannot be read from {file}: a broken download?")
        return torch.frombuffer(raw, dtype=FLOAT_TYPES[info.dtype]).reshape(-1, *info.shape[1:]), tuple(info.shape)


def stated_licence(folder: Path) -> dict[str, str]:
    """The licence fields of the card in a folder; empty where the card states none, or has broken metadata."""
    try:
        return _licence_fields(ModelCard.load(folder / "README.md", ignore_metadata_errors=True).data)
    except (ValueError, YAMLError):
        return {}


def _licence_fields(metadata: ModelCardData | dict) -> dict[str, str]:
    return {name: metadata.get(name) for name in ("license", "license_name", "license_link") if metadata.get(name)}


def base_fingerprint(base: nn.Module | str | Path | Checkpoint) -> str | None:
    """The fingerprint of base weights, in any float type: of a checkpoint, its folder, or the model loaded from it.

    Returns `None` for a model with quantized or offloaded weights: give the folder then.
    """
    if isinstance(base, nn.Module):
        return fingerprint(base)
    stored = base if isinstance(base, Checkpoint) else Checkpoint(str(base))
    read = ((name, *stored.read(name, FINGERPRINT_ROWS)) for name in FINGERPRINT_TENSORS)
    return digest((name, shape, rows.signbit().numpy()) for name, rows, shape in read)
