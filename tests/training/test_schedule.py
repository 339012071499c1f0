"""The learning rate at given steps, worked out by hand."""

import pytest

from resscale.errors import UserInputError
from resscale.training.schedule import ScheduleConfig, lr_at


def rate(step: int, config: ScheduleConfig, total_steps: int = 100) -> float:
    """`lr_at` with a base rate of 0.4 and 10 steps per epoch."""
    return lr_at(step, config, base_lr=0.4, steps_per_epoch=10, total_steps=total_steps)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.02),  # 0.4 · 1/20: the first step moves already
        (9, 0.2),  # 0.4 · 10/20
        (19, 0.4),  # 0.4 · 20/20
        (20, 0.4),  # cosine begins: 0.4 · (1 + cos 0)/2
        (60, 0.2),  # half of the 80 steps left: 0.4 · (1 + cos π/2)/2
        (80, 0.4 * 0.14644661),  # 3/4: (1 + cos 3π/4)/2 = (1 - √2/2)/2
        (100, 0.0),  # (1 + cos π)/2
        (150, 0.0),  # and it stays there
    ],
)
def test_cosine_behind_a_warm_up_of_two_epochs(step: int, expected: float) -> None:
    config = ScheduleConfig("cosine", warmup_epochs=2)
    assert rate(step, config) == pytest.approx(expected, abs=1e-8)


def test_cosine_without_a_warm_up_begins_at_the_base_rate_and_never_rises() -> None:
    rates = [rate(step, ScheduleConfig("cosine")) for step in range(101)]
    assert rates[0] == 0.4
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (0, 0.4),
        (29.9, 0.4),
        (30, 0.04),  # 0.4 · 0.1
        (59.9, 0.04),
        (60, 0.004),  # 0.4 · 0.1²
        (89.9, 0.004),
    ],
)
def test_step_divides_by_ten_at_epochs_30_and_60(epoch: float, expected: float) -> None:
    step = round(epoch * 10)  # 10 steps per epoch
    assert rate(step, ScheduleConfig("step"), total_steps=900) == pytest.approx(expected)


def test_step_counts_its_drops_from_the_start_of_training_warm_up_included() -> None:
    config = ScheduleConfig("step", warmup_epochs=5, step_epochs=6, gamma=0.5)
    assert rate(49, config) == pytest.approx(0.4)  # the warm-up's last: 50/50
    assert rate(59, config) == pytest.approx(0.4)
    assert rate(60, config) == pytest.approx(0.2)  # epoch 6, not epoch 5 + 6


@pytest.mark.parametrize(("epoch", "expected"), [(4.9, 0.4), (5, 0.04), (7.9, 0.04), (8, 0.004)])
def test_step_drops_at_the_epochs_that_are_named(epoch: float, expected: float) -> None:
    config = ScheduleConfig("step", step_epochs=1, step_at_epochs=(5, 8))
    assert rate(round(epoch * 10), config) == pytest.approx(expected)


@pytest.mark.parametrize("at", [(8, 5), (5, 5), (-1,), (float("nan"),), (float("inf"),)])
def test_epochs_of_drops_that_do_not_rise_are_refused(at: tuple[float, ...]) -> None:
    with pytest.raises(UserInputError, match="must be epochs from 0 on, each later than the one"):
        ScheduleConfig("step", step_at_epochs=at)


def test_epochs_of_drops_are_refused_for_other_schedules() -> None:
    with pytest.raises(UserInputError, match=r"\[5\] is for the schedule 'step', and .* 'cosine'"):
        ScheduleConfig("cosine", step_at_epochs=(5,))


def test_constant_stays_behind_its_warm_up() -> None:
    config = ScheduleConfig("constant", warmup_epochs=0.5)
    assert rate(0, config) == pytest.approx(0.08)  # 0.4 · 1/5
    assert rate(4, config) == pytest.approx(0.4)
    assert rate(99, config) == 0.4


def test_a_warm_up_as_long_as_the_run_ends_at_the_base_rate() -> None:
    config = ScheduleConfig("cosine", warmup_epochs=10)
    assert rate(99, config) == pytest.approx(0.4)
    assert rate(100, config) == pytest.approx(0.4)  # no step is left: no division by zero
