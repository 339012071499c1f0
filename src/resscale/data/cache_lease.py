"""What living processes of a node will need soon, so that nobody evicts it.

A lease is two files: one that its process holds locked as long as it lives, however it ends, and
one that lists keys. Who finds a lease that nobody holds removes it.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterable
from pathlib import Path

_LIVE, _NEEDS = ".live", ".needs"


class Lease:
    """What this process will need; held until `close`, or until the process ends.

    Args:
        folder: the cache folder.
    """

    def __init__(self, folder: Path) -> None:
        self._live = folder / f"{uuid.uuid4().hex}{_LIVE}"
        self._needs = self._live.with_suffix(_NEEDS)
        self._owner = os.getpid()
        self._descriptor = _create_locked(self._live)

    def publish(self, keys: Iterable[str]) -> None:
        """Replace the keys that must be kept."""
        temporary = self._needs.with_suffix(".tmp")
        temporary.write_text("\n".join(keys))
        temporary.replace(self._needs)

    def close(self) -> None:
        """Need nothing any more."""
        if self._descriptor < 0:
            return
        if self._owner == os.getpid():
            # A forked child holds the same lock and would keep it: let go of it for both.
            self._needs.unlink(missing_ok=True)
            self._live.unlink(missing_ok=True)
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.close(self._descriptor)
        self._descriptor = -1


def leased_keys(folder: Path) -> set[str]:
    """Return the keys that living processes need; leases of dead ones are removed."""
    keys: set[str] = set()
    for live in folder.glob(f"*{_LIVE}"):
        needs = live.with_suffix(_NEEDS)
        try:
            descriptor = os.open(live, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # closed just now
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            keys.update(_read(needs))
        else:
            for left in (needs, needs.with_suffix(".tmp"), live):
                left.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
    return keys


def _create_locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Somebody may have taken it for a dead process's before it was locked.
        if path.exists():
            return descriptor
        os.close(descriptor)


def _read(needs: Path) -> list[str]:
    try:
        return needs.read_text().split()
    except OSError:
        return []
