"""Reading a sample's bytes from where they lie: a file of its own, or a part of an archive."""

from __future__ import annotations

import io
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from resscale.data.digits import CONTAINER as DIGITS
from resscale.data.digits import load_digits
from resscale.data.pack_images import BadSample
from resscale.data.pack_samples import WHOLE_FILE, SampleRef
from resscale.data.sources_idx import read_maybe_gzipped
from resscale.errors import DataFormatError


class SourceReader:
    """Reads samples and keeps the archives open in between; a context manager."""

    def __init__(self) -> None:
        self._files: dict[str, BinaryIO] = {}
        self._stack = ExitStack()

    def __enter__(self) -> SourceReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def read(self, ref: SampleRef) -> bytes:
        """Return the sample's bytes.

        Raises:
            BadSample: its own file cannot be read, or its archive ends too early.
            DataFormatError: its archive cannot be read, so neither can the others in it.
        """
        if ref.raw is not None:
            return ref.raw
        if ref.offset == WHOLE_FILE:
            try:
                return Path(ref.path).read_bytes()
            except OSError as error:
                raise BadSample(f"cannot be read: {error.strerror}") from error
        try:
            file = self._container(ref.path)
            file.seek(ref.offset)
            raw = file.read(ref.size)
        except OSError as error:
            raise DataFormatError(
                f"{ref.path} cannot be read ({error.strerror}). Check the disk it lies on."
            ) from error
        if len(raw) != ref.size:
            raise BadSample(f"{len(raw)} of {ref.size} bytes are there: the archive is truncated")
        return raw

    def _container(self, path: str) -> BinaryIO:
        if path not in self._files:
            self._files[path] = self._stack.enter_context(_open(path))
        return self._files[path]


def _open(path: str) -> BinaryIO:
    if path == DIGITS:
        return io.BytesIO(load_digits()[0].tobytes())
    if path.endswith(".gz"):
        return io.BytesIO(_unpacked(path, Path(path).stat().st_mtime_ns))
    return Path(path).open("rb", buffering=0)  # one read per image, nothing ahead of it


@lru_cache(maxsize=1)
def _unpacked(path: str, mtime_ns: int) -> bytes:
    del mtime_ns  # part of the cache's key: a file that was replaced is read again
    return read_maybe_gzipped(Path(path))
