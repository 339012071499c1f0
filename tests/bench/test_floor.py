"""The least time of each part of a step, by arithmetic."""

import pytest

from resscale.bench.floor import StepCost, floors
from resscale.bench.peaks import Peaks
from resscale.bench.traffic import Traffic

COST = StepCost(
    rows=10,
    macs=1000,
    traffic=Traffic(activation_bytes=50, weight_bytes=300),
    batch_bytes=600,
    num_parameters=200,
    num_states=1,
)


def test_forward_and_backward_take_their_operations_over_the_peak() -> None:
    found = floors(COST, Peaks(flops_per_s=1e4, flops_source="", memory_bytes_per_s=1e6))
    # 10 images × 1000 multiply-adds × 2 = 20,000 operations, backward twice as many
    assert found["forward"].seconds == pytest.approx(2.0)
    assert found["backward"].seconds == pytest.approx(4.0)
    assert found["forward"].bound == found["backward"].bound == "arithmetic"
    assert "host to device" not in found


def test_where_bytes_take_longer_the_memory_is_the_bound() -> None:
    found = floors(COST, Peaks(flops_per_s=1e9, flops_source="", memory_bytes_per_s=100.0))
    # 10 × 50 of activations and 300 of weights at 100 a second
    assert found["forward"].seconds == pytest.approx(8.0)
    assert found["backward"].seconds == pytest.approx(16.0)
    assert found["forward"].bound == "memory"


@pytest.mark.parametrize(("num_states", "numbers"), [(0, 3), (1, 5), (2, 7)])
def test_the_optimizer_moves_weights_gradients_and_states(num_states: int, numbers: int) -> None:
    # read: weight, gradient, states; written: weight, states; 4 bytes each
    cost = StepCost(10, 1000, COST.traffic, 600, 200, num_states)
    found = floors(cost, Peaks(1e4, "", memory_bytes_per_s=1000.0))
    assert found["optimizer"].seconds == pytest.approx(4 * 200 * numbers / 1000)


def test_a_gpus_batches_come_from_the_host() -> None:
    found = floors(COST, Peaks(1e4, "", 1e6, transfer_bytes_per_s=1200.0))
    assert found["host to device"].seconds == pytest.approx(0.5)
    assert found["host to device"].bound == "transfer"
