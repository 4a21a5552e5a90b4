"""Single tensors of a checkpoint in a folder or on the Hub, read where they lie: no download of 16 GB to see 10 MB."""

import json
from collections.abc import Callable
from functools import partial
from os import SEEK_END
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
import torch
from huggingface_hub import HfFileSystem
from torch import nn

from modeling_shirg.adapters_shirg import safetensors_header
from modeling_shirg.fingerprint_shirg import FINGERPRINT_ROWS, FINGERPRINT_TENSORS, digest, fingerprint

_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class StoredWeights:
    """The safetensors of one checkpoint.

    Args:
        name: what errors call it.
        open_file: opens one of its files by name, or raises `FileNotFoundError`.
    """

    def __init__(self, name: str, open_file: Callable[[str], BinaryIO]):
        self.name = name
        self._open = open_file
        self._files = self._weight_map()
        self._headers: dict[str, tuple[dict, int]] = {}

    @classmethod
    def in_folder(cls, folder: Path) -> "StoredWeights":
        """Of a folder on this machine."""
        return cls(str(folder), lambda file: (folder / file).open("rb"))

    @classmethod
    def on_hub(cls, repo_id: str, revision: str, token: str | None = None) -> "StoredWeights":
        """Of a repository on the Hub, by ranges of its files."""
        files = HfFileSystem(token=token)
        opened = partial(files.open, mode="rb", revision=revision, block_size=1 << 20)
        return cls(f"{repo_id} at revision {revision}", lambda file: opened(f"{repo_id}/{file}"))

    def __contains__(self, tensor: str) -> bool:
        file = self._files.get(tensor) if self._files else _FILE
        return file is not None and tensor in self._header(file)[0]

    def kinds(self) -> list[tuple[str, tuple[int, ...]]]:
        """Type and shape of every tensor, after checking that all files are there to their last byte.

        Raises:
            ValueError: one is missing, or ends too early.
        """
        found = []
        for file in sorted(set(self._files.values())) or [_FILE]:
            header, data = self._header(file)
            entries = header.values()
            with self._open(file) as opened:
                size = opened.seek(0, SEEK_END)
            if size != data + max(entry["data_offsets"][1] for entry in entries):
                raise ValueError(f"{self.name}: {file} is not of the size that its header says: a broken download?")
            found += [(entry["dtype"], tuple(entry["shape"])) for entry in entries]
        return found

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self._entry(tensor)[1]["shape"])

    def read(self, tensor: str) -> torch.Tensor:
        """All of it, in its stored type."""
        raw, code = self._rows(tensor, None)
        return torch.frombuffer(raw, dtype=_DTYPES[code]).reshape(self.shape(tensor))

    def signs(self, tensor: str, rows: int) -> np.ndarray:
        """The sign bits of its first `rows` rows, flat: a float's sign is the first bit of its last byte."""
        raw, code = self._rows(tensor, rows)
        return np.frombuffer(raw, np.uint8).reshape(-1, _DTYPES[code].itemsize)[:, -1] >= 0x80

    def _rows(self, tensor: str, rows: int | None) -> tuple[bytearray, str]:
        file, entry, data = self._entry(tensor)
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{self.name}: {tensor} is stored as {entry['dtype']}: known are {', '.join(_DTYPES)}.")
        start, stop = entry["data_offsets"]
        if rows is not None and entry["shape"][0] > rows:
            stop = start + (stop - start) // entry["shape"][0] * rows
        with self._open(file) as opened:
            opened.seek(data + start)
            raw = bytearray(opened.read(stop - start))
        if len(raw) != stop - start:
            raise ValueError(f"{self.name}: {file} ends inside {tensor}: is the download complete?")
        return raw, entry["dtype"]

    def _entry(self, tensor: str) -> tuple[str, dict, int]:
        if tensor not in self:
            raise ValueError(
                f"{self.name} has no tensor {tensor}: it is no SHIRG-LaViDa checkpoint, or not all of one."
            )
        file = self._files.get(tensor, _FILE)
        header, data = self._header(file)
        return file, header[tensor], data

    def _header(self, file: str) -> tuple[dict, int]:
        """The tensors of one file, and where their bytes begin."""
        if file not in self._headers:
            try:
                with self._open(file) as opened:
                    self._headers[file] = safetensors_header(opened, f"{self.name}: {file}")
            except FileNotFoundError:
                raise ValueError(f"{self.name} has no {file}: only safetensors are read.") from None
        return self._headers[file]

    def _weight_map(self) -> dict[str, str]:
        """Which file holds each tensor; empty where one file holds them all."""
        try:
            with self._open(_INDEX) as opened:
                files = json.load(opened)["weight_map"]
        except FileNotFoundError:
            return {}
        outside = sorted({file for file in files.values() if PurePosixPath(file).name != file})
        if outside:
            raise ValueError(f"{self.name}: {_INDEX} names {outside[0]!r}, which is no file of this checkpoint.")
        return files


def base_fingerprint(base: nn.Module | str | Path | StoredWeights) -> str | None:
    """The fingerprint of base weights, the same for a folder and for the model loaded from it in any float type.

    Call it on the folder, or on the model before or after PEFT's layers are put in, but not on sharded parameters.

    Args:
        base: a model, a folder, or weights that are stored elsewhere.

    Returns `None` for a model whose weights are quantized or offloaded: give its folder then.
    """
    if isinstance(base, nn.Module):
        return fingerprint(base)
    stored = base if isinstance(base, StoredWeights) else StoredWeights.in_folder(Path(base))
    return digest((name, stored.shape(name), stored.signs(name, FINGERPRINT_ROWS)) for name in FINGERPRINT_TENSORS)
