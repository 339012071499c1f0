"""`benchmarks/shard_locality.py`: whose shards a node reads."""

import numpy as np
import pytest
from shard_locality import main, shards_per_node, spread

from resscale.data.order import EpochOrder


def test_without_a_shuffle_nodes_read_alternate_runs_of_samples() -> None:
    # 4 shards of 4, global batch 4: each step is one shard, half of it for each of 2 nodes.
    order = EpochOrder([4] * 4, global_batch_size=4, shuffle="none")
    assert shards_per_node([order], 2).tolist() == [4, 4]


def test_with_a_partition_per_node_each_reads_its_own_shards() -> None:
    orders = [EpochOrder([4] * 4, global_batch_size=4, partitions=2, epoch=e) for e in range(3)]
    assert shards_per_node(orders[:1], 2).tolist() == [2, 2]
    assert shards_per_node(orders, 2).tolist() == [2, 2]  # the same ones in each epoch


def test_spread_is_a_range_or_one_number() -> None:
    assert spread(np.array([3, 3])) == "3"
    assert spread(np.array([3, 1200])) == "3 to 1,200"


def test_the_table_has_a_row_for_each_number_of_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--shards", "16", "--samples_per_shard", "8", "--batch_size", "1", "--nodes", "1", "2"])
    assert capsys.readouterr().out.splitlines()[4:] == [
        "| 1 | 8 | 16 | 16 | 16 |",
        "| 2 | 16 | 16 | 8 | 8 |",
    ]
