"""Reads byte ranges of shards. Local files today; the interface is what a remote cache needs."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

from resscale.errors import DataFormatError


class ShardStore:
    """Random access to shards by path, with a bounded number of open files.

    Reads are positional (`pread`), so forked workers that inherit a descriptor do not disturb each
    other; a pickled copy opens files of its own.

    Args:
        max_open_files: descriptors kept open; the least recently used is closed first.
    """

    def __init__(self, max_open_files: int = 256) -> None:
        self.max_open_files = max_open_files
        self._open: OrderedDict[Path, int] = OrderedDict()

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """Return `size` bytes from byte `offset` on.

        Raises:
            DataFormatError: the shard is missing or ends earlier.
        """
        try:
            data = os.pread(self._descriptor(path), size, offset)
        except OSError as error:
            raise DataFormatError(f"{path} cannot be read ({error.strerror}).") from error
        if len(data) != size:
            raise DataFormatError(
                f"{path} ends at byte {offset + len(data)}, its index says {offset + size}: "
                f"truncated or changed while in use."
            )
        return data

    def close(self) -> None:
        """Close all files."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _descriptor(self, path: Path) -> int:
        descriptor = self._open.pop(path, None)
        if descriptor is None:
            if len(self._open) >= self.max_open_files:
                os.close(self._open.popitem(last=False)[1])
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._open[path] = descriptor
        return descriptor

    def __getstate__(self) -> dict[str, Any]:
        return {"max_open_files": self.max_open_files, "_open": OrderedDict()}

    def __del__(self) -> None:
        self.close()
