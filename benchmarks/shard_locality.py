"""How many shards a node reads in an epoch, with and without a partition per node. Computed.

    python benchmarks/shard_locality.py
    python benchmarks/shard_locality.py --shards 10000 --samples_per_shard 1000 --shuffle full

`EpochOrder` is asked for each step of an epoch which samples each node's ranks take. A node reads
ranges of bytes, so its bytes are the same either way. What differs is from how many files they
come, and how much a node would have to keep to read none of them twice over the epochs.

`benchmarks/downloads.py` computes the same by `resscale.data.download_plan`, for any size.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from resscale.data.order import EpochOrder

Int64 = npt.NDArray[np.int64]

NODES = (8, 32, 128, 512)
GPUS_PER_NODE = 8


def steps_of_shards(order: EpochOrder, num_nodes: int) -> tuple[Int64, Int64]:
    """Return the first and the last step at which each node reads each shard, by looking.

    Two int64 arrays (num_nodes, num_shards); -1 where a node does not read a shard.
    """
    ends = np.cumsum(order.shard_sizes)
    first = np.full((num_nodes, len(ends)), -1)
    last = np.full((num_nodes, len(ends)), -1)
    for step in range(order.num_steps):
        shards = np.searchsorted(ends, order.global_batch(step), side="right")
        for node, part in enumerate(shards.reshape(num_nodes, -1)):
            last[node, part] = step
            new = part[first[node, part] < 0]
            first[node, new] = step
    return first, last


def shards_per_node(orders: Sequence[EpochOrder], num_nodes: int) -> Int64:
    """Return how many shards each node reads in these epochs: int64 array (num_nodes,).

    Args:
        orders: of the epochs; their global batch divides by the nodes.
        num_nodes: a global batch is cut into so many neighbouring parts.
    """
    read = [steps_of_shards(order, num_nodes)[1] >= 0 for order in orders]
    counts: Int64 = np.logical_or.reduce(read).sum(axis=1, dtype=np.int64)
    return counts


def spread(counts: Int64) -> str:
    """Return the range of some counts as text."""
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and print a Markdown table."""
    parser = argparse.ArgumentParser(description="Shards that a node reads in an epoch.")
    parser.add_argument("--shards", type=int, default=1282, help="ImageNet has 1282 (%(default)s)")
    parser.add_argument("--samples_per_shard", type=int, default=1000, help="(%(default)s)")
    parser.add_argument("--batch_size", type=int, default=8, help="per GPU (%(default)s)")
    parser.add_argument("--shuffle", choices=("window", "full", "none"), default="window")
    parser.add_argument("--nodes", type=int, nargs="*", default=NODES, help="of 8 GPUs")
    options = parser.parse_args(arguments)
    sizes = np.full(options.shards, options.samples_per_shard)
    print(
        f"{options.shards:,} shards of {options.samples_per_shard:,} samples, shuffle "
        f"{options.shuffle}, {options.batch_size} per GPU.\n"
    )
    print("| nodes | GPUs | one partition | a partition per node | the same, two epochs |")
    print("| --- | --- | --- | --- | --- |")
    for nodes in options.nodes:
        batch = nodes * GPUS_PER_NODE * options.batch_size
        cells = []
        for partitions, epochs in ((1, 1), (nodes, 1), (nodes, 2)):
            orders = [
                EpochOrder(
                    sizes,
                    global_batch_size=batch,
                    shuffle=options.shuffle,
                    partitions=partitions,
                    epoch=epoch,
                )
                for epoch in range(epochs)
            ]
            cells.append(spread(shards_per_node(orders, nodes)))
        print(f"| {nodes} | {nodes * GPUS_PER_NODE:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
