"""The arithmetic of micro-batches, accumulation, limited epochs and evaluation slices."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resscale.data.batching import (
    BatchPlan,
    check_accumulation,
    check_batch_fits,
    check_counts,
    evaluation_slices,
    plan_batches,
    steps_of_limited_epoch,
)
from resscale.errors import UserInputError


@pytest.mark.parametrize(
    ("global_batch_size", "micro_batch_size", "world_size", "accumulate"),
    [
        (1024, 64, 16, 1),  # 64 × 16 × 1
        (1024, 64, 4, 4),  # 64 × 4 × 4
        (256, None, 4, 1),  # the whole share: 256 / 4 = 64
        (6, 1, 2, 3),  # 1 × 2 × 3
        (1, None, 1, 1),
    ],
)
def test_micro_batch_times_ranks_times_passes_is_the_global_batch(
    global_batch_size: int, micro_batch_size: int | None, world_size: int, accumulate: int
) -> None:
    plan = plan_batches(global_batch_size, micro_batch_size, world_size)
    assert plan.accumulate == accumulate
    assert plan.micro_batch_size == micro_batch_size or micro_batch_size is None
    assert plan.micro_batch_size * world_size * accumulate == plan.global_batch_size
    assert plan.global_batch_size == global_batch_size
    assert plan.world_size == world_size


def test_a_plan_reads_as_one_line() -> None:
    assert str(BatchPlan(1024, 64, 16, 1)) == "64/rank × 16 ranks × 1 accum = 1024 global"
    assert str(BatchPlan(128, 32, 1, 4)) == "32/rank × 1 rank × 4 accum = 128 global"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (1000, None, 16),
            "global_batch_size=1000 is not divisible by 16 ranks; choose 992 or 1008.",
        ),
        ((3, None, 4), "global_batch_size=3 is not divisible by 4 ranks; choose 4."),
        ((0, None, 1), "global_batch_size=0 must be at least 1."),
        (
            (256, 48, 2),  # divisors of 128 nearest to 48: 32 and 64
            "micro_batch_size=48 does not divide a rank's share of 128 "
            "(global_batch_size=256 / 2 ranks); choose 32 or 64.",
        ),
        (
            (64, 100, 1),  # more than the share: 32 and 64 are the nearest
            "micro_batch_size=100 does not divide a rank's share of 64 "
            "(global_batch_size=64 / 1 ranks); choose 32 or 64.",
        ),
        (
            (4, 0, 1),
            "micro_batch_size=0 does not divide a rank's share of 4 "
            "(global_batch_size=4 / 1 ranks); choose 1 or 2.",
        ),
    ],
)
def test_numbers_that_do_not_divide_are_refused_with_those_that_do(arguments, message) -> None:
    with pytest.raises(UserInputError) as error:
        plan_batches(*arguments)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("num_steps", "accumulate", "limit", "steps"),
    [
        (10, 4, None, 10),
        (10, 4, 1.0, 10),  # Lightning's default: all of it
        (10, 4, 8, 2),  # 8 micro-batches / 4
        (10, 4, 400, 10),  # more than there are: 40 / 4
        (10, 4, 0.5, 5),  # 0.5 × 40 = 20 micro-batches
        (10, 1, 0.35, 3),  # int(3.5)
    ],
)
def test_a_limited_epoch_ends_with_a_whole_step(num_steps, accumulate, limit, steps: int) -> None:
    assert steps_of_limited_epoch(num_steps, accumulate, limit) == steps


@pytest.mark.parametrize(
    ("limit", "micro_batches", "choice"),
    [
        (7, 7, 4),  # 7 // 4 × 4
        (3, 3, 4),
        (0, 0, 4),
        (0.55, 22, 20),  # int(0.55 × 40) = 22
    ],
)
def test_a_limit_in_the_middle_of_a_step_is_refused(limit, micro_batches: int, choice: int) -> None:
    with pytest.raises(UserInputError) as error:
        steps_of_limited_epoch(10, 4, limit)
    assert str(error.value) == (
        f"trainer.limit_train_batches={limit} is {micro_batches} micro-batches, no multiple of the "
        f"4 that make up a step; choose {choice}."
    )


@given(num_samples=st.integers(0, 300), batch_size=st.integers(1, 50), world_size=st.integers(1, 9))
def test_evaluation_takes_each_sample_once_in_equally_many_batches(
    num_samples: int, batch_size: int, world_size: int
) -> None:
    ranks = [
        evaluation_slices(num_samples, batch_size, rank, world_size) for rank in range(world_size)
    ]
    assert len({len(slices) for slices in ranks}) == 1
    assert all(0 <= stop - start <= batch_size for slices in ranks for start, stop in slices)
    ids = [i for slices in ranks for start, stop in slices for i in range(start, stop)]
    assert ids == list(range(num_samples))  # rank after rank, so each reads neighbours


def test_evaluation_slices_by_hand() -> None:
    # 10 samples by 3 on 2 ranks: ceil(10 / 6) = 2 batches each.
    assert evaluation_slices(10, 3, 0, 2) == [(0, 3), (3, 6)]
    assert evaluation_slices(10, 3, 1, 2) == [(6, 9), (9, 10)]
    # 2 samples by 2 on 3 ranks: 1 batch each, two of them empty.
    assert [evaluation_slices(2, 2, rank, 3) for rank in range(3)] == [[(0, 2)], [(2, 2)], [(2, 2)]]


@pytest.mark.parametrize("asked", [1, 4])
def test_an_accumulation_that_follows_from_the_batch_sizes_may_be_said(asked: int) -> None:
    check_accumulation(asked, derived=4)


def test_another_accumulation_is_refused() -> None:
    with pytest.raises(UserInputError, match=r"accumulate_grad_batches=2 .* \(here 4\)"):
        check_accumulation(2, derived=4)


def test_one_global_batch_is_the_least() -> None:
    check_batch_fits(8, 8, "shards")
    with pytest.raises(UserInputError, match=r"is more than the 7 .* in shards; choose 7 or less"):
        check_batch_fits(8, 7, "shards")


def test_a_count_below_one_is_refused_by_its_name() -> None:
    check_counts(image_size=1, eval_size=None)
    with pytest.raises(UserInputError, match=r"data\.image_size=0 must be at least 1"):
        check_counts(eval_size=None, image_size=0)
