"""A remote file that can be read and sought in, by few range requests.

To index a tar its headers are needed, and most of its bytes are not. A request costs its latency,
in which so many bytes could have come as `GAP_WORTH_READING` says. So a gap up to that is read and
thrown away, and a longer one is left out. Shards of photographs are read whole by this rule, and
their SHA-256 comes for free.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable

GAP_WORTH_READING = 4 << 20
"""Bytes: 40 ms until an answer begins, times 100 MB/s."""
_FIRST_BYTES = 1 << 20
_MOST_BYTES = 8 << 20
_AFTER_A_GAP_BYTES = 1 << 16
_KEPT_BLOCKS = 2


def next_range(position: int, end: int, last_bytes: int, whole: bool) -> tuple[int, int]:
    """Return the first byte and the number of bytes to ask for next.

    Args:
        position: the byte that is needed, not before `end`.
        end: the byte behind all that was read so far.
        last_bytes: what the last request asked for; 0 before the first.
        whole: every byte is wanted.
    """
    if position - end > GAP_WORTH_READING and not whole:
        return position, _AFTER_A_GAP_BYTES
    return end, min(2 * last_bytes or _FIRST_BYTES, _MOST_BYTES)


class RangeFile:
    """Reads by ranges; what a tar reader needs of a file.

    Args:
        read_range: returns the bytes from its first argument up to and without its second.
        size: bytes of the file.
        whole: read every byte, so that the SHA-256 is known at the end.
    """

    def __init__(
        self, read_range: Callable[[int, int], bytes], size: int, whole: bool = False
    ) -> None:
        self._read_range = read_range
        self._size = size
        self._whole = whole
        self._position = 0
        self._end = 0
        self._last_bytes = 0
        self._blocks: deque[tuple[int, bytes]] = deque(maxlen=_KEPT_BLOCKS)
        self._digest = hashlib.sha256()
        self._has_gaps = False

    def read(self, size: int = -1) -> bytes:
        """Return `size` bytes from here on, fewer at the end of the file; -1: all that follow."""
        stop = self._size if size < 0 else min(self._position + size, self._size)
        parts = []
        while self._position < stop:
            start, block = self._block_at(self._position)
            part = block[self._position - start : stop - start]
            parts.append(part)
            self._position += len(part)
        return b"".join(parts)

    def seek(self, position: int, whence: int = 0) -> int:
        """Stand at a byte: of the file (whence 0), from here (1) or from the end (2) on."""
        self._position = (0, self._position, self._size)[whence] + position
        return self._position

    def tell(self) -> int:
        """Return the byte that is read next."""
        return self._position

    def finish(self) -> str:
        """Return the SHA-256 in hex; empty where some bytes were left out."""
        rest = self._size - self._end
        if not self._has_gaps and (self._whole or rest <= GAP_WORTH_READING):
            while self._end < self._size:
                self._fetch(self._end)
        return "" if self._has_gaps or self._end < self._size else self._digest.hexdigest()

    def _block_at(self, position: int) -> tuple[int, bytes]:
        while True:
            for start, block in self._blocks:
                if start <= position < start + len(block):
                    return start, block
            if position < self._end:
                # Long gone, or in a gap: nobody reads a tar backwards for long.
                stop = min(position + _AFTER_A_GAP_BYTES, self._end)
                self._blocks.append((position, self._read_range(position, stop)))
            else:
                self._fetch(position)

    def _fetch(self, position: int) -> None:
        start, count = next_range(position, self._end, self._last_bytes, self._whole)
        stop = min(start + count, self._size)
        block = self._read_range(start, stop)
        self._has_gaps = self._has_gaps or start != self._end
        if not self._has_gaps:
            self._digest.update(block)
        self._blocks.append((start, block))
        self._end, self._last_bytes = stop, count
