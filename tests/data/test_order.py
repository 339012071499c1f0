"""The epoch as mathematics: what holds for any shards, seeds, partitions, windows and ranks."""

import re
import tracemalloc
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resscale.data import EpochOrder
from resscale.errors import UserInputError

UNEVEN = [7, 0, 5, 9, 1]  # 22 samples


@st.composite
def orders(draw: st.DrawFn, **fixed: Any) -> EpochOrder:
    """Any order of up to 25 shards, empty and tiny ones among them."""
    sizes = draw(st.lists(st.one_of(st.sampled_from([0, 1]), st.integers(0, 40)), max_size=25))
    partitions = draw(st.integers(1, 5))
    options = {
        "global_batch_size": partitions * draw(st.integers(1, 12)),
        "seed": draw(st.integers(0, 2**63)),
        "epoch": draw(st.integers(0, 300)),
        "shuffle": draw(st.sampled_from(["full", "window", "none"])),
        "window": draw(st.integers(1, 120)),
        "partitions": partitions,
    }
    return EpochOrder(sizes, **(options | fixed))


def batches(order: EpochOrder) -> list[list[int]]:
    return [order.global_batch(step).tolist() for step in range(order.num_steps)]


def epoch_ids(order: EpochOrder) -> np.ndarray:
    return np.array(batches(order), dtype=np.int64).ravel()


def shards_of(ids: np.ndarray, order: EpochOrder) -> np.ndarray:
    return np.searchsorted(np.cumsum(order.shard_sizes), ids, side="right")


# What holds for any order


@given(orders())
def test_every_sample_at_most_once_and_less_than_a_batch_dropped(order: EpochOrder) -> None:
    ids = epoch_ids(order)
    assert len(ids) == order.num_samples - order.num_dropped
    assert 0 <= order.num_dropped < order.global_batch_size
    assert len(set(ids.tolist())) == len(ids)
    assert ids.size == 0 or (ids.min() >= 0 and ids.max() < order.num_samples)


@settings(max_examples=40)
@given(orders())
def test_ranks_one_behind_the_other_are_the_global_batch(order: EpochOrder) -> None:
    size = order.global_batch_size
    for world_size in (world for world in range(1, size + 1) if size % world == 0):
        for step in range(min(order.num_steps, 2)):
            shares = [order.rank_batch(step, rank, world_size) for rank in range(world_size)]
            assert {share.shape for share in shares} == {(size // world_size,)}
            assert np.concatenate(shares).tolist() == order.global_batch(step).tolist()


@given(orders(), st.data())
def test_a_slice_is_cut_out_of_the_global_batch(order: EpochOrder, data: st.DataObject) -> None:
    if order.num_steps:
        step = data.draw(st.integers(0, order.num_steps - 1))
        start = data.draw(st.integers(0, order.global_batch_size))
        stop = data.draw(st.integers(start, order.global_batch_size))
        part = order.batch_slice(step, start, stop)
        assert part.dtype == np.int64
        assert part.tolist() == order.global_batch(step).tolist()[start:stop]


@given(orders(), st.data())
def test_steps_that_are_evaluated_together_are_the_same(
    order: EpochOrder, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, order.num_steps))
    last = data.draw(st.integers(first, order.num_steps))
    start = data.draw(st.integers(0, order.global_batch_size))
    stop = data.draw(st.integers(start, order.global_batch_size))
    found = order.batch_slices(range(first, last), start, stop)
    assert found.shape == (last - first, stop - start)
    assert found.dtype == np.int64
    assert found.flags.c_contiguous
    expected = [order.batch_slice(step, start, stop).tolist() for step in range(first, last)]
    assert found.tolist() == expected
    with pytest.raises(UserInputError, match="outside this epoch"):
        order.batch_slices(range(first, order.num_steps + 1), start, stop)


@given(orders())
def test_steps_are_the_same_in_whatever_sequence_they_are_asked_for(order: EpochOrder) -> None:
    again = order.at_epoch(order.epoch)
    backwards = [again.global_batch(step).tolist() for step in reversed(range(again.num_steps))]
    assert backwards[::-1] == batches(order)


@given(orders(), st.integers(0, 50))
def test_at_epoch_is_a_fresh_order_of_that_epoch(order: EpochOrder, epoch: int) -> None:
    fresh = EpochOrder(
        order.shard_sizes,
        global_batch_size=order.global_batch_size,
        seed=order.seed,
        epoch=epoch,
        shuffle=order.shuffle,
        window=order.window,
        partitions=order.partitions,
    )
    batches(order)  # what it has worked out for its own epoch must not count in another
    assert batches(order.at_epoch(epoch)) == batches(fresh)


@given(orders(shuffle="none"))
def test_no_shuffle_reads_each_partition_from_its_beginning(order: EpochOrder) -> None:
    share = order.global_batch_size // order.partitions
    for step, batch in enumerate(batches(order)):
        for partition in range(order.partitions):
            first = partition * order.num_samples // order.partitions + step * share
            part = batch[partition * share : (partition + 1) * share]
            assert part == list(range(first, first + share))


# Shuffling


@pytest.mark.parametrize("shuffle", ["full", "window"])
@pytest.mark.parametrize("partitions", [1, 3])
def test_each_epoch_and_each_seed_has_an_order_of_its_own(shuffle: str, partitions: int) -> None:
    def order(**options: int) -> list[list[int]]:
        return batches(
            EpochOrder(
                [50, 20, 0, 110],  # 180 samples
                global_batch_size=30,
                shuffle=shuffle,
                window=70,
                partitions=partitions,
                **options,
            )
        )

    assert order(seed=4, epoch=2) == order(seed=4, epoch=2)
    different = [order(seed=seed, epoch=epoch) for seed in (0, 1, 4) for epoch in (0, 1, 2)]
    for number, one in enumerate(different):
        for other in different[:number]:
            # Two unrelated orders of 180 agree in about 1 place, 3 with partitions of 60.
            assert (np.array(one) == np.array(other)).mean() < 0.1


def test_without_shuffle_every_epoch_is_the_same() -> None:
    order = EpochOrder(UNEVEN, global_batch_size=4, shuffle="none")
    assert batches(order) == batches(order.at_epoch(9))


def test_other_samples_are_dropped_in_other_epochs() -> None:
    order = EpochOrder(UNEVEN, global_batch_size=6, shuffle="full")
    assert order.num_dropped == 4  # 22 - 3 × 6
    dropped = {frozenset(range(22)) - set(epoch_ids(order.at_epoch(e)).tolist()) for e in range(5)}
    assert {len(left_out) for left_out in dropped} == {4}
    assert len(dropped) > 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"shuffle": "full"},
            [[21, 11, 12, 10, 4, 15], [7, 6, 14, 19, 2, 0], [1, 20, 16, 13, 3, 9]],
        ),
        ({}, [[19, 12, 10, 9, 11, 6], [14, 7, 16, 17, 13, 4], [20, 8, 15, 21, 18, 3]]),
        (
            {"window": 5, "partitions": 2},
            [[13, 0, 12, 16, 18, 20], [14, 15, 4, 19, 17, 21], [1, 5, 3, 10, 9, 8]],
        ),
    ],
)
def test_the_order_of_version_0_1_stays_as_it_is(options: Any, expected: list[list[int]]) -> None:
    """Another order would break the resumption of every run begun before."""
    order = EpochOrder(UNEVEN, global_batch_size=6, seed=3, epoch=2, **options)
    assert batches(order) == expected


def test_the_order_stays_where_partitions_begin_with_a_shard() -> None:
    order = EpochOrder(
        [4] * 6, global_batch_size=6, seed=3, epoch=2, window=5, partitions=3
    )  # 24 samples: the partitions are cut at 8 and 16, between shards
    assert batches(order) == [
        [17, 20, 12, 14, 3, 0],
        [16, 18, 8, 15, 2, 4],
        [19, 23, 13, 10, 1, 5],
        [22, 21, 9, 11, 6, 7],
    ]


@pytest.mark.parametrize("shuffle", ["full", "window"])
def test_a_sample_is_about_equally_often_in_any_step(shuffle: str) -> None:
    order = EpochOrder([5, 0, 9, 3, 7], global_batch_size=4, shuffle=shuffle, window=100)
    steps, epochs = order.num_steps, 600
    assert steps == 6  # 24 / 4
    counts = np.zeros((24, steps))
    for epoch in range(epochs):
        for step, batch in enumerate(batches(order.at_epoch(epoch))):
            counts[batch, step] += 1
    expected = epochs / steps
    # 24 × 6 cells with fixed sums: 23 × 5 = 115 degrees of freedom, 0.999 quantile 167.6.
    assert ((counts - expected) ** 2 / expected).sum() < 167.6


# Windows: few shards are open at a time


def windows_of(order: EpochOrder) -> list[np.ndarray]:
    ids = epoch_ids(order)
    return [ids[low : low + order.window] for low in range(0, len(ids), order.window)]


def test_the_samples_of_a_window_come_from_few_neighbouring_pieces() -> None:
    order = EpochOrder([100] * 40, global_batch_size=50, shuffle="window", window=250)
    seen = [set(shards_of(ids, order).tolist()) for ids in windows_of(order)]
    assert len(seen) == 16  # 4,000 / 250
    # 250 samples in a row reach over 4 shards of 100 at most: 1 + 100 + 100 + 49.
    assert max(map(len, seen)) <= 4
    for shard in range(40):
        touched = [number for number, shards in enumerate(seen) if shard in shards]
        assert touched in ([touched[0]], [touched[0], touched[0] + 1])  # 100 < 250: 2 at most
    for before, after in pairwise(seen):
        assert len(before & after) <= 1  # only the shard that the border cuts
    everywhere = order.at_epoch(0)
    everywhere.shuffle = "full"
    # A full shuffle takes 250 samples from nearly all of the 40 shards: 40 × (1 - e^(-250/40)).
    assert min(len(set(shards_of(ids, order).tolist())) for ids in windows_of(everywhere)) > 30


def test_shards_come_in_a_new_sequence_and_mix_within_their_window() -> None:
    order = EpochOrder([100] * 40, global_batch_size=50, shuffle="window", window=200)
    sequences = []
    for epoch in range(3):
        first = windows_of(order.at_epoch(epoch))[0]
        sequences.append(frozenset(shards_of(first, order).tolist()))
        halves = shards_of(first, order)[:100]
        share = np.bincount(halves, minlength=40).max() / 100
        assert share < 0.75  # two shards of equal size share each half of their window
        assert (np.diff(first) == 1).mean() < 0.1  # not read in a row
    assert len(set(sequences)) == 3


def test_a_window_of_one_sample_keeps_shards_in_a_row() -> None:
    order = EpochOrder([30] * 10, global_batch_size=30, shuffle="window", window=1)
    found = batches(order)
    assert [np.diff(batch).tolist() for batch in found] == [[1] * 29] * 10
    assert [batch[0] for batch in found] != list(range(0, 300, 30))


# Partitions: a node keeps to its shards


@pytest.mark.parametrize("shuffle", ["full", "window", "none"])
def test_a_rank_touches_only_the_shards_of_its_partition(shuffle: str) -> None:
    sizes = [20, 7, 0, 33, 20, 20, 1, 19, 40, 20, 12, 8]  # 200 samples: 4 partitions of 50
    order = EpochOrder(
        sizes, global_batch_size=40, seed=5, shuffle=shuffle, window=30, partitions=4
    )
    assert order.num_dropped == 0

    def samples(rank: int, epoch: int) -> frozenset[int]:
        of_epoch = order.at_epoch(epoch)
        parts = [of_epoch.rank_batch(step, rank, 4) for step in range(order.num_steps)]
        return frozenset(np.concatenate(parts).tolist())

    mine = [samples(rank, epoch=0) for rank in range(4)]
    assert [len(ids) for ids in mine] == [50] * 4
    assert len(frozenset().union(*mine)) == 200
    for epoch in (1, 2, 77):
        assert [samples(rank, epoch) for rank in range(4)] == mine  # whatever the epoch
    touched = [set(shards_of(np.array(sorted(ids)), order).tolist()) for ids in mine]
    # 11 shards hold samples; each of the 3 cuts between partitions splits one more at most.
    assert sum(map(len, touched)) <= 11 + 3


def test_two_ranks_of_a_node_share_its_partition() -> None:
    order = EpochOrder([10] * 8, global_batch_size=8, partitions=2, shuffle="full")
    node = [set(), set()]
    for step in range(order.num_steps):
        for rank in range(4):
            node[rank // 2].update(order.rank_batch(step, rank, 4).tolist())
    assert node[0].isdisjoint(node[1])
    assert len(node[0]) == len(node[1]) == 40


def test_partitions_of_data_sorted_by_class_mix_the_classes() -> None:
    order = EpochOrder([10] * 100, global_batch_size=100, partitions=2, shuffle="window", seed=1)
    first = np.concatenate([order.rank_batch(step, 0, 2) for step in range(order.num_steps)])
    lower = (first < 500).mean()  # unscattered, all 500 would come from the lower half
    assert 0.3 < lower < 0.7


def test_another_seed_gives_a_node_other_shards() -> None:
    def first_node(seed: int) -> set[int]:
        order = EpochOrder([10] * 100, global_batch_size=100, partitions=2, seed=seed)
        return {int(i) // 10 for step in range(10) for i in order.rank_batch(step, 0, 2)}

    assert first_node(1) == first_node(1)
    assert first_node(1) != first_node(2)


# Size


@pytest.mark.parametrize(
    "options",
    [{"shuffle": "full"}, {}, {"partitions": 64}, {"shuffle": "none", "partitions": 64}],
)
def test_a_billion_samples_in_a_million_shards_need_little_memory(options: Any) -> None:
    sizes = np.full(1_000_000, 1000)
    tracemalloc.start()
    try:
        order = EpochOrder(sizes, global_batch_size=8192, seed=1, **options)
        assert order.num_samples == 10**9
        assert order.num_steps == 122_070  # 10⁹ // 8192
        for step in (0, 60_000, order.num_steps - 1):
            assert len(set(order.global_batch(step).tolist())) == 8192
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100e6  # the sample ids of one epoch alone would be 8 GB


def test_no_samples_make_no_steps() -> None:
    for sizes in ([], [0, 0], [3]):
        order = EpochOrder(sizes, global_batch_size=4)
        assert order.num_steps == 0
        assert order.num_dropped == order.num_samples == sum(sizes)


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"shuffle": "windows"},
            "shuffle='windows' is not one of full, window, none. Did you mean 'window'?",
        ),
        ({"shuffle": "zzz"}, "shuffle='zzz' is not one of full, window, none."),
        ({"window": 0}, "window=0 must be at least 1 sample."),
        ({"global_batch_size": 0}, "global_batch_size=0 must be at least 1."),
        ({"partitions": 0}, "0 partitions is not possible; choose 1 or more."),
        (
            {"global_batch_size": 10, "partitions": 4},
            "global_batch_size=10 is not divisible by 4 partitions; choose 8 or 12.",
        ),
        (
            {"global_batch_size": 3, "partitions": 4},
            "global_batch_size=3 is not divisible by 4 partitions; choose 4.",
        ),
    ],
)
def test_values_outside_their_range_are_refused(options: Any, message: str) -> None:
    with pytest.raises(UserInputError) as error:
        EpochOrder(UNEVEN, **({"global_batch_size": 4} | options))
    assert str(error.value) == message


@pytest.mark.parametrize("sizes", [[3, -1], [[3, 1]], 3])
def test_shard_sizes_are_counts(sizes: Any) -> None:
    with pytest.raises(UserInputError, match="flat list of sample counts, none of them below 0"):
        EpochOrder(sizes, global_batch_size=1)


def test_ranks_that_do_not_divide_the_global_batch_are_told_which_do() -> None:
    order = EpochOrder([5000], global_batch_size=1000)
    with pytest.raises(UserInputError) as error:
        order.rank_batch(0, 0, 16)
    # 62 × 16 = 992, 63 × 16 = 1008
    expected = "global_batch_size=1000 is not divisible by 16 ranks; choose 992 or 1008."
    assert str(error.value) == expected
    with pytest.raises(UserInputError, match="0 ranks is not possible; choose 1 or more"):
        order.rank_batch(0, 0, 0)


@pytest.mark.parametrize("rank", [-1, 4])
def test_a_rank_outside_the_world_is_refused(rank: int) -> None:
    order = EpochOrder(UNEVEN, global_batch_size=4)
    message = f"rank={rank} is outside 0 to world_size - 1 = 3."
    with pytest.raises(UserInputError, match=re.escape(message)):
        order.rank_batch(0, rank, 4)


@pytest.mark.parametrize("step", [-1, 5])
def test_a_step_outside_the_epoch_is_refused(step: int) -> None:
    order = EpochOrder(UNEVEN, global_batch_size=4)
    message = f"step={step} is outside this epoch's 5 steps (22 samples / 4 per global batch)."
    for ask in (order.global_batch, lambda step: order.rank_batch(step, 0, 2)):
        with pytest.raises(UserInputError, match=re.escape(message)):
            ask(step)
