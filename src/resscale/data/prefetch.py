"""Downloads shards into the cache before they are read: the order knows which ones come next."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

import numpy as np

from resscale.data.batching import BatchPlan
from resscale.data.cache import Fetched, ShardCache
from resscale.data.cache_entry import CacheSource
from resscale.data.cache_lease import Lease
from resscale.data.dataset import BatchRequest
from resscale.data.permutation import Int64
from resscale.data.remote import RemoteChangedError
from resscale.data.repeats import TrainOrder
from resscale.data.samples import ShardSamples

_IDLE_S = 0.2
_FULL_S = 5.0
_STEPS_AT_ONCE = 64


class Course(Protocol):
    """Which shards a process reads from at each position of its way."""

    def shards(self, position: int) -> Int64 | None:
        """Return the shards of one position in the order of first use; None behind the end."""
        ...


class TrainCourse:
    """The steps of a training run, epoch after epoch; position = epoch × steps + step.

    Args:
        samples: says in which shard an id lies.
        order: of any epoch of the run.
        plan: ranks that share a step.
        rank: this process.
        steps_per_epoch: that training takes of each epoch.
    """

    def __init__(
        self,
        samples: ShardSamples,
        order: TrainOrder,
        plan: BatchPlan,
        rank: int,
        steps_per_epoch: int,
    ) -> None:
        self._samples = samples
        self._order = order
        self._plan = plan
        self._rank = rank
        self.steps_per_epoch = steps_per_epoch

    def shards(self, position: int) -> Int64 | None:
        """Return the shards of one step of this rank."""
        epoch, step = divmod(position, self.steps_per_epoch)
        if epoch != self._order.epoch:
            self._order = self._order.at_epoch(epoch)
        ids = self._order.rank_batch(step, self._rank, self._plan.world_size)
        return _in_order_of_use(self._samples.shards_of(ids))


class ListCourse:
    """The batches of an evaluation; position = number of the batch.

    Args:
        samples: says in which shard an id lies.
        requests: this rank's batches.
    """

    def __init__(self, samples: ShardSamples, requests: Sequence[BatchRequest]) -> None:
        self._samples = samples
        self._requests = requests

    def shards(self, position: int) -> Int64 | None:
        """Return the shards of one batch."""
        if position >= len(self._requests):
            return None
        return _in_order_of_use(self._samples.shards_of(self._requests[position].ids))


class FixedCourse:
    """The same shards at every position: as many of the first ones as fit.

    Args:
        shards: numbers of the shards, the most wanted first.
    """

    def __init__(self, shards: Int64) -> None:
        self._shards = shards

    def shards(self, position: int) -> Int64 | None:
        """Return the shards."""
        return self._shards if position == 0 else None


class Ahead:
    """Which shards are needed from a position on, within so many bytes: no effects.

    Args:
        course: which shards each position needs.
        sizes: bytes per shard, int64 (num_shards,).
        limit_bytes: most bytes of what is needed at once.
        most_steps: how far to look ahead.
        behind: positions whose shards are still needed, as reading lags behind asking.
    """

    def __init__(
        self, course: Course, sizes: Int64, limit_bytes: int, most_steps: int, behind: int = 0
    ) -> None:
        self.is_complete = False
        self._course = course
        self._sizes = sizes
        self._limit_bytes = limit_bytes
        self._most_steps = most_steps
        self._behind = behind
        self._last_use: dict[int, int] = {}
        self._bytes = 0
        self._start = 0
        self._next = 0

    def move_to(self, position: int) -> bool:
        """Begin at a position, and look some steps further; say whether the need has changed.

        `is_complete` says afterwards that there is nothing more to look at from here.
        """
        first = max(0, position - self._behind)
        before = len(self._last_use)
        if first < self._start or self._next < first:
            # Back, or far on: another epoch than the one that was expected.
            self._last_use.clear()
            self._bytes, self._next = 0, first
        self._start = first
        for shard in [each for each, last in self._last_use.items() if last < first]:
            del self._last_use[shard]
            self._bytes -= int(self._sizes[shard])
        changed = len(self._last_use) != before
        self.is_complete = False
        for _ in range(_STEPS_AT_ONCE):
            shards = None
            if self._next - self._start < self._most_steps:
                shards = self._course.shards(self._next)
            if shards is None or not self._add(shards):
                self.is_complete = True
                break
            self._next += 1
        return changed or len(self._last_use) != before

    def shards(self) -> list[int]:
        """Return the needed shards in the order of first use."""
        return list(self._last_use)

    def _add(self, shards: Int64) -> bool:
        """Need the shards of the next position; say whether all of them fit."""
        for shard in shards.tolist():
            size = int(self._sizes[shard])
            if shard not in self._last_use:
                if self._bytes + size > self._limit_bytes:
                    return False
                self._bytes += size
            self._last_use[shard] = self._next
        return True


class Prefetcher:
    """Threads that download what a process will need into the cache of its node.

    Processes of a node share the work: what one downloads, the others pass over. What is needed is
    published (`Lease`), so that nobody evicts it. An error comes up at the next `at`.

    Args:
        samples: the shards.
        cache: where they go.
        ahead: which are needed.
        num_threads: downloads at once.
    """

    def __init__(
        self, samples: ShardSamples, cache: ShardCache, ahead: Ahead, num_threads: int = 4
    ) -> None:
        self._samples = samples
        self._cache = cache
        self._ahead = ahead
        self._num_threads = num_threads
        self._position = 0
        self._planned = -1
        self._needed: dict[int, CacheSource | None] = {}  # None: its version is still unknown
        self._done: set[int] = set()  # there, on their way, or another process's work
        self._busy: set[int] = set()  # of these, the last kind
        self._again_at = 0.0
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._error: BaseException | None = None
        self._lease: Lease | None = None
        self._threads: list[threading.Thread] = []

    def at(self, position: int) -> None:
        """Say that reading has come to a position; the first call starts the downloads.

        Raises:
            DataFormatError: a shard is missing, or has other bytes than its manifest says.
            RemoteError: a server has not answered for long.
        """
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        self._position = position
        if not self._threads and not self._closed:
            for number in range(self._num_threads):
                name = f"prefetch-{number}"
                # Daemons: a run that must end does not wait for a download; the next one resumes.
                thread = threading.Thread(target=self._work, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()
        self._wake.set()

    def close(self, wait_s: float = 0.0) -> None:
        """Need nothing any more; downloads under way end by themselves, or with the process."""
        self._closed = True
        self._wake.set()
        for thread in self._threads:
            thread.join(wait_s)
        # Under the lock: a thread that still looks ahead must not publish behind this.
        with self._lock, suppress(OSError):
            if self._lease is not None:
                self._lease.close()

    def _work(self) -> None:
        try:
            while not self._closed:
                shard = self._choose()
                if shard is None or self._closed:
                    self._wake.wait(_IDLE_S)
                    self._wake.clear()
                else:
                    self._download(shard)
        except BaseException as error:
            self._error = error

    def _choose(self) -> int | None:
        """Return the next shard to download, None where there is nothing to do now."""
        with self._lock:
            position = self._position
            if self._planned != position or not self._ahead.is_complete:
                self._planned = position
                if self._ahead.move_to(position):
                    self._renew()
            if time.monotonic() < self._again_at or not self._cache.is_on:
                return None
            for shard in self._needed:
                if shard not in self._done:
                    self._done.add(shard)
                    return shard
            # Others were at them a moment ago: they have finished by now, or have been killed.
            self._done -= {n for n in self._busy if not self._has(self._needed[n])}
            self._busy.clear()
            return None

    def _renew(self) -> None:
        """Take over what is needed now, and tell the node's other processes."""
        shards = self._ahead.shards()
        known = self._needed
        self._needed = {n: known.get(n) or self._samples.known_source(n) for n in shards}
        self._done &= self._needed.keys()
        self._busy &= self._needed.keys()
        self._publish()

    def _publish(self) -> None:
        if self._closed:
            return
        with suppress(OSError):  # a cache that cannot be written needs no lease
            if self._lease is None:
                self._lease = Lease(self._cache.folder)
            self._lease.publish(source.key for source in self._needed.values() if source)

    def _has(self, source: CacheSource | None) -> bool:
        return source is not None and self._cache.has(source)

    def _download(self, shard: int) -> None:
        source = self._samples.known_source(shard)
        if source is None:
            source = self._samples.source(shard)  # asks the server for its version
            with self._lock:
                if shard in self._needed:
                    self._needed[shard] = source
                    self._publish()
        try:
            fetched = self._cache.fetch(source, wait=False)
        except RemoteChangedError:
            self._samples.store.forget_version(source)
            raise
        with self._lock:
            if fetched is Fetched.BUSY and shard in self._needed:
                self._busy.add(shard)
            elif fetched in (Fetched.FULL, Fetched.OFF):
                self._done.discard(shard)
                self._again_at = time.monotonic() + _FULL_S


def _in_order_of_use(shards: Int64) -> Int64:
    found, first = np.unique(shards, return_index=True)
    return found[np.argsort(first)].astype(np.int64)
