"""A bounded cache of remote files in a folder, shared by all processes and jobs of a node.

Each file is downloaded once per node: whoever downloads it holds a lock that ends with its process.
A download that was killed goes on from its last byte. A file appears whole, synced to the disk and
checked, or not at all. Nothing here ends a run: without a disk, or on a full one, files are read
from the server.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import BinaryIO

from resscale.data.cache_entry import (
    PART,
    CacheSource,
    boot_mark,
    file_system_type,
    host_for_parts,
)
from resscale.data.cache_room import make_room
from resscale.data.cache_small import keep_small, remove_torn_small
from resscale.data.locations import shown
from resscale.data.remote import RemoteStat, download
from resscale.data.remote_counts import count
from resscale.data.remote_options import RemoteOptions
from resscale.errors import DataFormatError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_CHUNK_BYTES = 1 << 20
_POLL_S = 0.05
# What a full or broken disk was is asked again after this.
_OFF_S = 60.0


class Fetched(Enum):
    """What became of a wish to have a file in the cache."""

    THERE = "there"
    BUSY = "somebody else downloads it"
    FULL = "everything else in the cache is needed"
    OFF = "the cache cannot be written"


class ShardCache:
    """Files by address and version, in one folder.

    Args:
        folder: where they lie, on a disk of the node or in /dev/shm; made if it is missing.
        limit_bytes: most bytes of all files in it.
        remote: how servers are read; None: this process's default.
    """

    def __init__(self, folder: Path, limit_bytes: int, remote: RemoteOptions | None = None) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.remote = remote
        self._off_until = 0.0
        self._said: set[str] = set()
        self._host = host_for_parts(folder)
        # After a power failure a part may have its length and not its bytes.
        self._boot = "-".join(filter(None, (self._host, boot_mark())))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            self._switch_off(error, float("inf"))
        else:
            self._remove_stale()
        if self._host:
            self._say(
                f"data.cache={folder} lies on {file_system_type(folder)}, a network file system: "
                f"each node downloads for itself, and all share its limit. A local disk or "
                f"/dev/shm serves better."
            )

    @property
    def is_on(self) -> bool:
        """Whether files can be put into it at present."""
        return time.monotonic() >= self._off_until

    def open(self, source: CacheSource) -> int | None:
        """Return a descriptor of the whole file, or None where the cache has none."""
        path = self.folder / source.file_name
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        if os.fstat(descriptor).st_size != source.size:
            os.close(descriptor)
            path.unlink(missing_ok=True)  # somebody has been at it by hand
            return None
        self._touch(path)
        return descriptor

    def has(self, source: CacheSource) -> bool:
        """Return whether the whole file is there."""
        return (self.folder / source.file_name).is_file()

    def read_part(self, source: CacheSource, offset: int, size: int) -> bytes | None:
        """Return bytes of a file on its way, or None where it has not come so far."""
        try:
            descriptor = os.open(self._part(source), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            data = os.pread(descriptor, size, offset)
        except OSError:
            return None
        finally:
            os.close(descriptor)
        return data if len(data) == size else None

    def small(
        self, source: CacheSource, load: Callable[[], bytes], most_age_s: float = math.inf
    ) -> bytes:
        """Return a small file's bytes; one process of the node loads them, and keeps them.

        Args:
            source: names the file; its size plays no part.
            load: reads it from its server.
            most_age_s: what is older than that is loaded anew.
        """
        return keep_small(self.folder, source, load, most_age_s)

    def whole(self, source: CacheSource) -> bytes | None:
        """Return all bytes of a file, downloaded once per node; None where the cache has no room.

        Raises:
            DataFormatError, RemoteError: as `fetch`.
        """
        descriptor = self.open(source) if self.fetch(source) is Fetched.THERE else None
        if descriptor is None:
            return None
        with os.fdopen(descriptor, "rb") as file:
            return file.read()

    def drop(self, source: CacheSource) -> bool:
        """Take a file out; say whether it was there."""
        try:
            (self.folder / source.file_name).unlink()
        except OSError:
            return False
        return True

    def fetch(self, source: CacheSource, wait: bool = True) -> Fetched:
        """Download a file into the cache, unless it is there.

        Args:
            source: the file.
            wait: where somebody else downloads it, wait for its end; else answer BUSY.

        Raises:
            DataFormatError: the server has no such file, or other bytes than its checksum says.
            RemoteError: the server does not answer.
        """
        while self.is_on:
            if self.has(source):
                return Fetched.THERE
            try:
                descriptor = self._lock_part(source)
                if descriptor is None:
                    if not wait:
                        return Fetched.BUSY
                    time.sleep(_POLL_S)
                    continue
                with os.fdopen(descriptor, "r+b", buffering=0) as file:
                    try:
                        return self._fill(source, file)
                    finally:
                        # A child forked meanwhile has the descriptor, too, and would hold it.
                        fcntl.flock(file.fileno(), fcntl.LOCK_UN)
            except OSError as error:
                self._switch_off(error, _OFF_S)
        return Fetched.OFF

    def _part(self, source: CacheSource) -> Path:
        return self.folder / source.part_name(self._host if source.sha256 else self._boot)

    def _lock_part(self, source: CacheSource) -> int | None:
        """Return the locked file of a download; None where somebody else holds it."""
        path = self._part(source)
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have finished or removed it meanwhile.
            if not self.has(source) and _is_same(descriptor, path):
                return descriptor
            if _is_same(descriptor, path):
                path.unlink(missing_ok=True)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):
                os.close(descriptor)
                raise
        os.close(descriptor)
        return None

    def _fill(self, source: CacheSource, file: BinaryIO) -> Fetched:
        """Bring a locked part to its end, and to its name."""
        part = self._part(source)
        if not make_room(self.folder, self.limit_bytes, source.key):
            part.unlink(missing_ok=True)
            return Fetched.FULL
        for is_last in (False, True):
            try:
                found = self._transfer(source, file)
            except DataFormatError:
                part.unlink(missing_ok=True)  # no such file, or another version of it
                raise
            except OSError as error:
                if error.errno in _NO_SPACE and not is_last and self._free_space(source, file):
                    continue
                part.unlink(missing_ok=True)  # its bytes would only fill the disk
                raise
            if not source.sha256 or found == source.sha256:
                break
            file.truncate(0)
            if is_last:
                part.unlink(missing_ok=True)
                raise DataFormatError(
                    f"{shown(source.url)} has other bytes than its manifest says: SHA-256 {found}, "
                    f"expected {source.sha256}; downloaded twice. Put the right file there, or "
                    f"make the manifest anew: resscale index --force."
                )
            count(retries=1)
        os.fsync(file.fileno())
        part.rename(self.folder / source.file_name)
        self._touch(self.folder / source.file_name)
        return Fetched.THERE

    def _transfer(self, source: CacheSource, file: BinaryIO) -> str:
        """Download what is missing; return the SHA-256 of the whole file."""
        digest = hashlib.sha256()
        start = file.seek(0, os.SEEK_END)
        if start > source.size:
            file.truncate(0)
            start = 0
        file.seek(0)
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
        file.seek(start)
        about = RemoteStat(source.size, source.version)

        def write(chunk: bytes) -> None:
            _write_all(file, chunk)
            digest.update(chunk)

        checked = bool(source.sha256)
        download(source.url, write, about, self.remote, start=start, is_checked=checked)
        return digest.hexdigest()

    def _free_space(self, source: CacheSource, file: BinaryIO) -> bool:
        """Make room on a full disk; say whether another try is worth it."""
        missing = source.size - file.seek(0, os.SEEK_END)
        return make_room(self.folder, self.limit_bytes, source.key, missing)

    def _remove_stale(self) -> None:
        """Remove parts that an earlier start of the machine has left, and torn small files."""
        remove_torn_small(self.folder)
        boots = self._boot.removesuffix(boot_mark()) + "boot-"
        for left in self.folder.glob(f"*@{boots}*{PART}"):
            if not left.name.endswith(f"@{self._boot}{PART}"):
                with suppress(OSError):
                    left.unlink()

    def _touch(self, path: Path) -> None:
        with suppress(OSError):  # gone just now, or another user's: it only seems older
            os.utime(path)

    def _switch_off(self, error: OSError, for_s: float) -> None:
        self._off_until = time.monotonic() + for_s
        self._say(
            f"data.cache={self.folder} cannot be written ({error.strerror}): shards are read from "
            f"where they lie, each sample anew. Free space there, or name another folder."
        )

    def _say(self, text: str) -> None:
        """Say something once, in the rank's own process; its reading processes see the same."""
        if text not in self._said and multiprocessing.parent_process() is None:
            print(f"resscale: {text}", file=sys.stderr, flush=True)
        self._said.add(text)


def _write_all(file: BinaryIO, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) :]  # on a disk that is nearly full, only a part of it


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
