"""What each node downloads and has to keep, for any number of nodes: computed from the order.

Shards are downloaded whole. A node needs those that its ranks take samples of, each from the first
step to the last that may take one. Nothing is read for it but the table of shards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from resscale.data.order import EpochOrder, indivisible
from resscale.data.permutation import Int64
from resscale.errors import UserInputError

Float64 = npt.NDArray[np.float64]

_MOST_NODES = 16
_MOST_RUNS = 1_000_000  # looked at in all: fewer nodes are evaluated where each reads very many
# What may be read twice on fewer nodes than asked for, as a share of the data.
_READ_TWICE = 0.1


@dataclass(frozen=True)
class NodeDownloads:
    """One node's needs. Where nodes share a partition these are expectations, else exact.

    Args:
        shards: shards that it takes samples of in an epoch.
        epoch_bytes: their bytes.
        open_shards: most shards that it may take samples of at one step.
        open_bytes: a cache of so many bytes downloads nothing twice within an epoch.
        all_bytes: a cache of so many bytes downloads nothing twice in the whole run.
    """

    shards: float
    epoch_bytes: float
    open_shards: float
    open_bytes: float
    all_bytes: float


@dataclass(frozen=True)
class DownloadPlan:
    """What nodes download.

    Args:
        num_nodes: number of nodes.
        nodes: those that were evaluated: all up to 16, else some, spread evenly.
        samples_per_node: samples that a node takes per epoch.
        num_bytes: bytes of all shards.
        mean_shard_bytes: bytes of an average shard.
    """

    num_nodes: int
    nodes: tuple[NodeDownloads, ...]
    samples_per_node: int
    num_bytes: int
    mean_shard_bytes: float

    @property
    def epoch_bytes(self) -> float:
        """Bytes that a node downloads in its first epoch, mean over nodes."""
        return sum(node.epoch_bytes for node in self.nodes) / len(self.nodes)

    @property
    def imbalance(self) -> float:
        """Bytes of the node that downloads most, over the mean. Samples are always balanced."""
        return max(node.epoch_bytes for node in self.nodes) / (self.epoch_bytes or 1.0)

    @property
    def times_read(self) -> float:
        """Bytes that all nodes download in an epoch, over the bytes of the data set."""
        return self.epoch_bytes * self.num_nodes / self.num_bytes

    @property
    def open_bytes(self) -> float:
        """Cache that no node may go below without downloading twice within an epoch."""
        return max(node.open_bytes for node in self.nodes)

    @property
    def all_bytes(self) -> float:
        """Cache with which no node downloads anything twice in the whole run."""
        return max(node.all_bytes for node in self.nodes)

    def later_epoch_bytes(self, cache_bytes: float) -> float:
        """Return the bytes that a node downloads in an epoch after the first ones, at most.

        Below `open_bytes` each sample whose shard has been dropped brings the whole shard again.

        Args:
            cache_bytes: size of the node's cache.
        """
        if cache_bytes >= self.all_bytes:
            return 0.0
        if cache_bytes >= self.open_bytes:
            return self.epoch_bytes
        misses = self.samples_per_node * (1 - cache_bytes / self.open_bytes)
        return max(self.epoch_bytes, misses * self.mean_shard_bytes)


@dataclass(frozen=True)
class _Runs:
    """Runs of some partitions: whose shard, which steps may take of it. All arrays (runs,).

    Args:
        shard: number of the shard.
        partition: number of the partition.
        low: position of the first sample in the partition.
        high: position behind the last one.
        first_step: first step that may take a sample of it.
        last_step: last such step.
        taken: share of the samples around it that the epoch takes, the dropped ones left out.
    """

    shard: Int64
    partition: Int64
    low: Int64
    high: Int64
    first_step: Int64
    last_step: Int64
    taken: Float64


def plan_downloads(
    order: EpochOrder, shard_bytes: Int64, num_nodes: int, most_nodes: int = _MOST_NODES
) -> DownloadPlan:
    """Compute what each node downloads in an epoch of this order.

    Args:
        order: any epoch of the run.
        shard_bytes: bytes of each shard, int64 (num_shards,).
        num_nodes: the global batch is cut into so many neighbouring parts.
        most_nodes: nodes evaluated.

    Raises:
        UserInputError: the global batch does not divide by the nodes, or there is not one of it.
    """
    if not order.num_steps:
        raise UserInputError(
            f"global_batch_size={order.global_batch_size} is more than the {order.num_samples} "
            f"samples; choose {order.num_samples} or less."
        )
    if num_nodes < 1 or order.global_batch_size % num_nodes:
        raise UserInputError(indivisible(order.global_batch_size, num_nodes, "nodes"))
    reach = _partitions_of(order, 0, num_nodes)
    runs = _runs(order, *reach)
    count = min(num_nodes, most_nodes, max(1, _MOST_RUNS // len(runs.shard)))
    nodes: list[NodeDownloads] = []
    for number in range(count):
        node = number * (num_nodes - 1) // max(1, count - 1)
        if reach != (reach := _partitions_of(order, node, num_nodes)):
            runs = _runs(order, *reach)
        nodes.append(_node(order, runs, shard_bytes, node, num_nodes))
    return DownloadPlan(
        num_nodes=num_nodes,
        nodes=tuple(nodes),
        samples_per_node=order.num_steps * order.global_batch_size // num_nodes,
        num_bytes=int(shard_bytes.sum()),
        mean_shard_bytes=float(shard_bytes[order.shard_sizes > 0].mean()),
    )


def suggest_partitions(global_batch_size: int, num_nodes: int, gpus_per_node: int) -> int:
    """Return the fewest partitions that fit `num_nodes`, and fewer nodes nearly as well.

    Nodes that do not divide the partitions read N - gcd(N, partitions) of them twice, so the fewest
    are taken for which that is a tenth of the data at most, for each number of nodes that the
    global batch can be divided among. The number goes into the configuration and stays there: it is
    part of the order.

    Args:
        global_batch_size: samples per global batch.
        num_nodes: nodes at most.
        gpus_per_node: ranks of a node.
    """
    possible = [
        nodes
        for nodes in range(1, num_nodes + 1)
        if global_batch_size % (nodes * gpus_per_node) == 0
    ]
    for partitions in range(1, global_batch_size + 1):
        if global_batch_size % partitions or partitions < max(possible, default=1):
            continue
        twice = [(nodes - math.gcd(nodes, partitions)) / partitions for nodes in possible]
        if max(twice, default=0.0) <= _READ_TWICE:
            return partitions
    return global_batch_size


def _partitions_of(order: EpochOrder, node: int, num_nodes: int) -> tuple[int, int]:
    """Return the first partition that a node takes samples of, and the one behind the last."""
    return node * order.partitions // num_nodes, -(-(node + 1) * order.partitions // num_nodes)


def _runs(order: EpochOrder, first: int, last: int) -> _Runs:
    """Return the runs of the partitions `first` up to `last`, and when they may be taken of."""
    stream, cuts = order.stream(first, last), order.partition_bounds(first, last)
    # Where the stream is cut by the partitions: run boundaries, and those of partitions.
    inside = slice(
        np.searchsorted(stream.bounds, cuts[0], side="right"),
        np.searchsorted(stream.bounds, cuts[-1], side="left"),
    )
    edges = np.union1d(stream.bounds[inside], cuts)
    begin = edges[:-1]
    partition = np.searchsorted(cuts, begin, side="right") - 1
    low, high = begin - cuts[partition], edges[1:] - cuts[partition]
    size = np.diff(cuts)[partition]
    if order.shuffle == "full":
        start, stop = np.zeros_like(low), size
    elif order.shuffle == "window":
        start = low // order.window * order.window
        stop = np.minimum(-(-high // order.window) * order.window, size)
    else:
        start, stop = low, high
    share = order.global_batch_size // order.partitions
    end = order.num_steps * share
    taken = (np.minimum(stop, end) - np.minimum(start, end)) / (stop - start)
    shard = np.searchsorted(np.cumsum(order.shard_sizes), stream.ids(begin), side="right")
    last_step = np.minimum(stop - 1, end - 1) // share
    return _Runs(shard, partition + first, low, high, start // share, last_step, taken)


def _node(
    order: EpochOrder, runs: _Runs, shard_bytes: Int64, node: int, num_nodes: int
) -> NodeDownloads:
    used = _chance_used(order, runs, node, num_nodes)
    # A shard that is cut has several runs: kept from its first step to its last, if any is used.
    shards, row = np.unique(runs.shard, return_inverse=True)
    unused = np.ones(len(shards))
    np.multiply.at(unused, row, 1 - used)
    first = np.full(len(shards), order.num_steps)
    last = np.full(len(shards), -1)
    some = used > 0
    np.minimum.at(first, row[some], runs.first_step[some])
    np.maximum.at(last, row[some], runs.last_step[some])
    chance, sizes = 1 - unused, shard_bytes[shards].astype(np.float64)
    # Shuffled, another epoch may take of any shard of these partitions; else it takes the same.
    ever = chance > 0 if order.shuffle == "none" else slice(None)
    return NodeDownloads(
        shards=float(chance.sum()),
        epoch_bytes=float((chance * sizes).sum()),
        open_shards=_most_at_once(first, last, chance),
        open_bytes=_most_at_once(first, last, chance * sizes),
        all_bytes=float(sizes[ever].sum()),
    )


def _chance_used(order: EpochOrder, runs: _Runs, node: int, num_nodes: int) -> Float64:
    """Return the chance that a node takes a sample of each run: (runs,)."""
    share = order.global_batch_size // order.partitions
    part = order.global_batch_size // num_nodes
    # The slots of the partition's share of a batch that are this node's: lows up to highs.
    lows = np.clip(node * part - runs.partition * share, 0, share)
    highs = np.clip((node + 1) * part - runs.partition * share, 0, share)
    if order.shuffle == "none":
        end = order.num_steps * share

        def before(position: Int64) -> Int64:
            position = np.minimum(position, end)
            rest = np.minimum(np.maximum(position % share - lows, 0), highs - lows)
            counts: Int64 = position // share * (highs - lows) + rest
            return counts

        return (before(runs.high) > before(runs.low)).astype(np.float64)
    chance = (highs - lows) / share * runs.taken
    return 1 - (1 - chance) ** (runs.high - runs.low)


def _most_at_once(first: Int64, last: Int64, weights: Float64) -> float:
    """Return the largest sum of weights of what is open at one step, from `first` to `last`."""
    is_open = last >= first
    if not is_open.any():
        return 0.0
    steps = np.concatenate([first[is_open], last[is_open] + 1])
    changes = np.concatenate([weights[is_open], -weights[is_open]])
    when, row = np.unique(steps, return_inverse=True)
    return float(np.cumsum(np.bincount(row, changes, len(when))).max())
