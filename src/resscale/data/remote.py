"""Remote files: their size, ranges of their bytes, and whole ones, with broken bodies continued.

Every transfer is checked: so many bytes as asked for, of the same version of the file, or an
error. What may pass is tried again: 5xx and 429, connections that break or stall. A body that
breaks is continued by a range request from the byte where it broke. What cannot pass (no such
file, no right to it) is told at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from resscale.data.locations import local_path, name_of
from resscale.data.remote_options import RemoteOptions
from resscale.data.remote_transfer import RemoteChangedError as RemoteChangedError
from resscale.data.remote_transfer import Transfer
from resscale.data.remote_transfer import reads_ranges as reads_ranges
from resscale.errors import DataFormatError

_COPIED_BYTES = 1 << 20
T = TypeVar("T")
_default = RemoteOptions()


@dataclass(frozen=True)
class RemoteStat:
    """What a server says of a file.

    Args:
        size: bytes.
        tag: names this version of the content (ETag, or time of the last change); "" if unknown.
        ranges: the server reads parts of it; else each read transfers it from its beginning.
    """

    size: int
    tag: str
    ranges: bool = True


def set_default(options: RemoteOptions) -> None:
    """Read with these options in this process wherever none are given."""
    global _default
    _default = options


def get_default() -> RemoteOptions:
    """Return the options that are used where none are given."""
    return _default


def stat(url: str, options: RemoteOptions | None = None) -> RemoteStat:
    """Ask for a file's size and version (by its first byte: addresses signed for GET take no HEAD).

    Raises:
        DataFormatError: there is no such file, or no right to read it.
        RemoteError: the server did not answer.
    """
    if (path := local_path(url)) is not None:
        facts = _local(path, lambda: path.stat())
        return RemoteStat(facts.st_size, str(facts.st_mtime_ns))
    transfer = Transfer(url, 0, 1, "", lambda chunk: None, options or _default)
    transfer.run(only_ask=True)
    return RemoteStat(transfer.size, transfer.tag, transfer.ranges)


def read_range(
    url: str,
    start: int,
    stop: int,
    tag: str | None = None,
    options: RemoteOptions | None = None,
    size: int | None = None,
) -> bytes:
    """Return the bytes from `start` up to and without `stop`: exactly so many.

    Args:
        url: the file.
        start: first byte, from 0.
        stop: the byte behind the last one.
        tag: the version that is meant, of `stat`; None: whichever is there. Should a broken body
            then go on in another one, as on a mirror, the range is read anew: none is spliced.
        options: patience and protocol options; None: this process's.
        size: bytes of the whole file that is meant; None: whatever it has.

    Raises:
        RemoteChangedError: another version lies there.
        DataFormatError: there is no such file, it is shorter, or may not be read.
        RemoteError: the server did not answer.
    """
    if (path := local_path(url)) is not None:
        return _read_local(path, start, stop)
    if stop <= start:
        return b""
    data = bytearray()
    again = None if tag else data.clear
    Transfer(url, start, stop, tag or "", data.extend, options or _default, size, again).run()
    return bytes(data)


def read_all(url: str, options: RemoteOptions | None = None) -> bytes:
    """Return a whole file, as small ones are read: manifests and indices.

    Raises:
        DataFormatError: there is no such file, or no right to read it.
        RemoteError: the server did not answer.
    """
    if (path := local_path(url)) is not None:
        return _local(path, path.read_bytes)
    data = bytearray()
    Transfer(url, 0, None, "", data.extend, options or _default, again=data.clear).run()
    return bytes(data)


def download(
    url: str,
    write: Callable[[bytes], object],
    about: RemoteStat,
    options: RemoteOptions | None = None,
    *,
    start: int = 0,
    is_checked: bool = False,
) -> None:
    """Hand a file's bytes from `start` on to `write`, as they come and in order.

    Args:
        url: the file.
        write: takes the next bytes.
        about: the version that is meant, of `stat`.
        options: patience and protocol options; None: this process's.
        start: first byte.
        is_checked: the caller compares the whole with a checksum. Then only the size must agree:
            mirrors behind one address may give the same bytes different tags.

    Raises:
        RemoteChangedError: another version lies there.
        DataFormatError: there is no such file, or no right to read it.
        RemoteError: the server did not answer.
        OSError: what `write` raises.
    """
    if (path := local_path(url)) is not None:
        for here in range(start, about.size, _COPIED_BYTES):
            write(_read_local(path, here, min(here + _COPIED_BYTES, about.size)))
    elif start < about.size:
        tag = None if is_checked else about.tag
        Transfer(url, start, about.size, tag, write, options or _default, about.size).run()


def list_names(folder_url: str, options: RemoteOptions | None = None) -> list[str]:
    """Return the names of the files in a folder, sorted; over http, of the page's links.

    Raises:
        DataFormatError: there is no such folder, or no right to list it.
        RemoteError: the server did not answer.
    """
    if (path := local_path(folder_url)) is not None:
        return _local(path, lambda: sorted(each.name for each in path.iterdir() if each.is_file()))
    folder = folder_url if "?" in folder_url else folder_url.rstrip("/") + "/"
    found: list[dict[str, Any]] = []
    transfer = Transfer(folder, 0, None, "", lambda chunk: None, options or _default)
    transfer.repeat(lambda: found.extend(transfer.listed()))
    return sorted({name_of(each["name"]) for each in found if each["type"] == "file"})


def _read_local(path: Path, start: int, stop: int) -> bytes:
    def read() -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    data = _local(path, read)
    if len(data) != stop - start:
        raise DataFormatError(
            f"{path} ends at byte {start + len(data)}, its index says {stop}: "
            f"truncated or changed while in use."
        )
    return data


def _local(path: Path, action: Callable[[], T]) -> T:
    try:
        return action()
    except OSError as error:
        raise DataFormatError(f"{path} cannot be read ({error.strerror}).") from error
