"""Small files in the cache: indices, and versions of shards; one process of a node loads them."""

from __future__ import annotations

import fcntl
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from resscale.data.cache_entry import CacheSource

_TEMPORARY = ".small"
_STALE_S = 3600.0


def keep_small(
    folder: Path, source: CacheSource, load: Callable[[], bytes], most_age_s: float
) -> bytes:
    """Return a small file's bytes; who finds it missing loads it, and the others wait.

    Args:
        folder: the cache folder; if it cannot be written, each process loads for itself.
        source: names the file; its size plays no part.
        load: reads it from its server.
        most_age_s: what is older than that is loaded anew.
    """
    path = folder / source.file_name
    raw = _read_young(path, most_age_s)
    if raw is not None:
        return raw
    # By the key's first byte: 256 locks, so that others seldom wait for it.
    with _locked_if_possible(folder / f".small-{source.key[:2]}.lock"):
        raw = _read_young(path, most_age_s)
        if raw is None:
            raw = load()
            _write(path, raw)
    return raw


def remove_torn_small(folder: Path) -> None:
    """Remove what processes that were killed in the middle have left, an hour ago or longer."""
    for left in folder.glob(f".*{_TEMPORARY}"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_S:
                left.unlink()


def _write(path: Path, raw: bytes) -> None:
    temporary = path.with_name(f".{uuid.uuid4().hex}{_TEMPORARY}")
    try:
        temporary.write_bytes(raw)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):  # it serves as well from memory
            temporary.unlink(missing_ok=True)


def _read_young(path: Path, most_age_s: float) -> bytes | None:
    try:
        if most_age_s < math.inf and not 0 <= time.time() - path.stat().st_mtime <= most_age_s:
            return None
        return path.read_bytes()
    except OSError:
        return None


@contextmanager
def _locked_if_possible(path: Path) -> Iterator[None]:
    """Hold a lock file, where the folder can have one; else several may do the same work."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except OSError:
        yield
        return
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        with suppress(OSError):
            # A child forked meanwhile has the descriptor, too, and would hold it.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
