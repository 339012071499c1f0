"""What nodes download: the plan against looking at each sample of the epoch."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shard_locality import steps_of_shards

from resscale.data.download_plan import plan_downloads, suggest_partitions
from resscale.data.order import EpochOrder
from resscale.errors import UserInputError


def looked_at(order: EpochOrder, shard_bytes: np.ndarray, num_nodes: int) -> np.ndarray:
    """Per node: shards, bytes, most shards open, most bytes open; (nodes, 4)."""
    first, last = steps_of_shards(order, num_nodes)
    rows = []
    for node in range(num_nodes):
        read = last[node] >= 0
        opened = np.array(
            [(first[node] <= step) & (step <= last[node]) & read for step in range(order.num_steps)]
        )
        at_once = [opened.sum(axis=1).max(), (opened * shard_bytes).sum(axis=1).max()]
        rows.append([read.sum(), shard_bytes[read].sum(), *at_once])
    return np.array(rows)


@st.composite
def divided(draw: st.DrawFn, shuffle: str) -> tuple[EpochOrder, int]:
    """Orders without a dropped sample, and a number of nodes that divides the partitions."""
    num_nodes = draw(st.integers(1, 4))
    partitions = num_nodes * draw(st.integers(1, 3))
    batch = partitions * draw(st.integers(1, 3))
    sizes = draw(st.lists(st.sampled_from([0, 1, 5, 9]), min_size=1, max_size=20))
    sizes.append(-sum(sizes) % batch or batch)
    window = draw(st.integers(1, 30))
    options: dict[str, Any] = {"window": window, "partitions": partitions, "shuffle": shuffle}
    return EpochOrder(sizes, global_batch_size=batch, seed=draw(st.integers(0, 9)), **options), (
        num_nodes
    )


@pytest.mark.parametrize("shuffle", ["full", "window", "none"])
@given(data=st.data())
def test_with_partitions_of_their_own_nodes_read_exactly_these_shards(
    shuffle: str, data: st.DataObject
) -> None:
    order, num_nodes = data.draw(divided(shuffle))
    shard_bytes = np.arange(len(order.shard_sizes)) * 7 + 100
    plan = plan_downloads(order, shard_bytes, num_nodes)
    truth = looked_at(order, shard_bytes, num_nodes)
    assert [round(node.shards) for node in plan.nodes] == truth[:, 0].tolist()
    assert [round(node.epoch_bytes) for node in plan.nodes] == truth[:, 1].tolist()
    # By the plan a shard is open as long as its window may take of it: never too short.
    found = np.array([[node.open_shards, node.open_bytes] for node in plan.nodes])
    assert (found.round() >= truth[:, 2:]).all()
    if shuffle == "none":
        assert (found.round() == truth[:, 2:]).all()
    everything = [round(node.all_bytes) for node in plan.nodes]
    assert everything == truth[:, 1].tolist()  # the same shards in each epoch


@pytest.mark.parametrize(
    ("num_nodes", "partitions", "shuffle"),
    [(3, 4, "window"), (12, 4, "window"), (4, 1, "window"), (8, 1, "full"), (12, 2, "full")],
)
def test_nodes_that_share_partitions_read_about_what_is_expected(
    num_nodes: int, partitions: int, shuffle: str
) -> None:
    sizes = np.array([12, 3, 30, 7] * 12)
    shard_bytes = sizes * 100
    order = EpochOrder(
        sizes,
        global_batch_size=24,
        partitions=partitions,
        shuffle=shuffle,
        window=60,
    )
    plan = plan_downloads(order, shard_bytes, num_nodes)
    epochs = [looked_at(order.at_epoch(e), shard_bytes, num_nodes)[:, 1] for e in range(5)]
    # Each node's mean over 5 epochs of up to 48 shards; 10% are above three standard errors.
    for node, found in zip(plan.nodes, np.mean(epochs, axis=0), strict=True):
        assert node.epoch_bytes == pytest.approx(found, rel=0.1)


def test_without_a_shuffle_shared_partitions_are_exact() -> None:
    sizes = np.array([5, 1, 3, 20, 2] * 6)  # 186 samples
    order = EpochOrder(sizes, global_batch_size=12, partitions=2, shuffle="none")
    plan = plan_downloads(order, sizes * 10, 6)
    truth = looked_at(order, sizes * 10, 6)
    assert [node.shards for node in plan.nodes] == truth[:, 0].tolist()


def test_shards_of_samples_that_are_left_out_are_not_counted() -> None:
    ones = np.ones(10, np.int64)
    shuffled = EpochOrder(ones, global_batch_size=8, shuffle="full")  # one step of 8 of 10
    assert plan_downloads(shuffled, ones, 1).epoch_bytes == pytest.approx(8)
    in_a_row = EpochOrder(ones, global_batch_size=8, shuffle="none")
    assert plan_downloads(in_a_row, ones, 1).epoch_bytes == 8
    # Windows of 4: the first two are taken whole, the third of 2 is left out.
    windows = EpochOrder(ones, global_batch_size=8, window=4)
    plan = plan_downloads(windows, ones, 1)
    assert (plan.epoch_bytes, plan.open_bytes, plan.all_bytes) == (8, 8, 10)


def test_one_partition_is_read_by_every_node_and_eight_by_one_each() -> None:
    sizes, shard_bytes = np.full(64, 100), np.full(64, 1000)

    def plan(partitions: int, num_nodes: int):
        order = EpochOrder(
            sizes, global_batch_size=64, partitions=partitions, shuffle="window", window=200
        )
        return plan_downloads(order, shard_bytes, num_nodes)

    together, apart = plan(1, 8), plan(8, 8)
    assert together.times_read == pytest.approx(8, rel=0.01)
    # 6,400 samples / 8 nodes are 8 whole shards.
    assert apart.times_read == pytest.approx(1)
    assert apart.epoch_bytes == apart.all_bytes == 8_000
    assert apart.imbalance == 1
    # A window of 200 is 2 shards, and 25 steps of 8 samples: none ends in the middle of a step.
    assert apart.open_bytes == 2_000


def test_what_later_epochs_download_depends_on_the_cache() -> None:
    order = EpochOrder(np.full(64, 100), global_batch_size=64, partitions=8, window=200)
    plan = plan_downloads(order, np.full(64, 1000), 8)
    assert plan.later_epoch_bytes(8_000) == 0
    assert plan.later_epoch_bytes(7_999) == plan.epoch_bytes == 8_000
    assert plan.later_epoch_bytes(2_000) == 8_000
    # 800 samples, half of them of a shard that is not there: 400 × 1,000 bytes.
    assert plan.later_epoch_bytes(1_000) == 400_000


def test_a_million_shards_are_planned_from_some_of_the_nodes() -> None:
    order = EpochOrder(np.full(100_000, 10), global_batch_size=1024, partitions=64, window=100)
    plan = plan_downloads(order, np.full(100_000, 500), 512)
    assert len(plan.nodes) == 16
    # 8 nodes share a partition of 1,562.5 shards of 10 samples each: 1 - (7/8)^10 = 73.7% of them.
    assert plan.nodes[0].shards == pytest.approx(1562.5 * 0.737, rel=0.01)


def test_partitions_are_suggested_for_all_the_nodes_that_a_run_may_get() -> None:
    assert suggest_partitions(4096, 64, 8) == 64  # fewer nodes are powers of two as well
    # 3,072 = 2^10 × 3: 48 nodes, and 32, which reads 16 of 48 twice; of 96 none.
    assert suggest_partitions(3072, 48, 8) == 96
    assert suggest_partitions(256, 1, 8) == 1


@pytest.mark.parametrize(
    ("batch", "nodes", "message"),
    [
        (8, 3, "global_batch_size=8 is not divisible by 3 nodes; choose 6 or 9."),
        (500, 2, "global_batch_size=500 is more than the 40 samples; choose 40 or less."),
    ],
)
def test_what_cannot_be_divided_is_refused(batch: int, nodes: int, message: str) -> None:
    order = EpochOrder([10] * 4, global_batch_size=batch)
    with pytest.raises(UserInputError) as error:
        plan_downloads(order, np.full(4, 10), nodes)
    assert str(error.value) == message
