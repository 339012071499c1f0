"""`resscale.report.plan_memory`: states by strategy, parts of a GPU's memory, what fits."""

import pytest

from resscale.errors import UserInputError
from resscale.report.plan_activations import Saved, StepMemory
from resscale.report.plan_memory import (
    fitting_micro_batches,
    largest_micro_batch,
    plan_memory,
    reserve_of,
    states_on,
)

GIB = 2**30
# 10 bytes an image and 100 for copies of weights are kept; 2 an image and 5 are in work.
STEP = StepMemory(Saved(10, 100), 2, 5)


@pytest.mark.parametrize(
    ("ranks", "stage", "expected"),
    [
        # 1000 float32 values are 4000 bytes; a share of 8 is 500.
        (1, 0, 3 * 4000),  # parameters, gradients, momentum
        (8, 0, 3 * 4000),
        (8, 1, 2 * 4000 + 2 * 500),  # the optimizer's copy and momentum are shared out
        (8, 2, 4000 + 3 * 500),  # and the gradients
        (8, 3, 4000 + 4 * 500),  # and the parameters, which are gathered for the step
        (1, 1, 4 * 4000),
        (1, 2, 4 * 4000),
        (1, 3, 5 * 4000),
    ],
)
def test_a_rank_keeps_what_its_stage_does_not_share_out(
    ranks: int, stage: int, expected: int
) -> None:
    assert states_on(1000, ranks, stage).on_device == expected


def test_zero_3_that_gives_parameters_back_keeps_shares_alone() -> None:
    assert states_on(1000, 8, 3, release_gathered=True).on_device == 4 * 500


def test_offload_moves_copies_momentum_and_gradient_shares_to_the_host() -> None:
    states = states_on(1000, 8, 2, offload_optimizer=True)
    assert states.on_device == 4000
    assert states.host == 4 * 500


def test_zero_on_one_rank_costs_more_than_a_single_device() -> None:
    single = states_on(1000, 1, 0).on_device
    assert all(states_on(1000, 1, stage).on_device > single for stage in (1, 2, 3))


@pytest.mark.parametrize(
    ("ranks", "stage", "offload"), [(8, 4, False), (0, 1, False), (8, 0, True)]
)
def test_what_does_not_exist_is_refused(ranks: int, stage: int, offload: bool) -> None:
    with pytest.raises(ValueError, match=f"stage {stage} on {ranks} ranks"):
        states_on(1000, ranks, stage, offload_optimizer=offload)


def test_two_values_per_parameter_are_kept_by_adam() -> None:
    assert states_on(1000, 1, 0, state_values=2).momentum == 2 * 4000
    assert states_on(1000, 8, 2, state_values=2).on_device == 4000 + 500 + 500 + 2 * 500
    assert states_on(1000, 8, 2, state_values=0).on_device == 4000 + 500 + 500


def test_one_rank_alone_keeps_nothing_free_for_nccl() -> None:
    alone, several = reserve_of(80 * GIB, 1), reserve_of(80 * GIB, 8)
    assert alone.nccl == 0
    assert several.total - alone.total == several.nccl == 500 * 2**20
    assert alone.fragmentation == 4 * GIB  # 5% of 80


def test_the_parts_add_up_to_the_total() -> None:
    memory = plan_memory(
        states_on(1000, 2, 0),
        50,
        STEP,
        8,
        24 * GIB,
        2,
        is_averaged=True,
        weight_bytes=4000,
        bucket_bytes=7,
    )
    assert (memory.weights, memory.gradients, memory.optimizer) == (4050, 4000, 4000)
    assert memory.averaged == 4050  # weights and buffers once more
    assert (memory.activations, memory.work) == (100 + 8 * 10, 5 + 8 * 2)
    assert memory.tensors == 3 * 4000 + 50 + 4050 + 7 + 180 + 21
    assert memory.total == memory.tensors + memory.reserve.total
    assert memory.fits


def test_with_few_images_the_update_makes_the_peak() -> None:
    memory = plan_memory(states_on(1000, 1, 0), 0, STEP, 1, 24 * GIB, 1, update_bytes=4000)
    assert memory.activations + memory.work == 4000


@pytest.mark.parametrize(
    ("free", "largest"),
    [
        (105 + 12 - 1, 0),  # one image takes 100 + 5 + 10 + 2
        (105 + 12, 1),
        (105 + 12 * 7, 7),
        (105 + 12 * 1000 + 11, 1000),
    ],
)
def test_the_largest_micro_batch_just_fits(free: int, largest: int) -> None:
    assert largest_micro_batch(STEP, free) == largest


def test_nothing_fits_where_the_update_does_not() -> None:
    assert largest_micro_batch(STEP, 4000, update_bytes=4001) == 0


def test_what_does_not_fit_says_so() -> None:
    memory = plan_memory(states_on(1000, 1, 0), 0, StepMemory(Saved(GIB, 0), 0, 0), 24, 24 * GIB, 1)
    assert not memory.fits
    # 24 GiB less 5%, 600 MiB of context and 400 of workspace are 21.8 GiB.
    assert memory.largest_micro_batch == 21


def test_micro_batches_divide_the_share() -> None:
    assert fitting_micro_batches(48, 20) == [16, 12, 8, 6, 4, 3, 2, 1]


def test_no_image_is_refused() -> None:
    with pytest.raises(UserInputError, match=r"micro_batch_size=0 must be at least 1\."):
        plan_memory(states_on(1000, 1, 0), 0, STEP, 0, GIB, 1)
