"""What the order of an epoch costs: time to build it, time per global batch, memory. Measured.

    python benchmarks/order.py
    python benchmarks/order.py --shards 1282 --global_batch_size 1024 --partitions 1 64

Each row is measured in a fresh process. Times are CPU time, as `EpochOrder` works in one thread: a
busy machine takes longer by the clock, and hardly longer by this. Memory is how far the process's
peak grows beyond what it was with numpy and the shard sizes at hand (8 bytes a shard, which the
manifest holds anyway).
"""

from __future__ import annotations

import argparse
import datetime
import functools
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from resscale.data.order import EpochOrder, Shuffle

T = TypeVar("T")


class Cost(NamedTuple):
    """Seconds, and bytes of memory beyond the shard sizes."""

    build_s: float
    first_batch_s: float
    batch_s: float
    at_epoch_s: float
    next_first_s: float
    memory_bytes: int


def measure(
    sizes: Sequence[int], global_batch_size: int, shuffle: Shuffle, partitions: int, steps: int
) -> Cost:
    """Measure one order in this process; a fresh one, for the memory to be its own.

    Args:
        sizes: shards, and samples in each: (shards, samples_per_shard).
        global_batch_size: samples per global batch.
        shuffle: as in `EpochOrder`.
        partitions: as in `EpochOrder`.
        steps: random steps timed; the median counts.
    """
    shard_sizes = np.full(sizes[0], sizes[1])
    rng = np.random.default_rng(0)
    before = peak_bytes()
    build_s, order = timed(
        lambda: EpochOrder(
            shard_sizes, global_batch_size=global_batch_size, shuffle=shuffle, partitions=partitions
        )
    )
    first_s, _ = timed(lambda: order.global_batch(0))
    each_s = [
        timed(functools.partial(order.global_batch, step))[0]
        for step in rng.integers(0, order.num_steps, steps).tolist()
    ]
    epoch_s, second = timed(lambda: order.at_epoch(1))
    next_s, _ = timed(lambda: second.global_batch(order.num_steps // 2))
    memory = peak_bytes() - before
    return Cost(build_s, first_s, statistics.median(each_s), epoch_s, next_s, memory)


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Return the CPU time that `work` took, in seconds, and what it gave."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def peak_bytes() -> int:
    """Return the most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def machine() -> str:
    """Return the processor's name, the cores and the load, as text."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    load = os.getloadavg()[0]
    return f"{len(names)} cores of {names[0] if names else platform.machine()}, load {load:.1f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and print a Markdown table."""
    parser = argparse.ArgumentParser(description="What the order of an epoch costs.")
    parser.add_argument("--shards", type=int, default=1_000_000, help="(%(default)s)")
    parser.add_argument("--samples_per_shard", type=int, default=1000, help="(%(default)s)")
    parser.add_argument("--global_batch_size", type=int, default=32_768, help="(%(default)s)")
    parser.add_argument("--partitions", type=int, nargs="*", default=[1, 64, 1024, 32_768])
    parser.add_argument("--shuffle", nargs="*", default=["window", "full", "none"])
    parser.add_argument("--steps", type=int, default=50, help="random steps timed (%(default)s)")
    options = parser.parse_args(arguments)
    print(f"{datetime.date.today()}, {machine()}.")
    print(
        f"{options.shards:,} shards of {options.samples_per_shard:,} samples, global batches of "
        f"{options.global_batch_size:,}; CPU ms, median of {options.steps} random steps.\n"
    )
    print("| shuffle | partitions | build | first batch | a batch | next epoch's first | memory |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    sizes = (options.shards, options.samples_per_shard)
    context = multiprocessing.get_context("spawn")
    for shuffle in options.shuffle:
        for partitions in options.partitions:
            with context.Pool(1) as pool:
                work = (sizes, options.global_batch_size, shuffle, partitions, options.steps)
                cost = pool.apply(measure, work)
            times = (cost.build_s, cost.first_batch_s, cost.batch_s)
            cells = [f"{seconds * 1e3:.1f}" for seconds in times]
            cells.append(f"{(cost.at_epoch_s + cost.next_first_s) * 1e3:.1f}")
            cells.append(f"{cost.memory_bytes / 1e6:.0f} MB")
            print(f"| {shuffle} | {partitions:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
