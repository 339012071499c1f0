"""Offset indices kept in memory, within so many bytes: the longest unused go first.

Several threads look up at once, for each sample. So a look-up takes no lock: it notes in the entry
after which index it came, and only who adds one compares these notes.
"""

from __future__ import annotations

import threading

from resscale.data.shard_index import ShardIndex

KEPT_BYTES = 256 << 20
"""Of each process: 24 bytes a sample and the width of its shard's longest key."""
# Of the arrays themselves, their dictionary entry and the like.
_BYTES_PER_INDEX = 1024
# So much is freed at once: to look for the longest unused costs a look at all.
_FREED_SHARE = 1 / 8


class KeptIndices:
    """Indices by the number of their shard.

    Args:
        most_bytes: of all of them; the one that was added last stays, however large it is.
    """

    def __init__(self, most_bytes: int = KEPT_BYTES) -> None:
        self.most_bytes = most_bytes
        self.num_bytes = 0
        self._kept: dict[int, _Entry] = {}
        self._now = 0  # even while an index is added, odd between
        self.make_lock()

    def make_lock(self) -> None:
        """Take a free lock: in a fresh object, a copy, or a forked child."""
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, shard: int) -> ShardIndex | None:
        """Return the index of a shard if it is here."""
        entry = self._kept.get(shard)
        if entry is None:
            return None
        entry.used_at = self._now | 1
        return entry.index

    def add(self, shard: int, index: ShardIndex) -> None:
        """Keep an index, and let the longest unused ones go where there are too many bytes."""
        with self._lock:
            self._now += 2
            self._drop(shard)
            self._kept[shard] = entry = _Entry(index, self._now)
            self.num_bytes += entry.num_bytes
            if self.num_bytes <= self.most_bytes:
                return
            aim = int(self.most_bytes * (1 - _FREED_SHARE))
            for other in sorted(self._kept, key=lambda other: self._kept[other].used_at):
                if self.num_bytes <= aim:
                    return
                if other != shard:
                    self._drop(other)

    def _drop(self, shard: int) -> None:
        entry = self._kept.pop(shard, None)
        if entry is not None:
            self.num_bytes -= entry.num_bytes


class _Entry:
    """An index, and when it was used last."""

    __slots__ = ("index", "num_bytes", "used_at")

    def __init__(self, index: ShardIndex, used_at: int) -> None:
        self.index = index
        self.used_at = used_at
        arrays = (index.keys, index.offsets, index.sizes, index.labels)
        self.num_bytes = _BYTES_PER_INDEX + sum(array.nbytes for array in arrays)
