"""Reading and writing safetensors files a few megabytes at a time.

The library of that name checks a file; it also maps its tensors into memory, or wants a whole shard there, and a
conversion needs neither. A file is eight bytes (the header's length, little endian), a JSON header (name -> dtype,
shape, data_offsets), and the tensors' bytes.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm

from modeling_shirg.adapters_shirg import safetensors_header

CHUNK_BYTES = 32 << 20
INDEX = "model.safetensors.index.json"

# What is read and written: dtypes by the file's name, and by torch's, which is also what a user says.
CODES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in CODES.values()}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: where it lies, and nothing of its values.

    Args:
        code: the file's name of the dtype, such as `"BF16"`; not necessarily one of `CODES`.
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
        """The dtype; a `KeyError` for one that is not in `CODES`."""
        return CODES[self.code]

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
        ValueError: the file is no safetensors file, or its header does not describe exactly its bytes.
    """
    try:
        # Checks all that is relied on below: dtypes, shapes, and offsets that fit them without gap or overlap.
        with safe_open(path, "np"):
            pass
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no whole safetensors file ({error}): a Git LFS pointer, or a broken download? Fetch it again."
        ) from None
    with path.open("rb") as file:
        header, data = safetensors_header(file, str(path))
    return {
        name: StoredTensor(
            code=entry["dtype"],
            shape=tuple(entry["shape"]),
            file=path,
            start=data + entry["data_offsets"][0],
            stop=data + entry["data_offsets"][1],
        )
        for name, entry in header.items()
    }


def write_shards(
    folder: Path,
    tensors: Mapping[str, StoredTensor | torch.Tensor],
    dtypes: Mapping[str, torch.dtype],
    max_shard_size: str,
) -> dict[str, int]:
    """Write safetensors files, named as `save_pretrained` does, and their index if there are several.

    Returns the bytes of the tensors in each file.

    Raises:
        ValueError: a value is too large for float16.
    """
    empty = {name: torch.empty(tensor.shape, dtype=dtypes[name], device="meta") for name, tensor in tensors.items()}
    split = split_torch_state_dict_into_shards(empty, max_shard_size=max_shard_size)
    size = split.metadata["total_size"]
    with tqdm(total=size, unit="B", unit_scale=True, desc="Writing") as progress:
        for file, names in split.filename_to_tensors.items():
            write_file(folder / file, {name: tensors[name] for name in names}, dtypes, progress.update)
    if split.is_sharded:
        index = {"metadata": {"total_size": size}, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return {file: sum(empty[name].nbytes for name in names) for file, names in split.filename_to_tensors.items()}


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
    codes = {dtype: code for code, dtype in CODES.items()}
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name in names:
        shape = list(tensors[name].shape)
        stop = offset + math.prod(shape) * dtypes[name].itemsize
        header[name] = {"dtype": codes[dtypes[name]], "shape": shape, "data_offsets": [offset, stop]}
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
