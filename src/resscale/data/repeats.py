"""Repeated augmentation: a sample stands several times in a global batch, never augmented alike.

```
super-epoch 0 of 3 repeats   epoch 0              epoch 1              epoch 2
batches of other samples     D0 D1 D2 ...         Dk Dk+1 ...          ...
global batches               [D0 D0 D0] ...       [Dk Dk Dk] ...       ...
```
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from resscale.data.locations import shown
from resscale.data.order import EpochOrder, Shuffle, check_step, indivisible, rank_bounds
from resscale.data.permutation import Int64
from resscale.errors import UserInputError

# Ids stay below it (17 million million samples), so that no two (id, copy) are ever the same key.
_COPY_BITS = 44
_IDS_AT_ONCE = 4096


def augment_ids(ids: Int64, copies: Int64) -> Int64:
    """Return what each row's random draws are keyed by: int64 (n,).

    Equal to the ids where the copies are 0, so that nothing changes for a run without repeats.

    Args:
        ids: sample ids, int64 (n,); -1 for padding.
        copies: which of its sample's repeats a row is, from 0, int64 (n,).
    """
    return ids + (copies << np.int64(_COPY_BITS))


class RepeatedOrder:
    """The order of an epoch whose global batches hold each of their samples `repeats` times.

    Repeated augmentation (Hoffer et al. 2020, "Augment your batch", section 3; Fort et al. 2021,
    section 3). An epoch has as many steps as without repeats, so it takes `1 / repeats` of the
    samples; `repeats` epochs together, a super-epoch, take each sample in one step, but for those
    of the last, incomplete global batch. No sample is drawn by chance: epoch e takes the part
    e mod repeats of the order of super-epoch e // repeats.

    The copies of a partition's samples lie one behind the other, `[D D D]`: so they come to
    different micro-batches and ranks wherever these hold no more than `global_batch_size / repeats
    / partitions` samples, and a rank still reads from the shards of its own partitions alone.

    Args:
        distinct: the order of batches of `global_batch_size / repeats` different samples.
        repeats: copies of each sample in its global batch.
        epoch: of the run.
    """

    def __init__(self, distinct: EpochOrder, repeats: int, epoch: int = 0) -> None:
        self.distinct = distinct.at_epoch(epoch // repeats)
        self.repeats = repeats
        self.epoch = epoch
        self.global_batch_size = distinct.global_batch_size * repeats
        self.num_samples = distinct.num_samples
        self.num_steps = self.num_samples // self.global_batch_size
        self.partitions = distinct.partitions
        self.seed = distinct.seed
        self.shuffle: Shuffle = distinct.shuffle
        self.window = distinct.window

    @property
    def num_dropped(self) -> int:
        """Samples that a super-epoch leaves out: less than a global batch of them."""
        return self.num_samples - self.num_steps * self.global_batch_size

    def at_epoch(self, epoch: int) -> RepeatedOrder:
        """Return the order of another epoch of the same run."""
        order = copy.copy(self)
        order.epoch = epoch
        if epoch // self.repeats != self.distinct.epoch:
            order.distinct = self.distinct.at_epoch(epoch // self.repeats)
        return order

    def global_batch(self, step: int) -> Int64:
        """Return the sample ids of global step `step`: int64 array (global_batch_size,)."""
        return self.batch_slice(step, 0, self.global_batch_size)

    def rank_batch(self, step: int, rank: int, world_size: int) -> Int64:
        """Return a rank's share of a global step: int64 array (global_batch_size / world_size,)."""
        return self.batch_slice(step, *rank_bounds(self.global_batch_size, rank, world_size))

    def rank_copies(self, rank: int, world_size: int) -> Int64:
        """Return which copy of its sample each row of a rank's share is, the same at each step.

        int64 (global_batch_size / world_size,), 0 to repeats - 1.
        """
        start, stop = rank_bounds(self.global_batch_size, rank, world_size)
        return self._slots(start, stop)[1]

    def batch_slice(self, step: int, start: int, stop: int) -> Int64:
        """Return positions `start` to `stop` of a global batch: int64 array (stop - start,).

        Only the partitions that the slice touches are evaluated.
        """
        ids: Int64 = self.batch_slices(range(step, step + 1), start, stop)[0]
        return ids

    def batch_slices(self, steps: range, start: int, stop: int) -> Int64:
        """Return `batch_slice` of neighbouring steps: int64 array (len(steps), stop - start)."""
        for step in (*steps[:1], *steps[-1:]):
            check_step(step, self.num_steps, self.num_samples, self.global_batch_size)
        if start >= stop:
            return np.empty((len(steps), 0), dtype=np.int64)
        slots = self._slots(start, stop)[0]
        first, last = int(slots.min()), int(slots.max()) + 1
        before = self.epoch % self.repeats * self.num_steps
        numbers = range(before + steps.start, before + steps.stop)
        return self.distinct.batch_slices(numbers, first, last).take(slots - first, axis=1)

    def _slots(self, start: int, stop: int) -> tuple[Int64, Int64]:
        """Return for some positions the place in the batch of different samples, and the copy."""
        positions = np.arange(start, stop, dtype=np.int64)
        share = self.distinct.global_batch_size // self.partitions
        partition, inside = np.divmod(positions, share * self.repeats)
        copies, place = np.divmod(inside, share)
        return partition * share + place, copies


TrainOrder = EpochOrder | RepeatedOrder
"""Which samples make up each global step of a training epoch."""


def build_order(
    shard_sizes: Sequence[int] | npt.NDArray[np.integer],
    *,
    repeats: int,
    global_batch_size: int,
    seed: int,
    shuffle: Shuffle,
    window: int,
    partitions: int,
) -> TrainOrder:
    """Return the order of epoch 0 of a run: an `EpochOrder`, repeated where that is asked for.

    Args:
        shard_sizes: samples per shard, int array (num_shards,).
        repeats: copies of each sample in its global batch.
        global_batch_size: samples per optimizer step over all ranks, copies among them.
        seed: names the run's orders.
        shuffle: see `EpochOrder`.
        window: see `EpochOrder`.
        partitions: see `EpochOrder`.
    """
    order = EpochOrder(
        shard_sizes,
        global_batch_size=global_batch_size // repeats,
        seed=seed,
        shuffle=shuffle,
        window=window,
        partitions=partitions,
    )
    return RepeatedOrder(order, repeats) if repeats > 1 else order


def distinct_order(order: TrainOrder) -> EpochOrder:
    """Return the order of the different samples of each batch: without repeats the order itself."""
    return order.distinct if isinstance(order, RepeatedOrder) else order


def copies_of_rank(order: TrainOrder, rank: int, world_size: int) -> Int64 | None:
    """Return `RepeatedOrder.rank_copies`; None without repeats.

    Args:
        order: of any epoch.
        rank: number of the rank.
        world_size: number of ranks.
    """
    return order.rank_copies(rank, world_size) if isinstance(order, RepeatedOrder) else None


def rank_batches(order: TrainOrder, first_step: int, rank: int, world_size: int) -> Iterator[Int64]:
    """Yield `order.rank_batch` of one step after the other, to the end of the epoch.

    Steps of small batches are evaluated some at a time: with 64 samples a step, one by one cost
    0.012 ms of CPU a sample.

    Args:
        order: of the epoch.
        first_step: to begin with.
        rank: number of the rank.
        world_size: number of ranks.
    """
    start, stop = rank_bounds(order.global_batch_size, rank, world_size)
    at_once = max(1, _IDS_AT_ONCE // (stop - start))
    for first in range(first_step, order.num_steps, at_once):
        steps = range(first, min(first + at_once, order.num_steps))
        yield from order.batch_slices(steps, start, stop)


def describe_repeats(order: TrainOrder) -> list[str]:
    """Return what a user should know of repeats, as lines; none without them.

    Args:
        order: of any epoch.
    """
    if not isinstance(order, RepeatedOrder):
        return []
    different, repeats = order.distinct.global_batch_size, order.repeats
    return [
        f"repeats: a batch holds {different:,} different samples, {repeats} times each, augmented "
        f"by themselves; {repeats} epochs take each sample in one step"
    ]


def check_repeats(repeats: int, global_batch_size: int, partitions: int) -> None:
    """Refuse repeats that do not fit the global batch.

    Args:
        repeats: copies of each sample in its global batch.
        global_batch_size: samples per optimizer step over all ranks, copies among them.
        partitions: of the order.

    Raises:
        UserInputError: they do not divide it, or partitions do not divide what is left.
    """
    if repeats < 1 or global_batch_size < 1:
        return  # told by the check of counts
    if global_batch_size % repeats:
        fitting = [n for n in range(1, global_batch_size + 1) if global_batch_size % n == 0]
        close = sorted(sorted(fitting, key=lambda n: abs(n - repeats))[:2])
        below = global_batch_size // repeats * repeats
        batches = f"{below} or {below + repeats}" if below else f"{repeats}"
        raise UserInputError(
            f"data.repeats={repeats} does not divide data.global_batch_size={global_batch_size}, "
            f"which counts each copy; choose repeats of {' or '.join(map(str, close))}, or a "
            f"global batch of {batches}."
        )
    different = global_batch_size // repeats
    if repeats > 1 and partitions > 0 and different % partitions:
        raise UserInputError(
            f"data.partitions={partitions} does not divide the {different} different samples of a "
            f"global batch (data.global_batch_size={global_batch_size} / data.repeats={repeats}): "
            + indivisible(global_batch_size, partitions * repeats, "repeats × partitions")
        )


def check_no_repeats(repeats: int, location: str) -> None:
    """Refuse repeats of samples that come as they come: the next one is another one.

    Args:
        repeats: copies of each sample in its global batch.
        location: of a source that is read in one direction.

    Raises:
        UserInputError: there are some.
    """
    if repeats > 1:
        raise UserInputError(
            f"data.repeats={repeats} needs samples that can be read again, and {shown(location)} "
            f"is read "
            f"in one direction: leave repeats out."
        )


def check_other_repeats(before: int, now: int, epoch: int, step: int) -> None:
    """Refuse other repeats where a resume would break what a super-epoch promises.

    Args:
        before: repeats so far.
        now: repeats from here on.
        epoch: epochs completed.
        step: optimizer steps done in the epoch under way.

    Raises:
        UserInputError: some samples would be seen more often than others.
    """
    if before == now or (step == 0 and epoch % before == 0 and epoch % now == 0):
        return
    where = f"in the middle of epoch {epoch + 1}" if step else f"behind {epoch} epochs"
    raise UserInputError(
        f"the checkpoint was trained with repeats={before}, now they are {now}: {where} some "
        f"samples would be seen more often than others. Set data.repeats as it was, change it "
        f"where both divide the epochs done, or start a new run."
    )
