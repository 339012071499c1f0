"""Whether shards are cached whole, in part or not at all: a rule over sizes, without effects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resscale.data.order import Shuffle

CacheUse = Literal["whole", "keep", "ranges"]
# What a request costs beside its bytes, told in bytes: some 10 ms at 25 MB/s.
REQUEST_BYTES = 256 * 1024
# The rest of the limit is for what is on its way, and for what other jobs need.
_AHEAD_SHARE = 0.9


def share_touched(partitions: int, readers: int) -> float:
    """Return the share of the shards that one of some equal readers of each batch reads from."""
    if partitions % readers == 0:
        return 1 / readers
    if readers % partitions == 0:
        return 1 / partitions
    # Its slice of the global batch begins and ends within a partition.
    return min(1.0, (partitions // readers + 2) / partitions)


@dataclass(frozen=True)
class DataUse:
    """What one node reads in an epoch.

    Args:
        num_bytes: bytes of all shards.
        num_shards: how many there are.
        num_samples: samples in them.
        shuffle: kind of the order.
        window: samples per shuffle window of a partition.
        partitions: runs of shards of the order.
        nodes: nodes that share the epoch.
        repeats: times that each sample is read, by one node or several.
    """

    num_bytes: int
    num_shards: int
    num_samples: int
    shuffle: Shuffle
    window: int
    partitions: int
    nodes: int
    repeats: int = 1

    @property
    def touched(self) -> float:
        """Share of the shards that one node reads from."""
        return share_touched(self.partitions, self.nodes)

    @property
    def read_of_shard(self) -> float:
        """Reads of samples of such a shard by the node in an epoch, as a share of its samples."""
        return self.repeats / self.nodes / self.touched

    @property
    def bytes_at_a_time(self) -> float:
        """Bytes of the shards that are read from in turns: those of a window, or all touched."""
        touched = self.touched * self.num_bytes
        if self.shuffle == "full" or not self.num_samples:
            return touched
        shard = self.num_bytes / self.num_shards
        streams = max(1.0, self.partitions * self.touched)
        samples = self.window if self.shuffle == "window" else 0
        # A window begins and ends within a shard.
        return min(touched, streams * (samples * self.num_bytes / self.num_samples + 2 * shard))


@dataclass(frozen=True)
class CachePlan:
    """How a cache is used.

    Args:
        use: "whole": shards are downloaded ahead of use, and go behind it; "keep": as many as
            fit are downloaded and stay, the others are read by range; "ranges": none are.
        ahead_bytes: most bytes that a process asks to be kept.
        reason: why, for people.
    """

    use: CacheUse
    ahead_bytes: int
    reason: str


def plan_cache(data: DataUse, cache_bytes: int) -> CachePlan:
    """Choose how a node uses its cache.

    A shard is worth downloading whole if that costs less than reading the node's samples of it by
    range, each with a request of its own. Where what is read in turns is larger than the cache,
    a shard would be gone before its next use: then some stay for good.

    Args:
        data: what the node reads.
        cache_bytes: limit of the cache.
    """
    ahead = int(_AHEAD_SHARE * cache_bytes)
    touched, at_a_time = data.touched * data.num_bytes, data.bytes_at_a_time
    per_shard = data.read_of_shard * data.num_samples / max(1, data.num_shards)
    size = data.num_bytes / max(1, data.num_shards)
    ranged = data.read_of_shard * size + per_shard * REQUEST_BYTES
    if touched <= ahead:
        return CachePlan("whole", ahead, f"all {_gb(touched)} that this node reads fit")
    if ranged < size:
        return CachePlan(
            "ranges",
            0,
            f"this node reads {data.read_of_shard:.0%} of each shard in an epoch, which costs less "
            f"by ranges; data.partitions={data.nodes} would give it shards of its own",
        )
    if at_a_time <= ahead:
        return CachePlan(
            "whole", ahead, f"{_gb(at_a_time)} of {_gb(touched)} are read from at a time"
        )
    return CachePlan(
        "keep",
        ahead,
        f"{_gb(at_a_time)} are read from at a time, more than fits: {ahead / touched:.0%} of the "
        f"shards are kept, the others are read by ranges; "
        f"data.cache_gb={_enough_gb(at_a_time)} would hold what is needed",
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB"


def _enough_gb(size: float) -> str:
    return f"{size / _AHEAD_SHARE / 1e9 * 1.01:.3g}"
