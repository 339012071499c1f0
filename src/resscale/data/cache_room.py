"""Keeps a cache folder within its bytes: what nobody needs goes, the longest unused first."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from resscale.data.cache_entry import CacheEntry, list_entries
from resscale.data.cache_lease import leased_keys

_LOCK = ".room.lock"


def choose_victims(
    entries: Sequence[CacheEntry], excess_bytes: int, kept: Collection[str]
) -> list[CacheEntry] | None:
    """Return the entries to remove, or None where what may go is not enough.

    Args:
        entries: all files of the cache.
        excess_bytes: how much must go.
        kept: keys that must stay.
    """
    chosen: list[CacheEntry] = []
    for entry in sorted(entries, key=lambda entry: (entry.used_at, entry.path.name)):
        if excess_bytes <= 0:
            break
        if entry.key not in kept:
            chosen.append(entry)
            excess_bytes -= entry.bytes
    return chosen if excess_bytes <= 0 else None


def make_room(folder: Path, limit_bytes: int, own: str, more_bytes: int = 0) -> bool:
    """Remove what nobody needs, until the cache is within its limit; say whether it is.

    An entry that a process has open may go too: its bytes stay readable there.

    Args:
        folder: the cache folder.
        limit_bytes: most bytes of all entries; those on their way count whole.
        own: key of the entry that room is made for; it stays.
        more_bytes: room to make beyond that, where the disk is fuller than the limit knows.
    """
    with _locked(folder / _LOCK):
        entries = list_entries(folder)
        excess = max(sum(entry.bytes for entry in entries) - limit_bytes, more_bytes)
        if excess <= 0:
            return True
        kept = leased_keys(folder) | {own}
        # Whose transfer is under way is needed, too.
        kept |= {entry.key for entry in entries if entry.is_part and _is_held(entry.path)}
        victims = choose_victims(entries, excess, kept)
        for victim in victims or ():
            victim.path.unlink(missing_ok=True)
        return victims is not None


def _is_held(part: Path) -> bool:
    try:
        descriptor = os.open(part, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A child forked just now has the descriptor, too, and would hold it.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)
