"""Writing a shard's tar: webdataset's own bytes, and where each image lies, in one pass."""

from __future__ import annotations

import hashlib
import tarfile
from typing import BinaryIO

import numpy as np

from resscale.data.shard_index import ShardIndex

_BLOCK = tarfile.BLOCKSIZE
# Fields of a header: name, size, sum of all its bytes.
_NAME, _SIZE, _SUM = slice(0, 100), slice(124, 136), slice(148, 156)


def _blank_header() -> bytes:
    member = tarfile.TarInfo()
    # User, group, mode and time are fixed: the same samples are the same bytes everywhere.
    member.uname, member.gname, member.mode, member.mtime = "root", "root", 0o644, 0
    header = bytearray(member.tobuf(tarfile.USTAR_FORMAT))
    header[_SUM] = b" " * 8
    return bytes(header)


_BLANK = _blank_header()
_BLANK_SUM = sum(_BLANK) - sum(_BLANK[_SIZE])


def tar_header(name: str, size: int) -> bytes:
    """Return the header of a file of `size` bytes.

    Args:
        name: ASCII, at most 100 characters.
        size: under 8 GiB.
    """
    encoded, digits = name.encode("ascii"), b"%011o\0" % size
    if not 0 < len(encoded) <= 100 or len(digits) != 12:
        raise ValueError(f"no place in a tar header for {name!r} of {size} bytes")
    # The sum is of the bytes themselves, that field taken for blanks.
    total = _BLANK_SUM + sum(encoded) + sum(digits)
    return b"".join(
        (
            encoded.ljust(100, b"\0"),
            _BLANK[_NAME.stop : _SIZE.start],
            digits,
            _BLANK[_SIZE.stop : _SUM.start],
            b"%06o\0 " % total,
            _BLANK[_SUM.stop :],
        )
    )


class ShardWriter:
    """Writes samples one behind the other, hashes what it writes, and notes where images lie.

    Args:
        file: where to write, from its first byte on.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.size = 0
        self._file = file
        self._sha256 = hashlib.sha256()
        self._keys: list[bytes] = []
        self._offsets: list[int] = []
        self._sizes: list[int] = []
        self._labels: list[int] = []

    def __len__(self) -> int:
        """Return the number of samples written."""
        return len(self._keys)

    def add(self, key: str, extension: str, image: bytes, label: int) -> None:
        """Write the files of one sample, in the order of their names."""
        label_text = b"%d" % label
        files = {f"{key}.{extension}": image, f"{key}.cls": label_text}
        parts: list[bytes] = []
        at = self.size
        for name in sorted(files):
            data = files[name]
            parts += (tar_header(name, len(data)), data, bytes(-len(data) % _BLOCK))
            at += _BLOCK
            if data is image:
                self._offsets.append(at)
            at += len(data) + len(parts[-1])
        self._write(b"".join(parts))
        self._keys.append(key.encode())
        self._sizes.append(len(image))
        self._labels.append(label)

    def finish(self) -> None:
        """Write the end of the tar."""
        # Two blocks of zeros, filled up to a whole record.
        self._write(bytes(2 * _BLOCK + -(self.size + 2 * _BLOCK) % tarfile.RECORDSIZE))

    @property
    def sha256(self) -> str:
        """Hex digest of all bytes written."""
        return self._sha256.hexdigest()

    def index(self) -> ShardIndex:
        """Return where the images lie: what `build_shard_index` would find in the file."""
        return ShardIndex(
            keys=np.array(self._keys, np.bytes_) if self._keys else np.empty(0, "S1"),
            offsets=np.array(self._offsets, np.int64),
            sizes=np.array(self._sizes, np.int64),
            labels=np.array(self._labels, np.int64),
        )

    def _write(self, data: bytes) -> None:
        self._sha256.update(data)
        self._file.write(data)
        self.size += len(data)
