"""The epoch is mathematics: which samples make up global step k, for any number of ranks.

```
shards ──(split by samples)──> partitions ──(shuffle by seed, epoch)──> one stream each
global batch k = [ slice k of stream 0 | slice k of stream 1 | ... ]   ranks take slices of it
```
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from resscale.data.permutation import Int64, UInt64, mix_keys, permute_each
from resscale.data.stream import Stream, home_stream, shuffled_stream
from resscale.errors import UserInputError, nearest

Shuffle = Literal["full", "window", "none"]
DEFAULT_WINDOW = 65_536

# What a key is for goes into the key, so that no two uses share a permutation (1: the home stream).
_PIECES, _SAMPLES = 2, 3


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
        self._home: list[Stream] = []  # shared by the epochs, made when it is first asked for
        self._shuffled: tuple[int, int, Stream] | None = None

    @property
    def num_dropped(self) -> int:
        """Samples of the last, incomplete global batch, left out of this epoch."""
        return self.num_samples - self.num_steps * self.global_batch_size

    def at_epoch(self, epoch: int) -> EpochOrder:
        """Return the order of another epoch of the same run."""
        order = copy.copy(self)
        order.epoch = epoch
        order._shuffled = None
        return order

    def global_batch(self, step: int) -> Int64:
        """Return the sample ids of global step `step`: int64 array (global_batch_size,)."""
        return self.batch_slice(step, 0, self.global_batch_size)

    def rank_batch(self, step: int, rank: int, world_size: int) -> Int64:
        """Return a rank's share of a global step: int64 array (global_batch_size / world_size,).

        The ranks' shares, one behind the other, are the global batch.
        """
        return self.batch_slice(step, *rank_bounds(self.global_batch_size, rank, world_size))

    def batch_slice(self, step: int, start: int, stop: int) -> Int64:
        """Return positions `start` to `stop` of a global batch: int64 array (stop - start,).

        Only the partitions that the slice touches are evaluated.
        """
        ids: Int64 = self.batch_slices(range(step, step + 1), start, stop)[0]
        return ids

    def batch_slices(self, steps: range, start: int, stop: int) -> Int64:
        """Return `batch_slice` of neighbouring steps: int64 array (len(steps), stop - start).

        For small batches a fraction of the cost of one step after the other.
        """
        for step in (*steps[:1], *steps[-1:]):
            check_step(step, self.num_steps, self.num_samples, self.global_batch_size)
        if start >= stop or not steps:
            return np.empty((len(steps), max(0, stop - start)), dtype=np.int64)
        share = self.global_batch_size // self.partitions
        slots = np.arange(start, stop, dtype=np.int64)
        first, last = start // share, -(-stop // share)
        # All steps of a slot are neighbours, so that those of a partition are.
        group = (slots // share - first).repeat(len(steps))
        passed = np.arange(steps.start, steps.stop, dtype=np.int64) * share
        positions = (slots[:, None] % share + passed).ravel()
        cuts = self.partition_bounds(first, last)
        stream = self.stream(first, last)
        keys = mix_keys(self.seed, _SAMPLES, self.epoch, np.arange(first, last))
        if self.shuffle == "full":
            positions = permute_each(positions, np.diff(cuts), keys, group)
        elif self.shuffle == "window":
            positions = _permute_in_windows(positions, np.diff(cuts), keys, group, self.window)
        ids = stream.ids(cuts[group] + positions)
        return np.ascontiguousarray(ids.reshape(len(slots), len(steps)).T)

    def partition_bounds(self, first: int = 0, last: int | None = None) -> Int64:
        """Return where partitions `first` up to `last` begin, and the end of the last one.

        int64 (partitions + 1,), counted in samples of the stream that they are cut from.
        """
        last = self.partitions if last is None else last
        return np.arange(first, last + 1, dtype=np.int64) * self.num_samples // self.partitions

    def stream(self, first: int = 0, last: int | None = None) -> Stream:
        """Return the runs of samples of partitions `first` up to `last`, before samples are mixed.

        Whoever asks for one range again and again, as a rank does, has that range kept; whoever
        asks for another one gets all partitions.
        """
        if not self._home:
            scatter = self.shuffle != "none" and self.partitions > 1
            self._home.append(home_stream(self.shard_sizes, self.seed, scatter=scatter))
        if self.shuffle != "window":
            return self._home[0]
        last = self.partitions if last is None else last
        kept = self._shuffled
        if kept is None or not kept[0] <= first <= last <= kept[1]:
            if kept is not None:
                first, last = 0, self.partitions
            keys = mix_keys(self.seed, _PIECES, self.epoch, np.arange(first, last))
            cuts = self.partition_bounds(first, last)
            kept = self._shuffled = (first, last, shuffled_stream(self._home[0], cuts, keys))
        return kept[2]


def _permute_in_windows(
    positions: Int64, sizes: Int64, keys: UInt64, group: Int64, window: int
) -> Int64:
    """Permute each position within its window of its partition; the last one may be shorter."""
    number = positions // window
    begins = np.ones(len(positions), dtype=bool)
    begins[1:] = (number[1:] != number[:-1]) | (group[1:] != group[:-1])
    firsts = np.flatnonzero(begins)
    of, numbers = group[firsts], number[firsts]
    lengths = np.minimum(window, sizes[of] - numbers * window)
    inner = permute_each(
        positions - number * window, lengths, mix_keys(keys[of], numbers), np.cumsum(begins) - 1
    )
    return inner + number * window


def rank_bounds(global_batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return where a rank's share of a global batch begins and ends.

    Raises:
        UserInputError: the ranks do not divide it, or there is no such rank.
    """
    if world_size < 1 or global_batch_size % world_size:
        raise UserInputError(indivisible(global_batch_size, world_size, "ranks"))
    if not 0 <= rank < world_size:
        raise UserInputError(f"rank={rank} is outside 0 to world_size - 1 = {world_size - 1}.")
    share = global_batch_size // world_size
    return rank * share, (rank + 1) * share


def check_step(step: int, num_steps: int, num_samples: int, global_batch_size: int) -> None:
    """Refuse a step that an epoch does not have.

    Raises:
        UserInputError: it has not.
    """
    if not 0 <= step < num_steps:
        raise UserInputError(
            f"step={step} is outside this epoch's {num_steps} steps "
            f"({num_samples} samples / {global_batch_size} per global batch)."
        )


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
