"""A tar that comes as a stream, out of a command or a gzip file, and whether it came whole.

A tar reader takes a stream that ends between two files for a whole one, and does not look at what
gzip's checksum or the command's exit status say. Here all three are asked at the end.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, cast

from resscale.data.locations import is_pipe, shown, without_secrets
from resscale.errors import DataFormatError, RemoteError, ResscaleError

_GZIP = b"\x1f\x8b"
_TAR_MARK, _TAR_MARK_AT = b"ustar", 257
_BYTES_AT_ONCE = 1 << 16


class CheckedStream:
    """Hands a stream on and remembers how it begins and ends.

    Args:
        stream: the bytes of a tar.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._head = b""
        self._tail = b""

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, fewer than `size` at the end alone."""
        data = self._stream.read(size)
        if len(self._head) < tarfile.BLOCKSIZE:
            self._head += data[: tarfile.BLOCKSIZE - len(self._head)]
        self._tail = (self._tail + data)[-tarfile.BLOCKSIZE :]
        return data

    def read_to_end(self) -> None:
        """Read what a tar reader leaves: the padding behind the end-of-archive marker.

        Raises:
            EOFError: the stream is a tar and ends without the marker.
        """
        while self.read(_BYTES_AT_ONCE):
            pass
        is_tar = self._head[_TAR_MARK_AT:].startswith(_TAR_MARK)
        if is_tar and self._tail != bytes(tarfile.BLOCKSIZE):
            raise EOFError("the end-of-archive marker is missing")


@contextmanager
def open_stream(location: str) -> Iterator[CheckedStream]:
    """Open the output of a command (`pipe:...`) or a local file, compressed by gzip or not.

    When the block ends without an error, the rest is read and all of it was there.

    Raises:
        RemoteError: the command failed, or its output is no whole tar.
        DataFormatError: the file cannot be read, or is no whole tar.
    """
    from webdataset.gopen import gopen

    raw: Any = None
    try:
        raw = gopen(location, "rb")
        # A pipe gives what has come; a tar reader wants what it asked for.
        buffered = io.BufferedReader(_Raw(raw), _BYTES_AT_ONCE)
        packed = buffered.peek(2)[:2] == _GZIP
        unpacked = gzip.GzipFile(fileobj=buffered) if packed else buffered
        stream = CheckedStream(cast(IO[bytes], unpacked))
        yield stream
        stream.read_to_end()
        raw.close()  # here a command's exit status is asked for
    except ResscaleError:
        raise
    except (OSError, EOFError, tarfile.TarError, ValueError, zlib.error) as error:
        raise _failure(location, error, raw) from error
    finally:
        _abandon(raw)


def _abandon(raw: Any) -> None:
    """Close what may have been left in the middle; closing alone would wait for the command."""
    command = getattr(raw, "proc", None)
    if command is not None and command.poll() is None:
        command.kill()
    if raw is not None:
        with suppress(OSError):
            raw.close()


class _Raw(io.RawIOBase):
    """What `io.BufferedReader` reads from: webdataset's pipes are no `io` objects."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def readable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the buffer as far as the next bytes reach; 0 is the end."""
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _failure(location: str, error: Exception, raw: Any) -> ResscaleError:
    status = raw.proc.poll() if hasattr(raw, "proc") else None
    if status:
        reason = f"the command ended with exit status {status}"
    else:
        # webdataset adds to the arguments of what passes it; the first says what it is.
        said = getattr(error, "strerror", None) or (error.args[0] if error.args else error)
        reason = f"{type(error).__name__}: {without_secrets(' '.join(str(said).split()))[:200]}"
    text = f"{shown(location)} did not come as a whole tar ({reason})."
    if is_pipe(location):
        return RemoteError(
            f"{text} Run the command by hand to see; let it fail where the server does, and try "
            f"again by itself: curl -sf --retry 5 ..."
        )
    return DataFormatError(f"{text} Copy or pack it again.")
