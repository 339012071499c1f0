"""What each node downloads and has to keep, from 1 to 1,024 nodes. Computed from the order.

    python benchmarks/downloads.py
    python benchmarks/downloads.py --shards 1000000 --shard_mb 100 --global_batch_size 32768 \
        --partitions 1 64 1024 --window 65536 4096

`resscale.data.download_plan` does the work; its tests compare it with looking at each sample.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np

from resscale.data.download_plan import plan_downloads
from resscale.data.order import EpochOrder

NODES = (1, 2, 4, 8, 16, 64, 256, 1024)


def text_of(num_bytes: float) -> str:
    """Return bytes as GB or TB, three digits."""
    return f"{num_bytes / 1e12:.3g} TB" if num_bytes >= 1e12 else f"{num_bytes / 1e9:.3g} GB"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and print a Markdown table for each combination."""
    parser = argparse.ArgumentParser(description="What each node downloads and has to keep.")
    parser.add_argument("--shards", type=int, default=1281, help="ImageNet's (%(default)s)")
    parser.add_argument("--samples_per_shard", type=int, default=1000, help="(%(default)s)")
    parser.add_argument("--shard_mb", type=float, default=110, help="(%(default)s)")
    parser.add_argument("--global_batch_size", type=int, default=8192, help="(%(default)s)")
    parser.add_argument("--partitions", type=int, nargs="*", default=[1, 64])
    parser.add_argument("--window", type=int, nargs="*", default=[65_536])
    parser.add_argument("--shuffle", choices=("window", "full", "none"), default="window")
    parser.add_argument("--nodes", type=int, nargs="*", default=NODES)
    options = parser.parse_args(arguments)
    sizes = np.full(options.shards, options.samples_per_shard)
    shard_bytes = np.full(options.shards, round(options.shard_mb * 1e6))
    print(
        f"{options.shards:,} shards of {options.samples_per_shard:,} samples and "
        f"{options.shard_mb:g} MB ({text_of(float(shard_bytes.sum()))}), global batch "
        f"{options.global_batch_size:,}, shuffle {options.shuffle}."
    )
    started = time.process_time()
    for partitions in options.partitions:
        for window in options.window:
            order = EpochOrder(
                sizes,
                global_batch_size=options.global_batch_size,
                shuffle=options.shuffle,
                window=window,
                partitions=partitions,
            )
            print(f"\npartitions {partitions:,}, window {window:,}:\n")
            print(
                "| nodes | shards a node | downloaded per node and epoch | by all, times the set "
                "| open at once | cache: once per epoch | cache: once per run | imbalance |"
            )
            print("| --- | --- | --- | --- | --- | --- | --- | --- |")
            for nodes in options.nodes:
                plan = plan_downloads(order, shard_bytes, nodes)
                shards = sum(node.shards for node in plan.nodes) / len(plan.nodes)
                opened = max(node.open_shards for node in plan.nodes)
                print(
                    f"| {nodes:,} | {shards:,.0f} | {text_of(plan.epoch_bytes)} "
                    f"| {plan.times_read:.2f} | {opened:,.0f} | {text_of(plan.open_bytes)} "
                    f"| {text_of(plan.all_bytes)} | {plan.imbalance:.3f} |",
                    flush=True,
                )
    print(f"\n{time.process_time() - started:.1f} s of CPU time")


if __name__ == "__main__":
    main()
