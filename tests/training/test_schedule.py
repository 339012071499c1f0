"""The learning rate at given steps, worked out by hand and by those whose schedules they are."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

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


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        (
            "cosine",
            {"step_at_epochs": (5,)},
            r"step_at_epochs=\[5\] is for the schedule 'step', and",
        ),
        ("cosine", {"gamma": 0.5}, "gamma=0.5 is for the schedule 'step', and .* is 'cosine': set"),
        ("linear", {"step_epochs": 2.0}, "step_epochs=2.0 is for the schedule 'step'"),
        ("linear", {"power": 1.0}, "power=1.0 is for the schedule 'polynomial'"),
        ("step", {"final_lr_fraction": 0.1}, "final_lr_fraction=0.1 is for .* 'cosine', 'linear'"),
        ("constant", {"course_from_start": True}, "course_from_start=true is for the schedule"),
        ("cosin", {}, "name=cosin must be one of .* Did you mean 'cosine'"),
        ("cosine", {"warmup_epochs": -1.0}, "warmup_epochs=-1.0 must be finite, 0 or more"),
        ("step", {"step_epochs": 0.0}, "step_epochs=0.0 must be finite, above 0"),
        ("step", {"gamma": 1.5}, "gamma=1.5 must be from 0 to 1"),
        ("polynomial", {"power": 0.0}, "power=0.0 must be finite, above 0"),
        ("cosine", {"final_lr_fraction": 2.0}, "final_lr_fraction=2.0 must be from 0 to 1"),
        ("cosine", {"warmup_start_fraction": 0.01}, "is for a warm-up, and .*warmup_epochs is 0"),
        (
            "cosine",
            {"warmup_start_fraction": 0.0, "warmup_epochs": 1.0},
            "warmup_start_fraction=0.0 must be above 0, or the first step would move nothing",
        ),
    ],
)
def test_what_makes_no_schedule_is_refused(
    name: str, options: dict[str, object], said: str
) -> None:
    with pytest.raises(UserInputError, match=said):
        ScheduleConfig(name, **options)


def test_constant_stays_behind_its_warm_up() -> None:
    config = ScheduleConfig("constant", warmup_epochs=0.5)
    assert rate(0, config) == pytest.approx(0.08)  # 0.4 · 1/5
    assert rate(4, config) == pytest.approx(0.4)
    assert rate(99, config) == 0.4


def test_a_warm_up_as_long_as_the_run_ends_at_the_base_rate() -> None:
    config = ScheduleConfig("cosine", warmup_epochs=10)
    assert rate(99, config) == pytest.approx(0.4)
    assert rate(100, config) == pytest.approx(0.4)  # no step is left: no division by zero


def test_the_warm_up_of_another_start_rises_from_there() -> None:
    config = ScheduleConfig("constant", warmup_epochs=2, warmup_start_fraction=0.25)
    assert rate(0, config) == pytest.approx(0.1)  # 0.4 · 0.25
    assert rate(10, config) == pytest.approx(0.25)  # half of the 20 steps: 0.1 + 0.3 · 10/20
    assert rate(20, config) == 0.4


def test_goyals_warm_up_begins_at_the_rate_of_one_worker() -> None:
    # Section 2.2: from 0.1 to 3.2 in 5 epochs, by the same amount at each iteration.
    config = ScheduleConfig("constant", warmup_epochs=5, warmup_start_fraction=0.1 / 3.2)
    rates = [
        lr_at(step, config, base_lr=3.2, steps_per_epoch=156, total_steps=90 * 156)
        for step in range(5 * 156 + 1)
    ]
    assert (rates[0], rates[-1]) == (pytest.approx(0.1), 3.2)
    assert np.diff(rates) == pytest.approx(3.1 / 780)


def test_torchvisions_second_recipe_by_torchs_own_schedulers() -> None:
    """600 epochs, 5 of them of warm-up from 0.01 of 0.5; the rate changes with the epoch."""
    layer = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    warmup = LinearLR(optimizer, start_factor=0.01, total_iters=5)
    cosine = CosineAnnealingLR(optimizer, T_max=595, eta_min=0.0)
    scheduler = SequentialLR(optimizer, [warmup, cosine], milestones=[5])
    config = ScheduleConfig("cosine", warmup_epochs=5, warmup_start_fraction=0.01)
    for epoch in range(600):
        found = lr_at(10 * epoch, config, base_lr=0.5, steps_per_epoch=10, total_steps=6000)
        assert found == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6), epoch
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("epoch", [0, 2, 4, 5, 6, 50, 99])
def test_timms_cosine_counts_the_warm_up_and_ends_at_its_lowest_rate(epoch: int) -> None:
    """A3: 100 epochs, 5 of warm-up from 1e-4 to 8e-3, down to 1e-6."""
    expected = 1e-4 + epoch * (8e-3 - 1e-4) / 5
    if epoch >= 5:
        expected = 1e-6 + 0.5 * (8e-3 - 1e-6) * (1 + math.cos(math.pi * epoch / 100))
    config = ScheduleConfig(
        "cosine",
        warmup_epochs=5,
        warmup_start_fraction=1e-4 / 8e-3,
        final_lr_fraction=1e-6 / 8e-3,
        course_from_start=True,
    )
    found = lr_at(10 * epoch, config, base_lr=8e-3, steps_per_epoch=10, total_steps=1000)
    assert found == pytest.approx(expected)


def test_timms_course_with_its_warm_up_in_front_is_ours_behind_the_warm_up() -> None:
    # warmup_prefix: the course counts from the warm-up's end. 105 epochs, 100 of them the course.
    config = ScheduleConfig("cosine", warmup_epochs=5, final_lr_fraction=0.1)
    found = lr_at(10 * 55, config, base_lr=1.0, steps_per_epoch=10, total_steps=1050)
    assert found == pytest.approx(0.1 + 0.5 * 0.9 * (1 + math.cos(math.pi * 50 / 100)))


@pytest.mark.parametrize("step", [0, 7, 20, 23, 80, 159])
def test_ffcvs_triangle_peaks_at_epoch_2_and_ends_at_0(step: int) -> None:
    """16 epochs of 10 steps: straight lines through 1e-4 of the rate, the rate, and 0."""
    expected = np.interp(step / 10, [0, 2, 16], [1e-4 * 1.7, 1.7, 0.0])
    config = ScheduleConfig("linear", warmup_epochs=2, warmup_start_fraction=1e-4)
    found = lr_at(step, config, base_lr=1.7, steps_per_epoch=10, total_steps=160)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (20, 0.4),  # the warm-up's end
        (60, 0.1),  # half of 80: 0.4 · 0.5²
        (80, 0.025),  # three quarters: 0.4 · 0.25²
        (100, 0.0),
    ],
)
def test_the_polynomial_of_lars_is_a_square(step: int, expected: float) -> None:
    config = ScheduleConfig("polynomial", warmup_epochs=2)
    assert rate(step, config) == pytest.approx(expected)


def test_a_polynomial_of_power_1_is_linear() -> None:
    for step in range(101):
        found = rate(step, ScheduleConfig("polynomial", power=1.0, final_lr_fraction=0.1))
        assert found == rate(step, ScheduleConfig("linear", final_lr_fraction=0.1))


falling = st.builds(
    ScheduleConfig,
    st.sampled_from(["cosine", "linear", "polynomial"]),
    warmup_epochs=st.sampled_from([0.0, 0.3, 2.0, 5.0]),
    final_lr_fraction=st.floats(0, 1),
)
epochs = st.integers(6, 40)
lengths = st.integers(1, 50)


@given(falling, epochs, lengths)
def test_a_course_is_continuous_within_bounds_and_ends_where_it_shall(
    config: ScheduleConfig, num_epochs: int, steps_per_epoch: int
) -> None:
    total = num_epochs * steps_per_epoch
    rates = [
        lr_at(step, config, base_lr=0.4, steps_per_epoch=steps_per_epoch, total_steps=total)
        for step in range(total + 2)
    ]
    final = 0.4 * config.final_lr_fraction
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    assert 0 < rates[0] <= 0.4 or config.final_lr_fraction == 1
    assert rates[-2:] == pytest.approx([final, final], abs=1e-12)
    assert max(rates) == pytest.approx(0.4)
    course = np.array(rates[warmup_steps:])
    assert course.min() >= final - 1e-12
    steps = np.diff(course)
    assert steps.max() <= 1e-12  # never up
    # The steepest: a square at its beginning, 2 / steps; a cosine in its middle π / 2 / steps.
    assert steps.min() >= -2 * 0.4 / (total - warmup_steps) - 1e-12
    rising = np.diff(rates[: warmup_steps + 1])
    assert ((rising > -1e-12) & (rising <= 0.4 / max(1, warmup_steps) + 1e-12)).all()


@given(st.sampled_from(["cosine", "linear", "polynomial"]), st.integers(0, 59))
def test_a_course_from_the_start_is_the_one_without_a_warm_up_where_that_has_ended(
    name: str, step: int
) -> None:
    with_warmup = ScheduleConfig(name, warmup_epochs=2, course_from_start=True)
    plain = ScheduleConfig(name)
    if step >= 20:
        assert rate(step, with_warmup) == rate(step, plain)
    else:
        assert rate(step, with_warmup) == pytest.approx(0.4 * (step + 1) / 20)
