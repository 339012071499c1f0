"""How well the orders mix: shuffled shards and shards sorted by class, windows and partitions.

    python benchmarks/shuffle_quality.py
    python benchmarks/shuffle_quality.py --shards 1000 --samples_per_shard 100 --micro_batch_size 16

The set has ImageNet's shape, with made-up labels. Columns, each against a full shuffle (100%):

- batch, micro-batch: entropy of the labels in them.
- shards: a batch draws from so many shards.
- distance: how far apart in the epoch samples lie that are neighbours in the shards.

and, where 0 is a full shuffle's: the correlation of a sample's places in two epochs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from resscale.data.order import EpochOrder, Shuffle
from resscale.data.shuffle_quality import Entropy, measure_shuffle

Int64 = npt.NDArray[np.int64]

ORDERS: tuple[tuple[Shuffle, int, int], ...] = (
    ("full", 65_536, 1),
    ("full", 65_536, 64),
    ("window", 262_144, 1),
    ("window", 65_536, 1),
    ("window", 16_384, 1),
    ("window", 4_096, 1),
    ("window", 4_096, 64),
    ("window", 1_024, 64),
    ("none", 65_536, 1),
    ("none", 65_536, 64),
)


def places(order: EpochOrder) -> Int64:
    """Return the step of each sample in an epoch, -1 where it is left out: (num_samples,)."""
    steps = np.full(order.num_samples, -1)
    for step in range(order.num_steps):
        steps[order.global_batch(step)] = step
    return steps


def distance(steps: Int64, num_steps: int) -> float:
    """Return how far apart neighbours of the shards lie, over what a full shuffle has (1/3)."""
    both = (steps[1:] >= 0) & (steps[:-1] >= 0)
    return float(np.abs(np.diff(steps))[both].mean() / (num_steps / 3))


def correlation(one: Int64, other: Int64) -> float:
    """Return the correlation of the samples' places in two epochs."""
    both = (one >= 0) & (other >= 0)
    return float(np.corrcoef(one[both], other[both])[0, 1])


def share(entropy: Entropy | None) -> str:
    """Return the bits found and their share of a full shuffle's."""
    assert entropy is not None
    return f"{entropy.bits:.2f} ({entropy.fraction:.0%})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and print a Markdown table for each way of packing."""
    parser = argparse.ArgumentParser(description="How well the orders mix.")
    parser.add_argument("--shards", type=int, default=1281)
    parser.add_argument("--samples_per_shard", type=int, default=1000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--global_batch_size", type=int, default=1024)
    parser.add_argument("--micro_batch_size", type=int, default=64)
    options = parser.parse_args(arguments)
    sizes = np.full(options.shards, options.samples_per_shard)
    total = int(sizes.sum())
    by_class = np.arange(total) * options.classes // total
    packed = {"shuffled": np.random.default_rng(0).permutation(by_class), "by class": by_class}
    counts = np.bincount(by_class).tolist()
    print(
        f"{options.shards:,} shards of {options.samples_per_shard:,}, {options.classes:,} classes, "
        f"global batch {options.global_batch_size:,}, micro-batch {options.micro_batch_size}."
    )
    spent = []
    names = ["packed", "shuffle", "window", "partitions", "batch", "micro-batch", "shards"]
    names += ["distance", "correlation"]
    print(f"\n| {' | '.join(names)} |\n|{' --- |' * len(names)}")
    for how, labels in packed.items():
        for shuffle, window, partitions in ORDERS:
            order = EpochOrder(
                sizes,
                global_batch_size=options.global_batch_size,
                shuffle=shuffle,
                window=window,
                partitions=partitions,
            )
            started = time.process_time()
            quality = measure_shuffle(
                order, labels.__getitem__, counts, options.micro_batch_size, options.shards
            )
            spent.append(time.process_time() - started)
            one, other = places(order), places(order.at_epoch(1))
            print(
                f"| {how} | {shuffle} | {f'{window:,}' if shuffle == 'window' else ''} "
                f"| {partitions} | {share(quality.batch)} | {share(quality.micro_batch)} "
                f"| {quality.shards:,.0f} | {distance(one, order.num_steps):.0%} "
                f"| {correlation(one, other):.2f} |",
                flush=True,
            )
    print(f"\nmeasured in {1e3 * max(spent):.0f} ms of CPU time at most, but for the last two")


if __name__ == "__main__":
    main()
