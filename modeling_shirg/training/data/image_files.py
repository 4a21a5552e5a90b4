"""Where a source's image files lie: in a folder, or in a zip archive that is read in place.

An archive of half a million files has a directory of hundreds of megabytes once Python has read it, in every worker.
Here it becomes a few numpy arrays of some forty bytes per file, which forked workers share.
"""

import hashlib
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from modeling_shirg.training.data.bad_rows import BadRow

_FIELDS = ("header_offset", "compress_size", "file_size", "CRC", "compress_type")
# A local file header has 30 bytes; at byte 26 stand the lengths of the name and of the extra field that follow it.
_HEADER_SIZE = 30
_LENGTHS = struct.Struct("<HH")
_LENGTHS_AT = 26


class ImageFiles:
    """Finds image files by the name that a row gives.

    Args:
        place: a folder, or a zip archive.
    """

    def __init__(self, place: Path):
        self.place = place
        self.archive = ZipIndex(place) if place.is_file() else None

    def stamp(self) -> list:
        """What changes when the archive does; a folder has no such mark."""
        state = self.place.stat()
        return [str(self.place.resolve())] + ([state.st_size, state.st_mtime_ns] if self.archive else [])

    def find(self, name: str) -> str | bytes:
        """The path of a file in the folder, or its bytes in the archive.

        Raises:
            BadRow: there is no such file, or it is damaged.
        """
        if name.startswith(("http://", "https://")):
            raise BadRow(f"missing image: {name} is a URL, which training does not fetch; download it")
        if self.archive is not None:
            return self.archive.read(name)
        path = os.path.join(self.place, name)
        if not os.path.isfile(path):
            raise BadRow(f"missing image: there is no file {path}")
        return path


class ZipIndex:
    """The directory of a zip archive as arrays, for reading single files by name."""

    def __init__(self, file: Path):
        self.file = file
        try:
            with zipfile.ZipFile(file) as archive:
                entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        except zipfile.BadZipFile as error:
            raise ValueError(f"{file} is no complete zip archive: {error}") from None
        keys = np.array([_key(entry.filename) for entry in entries], dtype=np.uint64)
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        self._fields = np.array(
            [[getattr(entry, field) for field in _FIELDS] for entry in entries], dtype=np.int64
        ).reshape(-1, len(_FIELDS))[order]

    def __len__(self) -> int:
        return len(self._keys)

    def read(self, name: str) -> bytes:
        """The bytes of the file `name`.

        Raises:
            BadRow: there is no such file, or it is damaged.
        """
        place = int(np.searchsorted(self._keys, np.uint64(_key(name))))
        if place == len(self) or self._keys[place] != _key(name):
            raise BadRow(f"missing image: there is no file {name} in {self.file}")
        info = zipfile.ZipInfo(name)
        for field, value in zip(_FIELDS, self._fields[place].tolist(), strict=True):
            setattr(info, field, value)
        try:
            with self.file.open("rb") as archive:
                archive.seek(info.header_offset)
                header = archive.read(_HEADER_SIZE)
                archive.seek(sum(_LENGTHS.unpack_from(header, _LENGTHS_AT)), os.SEEK_CUR)
                with zipfile.ZipExtFile(archive, "r", info) as member:
                    return member.read()
        except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError) as error:
            raise BadRow(f"unreadable image: {name} in {self.file}: {error}") from None


def _key(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
