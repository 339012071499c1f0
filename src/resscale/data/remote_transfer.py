"""One range of a remote file on its way, over as many requests as it takes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from resscale.data.locations import shown
from resscale.data.remote_counts import count, counted_time
from resscale.data.remote_errors import TryAgainError, protocol_of
from resscale.data.remote_files import FILE_SYSTEMS, list_folder, open_range
from resscale.data.remote_options import RemoteOptions, draw_wait
from resscale.errors import DataFormatError, RemoteError

_SAY_AFTER_S = 10.0
_SAY_EVERY_S = 30.0
_whole_only: set[str] = set()
_said_at = float("-inf")


class RemoteChangedError(DataFormatError):
    """The file is not the one that was asked for: another version lies there now."""


def reads_ranges(url: str) -> bool:
    """Return False where this server was seen to ignore ranges: each read transfers the file."""
    return _host(url) not in _whole_only


class _SinkError(Exception):
    """What takes the bytes failed, as on a full disk; `__cause__` says how."""


class Transfer:
    """A range of a file, or all of it; `position` is where the transfer stands.

    Args:
        url: the file.
        start: first byte.
        stop: the byte behind the last one; None: the file's end.
        tag: the version that is meant; "": that of the first answer; None: any, even several.
        sink: takes the bytes.
        options: patience and protocol options.
        size: bytes of the file that is meant; None: those of the first answer.
        again: throws away what the sink has taken, so that another version can be read from
            `start` on; None: another version is an error.
    """

    def __init__(
        self,
        url: str,
        start: int,
        stop: int | None,
        tag: str | None,
        sink: Callable[[bytes], object],
        options: RemoteOptions,
        size: int | None = None,
        again: Callable[[], object] | None = None,
    ) -> None:
        self.url = url
        self.position = start
        self.stop = stop
        self.tag = tag or ""
        self.size = size if size is not None else -1
        self.ranges = True
        self._start = start
        self._any_tag = tag is None
        self._any_size = size is None
        self._again = again
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
        other_size = self.size >= 0 and size != self.size
        other_tag = bool(self.tag and tag and tag != self.tag) and not self._any_tag
        if (other_tag or other_size) and (
            self._again is None or (other_size and not self._any_size)
        ):
            raise RemoteChangedError(
                f"{shown(self.url)} has changed while it was read (version {self.tag or '?'} of "
                f"{self.size if self.size >= 0 else '?'} bytes, now {tag or '?'} of {size}). "
                f"Shards in use must stay as they are: put new ones into another folder."
            )
        if (other_tag or other_size) and self._again is not None:
            # The answer begins where the other version broke off: `_transfer` asks anew.
            self._again()
            self.position = self._start
            self.tag = ""
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
