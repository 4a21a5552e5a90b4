"""Reading and writing safetensors files a few megabytes at a time.

The library of that name maps a file into memory or wants a whole shard there; a conversion needs neither. A file is
eight bytes (the header's length, little endian), a JSON header (name -> dtype, shape, data_offsets), and the tensors'
bytes. What is written here is read with the library.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

CHUNK_BYTES = 32 << 20
_HEADER_LIMIT = 100_000_000

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: where it lies, and nothing of its values.

    Args:
        code: the file's name of the dtype, such as `"BF16"`; not necessarily one of `DTYPES`.
        shape: its shape.
        file: the safetensors file.
        start, stop: its bytes in that file, counted from the file's start.
    """

    code: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int

    @property
    def dtype(self) -> torch.dtype:
        """The dtype; a `KeyError` for one that is not in `DTYPES`."""
        return DTYPES[self.code]

    def pieces(self) -> Iterator[torch.Tensor]:
        """Its values in order, as 1-D tensors of at most `CHUNK_BYTES`."""
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.start)
            left = self.stop - self.start
            while left:
                buffer = bytearray(min(left, CHUNK_BYTES))
                read, view = 0, memoryview(buffer)
                while read < len(buffer):
                    count = file.readinto(view[read:])
                    if not count:
                        raise ValueError(f"{self.file} became shorter while it was read.")
                    read += count
                left -= read
                yield torch.frombuffer(buffer, dtype=self.dtype)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, without reading any.

    Raises:
        ValueError: the file is no safetensors file, or is cut off.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, _HEADER_LIMIT):
            raise ValueError(
                f"{path} is no safetensors file ({size} bytes): a Git LFS pointer, or a broken download? "
                "Fetch it again."
            )
        raw = file.read(length)
    try:
        header = json.loads(raw)
    except ValueError as error:
        raise ValueError(f"{path} is no safetensors file, its header does not parse: {error}.") from None
    header.pop("__metadata__", None)
    tensors = {
        name: StoredTensor(
            code=entry["dtype"],
            shape=tuple(entry["shape"]),
            file=path,
            start=8 + length + entry["data_offsets"][0],
            stop=8 + length + entry["data_offsets"][1],
        )
        for name, entry in header.items()
    }
    end = max((tensor.stop for tensor in tensors.values()), default=8 + length)
    if end != size:
        raise ValueError(f"{path} has {size} bytes, its header describes {end}: a broken download? Fetch it again.")
    return tensors


def write_file(
    path: Path,
    tensors: Mapping[str, StoredTensor | torch.Tensor],
    dtypes: Mapping[str, torch.dtype],
    written: Callable[[int], object] = lambda num_bytes: None,
) -> None:
    """Write one safetensors file; `written` is told the number of bytes of each piece.

    Raises:
        ValueError: a value is too large for float16.
    """
    # As the library does: the widest values first, so that each tensor is aligned to its own width.
    names = sorted(tensors, key=lambda name: -dtypes[name].itemsize)
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name in names:
        shape = list(tensors[name].shape)
        stop = offset + math.prod(shape) * dtypes[name].itemsize
        header[name] = {"dtype": _CODES[dtypes[name]], "shape": shape, "data_offsets": [offset, stop]}
        offset = stop
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for name in names:
            for piece in _pieces(tensors[name]):
                converted = piece.to(dtypes[name])
                _check_range(name, piece, converted)
                file.write(converted.view(torch.uint8).numpy())
                written(converted.nbytes)


def _pieces(tensor: StoredTensor | torch.Tensor) -> Iterator[torch.Tensor]:
    return iter([tensor.flatten()]) if isinstance(tensor, torch.Tensor) else tensor.pieces()


def _check_range(name: str, piece: torch.Tensor, converted: torch.Tensor) -> None:
    if converted.dtype is not torch.float16 or piece.dtype is torch.float16:
        return
    if bool((converted.isinf() & ~piece.isinf()).any()):
        raise ValueError(
            f"{name} holds values up to {piece.abs().max().item():g}, float16 ends at "
            f"{torch.finfo(torch.float16).max:g}: choose --dtype bfloat16 or float32."
        )
