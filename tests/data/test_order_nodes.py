"""Nodes, partitions and ranks: who reads what, and going on with another number of them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resscale.data import EpochOrder


def partitions_of(order: EpochOrder, node: int, num_nodes: int) -> set[int]:
    """Partitions whose samples a node reads, found by looking at each sample of the epoch."""
    whole = order.stream()
    home = {
        int(i): partition
        for partition in range(order.partitions)
        for i in whole.ids(np.arange(*order.partition_bounds(partition, partition + 1)))
    }
    steps = range(order.num_steps)
    return {home[i] for step in steps for i in order.rank_batch(step, node, num_nodes).tolist()}


def test_where_nodes_divide_the_partitions_each_has_its_own() -> None:
    order = EpochOrder([6] * 16, global_batch_size=24, partitions=8, seed=1, window=5)
    assert [partitions_of(order, node, 4) for node in range(4)] == [{0, 1}, {2, 3}, {4, 5}, {6, 7}]


def test_three_nodes_of_eight_partitions_share_the_two_that_are_cut() -> None:
    order = EpochOrder([6] * 16, global_batch_size=24, partitions=8, seed=1, window=5)
    # 8 / 3 = 2.67: the cuts lie at 2.67 and 5.33, within partitions 2 and 5.
    assert [partitions_of(order, node, 3) for node in range(3)] == [
        {0, 1, 2},
        {2, 3, 4, 5},
        {5, 6, 7},
    ]


@given(st.integers(1, 12), st.integers(1, 9), st.sampled_from(["full", "window", "none"]))
def test_a_node_reads_the_partitions_that_its_part_of_the_batch_reaches_over(
    partitions: int, num_nodes: int, shuffle: str
) -> None:
    batch = math.lcm(partitions, num_nodes)
    order = EpochOrder(
        [3] * batch, global_batch_size=batch, partitions=partitions, shuffle=shuffle, window=4
    )
    read = [partitions_of(order, node, num_nodes) for node in range(num_nodes)]
    for node, found in enumerate(read):
        first = node * partitions // num_nodes
        last = -(-(node + 1) * partitions // num_nodes)
        assert found == set(range(first, last))
    # Each of the num_nodes - 1 cuts between nodes splits a partition, but where both divide.
    assert sum(map(len, read)) == partitions + num_nodes - math.gcd(partitions, num_nodes)


@st.composite
def uneven(draw: st.DrawFn) -> EpochOrder:
    """Shards of 0, 1 or a few samples; often fewer of them than the 12 ranks."""
    sizes = draw(st.lists(st.sampled_from([0, 0, 1, 1, 2, 30]), min_size=1, max_size=14))
    partitions = draw(st.sampled_from([1, 2, 3, 4, 6, 12]))
    return EpochOrder(
        sizes,
        global_batch_size=12,
        seed=draw(st.integers(0, 99)),
        epoch=draw(st.integers(0, 9)),
        shuffle=draw(st.sampled_from(["full", "window", "none"])),
        window=draw(st.integers(1, 40)),
        partitions=partitions,
    )


WORLDS = (1, 2, 3, 4, 6, 12)


@given(uneven(), st.data())
def test_a_run_goes_on_at_any_step_on_any_other_number_of_ranks(
    order: EpochOrder, data: st.DataObject
) -> None:
    """All samples once, whatever the ranks before and behind the break."""
    break_at = data.draw(st.integers(0, order.num_steps))
    before, behind = data.draw(st.sampled_from(WORLDS)), data.draw(st.sampled_from(WORLDS))
    read: list[int] = []
    for step in range(order.num_steps):
        # A rank that resumes knows the seed, the epoch and the step, and nothing else.
        here = order if step < break_at else order.at_epoch(order.epoch)
        world = before if step < break_at else behind
        for rank in range(world):
            read += here.rank_batch(step, rank, world).tolist()
    whole = [i for step in range(order.num_steps) for i in order.global_batch(step).tolist()]
    assert read == whole
    assert len(set(read)) == len(read) == order.num_samples - order.num_dropped


@pytest.mark.parametrize("shuffle", ["full", "window", "none"])
def test_fewer_shards_than_ranks_leave_no_rank_without_samples(shuffle: str) -> None:
    order = EpochOrder([0, 40, 1, 0, 7], global_batch_size=16, partitions=16, shuffle=shuffle)
    assert order.num_steps == 3  # 48 / 16
    shares = [order.rank_batch(step, rank, 16) for step in range(3) for rank in range(16)]
    assert {len(share) for share in shares} == {1}
    assert sorted(np.concatenate(shares).tolist()) == list(range(48))


def test_a_rank_keeps_the_table_of_its_own_partitions_only() -> None:
    order = EpochOrder([10] * 64, global_batch_size=64, partitions=8, seed=2)
    order.rank_batch(0, 3, 8)
    mine = order.stream(3, 4)
    # 64 shards in 8 partitions of whole shards: 8 runs, of one partition of eight.
    assert len(mine.first_ids) == 8
    assert order.stream(3, 4) is mine
    assert len(order.stream(0, 8).first_ids) == 64
    assert order.stream(3, 4) is order.stream(0, 8)  # who has asked for others has them all
