"""`resscale.report.plan_failures`: how often to save, by formulas."""

import pytest

from resscale.report.plan_failures import (
    PUBLISHED,
    SECONDS_PER_DAY,
    Costs,
    daly_s,
    expected_loss,
    interval_text,
    mtbf_s,
    young_s,
)

HOUR = 3600.0


def test_failures_add_up_over_gpus() -> None:
    # 419 failures in 54 days on 16,384 GPUs are one each 54 × 24 / 419 = 3.09 hours.
    assert mtbf_s(16_384, PUBLISHED["llama3"]) == pytest.approx(54 * 24 * HOUR / 419)
    assert mtbf_s(1024, PUBLISHED["rsc1_1024"]) == pytest.approx(7.9 * HOUR)
    # 6.5 per 1,000 nodes of 8 GPUs and day: 16,384 GPUs are 2,048 nodes, and 24 / 13.3 = 1.8 hours.
    assert mtbf_s(16_384, PUBLISHED["rsc1"]) == pytest.approx(24 * HOUR / (2.048 * 6.5))


def test_young_is_the_root_of_twice_save_times_mean() -> None:
    assert young_s(50, 100) == 100  # sqrt(2 · 50 · 100)


@pytest.mark.parametrize(("mean_min", "interval_min"), [(24 * 60, 117), (6 * 60, 57), (15, 9.1)])
def test_daly_gives_the_intervals_of_his_paper(mean_min: float, interval_min: float) -> None:
    """The captions of figures 3 to 5: saves of 5 minutes."""
    digits = 1 if interval_min < 10 else 0
    assert round(daly_s(5 * 60, mean_min * 60) / 60, digits) == interval_min


def test_a_save_that_takes_longer_than_two_failures_is_made_once_per_failure() -> None:
    assert daly_s(201, 100) == 100


@pytest.mark.parametrize("mean_s", [1 * HOUR, 24 * HOUR])
def test_no_other_interval_loses_less_than_dalys(mean_s: float) -> None:
    costs = Costs(save_s=60, restart_s=300)
    best = daly_s(60, mean_s)
    lost = expected_loss(best, costs, mean_s).share
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert expected_loss(best * factor, costs, mean_s).share > lost


def test_for_rare_failures_the_loss_is_saves_half_an_interval_and_the_restart() -> None:
    interval, save, restart, mean = 600.0, 6.0, 100.0, 1e8
    loss = expected_loss(interval, Costs(save, restart), mean)
    assert loss.per_failure_s == pytest.approx((interval + save) / 2 + restart, rel=1e-4)
    # 600 of each 606 seconds are work, and of each 10^8 all but 403 are not a failure's.
    assert loss.share == pytest.approx(1 - 600 / 606 * (1 - 403 / 1e8), rel=1e-6)
    assert loss.minutes_per_day == pytest.approx(loss.share * 1440)


def test_times_are_said_as_people_say_them() -> None:
    texts = [interval_text(seconds) for seconds in (90, 600, 7200, 3 * SECONDS_PER_DAY)]
    assert texts == ["90 s", "10 min", "2 h", "3 d"]
