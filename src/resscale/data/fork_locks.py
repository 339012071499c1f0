"""Locks that a forked child gets anew: a thread of the parent may have held them at the fork."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class OwnsLocks(Protocol):
    """What has locks."""

    def make_locks(self) -> None:
        """Replace them by free ones; no other thread is there."""
        ...


# Strong ones would keep every store for the life of the process.
_OWNERS: weakref.WeakSet[OwnsLocks] = weakref.WeakSet()


def renew_in_children(owner: OwnsLocks) -> None:
    """Make the locks of `owner` now, and anew in each child that is forked from now on."""
    owner.make_locks()
    _OWNERS.add(owner)


def _after_fork() -> None:
    for owner in list(_OWNERS):
        owner.make_locks()


os.register_at_fork(after_in_child=_after_fork)
