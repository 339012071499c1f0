"""The seal of a checkpoint: a SHA-256 of the whole file, inside the file.

`torch.save` writes a zip archive with a CRC-32 for each record. Its directory has none: of all
flips of one bit in a small file 6% passed every CRC, and yet the file would not load, or, rarely,
loaded with other values. A zip archive may end in a comment; the seal is a comment that holds the
digest of everything before it. So one file is renamed in one step, and other programs read it as
ever.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

_MARK = b"resscale sha256 "
_DIGEST_LENGTH = 64
_BLOCK_BYTES = 1 << 20
# An archive ends in a record of 22 bytes with the length of its comment; torch writes no comment.
_END_LENGTH = 22
_END_MARK = b"PK\5\6"
_NO_COMMENT = struct.pack("<H", 0)
_COMMENT = struct.pack("<H", len(_MARK) + _DIGEST_LENGTH)


class SealedWriter:
    """A file for `torch.save` to write into; `seal` ends it.

    Args:
        file: opened for writing bytes.

    Attributes:
        error: why writing failed; torch raises an error of its own in place of it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None
        self._digest = hashlib.sha256()
        # The last two bytes are held back: they are the length of the comment to come.
        self._end = b""

    def write(self, data: bytes | memoryview) -> int:
        """Write and digest bytes; return how many."""
        length = len(data)
        if length >= len(_NO_COMMENT):
            # Without joining: a tensor's record is large.
            self._emit(self._end)
            self._emit(data[: -len(_NO_COMMENT)])
            self._end = bytes(data[-len(_NO_COMMENT) :])
        else:
            joined = self._end + bytes(data)
            self._emit(joined[: -len(_NO_COMMENT)])
            self._end = joined[-len(_NO_COMMENT) :]
        return length

    def flush(self) -> None:
        """Do nothing: the end is held back until `seal`."""

    def seal(self) -> None:
        """Write the comment with the digest, and sync the file to the disk."""
        assert self._end == _NO_COMMENT, "an archive without a comment must have been written"
        self._emit(_COMMENT + _MARK)
        self._file.write(self._digest.hexdigest().encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def _emit(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        try:
            self._file.write(data)
        except OSError as error:
            self.error = error
            raise


def is_whole(path: Path) -> bool:
    """Read a checkpoint through and compare its digest; if it was never sealed, its CRC-32s."""
    try:
        sealed = seal_holds(path)
        if sealed is not None:
            return sealed
        with path.open("rb") as file:
            file.seek(-_END_LENGTH, os.SEEK_END)
            end = file.read()
        # Anything else behind the archive is what is left of a seal.
        if not (end.startswith(_END_MARK) and end.endswith(_NO_COMMENT)):
            return False
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:
        # A damaged directory makes zipfile raise whatever its values lead to.
        return False


def read_seal(path: Path) -> str | None:
    """Return the SHA-256 that a file was sealed with, 64 hex digits, unchecked; None: no seal.

    Raises:
        OSError: the file cannot be read.
    """
    length = len(_MARK) + _DIGEST_LENGTH
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) < length:
            return None
        file.seek(-length, os.SEEK_END)
        tail = file.read()
    if not tail.startswith(_MARK):
        return None
    return tail[len(_MARK) :].decode("ascii", errors="replace")


def seal_holds(path: Path) -> bool | None:
    """Tell whether a file is what was sealed; None where it has no seal.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        end = size - _DIGEST_LENGTH
        if end < len(_MARK):
            return None
        file.seek(end - len(_MARK))
        tail = file.read()
        if not tail.startswith(_MARK):
            return None
        file.seek(0)
        digest = hashlib.sha256()
        left = end
        while left:
            block = file.read(min(_BLOCK_BYTES, left))
            if not block:
                return False
            digest.update(block)
            left -= len(block)
    return digest.hexdigest().encode() == tail[len(_MARK) :]
