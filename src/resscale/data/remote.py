"""Remote files: their size, ranges of their bytes, and whole ones, with broken bodies continued.

Every transfer is checked: so many bytes as asked for, of the same version of the file, or an
error. What may pass is tried again: 5xx and 429, connections that break or stall. A body that
breaks is continued by a range request from the byte where it broke. What cannot pass (no such
file, no right to it) is told at once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from resscale.data.locations import local_path, name_of
from resscale.data.remote_counts import count, counted_time
from resscale.data.remote_errors import TryAgainError, protocol_of
from resscale.data.remote_files import FILE_SYSTEMS, list_folder, open_range
from resscale.data.remote_options import RemoteOptions, draw_wait, shown
from resscale.errors import DataFormatError, RemoteError

_SAY_AFTER_S = 10.0
_SAY_EVERY_S = 30.0
_COPIED_BYTES = 1 << 20
T = TypeVar("T")
_default = RemoteOptions()
_whole_only: set[str] = set()
_said_at = float("-inf")


class RemoteChangedError(DataFormatError):
    """The file is not the one that was asked for: another version lies there now."""


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
    transfer = _Transfer(url, 0, 1, "", lambda chunk: None, options or _default)
    transfer.run(only_ask=True)
    return RemoteStat(transfer.size, transfer.tag, transfer.ranges)


def reads_ranges(url: str) -> bool:
    """Return False where this server was seen to ignore ranges: each read transfers the file."""
    return _host(url) not in _whole_only


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
        tag: the version that is meant, of `stat`; None: whichever is there.
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
    _Transfer(url, start, stop, tag or "", data.extend, options or _default, size).run()
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
    _Transfer(url, 0, None, "", data.extend, options or _default).run()
    return bytes(data)


def download(
    url: str,
    write: Callable[[bytes], object],
    about: RemoteStat,
    options: RemoteOptions | None = None,
    *,
    start: int = 0,
) -> None:
    """Hand a file's bytes from `start` on to `write`, as they come and in order.

    Args:
        url: the file.
        write: takes the next bytes.
        about: the version that is meant, of `stat`.
        options: patience and protocol options; None: this process's.
        start: first byte.

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
        _Transfer(url, start, about.size, about.tag, write, options or _default, about.size).run()


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
    transfer = _Transfer(folder, 0, None, "", lambda chunk: None, options or _default)
    transfer.repeat(lambda: found.extend(transfer.listed()))
    return sorted({name_of(each["name"]) for each in found if each["type"] == "file"})


class _SinkError(Exception):
    """What takes the bytes failed, as on a full disk; `__cause__` says how."""


class _Transfer:
    """One range on its way, over as many requests as it takes; `position` is where it stands."""

    def __init__(
        self,
        url: str,
        start: int,
        stop: int | None,
        tag: str,
        sink: Callable[[bytes], object],
        options: RemoteOptions,
        size: int | None = None,
    ) -> None:
        self.url = url
        self.position = start
        self.stop = stop
        self.tag = tag
        self.size = size if size is not None else -1
        self.ranges = True
        self._sink = sink
        self._options = options

    def run(self, only_ask: bool = False) -> None:
        """Transfer all bytes, or ask for size and version alone."""
        self.repeat(lambda: self._request(only_ask))

    def listed(self) -> list[dict[str, Any]]:
        """Return the entries of the folder, in one try."""
        from fsspec.asyn import sync

        system = FILE_SYSTEMS.get(self.url, self._options)
        count(requests=1)
        entries: list[dict[str, Any]] = sync(
            system.loop, list_folder, system, self.url, self._options
        )
        return entries

    def repeat(self, attempt: Callable[[], None]) -> None:
        """Try until it is done, or until no byte has come for `give_up_s`."""
        protocol_of(self.url)
        failed, before = 0, self.position
        since = time.monotonic()
        with counted_time():
            while True:
                try:
                    return attempt()
                except TryAgainError as error:
                    if self.position > before:
                        failed, before, since = 0, self.position, time.monotonic()
                    failed += 1
                    waited = time.monotonic() - since
                    pause = draw_wait(failed, self._options, error.after_s)
                    if waited + pause > self._options.give_up_s:
                        raise self._given_up(failed, waited, error) from error
                    if waited + pause > _SAY_AFTER_S:
                        self._say(f"{error}; trying again, {self._options.give_up_s:g} s at most")
                    count(retries=1)
                    time.sleep(pause)

    def _request(self, only_ask: bool) -> None:
        from fsspec.asyn import sync

        system = FILE_SYSTEMS.get(self.url, self._options)
        try:
            sync(system.loop, self._transfer, system, only_ask)
        except _SinkError as error:
            raise (error.__cause__ or error) from None

    async def _transfer(self, system: Any, only_ask: bool) -> None:
        count(requests=1)
        async with open_range(system, self.url, self.position, self.stop, self._options) as body:
            self._check_version(body.size, body.tag)
            self.ranges = body.ranges
            if not body.ranges:
                _whole_only.add(_host(self.url))
            if only_ask:
                return
            stop = self.stop if self.stop is not None else body.size
            if stop > body.size:
                raise DataFormatError(
                    f"{shown(self.url)} ends at byte {body.size}, its index says {stop}: "
                    f"truncated or changed while in use."
                )
            if body.start > self.position:
                raise TryAgainError(f"bytes from {body.start} came, not from {self.position}")
            here = body.start
            if self.position < stop:
                async for chunk in body.chunks():
                    count(bytes=len(chunk))
                    self._take(chunk[self.position - here if here < self.position else 0 :], stop)
                    here += len(chunk)
                    if self.position >= stop:
                        break
            if self.position < stop:
                raise TryAgainError(f"the body ended at byte {self.position} of {stop}")

    def _take(self, chunk: bytes, stop: int) -> None:
        chunk = chunk[: stop - self.position]
        if chunk:
            try:
                self._sink(chunk)
            except Exception as error:
                raise _SinkError from error
            self.position += len(chunk)

    def _check_version(self, size: int, tag: str) -> None:
        """Compare with what is meant; where nothing is meant yet, mean this from now on."""
        if (self.tag and tag and tag != self.tag) or (self.size >= 0 and size != self.size):
            raise RemoteChangedError(
                f"{shown(self.url)} has changed while it was read (version {self.tag or '?'} of "
                f"{self.size if self.size >= 0 else '?'} bytes, now {tag or '?'} of {size}). "
                f"Shards in use must stay as they are: put new ones into another folder."
            )
        self.tag, self.size = self.tag or tag, size

    def _given_up(self, tries: int, waited_s: float, error: Exception) -> RemoteError:
        return RemoteError(
            f"{shown(self.url)} cannot be read: {tries} tries in {waited_s:.0f} s brought no byte, "
            f"the last because {error}. See whether the server is up and reachable from this node "
            f"(proxy, DNS, endpoint_url), then go on with the run."
        )

    def _say(self, text: str) -> None:
        """Say something, not more than twice a minute: many reads wait for the same server."""
        global _said_at
        if time.monotonic() - _said_at < _SAY_EVERY_S:
            return
        _said_at = time.monotonic()
        print(f"resscale: {shown(self.url)}: {text}", file=sys.stderr, flush=True)


def _host(url: str) -> str:
    return "/".join(url.split("/", 3)[:3])


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
