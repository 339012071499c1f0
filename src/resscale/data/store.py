"""Reads byte ranges of shards: local files, files on servers, and the cache between them."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from resscale.data.cache import Fetched, ShardCache
from resscale.data.cache_entry import CacheSource, boot_mark
from resscale.data.fork_locks import renew_in_children
from resscale.data.locations import is_local, local_path, shown
from resscale.data.read_ahead import ReadAhead
from resscale.data.remote import RemoteChangedError, read_all, read_range, reads_ranges, stat
from resscale.data.remote_counts import WorkerCounts, count
from resscale.data.remote_options import RemoteOptions
from resscale.errors import DataFormatError

READS_AT_ONCE = 8
_KEPT_VERSIONS = 100_000
# The processes of a node come to a shard at about the same time.
_VERSION_HOLDS_S = 600.0


class ShardStore:
    """Random access to shards by location, with a bounded number of open files.

    Reads are positional (`pread`), so forked workers that inherit a descriptor do not disturb each
    other; a pickled copy opens files of its own. Several threads may read at once.

    A shard on a server is read from the cache as far as it is there, be it on its way. What is
    missing is read from the server by range: a sample never waits for a whole shard, unless the
    server knows no ranges.

    Args:
        max_open_files: descriptors kept open; the least recently used is closed first.
        cache: where whole shards are kept; None: none are.
        cache_local: local shards are kept there too, as those of a slow network file system.
        remote: how servers are read; None: this process's default.
        worker_counts: where a reading process publishes what it has read.
        reads_at_once: requests side by side in `read_ahead`.
    """

    def __init__(
        self,
        max_open_files: int = 256,
        cache: ShardCache | None = None,
        *,
        cache_local: bool = False,
        remote: RemoteOptions | None = None,
        worker_counts: WorkerCounts | None = None,
        reads_at_once: int = READS_AT_ONCE,
    ) -> None:
        self.max_open_files = max_open_files
        self.cache = cache
        self.cache_local = cache_local
        self.remote = remote
        self.worker_counts = worker_counts
        self.reads_at_once = reads_at_once
        self._open: OrderedDict[str, _File] = OrderedDict()
        self._versions: dict[str, str] = {}
        self._ahead: tuple[int, ReadAhead] | None = None
        renew_in_children(self)

    def read(
        self, location: str | Path, offset: int, size: int, source: CacheSource | None = None
    ) -> bytes:
        """Return `size` bytes from byte `offset` on.

        Args:
            location: path or address of the shard.
            offset: first byte.
            size: bytes.
            source: what the manifest says of it (`source`); without it, nothing is cached.

        Raises:
            DataFormatError: the shard is missing, ends earlier, or is another one.
            RemoteError: its server does not answer.
        """
        where = str(location)
        if not self.is_remote(where):
            return self._read_file(self._local_file(where), where, offset, size)
        try:
            data = self._read_remote(where, offset, size, source)
        except RemoteChangedError:
            if source is not None:
                self.forget_version(source)
            raise
        self._publish()
        return data

    def source(self, location: str, size: int, sha256: str) -> CacheSource:
        """Return how the cache knows a shard of so many bytes.

        Where the SHA-256 is unknown ("") the server is asked for the version: once, and with a
        cache, once for all processes of the node that ask within ten minutes.

        Raises:
            DataFormatError: there is no such file, or it has another size.
            RemoteError: its server does not answer.
        """
        if sha256:
            return CacheSource(location, size, sha256, sha256)
        version = self._versions.get(location)
        if version is None:
            version = self._ask_version(location, size)
            if len(self._versions) >= _KEPT_VERSIONS:
                self._versions.clear()
            self._versions[location] = version
        return CacheSource(location, size, version)

    def knows_version(self, location: str) -> bool:
        """Return whether `source` need not ask the server."""
        return location in self._versions

    def forget_version(self, source: CacheSource) -> None:
        """Ask the server anew the next time: another version lies there now."""
        self._versions.pop(source.url, None)
        if self.cache is not None and not source.sha256:
            self.cache.drop(_version_record(source.url, source.size))

    def _ask_version(self, location: str, size: int) -> str:
        def ask() -> bytes:
            about = stat(location, self.remote)
            if about.size != size:
                raise DataFormatError(
                    f"{shown(location)} has {about.size} bytes, its manifest says {size}: "
                    f"truncated or changed."
                )
            return about.tag.encode()

        if self.cache is None or local_path(location) is not None:
            return ask().decode()
        record = _version_record(location, size)
        return self.cache.small(record, ask, _VERSION_HOLDS_S).decode()

    def read_small(self, location: str, version: str) -> bytes:
        """Return a whole small file on a server, as an offset index is.

        Args:
            location: its address.
            version: names its content, as the SHA-256 of the shard that it belongs to, or that
                shard's ETag; "": unknown, so that it is not cached.

        Raises:
            DataFormatError, RemoteError: it cannot be read.
        """

        def load() -> bytes:
            return read_all(location, self.remote)

        if self.cache is None or not version:
            raw = load()
        else:
            raw = self.cache.small(_small(location, version), load)
        self._publish()
        return raw

    def forget_small(self, location: str, version: str) -> bool:
        """Take a small file out of the cache; say whether it was there."""
        return self.cache is not None and self.cache.drop(_small(location, version))

    def is_remote(self, location: str) -> bool:
        """Return whether a location is read otherwise than a local file is."""
        return not is_local(location) or (self.cache_local and self.cache is not None)

    @property
    def read_ahead(self) -> ReadAhead:
        """Threads of this process that read from servers side by side."""
        with self._lock:
            if self._ahead is None or self._ahead[0] != os.getpid():
                self._ahead = (os.getpid(), ReadAhead(self.reads_at_once))
            return self._ahead[1]

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            self._open.clear()

    def _read_remote(self, where: str, offset: int, size: int, source: CacheSource | None) -> bytes:
        if self.cache is not None and source is not None:
            data = self._read_cached(self.cache, source, offset, size)
            if data is not None:
                count(hits=1)
                return data
            count(direct=1)
        if local_path(where) is not None:
            return self._read_file(self._local_file(where), where, offset, size)
        tag = source.version if source is not None and not source.sha256 else None
        whole = source.size if source is not None else None
        return read_range(where, offset, offset + size, tag, self.remote, whole)

    def _read_cached(
        self, cache: ShardCache, source: CacheSource, offset: int, size: int
    ) -> bytes | None:
        file = self._cached_file(cache, source)
        if file is None:
            data = cache.read_part(source, offset, size)
            if data is not None:
                return data
            if reads_ranges(source.url) or cache.fetch(source) is not Fetched.THERE:
                return None
            file = self._cached_file(cache, source)
        return None if file is None else self._read_file(file, source.url, offset, size)

    def _read_file(self, file: _File, where: str, offset: int, size: int) -> bytes:
        try:
            data = os.pread(file.descriptor, size, offset)
        except OSError as error:
            raise DataFormatError(_unreadable(where, error)) from error
        if len(data) != size:
            raise DataFormatError(
                f"{shown(where)} ends at byte {offset + len(data)}, its index says "
                f"{offset + size}: "
                f"truncated or changed while in use."
            )
        return data

    def _local_file(self, where: str) -> _File:
        file = self._known(where)
        if file is None:
            path = local_path(where)
            assert path is not None
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise DataFormatError(_unreadable(where, error)) from error
            file = self._keep(where, descriptor)
        return file

    def _cached_file(self, cache: ShardCache, source: CacheSource) -> _File | None:
        file = self._known(source.key)
        if file is None:
            descriptor = cache.open(source)
            if descriptor is None:
                return None
            self._forget_evicted()
            file = self._keep(source.key, descriptor)
        return file

    def _known(self, name: str) -> _File | None:
        with self._lock:
            file = self._open.get(name)
            if file is not None:
                self._open.move_to_end(name)
            return file

    def _keep(self, name: str, descriptor: int) -> _File:
        with self._lock:
            while len(self._open) >= self.max_open_files:
                self._open.popitem(last=False)
            self._open[name] = _File(descriptor)
            return self._open[name]

    def _forget_evicted(self) -> None:
        """Close what others have removed from the cache: open, it would still fill the disk."""
        with self._lock:
            for name, file in list(self._open.items()):
                if os.fstat(file.descriptor).st_nlink == 0:
                    del self._open[name]

    def _publish(self) -> None:
        if self.worker_counts is not None:
            from torch.utils.data import get_worker_info

            worker = get_worker_info()
            if worker is not None:
                self.worker_counts.note(worker.id)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict(), "_lock": None, "_ahead": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        renew_in_children(self)

    def make_locks(self) -> None:
        """Take free locks; see `fork_locks`."""
        self._lock = threading.Lock()


def _small(location: str, version: str) -> CacheSource:
    return CacheSource(location, 0, f"small {version}")


def _unreadable(where: str, error: OSError) -> str:
    return f"{shown(where)} cannot be read ({error.strerror})."


def _version_record(location: str, size: int) -> CacheSource:
    # Not synced to the disk, so not to be believed after a power failure.
    return CacheSource(location, 0, f"version {size} {boot_mark()}")


class _File:
    """An open file; closed when its last reader lets go of it, so never under a thread's read."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)
