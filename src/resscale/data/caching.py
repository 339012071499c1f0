"""The user's options of remote reading, made into stores and prefetchers of one process."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from resscale.data.batching import BatchPlan
from resscale.data.cache import ShardCache
from resscale.data.cache_entry import list_entries
from resscale.data.cache_plan import CachePlan, DataUse, plan_cache, share_touched
from resscale.data.dataset import BatchRequest
from resscale.data.loader import WorkerOptions
from resscale.data.prefetch import Ahead, Course, FixedCourse, ListCourse, Prefetcher, TrainCourse
from resscale.data.remote_counts import ReadCounts, WorkerCounts, add_up, counts
from resscale.data.remote_errors import PROTOCOLS
from resscale.data.remote_options import RemoteOptions
from resscale.data.repeats import TrainOrder, distinct_order
from resscale.data.samples import ShardSamples
from resscale.data.store import READS_AT_ONCE, ShardStore
from resscale.errors import UserInputError, nearest

# Evaluation shards up to this share of the cache stay in it while training goes on.
_KEPT_SHARE = 0.25
_DOWNLOADS_PER_NODE = 8
# So many steps show which shards a node reads from.
_LOOKED_AT_STEPS = 50


@dataclass(frozen=True)
class RankPlace:
    """Where a process stands among the ranks.

    Args:
        rank: its number.
        world_size: of all nodes.
        nodes: how many there are.
    """

    rank: int = 0
    world_size: int = 1
    nodes: int = 1


@dataclass
class Caching:
    """How this process reads shards: from disks, servers, or a cache between.

    Args:
        folder: of the cache; None: no shard is kept.
        limit_gb: gigabytes of the cache; None: half of what is free on its disk.
        local_too: local shards are cached as well.
        storage_options: fsspec's options by protocol.
        give_up_s: seconds without a byte from a server after which the run ends.
    """

    folder: str | None = None
    limit_gb: float | None = None
    local_too: bool = False
    storage_options: Mapping[str, Mapping[str, Any]] | None = None
    give_up_s: float = 300.0
    remote: RemoteOptions = field(init=False)

    def __post_init__(self) -> None:
        if self.limit_gb is not None and not self.limit_gb > 0:
            raise UserInputError(f"data.cache_gb={self.limit_gb} must be above 0 gigabytes.")
        if self.folder is not None and not self.folder.strip():
            raise UserInputError(
                f"data.cache={self.folder!r} names no folder (it would be the working folder): "
                f"name one, --data.cache /local/cache, or leave the option out."
            )
        if self.folder is None and (self.local_too or self.limit_gb is not None):
            named = "data.cache_local" if self.local_too else "data.cache_gb"
            raise UserInputError(f"{named} says how to use a cache; name its folder: --data.cache.")
        for protocol, values in (self.storage_options or {}).items():
            if protocol not in PROTOCOLS or not isinstance(values, Mapping):
                raise UserInputError(
                    f"data.storage_options has {protocol!r}: it must map {', '.join(PROTOCOLS)} "
                    f"to fsspec's options, as {{s3: {{endpoint_url: http://...}}}}."
                    f"{nearest(protocol, PROTOCOLS)}"
                )
        self.remote = RemoteOptions(give_up_s=self.give_up_s, storage=self.storage_options or {})
        # Training reads shards that are no local files: the same on all ranks.
        self.is_used = False
        self._cache: ShardCache | None = None
        # Of the stores that are still there, and of those that are gone.
        self._stores: list[tuple[weakref.ref[ShardStore], WorkerCounts]] = []
        self._ended = ReadCounts()
        # By what they serve: loaders are built anew in each evaluation, or each epoch.
        self._prefetchers: dict[str, Prefetcher] = {}
        self._said: set[str] = set()

    @property
    def cache(self) -> ShardCache | None:
        """The cache, opened on first use; None where no folder is named."""
        if self.folder is not None and self._cache is None:
            folder = Path(self.folder).expanduser()
            limit = int(self.limit_gb * 1e9) if self.limit_gb else _half_of_disk(folder)
            self._cache = ShardCache(folder, limit, self.remote)
        return self._cache

    def store(self, num_workers: int, threads: bool = False) -> ShardStore:
        """Return a store for so many readers; what they read comes back by `counts`.

        Args:
            num_workers: reading processes, or threads.
            threads: they are threads, which share the store.
        """
        self._drop_ended()
        rows = WorkerCounts(num_workers)
        made = ShardStore(
            cache=self.cache,
            cache_local=self.local_too,
            remote=self.remote,
            worker_counts=rows,
            reads_at_once=READS_AT_ONCE * (min(max(1, num_workers), 8) if threads else 1),
        )
        self._stores.append((weakref.ref(made), rows))
        return made

    def counts(self) -> ReadCounts:
        """Return what this rank and its reading processes have read from servers and cache."""
        self._drop_ended()
        return counts() + self._ended + add_up(rows.total() for _, rows in self._stores)

    def follow_training(
        self,
        samples: ShardSamples,
        order: TrainOrder,
        plan: BatchPlan,
        place: RankPlace,
        steps_per_epoch: int,
        workers: WorkerOptions,
        kept_bytes: int = 0,
    ) -> Callable[[int, int], None] | None:
        """Return what is to be told each (epoch, step) that is asked for; None without a cache.

        Args:
            samples: the training shards.
            order: of the run.
            plan: micro-batch and accumulation.
            place: of this rank.
            steps_per_epoch: that training takes.
            workers: how far reading lags behind asking.
            kept_bytes: of the cache that evaluation keeps.
        """
        self.is_used = samples.store.is_remote(samples.manifest.shard_location(0))
        if not self._serves(samples):
            return None
        assert self.cache is not None
        use = _use_of(samples, order, place)
        chosen = plan_cache(use, max(0, self.cache.limit_bytes - kept_bytes))
        self._say(samples, chosen, place)
        if chosen.use == "ranges":
            return None
        behind = workers.num_workers * workers.prefetch_factor // plan.accumulate + 2
        sets = share_touched(order.partitions, place.nodes) / share_touched(
            order.partitions, place.world_size
        )
        if chosen.use == "keep":
            fixed = self._prefetcher(samples, _kept(order, samples, place), chosen, place, 1, 0)
            return lambda epoch, step: fixed.at(0)
        course = TrainCourse(samples, order, plan, place.rank, steps_per_epoch)
        # Ranks that read the same shards ask for them together; others have a part each.
        part = CachePlan(chosen.use, int(chosen.ahead_bytes / max(1.0, sets)), chosen.reason)
        moving = self._prefetcher(samples, course, part, place, steps_per_epoch, behind)
        last = steps_per_epoch - 1
        return lambda epoch, step: moving.at(epoch * steps_per_epoch + min(step, last))

    def follow_evaluation(
        self, samples: ShardSamples, requests: Sequence[BatchRequest], place: RankPlace
    ) -> Sequence[BatchRequest]:
        """Return the requests of an evaluation, which now are prefetched as they are taken."""
        if not self._serves(samples) or not requests:
            return requests
        assert self.cache is not None
        sizes = samples.manifest.table.bytes
        course: Course = ListCourse(samples, requests)
        limit = int(0.9 * self.cache.limit_bytes)
        if kept := self.kept_bytes(samples, place):
            ids = np.concatenate([request.ids for request in requests])
            course, limit = FixedCourse(np.unique(samples.shards_of(ids))), kept
        ahead = Ahead(course, sizes, max(1, limit), len(requests), behind=8)
        follower = self._keep(
            f"evaluation {samples.manifest.root}",
            Prefetcher(samples, self.cache, ahead, _downloads(place)),
        )
        return _Followed(requests, follower, is_fixed=isinstance(course, FixedCourse))

    def kept_bytes(self, samples: ShardSamples | None, place: RankPlace) -> int:
        """Return the bytes that a node keeps of evaluation shards; 0: too many to be kept."""
        if samples is None or not self._serves(samples) or self.cache is None:
            return 0
        shard = int(samples.manifest.table.bytes.max(initial=0))
        share = -(-samples.manifest.num_bytes // place.nodes) + 2 * shard
        own = min(samples.manifest.num_bytes, share)
        return own if own <= _KEPT_SHARE * self.cache.limit_bytes else 0

    def close(self) -> None:
        """Need nothing any more."""
        for prefetcher in self._prefetchers.values():
            prefetcher.close()
        self._prefetchers.clear()

    def _drop_ended(self) -> None:
        """Let go of the counts of stores that are gone; what was read stays counted."""
        ended = [rows for store, rows in self._stores if store() is None]
        self._ended += add_up(rows.total() for rows in ended)
        self._stores = [each for each in self._stores if each[1] not in ended]

    def _serves(self, samples: ShardSamples) -> bool:
        return self.cache is not None and samples.store.is_remote(
            samples.manifest.shard_location(0)
        )

    def _prefetcher(
        self,
        samples: ShardSamples,
        course: Course,
        plan: CachePlan,
        place: RankPlace,
        most_steps: int,
        behind: int,
    ) -> Prefetcher:
        assert self.cache is not None
        sizes = samples.manifest.table.bytes
        ahead = Ahead(course, sizes, plan.ahead_bytes, most_steps, behind)
        return self._keep("training", Prefetcher(samples, self.cache, ahead, _downloads(place)))

    def _keep(self, what: str, prefetcher: Prefetcher) -> Prefetcher:
        """Hold a prefetcher; that of an earlier loader of the same shards needs nothing more."""
        earlier = self._prefetchers.pop(what, None)
        if earlier is not None:
            earlier.close()
        self._prefetchers[what] = prefetcher
        return prefetcher

    def _say(self, samples: ShardSamples, plan: CachePlan, place: RankPlace) -> None:
        assert self.cache is not None
        words = {
            "whole": "shards are downloaded ahead of use",
            "keep": "a part of the shards is kept",
            "ranges": "samples are read by ranges, no shard is cached",
        }
        text = (
            f"cache {self.cache.folder}, {self.cache.limit_bytes / 1e9:.3g} GB: "
            f"{words[plan.use]} ({plan.reason})"
        )
        if place.rank == 0 and text not in self._said:
            print(text, flush=True)
        self._said.add(text)


class _Followed(Sequence[BatchRequest]):
    """Requests that tell a prefetcher how far they have been taken."""

    def __init__(
        self, requests: Sequence[BatchRequest], follower: Prefetcher, is_fixed: bool
    ) -> None:
        self._requests = requests
        self._follower = follower
        self._is_fixed = is_fixed

    def __len__(self) -> int:
        return len(self._requests)

    def __getitem__(self, number: Any) -> Any:
        return self._requests[number]

    def __iter__(self) -> Iterator[BatchRequest]:
        for number, request in enumerate(self._requests):
            self._follower.at(0 if self._is_fixed else number)
            yield request
        if not self._is_fixed:
            # Behind the end nothing is needed: training may have the room.
            self._follower.at(len(self._requests) + 8)


def _use_of(samples: ShardSamples, order: TrainOrder, place: RankPlace) -> DataUse:
    manifest = samples.manifest
    return DataUse(
        manifest.num_bytes,
        len(manifest.shards),
        manifest.num_samples,
        order.shuffle,
        order.window,
        order.partitions,
        place.nodes,
        order.global_batch_size // distinct_order(order).global_batch_size,
    )


def _kept(order: TrainOrder, samples: ShardSamples, place: RankPlace) -> FixedCourse:
    """Return the shards of this node, always in the same order: the first of them are kept."""
    share = order.global_batch_size // place.nodes
    node = place.rank * place.nodes // place.world_size
    found = [
        samples.shards_of(order.batch_slice(step, node * share, (node + 1) * share))
        for step in range(min(order.num_steps, _LOOKED_AT_STEPS))
    ]
    return FixedCourse(np.unique(np.concatenate(found)).astype(np.int64))


def _downloads(place: RankPlace) -> int:
    return max(1, _DOWNLOADS_PER_NODE // max(1, place.world_size // place.nodes))


def _half_of_disk(folder: Path) -> int:
    """Return half of what the cache may have of its disk: what is free, and what it holds."""
    try:
        there = next(each for each in (folder, *folder.parents) if each.is_dir())
        held = sum(entry.bytes for entry in list_entries(folder)) if folder.is_dir() else 0
        return (shutil.disk_usage(there).free + held) // 2
    except OSError:  # no folder of this user's: the cache says so, and stays off
        return 0
