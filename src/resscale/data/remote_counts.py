"""What processes have read from servers and from the cache, counted for the run's record."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from multiprocessing import context, sharedctypes
from typing import Any


@dataclass
class ReadCounts:
    """What was read.

    Args:
        requests: requests sent to servers, those that failed included.
        retries: of these, how many repeat or continue one that failed.
        bytes: bytes that came from servers, thrown-away ones included.
        seconds: seconds spent in requests and waits, added up over threads and processes.
        hits: samples that were read from the cache.
        direct: samples that were read from where they lie, though there is a cache.
    """

    requests: int = 0
    retries: int = 0
    bytes: int = 0
    seconds: float = 0.0
    hits: int = 0
    direct: int = 0

    def __add__(self, other: ReadCounts) -> ReadCounts:
        return ReadCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: ReadCounts) -> ReadCounts:
        return ReadCounts(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))


_FIELDS = len(fields(ReadCounts))
_total = ReadCounts()
_lock = threading.Lock()


def _after_fork() -> None:
    # Another thread of the parent may have held the lock; what the parent has read is not ours.
    global _lock, _total
    _lock, _total = threading.Lock(), ReadCounts()


os.register_at_fork(after_in_child=_after_fork)


def count(**more: float) -> None:
    """Add to this process's counts, by the names of `ReadCounts`."""
    global _total
    with _lock:
        _total += ReadCounts(**more)  # type: ignore[arg-type]


def counts() -> ReadCounts:
    """Return what this process has read so far."""
    return _total


@contextmanager
def counted_time() -> Iterator[None]:
    """Count the seconds that a block takes."""
    started = time.perf_counter()
    try:
        yield
    finally:
        count(seconds=time.perf_counter() - started)


class WorkerCounts:
    """The counts of a rank's reading processes, in memory that they share with it.

    A copy that goes to a starting process shares the memory; any other copy counts nowhere.

    Args:
        num_workers: reading processes.
    """

    def __init__(self, num_workers: int) -> None:
        self._rows: Any = sharedctypes.RawArray("d", max(1, num_workers) * _FIELDS)

    def note(self, worker: int) -> None:
        """Publish this process's counts as those of reading process number `worker`."""
        if self._rows is not None and 0 <= worker * _FIELDS < len(self._rows):
            self._rows[worker * _FIELDS : (worker + 1) * _FIELDS] = list(astuple(_total))

    def total(self) -> ReadCounts:
        """Return the sum over the reading processes."""
        rows = list(self._rows or ())
        starts = range(0, len(rows), _FIELDS)
        return add_up(_whole(rows[start : start + _FIELDS]) for start in starts)

    def __getstate__(self) -> dict[str, Any]:
        return {"_rows": self._rows if context.get_spawning_popen() is not None else None}


def _whole(row: list[float]) -> ReadCounts:
    found = ReadCounts(*row)  # type: ignore[arg-type]
    for item in fields(ReadCounts):
        if item.name != "seconds":
            setattr(found, item.name, int(getattr(found, item.name)))
    return found


def add_up(parts: Iterable[ReadCounts]) -> ReadCounts:
    """Return the sum of counts."""
    return sum(parts, ReadCounts())
