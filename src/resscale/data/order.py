"""The epoch is mathematics: which samples make up global step k, for any number of ranks.

```
shards ──(split by samples)──> partitions ──(shuffle by seed, epoch)──> one stream each
global batch k = [ slice k of stream 0 | slice k of stream 1 | ... ]   ranks take slices of it
```
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from resscale.data.permutation import Int64, mix_key, permute
from resscale.errors import UserInputError, nearest

Shuffle = Literal["full", "window", "none"]
DEFAULT_WINDOW = 65_536

# What a key is for goes into the key, so that no two uses share a permutation.
_HOME, _PIECES, _SAMPLES = 1, 2, 3


@dataclass(frozen=True)
class _Stream:
    """A partition's samples in stream order, as pieces of shards (before the sample shuffle)."""

    starts: Int64  # stream position of each piece's first sample, (pieces,)
    first_ids: Int64  # sample id of each piece's first sample, (pieces,)
    size: int

    def ids(self, positions: Int64) -> Int64:
        piece = np.searchsorted(self.starts, positions, side="right") - 1
        return self.first_ids[piece] + (positions - self.starts[piece])


class EpochOrder:
    """Which sample ids make up each global step of one epoch: a pure function, no state.

    A sample's id is the number of samples in earlier shards plus its position in its own. Every id
    occurs at most once per epoch; the last, incomplete global batch (`num_dropped` ids, others in
    each epoch) is left out.

    Args:
        shard_sizes: samples per shard, int array (num_shards,); zeros are allowed.
        global_batch_size: samples per optimizer step over all ranks.
        seed: names the run's orders.
        epoch: each epoch has an order of its own.
        shuffle: "full" permutes all samples of a partition; "window" permutes the shards, then
            the samples within windows, so that few shards are open at a time; "none" keeps the
            shards' order.
        window: samples per window of a partition, for shuffle="window".
        partitions: the samples are cut into so many runs of shards, the same in each epoch, and
            each global batch takes an equal part of every run; a rank touches only its own.

    Raises:
        UserInputError: a value outside its range, or partitions do not divide the global batch.
    """

    def __init__(
        self,
        shard_sizes: Sequence[int] | npt.NDArray[np.integer],
        *,
        global_batch_size: int,
        seed: int = 0,
        epoch: int = 0,
        shuffle: Shuffle = "window",
        window: int = DEFAULT_WINDOW,
        partitions: int = 1,
    ) -> None:
        sizes = np.asarray(shard_sizes, dtype=np.int64)
        _check_arguments(sizes, global_batch_size, shuffle, window, partitions)
        self.shard_sizes = sizes
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.epoch = epoch
        self.shuffle: Shuffle = shuffle
        self.window = window
        self.partitions = partitions
        self.num_samples = int(sizes.sum())
        self.num_steps = self.num_samples // global_batch_size
        self._home = _home_stream(sizes, seed, scatter=shuffle != "none" and partitions > 1)
        self._streams: dict[int, _Stream] = {}

    @property
    def num_dropped(self) -> int:
        """Samples of the last, incomplete global batch, left out of this epoch."""
        return self.num_samples - self.num_steps * self.global_batch_size

    def at_epoch(self, epoch: int) -> EpochOrder:
        """Return the order of another epoch of the same run."""
        return EpochOrder(
            self.shard_sizes,
            global_batch_size=self.global_batch_size,
            seed=self.seed,
            epoch=epoch,
            shuffle=self.shuffle,
            window=self.window,
            partitions=self.partitions,
        )

    def global_batch(self, step: int) -> Int64:
        """Return the sample ids of global step `step`: int64 array (global_batch_size,)."""
        return self.batch_slice(step, 0, self.global_batch_size)

    def rank_batch(self, step: int, rank: int, world_size: int) -> Int64:
        """Return a rank's share of a global step: int64 array (global_batch_size / world_size,).

        The ranks' shares, one behind the other, are the global batch.
        """
        if world_size < 1 or self.global_batch_size % world_size:
            raise UserInputError(indivisible(self.global_batch_size, world_size, "ranks"))
        if not 0 <= rank < world_size:
            raise UserInputError(f"rank={rank} is outside 0 to world_size - 1 = {world_size - 1}.")
        share = self.global_batch_size // world_size
        return self.batch_slice(step, rank * share, (rank + 1) * share)

    def batch_slice(self, step: int, start: int, stop: int) -> Int64:
        """Return positions `start` to `stop` of a global batch: int64 array (stop - start,).

        Only the partitions that the slice touches are evaluated.
        """
        if not 0 <= step < self.num_steps:
            raise UserInputError(
                f"step={step} is outside this epoch's {self.num_steps} steps "
                f"({self.num_samples} samples / {self.global_batch_size} per global batch)."
            )
        share = self.global_batch_size // self.partitions
        parts = []
        for partition in range(start // share, -(-stop // share)):
            low = max(start - partition * share, 0) + step * share
            high = min(stop - partition * share, share) + step * share
            positions = np.arange(low, high, dtype=np.int64)
            parts.append(self._partition_ids(partition, positions))
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def _partition_ids(self, partition: int, positions: Int64) -> Int64:
        stream = self._streams.get(partition)
        if stream is None:
            stream = self._streams[partition] = self._build_stream(partition)
        key = mix_key(self.seed, _SAMPLES, self.epoch, partition)
        if self.shuffle == "full":
            return stream.ids(permute(positions, stream.size, key))
        if self.shuffle == "window":
            return stream.ids(_permute_within_windows(positions, stream.size, self.window, key))
        return stream.ids(positions)

    def _build_stream(self, partition: int) -> _Stream:
        """Cut the partition out of the home stream and, for "window", permute its pieces."""
        low = partition * self.num_samples // self.partitions
        high = (partition + 1) * self.num_samples // self.partitions
        home = self._home
        ends: Int64 = np.append(home.starts[1:], np.int64(home.size))
        first = int(np.searchsorted(ends, low, side="right"))
        last = int(np.searchsorted(home.starts, high, side="left"))
        starts: Int64 = np.maximum(home.starts[first:last], np.int64(low))
        counts = np.minimum(ends[first:last], high) - starts
        first_ids = home.first_ids[first:last] + (starts - home.starts[first:last])
        if self.shuffle == "window":
            key = mix_key(self.seed, _PIECES, self.epoch, partition)
            turn = permute(np.arange(len(counts), dtype=np.int64), len(counts), key)
            counts, first_ids = counts[turn], first_ids[turn]
        stream_starts: Int64 = np.cumsum(counts) - counts
        return _Stream(stream_starts, first_ids, high - low)


def _home_stream(sizes: Int64, seed: int, *, scatter: bool) -> _Stream:
    """Lay the shards out in the order that partitions are cut from.

    Scattered (by the seed alone, so that a node keeps its shards from epoch to epoch), a data set
    sorted by class gives each partition a mix of the classes.
    """
    first_ids = np.cumsum(sizes) - sizes
    filled = np.flatnonzero(sizes)
    if scatter:
        turn = permute(np.arange(len(filled), dtype=np.int64), len(filled), mix_key(seed, _HOME))
        filled = filled[turn]
    counts = sizes[filled]
    return _Stream(np.cumsum(counts) - counts, first_ids[filled], int(counts.sum()))


def _permute_within_windows(positions: Int64, size: int, window: int, key: int) -> Int64:
    """Permute each position within its window of the stream; the last window may be shorter."""
    result = np.empty_like(positions)
    numbers = positions // window
    for number in np.unique(numbers):
        chosen = numbers == number
        low = int(number) * window
        length = min(window, size - low)
        inner = permute(positions[chosen] - low, length, mix_key(key, int(number)))
        result[chosen] = inner + low
    return result


def indivisible(global_batch_size: int, parts: int, what: str) -> str:
    """Return the message for a global batch that does not divide, with the nearest that does."""
    if parts < 1:
        return f"{parts} {what} is not possible; choose 1 or more."
    below = global_batch_size // parts * parts
    choices = f"{below} or {below + parts}" if below else f"{parts}"
    return (
        f"global_batch_size={global_batch_size} is not divisible by {parts} {what}; "
        f"choose {choices}."
    )


def _check_arguments(
    sizes: Int64, global_batch_size: int, shuffle: str, window: int, partitions: int
) -> None:
    if sizes.ndim != 1 or (sizes < 0).any():
        raise UserInputError(
            "shard_sizes must be a flat list of sample counts, none of them below 0."
        )
    if global_batch_size < 1:
        raise UserInputError(f"global_batch_size={global_batch_size} must be at least 1.")
    if shuffle not in get_args(Shuffle):
        raise UserInputError(
            f"shuffle={shuffle!r} is not one of {', '.join(get_args(Shuffle))}."
            f"{nearest(str(shuffle), get_args(Shuffle))}"
        )
    if window < 1:
        raise UserInputError(f"window={window} must be at least 1 sample.")
    if partitions < 1 or global_batch_size % partitions:
        raise UserInputError(indivisible(global_batch_size, partitions, "partitions"))
