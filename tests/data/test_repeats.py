"""Repeated augmentation: keys of its draws, and the history of samples that it promises."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resscale.data import EpochOrder
from resscale.data.repeats import (
    RepeatedOrder,
    augment_ids,
    build_order,
    check_no_repeats,
    check_other_repeats,
    check_repeats,
    copies_of_rank,
    describe_repeats,
    distinct_order,
    rank_batches,
)
from resscale.errors import UserInputError

# Keys


def test_without_repeats_draws_are_keyed_by_the_id() -> None:
    ids = np.array([-1, 0, 17, 10**12])
    keys = augment_ids(ids, np.zeros(4, dtype=np.int64))
    assert keys.tolist() == ids.tolist()
    assert keys.dtype == np.int64


def test_no_two_copies_of_any_two_samples_share_their_draws() -> None:
    ids = np.array([0, 1, 2, 3, 10**12, 2**44 - 1])
    keys = [augment_ids(ids, np.full(len(ids), copy)) for copy in range(16)]
    assert len(np.unique(np.concatenate(keys))) == 6 * 16


# The order


def order_of(sizes: list[int], repeats: int, batch: int, **options: Any) -> RepeatedOrder:
    distinct = EpochOrder(sizes, global_batch_size=batch // repeats, **options)
    return RepeatedOrder(distinct, repeats)


@st.composite
def repeated(draw: st.DrawFn) -> RepeatedOrder:
    """Any repeated order of up to 12 shards, empty and tiny ones among them."""
    sizes = draw(st.lists(st.one_of(st.sampled_from([0, 1]), st.integers(0, 40)), max_size=12))
    partitions, repeats = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    return order_of(
        sizes,
        repeats,
        repeats * partitions * draw(st.integers(1, 6)),
        seed=draw(st.integers(0, 2**63)),
        shuffle=draw(st.sampled_from(["full", "window", "none"])),
        window=draw(st.integers(1, 60)),
        partitions=partitions,
    )


@settings(max_examples=60)
@given(repeated(), st.integers(0, 3))
def test_a_super_epoch_takes_each_sample_in_one_step_as_often_as_it_is_repeated(
    order: RepeatedOrder, number: int
) -> None:
    counts: Counter[int] = Counter()
    for epoch in range(number * order.repeats, (number + 1) * order.repeats):
        now = order.at_epoch(epoch)
        # As many steps as without repeats.
        assert now.num_steps == order.num_samples // order.global_batch_size
        for step in range(now.num_steps):
            ids = Counter(now.global_batch(step).tolist())
            assert set(ids.values()) == {order.repeats}
            assert not counts.keys() & ids.keys()
            counts += ids
    left_out = order.num_samples - len(counts)
    assert left_out == order.num_dropped
    assert 0 <= left_out < order.global_batch_size


@settings(max_examples=60)
@given(repeated(), st.integers(0, 9))
def test_the_ranks_shares_are_the_global_batch_for_any_number_of_ranks(
    order: RepeatedOrder, epoch: int
) -> None:
    now = order.at_epoch(epoch)
    batch = order.global_batch_size
    for world_size in (n for n in range(1, batch + 1) if batch % n == 0):
        copies = [now.rank_copies(rank, world_size) for rank in range(world_size)]
        assert Counter(np.concatenate(copies).tolist()) == dict.fromkeys(
            range(order.repeats), batch // order.repeats
        )
        if now.num_steps:
            step = now.num_steps - 1
            shares = [now.rank_batch(step, rank, world_size) for rank in range(world_size)]
            whole = np.concatenate(shares)
            assert whole.tolist() == now.global_batch(step).tolist()
            # No copy of a sample stands twice in a batch.
            keys = augment_ids(whole, np.concatenate(copies))
            assert len(np.unique(keys)) == batch


def test_copies_lie_one_behind_the_other_within_each_partition() -> None:
    # Of 8 samples in 2 partitions, a batch of 6 takes one sample of each, 3 times.
    order = order_of([4, 4], 3, 6, shuffle="none", partitions=2)
    assert order.num_steps == 1  # 8 // 6
    assert order.global_batch(0).tolist() == [0, 0, 0, 4, 4, 4]
    assert order.at_epoch(2).global_batch(0).tolist() == [2, 2, 2, 6, 6, 6]
    assert order.num_dropped == 2  # 3 and 7
    assert order.rank_copies(1, 2).tolist() == [0, 1, 2]
    # Without partitions: [D D D].
    whole = order_of([8], 3, 6, shuffle="none")
    assert whole.global_batch(0).tolist() == [0, 1, 0, 1, 0, 1]
    assert whole.at_epoch(1).global_batch(0).tolist() == [2, 3, 2, 3, 2, 3]
    assert whole.rank_batch(0, 1, 3).tolist() == [0, 1]
    assert whole.rank_copies(1, 3).tolist() == [1, 1]


def test_a_rank_reads_from_its_own_partitions_alone() -> None:
    order = order_of([10] * 4, 2, 8, partitions=4, seed=5)
    homes = [set(), set(), set(), set()]
    for epoch in range(10):
        now = order.at_epoch(epoch)
        for step in range(now.num_steps):
            for rank, home in enumerate(homes):
                home.update((now.rank_batch(step, rank, 4) // 10).tolist())
    assert sorted(map(tuple, homes)) == [(0,), (1,), (2,), (3,)]


def test_each_super_epoch_has_an_order_of_its_own() -> None:
    order = order_of([30], 3, 6, shuffle="full", seed=1)
    batches = {tuple(order.at_epoch(epoch).global_batch(0).tolist()) for epoch in range(12)}
    assert len(batches) == 12
    again = order.at_epoch(7).at_epoch(2)
    assert again.global_batch(4).tolist() == order.at_epoch(2).global_batch(4).tolist()


def test_a_step_outside_the_epoch_and_a_rank_that_is_none_are_refused() -> None:
    order = order_of([20], 2, 4)
    with pytest.raises(UserInputError, match=r"step=5 is outside this epoch's 5 steps \(20 samp"):
        order.global_batch(5)
    with pytest.raises(UserInputError, match="divisible by 3 ranks; choose 3 or 6"):
        order.rank_batch(0, 0, 3)
    with pytest.raises(UserInputError, match=r"rank=2 is outside 0 to world_size - 1 = 1"):
        order.rank_copies(2, 2)


@settings(max_examples=60)
@given(repeated(), st.integers(0, 9), st.data())
def test_a_ranks_batches_are_those_of_the_steps(
    order: RepeatedOrder, epoch: int, data: st.DataObject
) -> None:
    for now in (order.at_epoch(epoch), order.distinct.at_epoch(epoch)):
        first = data.draw(st.integers(0, now.num_steps))
        world_size = now.partitions
        for rank in range(world_size):
            found = [share.tolist() for share in rank_batches(now, first, rank, world_size)]
            steps = range(first, now.num_steps)
            assert found == [now.rank_batch(step, rank, world_size).tolist() for step in steps]


def test_a_ranks_batches_reach_over_what_is_evaluated_at_once() -> None:
    # 2,500 steps of 2 ids a rank: 2,048 of them make up the 4,096 ids that are evaluated at once.
    order = EpochOrder([5000, 5000], global_batch_size=4, window=3000)
    found = np.concatenate(list(rank_batches(order, 0, 1, 2)))
    expected = [order.rank_batch(step, 1, 2) for step in range(order.num_steps)]
    assert len(found) == 5000
    assert found.tolist() == np.concatenate(expected).tolist()


def test_without_repeats_the_order_is_the_epoch_order() -> None:
    options: Any = {"seed": 3, "shuffle": "window", "window": 5, "partitions": 2}
    order = build_order([9, 8], repeats=1, global_batch_size=4, **options)
    assert type(order) is EpochOrder
    same = EpochOrder([9, 8], global_batch_size=4, **options)
    assert order.global_batch(1).tolist() == same.global_batch(1).tolist()
    assert distinct_order(order) is order
    assert copies_of_rank(order, 0, 1) is None
    assert describe_repeats(order) == []


def test_repeats_are_told() -> None:
    order = build_order(
        [90], repeats=3, global_batch_size=12, seed=0, shuffle="full", window=1, partitions=1
    )
    assert distinct_order(order).global_batch_size == 4
    assert describe_repeats(order) == [
        "repeats: a batch holds 4 different samples, 3 times each, augmented by themselves; 3 "
        "epochs take each sample in one step"
    ]


# What is refused


@pytest.mark.parametrize(
    ("repeats", "batch", "choices"),
    [
        (3, 256, "repeats of 2 or 4, or a global batch of 255 or 258"),
        (5, 4, "repeats of 2 or 4, or a global batch of 5"),
    ],
)
def test_repeats_that_do_not_divide_the_global_batch_are_refused(
    repeats: int, batch: int, choices: str
) -> None:
    with pytest.raises(UserInputError) as error:
        check_repeats(repeats, batch, 1)
    assert str(error.value) == (
        f"data.repeats={repeats} does not divide data.global_batch_size={batch}, which counts each "
        f"copy; choose {choices}."
    )


def test_partitions_must_divide_the_different_samples() -> None:
    check_repeats(4, 24, 3)
    with pytest.raises(UserInputError) as error:
        check_repeats(4, 24, 4)
    assert str(error.value) == (
        "data.partitions=4 does not divide the 6 different samples of a global batch "
        "(data.global_batch_size=24 / data.repeats=4): global_batch_size=24 is not divisible by 16 "
        "repeats × partitions; choose 16 or 32."
    )


def test_what_is_read_in_one_direction_cannot_be_repeated() -> None:
    check_no_repeats(1, "pipe:cat a.tar")
    with pytest.raises(UserInputError, match=r"data\.repeats=2 needs .* pipe:cat a\.tar is read"):
        check_no_repeats(2, "pipe:cat a.tar")


@pytest.mark.parametrize(
    ("before", "now", "epoch", "step"),
    [(3, 3, 4, 7), (1, 3, 6, 0), (3, 1, 6, 0), (2, 3, 6, 0), (4, 2, 0, 0)],
)
def test_repeats_may_change_where_no_sample_is_seen_more_often_than_another(
    before: int, now: int, epoch: int, step: int
) -> None:
    check_other_repeats(before, now, epoch, step)


@pytest.mark.parametrize(
    ("before", "now", "epoch", "step", "where"),
    [
        (1, 3, 4, 0, "behind 4 epochs"),
        (3, 1, 4, 0, "behind 4 epochs"),
        (1, 3, 6, 1, "in the middle of epoch 7"),
    ],
)
def test_other_repeats_are_refused_where_some_samples_would_be_seen_more_often(
    before: int, now: int, epoch: int, step: int, where: str
) -> None:
    with pytest.raises(UserInputError) as error:
        check_other_repeats(before, now, epoch, step)
    assert str(error.value) == (
        f"the checkpoint was trained with repeats={before}, now they are {now}: {where} some "
        f"samples would be seen more often than others. Set data.repeats as it was, change it "
        f"where both divide the epochs done, or start a new run."
    )
