"""`resscale.report.plan_step`: the slowest rank, passes too small, and what sending adds."""

import pytest

from resscale.report.plan_scaling import Cluster, Layer, all_reduce_s, model_step
from resscale.report.plan_step import (
    HOST_S_PER_LAYER,
    KERNEL_S,
    KERNELS_PER_LAYER,
    expected_slowest,
    micro_batch_s,
    step_time,
)

LAYERS = [Layer(2**20, 10**9)] * 4
PAIR = Cluster(1, 1.0, 2, 1e9, gpu_delay_s=0.0)


def test_one_rank_waits_for_nobody_and_many_for_the_slowest() -> None:
    assert expected_slowest(1) == pytest.approx(1)
    # The mean of the largest of 8 normal values is 1.4236, of 256 it is 2.8178 (Harter 1961).
    assert expected_slowest(8, 0.1) == pytest.approx(1.14236, abs=2e-3)
    assert expected_slowest(256, 0.1) == pytest.approx(1.28178, abs=2e-3)


def test_a_measured_rate_is_taken_as_it_is() -> None:
    assert micro_batch_s(54, 64, 2000, is_measured=True, is_compiled=False) == (0.032, False)


def test_large_passes_run_at_the_tabulated_rate() -> None:
    seconds, host = micro_batch_s(54, 256, 2000, is_measured=False, is_compiled=True)
    assert seconds == pytest.approx(256 / 2000)
    assert not host


def test_no_pass_is_quicker_than_its_kernels() -> None:
    least = 54 * KERNELS_PER_LAYER * KERNEL_S
    seconds, _ = micro_batch_s(54, 1, 1e9, is_measured=False, is_compiled=True)
    assert seconds == pytest.approx(least)


def test_an_eager_pass_is_no_quicker_than_the_host() -> None:
    # 54 layers take 2 × 12.78 ms to launch: 32 images at 2,791 per second would take 11.5.
    seconds, host = micro_batch_s(54, 32, 2791, is_measured=False, is_compiled=False)
    assert seconds == pytest.approx(25.56e-3)
    assert seconds == pytest.approx(54 * HOST_S_PER_LAYER)
    assert host
    assert not micro_batch_s(54, 256, 2791, is_measured=False, is_compiled=False)[1]


def test_one_gpu_sends_nothing() -> None:
    step = step_time(LAYERS, 8, 3, Cluster(1, 1.0, 1), 0.5)
    assert (step.compute, step.exposed, step.all_reduce) == (1.5, 0, 0)
    assert step.efficiency == pytest.approx(1)


def test_ddp_sends_once_a_step_however_many_passes() -> None:
    once, thrice = (step_time(LAYERS, 8, passes, PAIR, 0.01) for passes in (1, 3))
    # 4 layers of 4 MiB, on two GPUs of 1e9 bytes/s: each sends half twice.
    assert once.all_reduce == pytest.approx(4 * 2**22 / 1e9)
    assert thrice.all_reduce == pytest.approx(once.all_reduce)
    assert thrice.exposed == pytest.approx(once.exposed)
    alone = model_step(LAYERS, 8, PAIR, flops_per_s=6 * 4e9 * 8 / 0.01)
    assert once.exposed == pytest.approx(alone.exposed)
    assert once.total == pytest.approx(0.01 * expected_slowest(2) + alone.exposed)


def test_zero_sends_more_and_gathers() -> None:
    whole = all_reduce_s(4 * 4 * 2**20, PAIR)
    ddp, *stages = (step_time(LAYERS, 8, 2, PAIR, 0.01, stage=stage) for stage in range(4))
    # Stage 1 gathers the weights after the step: half an all-reduce, not hidden.
    assert stages[0].exposed == pytest.approx(ddp.exposed + whole / 2)
    # Stage 2 sends in both passes, stage 3 also gathers before each forward and backward.
    assert stages[1].exposed == pytest.approx(2 * ddp.exposed + whole / 2)
    assert stages[2].exposed == pytest.approx(2 * ddp.exposed + 4 * whole / 2)


def test_16_bit_gradients_take_half_the_time() -> None:
    full, half = (step_time(LAYERS, 8, 1, PAIR, 0.01, value_bytes=width) for width in (4, 2))
    assert half.all_reduce == pytest.approx(full.all_reduce / 2)
