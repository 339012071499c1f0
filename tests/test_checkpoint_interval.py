"""`benchmarks/checkpoint_interval.py`: a simulation that agrees with the formulas."""

import math
import re

import pytest
from checkpoint_interval import GPUS, main, simulate

from resscale.report.plan_failures import Costs, daly_s, expected_loss, young_s

HOUR = 3600.0


@pytest.mark.parametrize("interval_s", [60.0, 600.0, 3600.0])
@pytest.mark.parametrize("mean_s", [0.5 * HOUR, 5 * HOUR, 500 * HOUR])
def test_the_simulation_agrees_with_the_formula(interval_s: float, mean_s: float) -> None:
    costs = Costs(save_s=10, restart_s=120)
    expected = expected_loss(interval_s, costs, mean_s)
    loss = simulate(interval_s, costs, mean_s, failures=20_000).loss
    # 20,000 failures: their mean time is off by 1 / sqrt(20,000) = 0.7% as a rule; three times it.
    assert loss.share == pytest.approx(expected.share, rel=0.022)
    assert loss.per_failure_s == pytest.approx(expected.per_failure_s, rel=0.022)


def test_the_simulation_finds_the_same_best_interval() -> None:
    costs, mean = Costs(save_s=30, restart_s=0), 2 * HOUR
    best = daly_s(30, mean)  # 657 - 30 + ... = 637 s
    lost = [simulate(best * factor, costs, mean, 20_000).loss.share for factor in (0.4, 1, 2.5)]
    assert lost[1] < min(lost[0], lost[2])


def test_where_failures_outrun_the_interval_young_is_far_off_and_the_formula_is_not() -> None:
    costs, mean = Costs(save_s=300, restart_s=600), 900.0  # Daly's figure 5
    at = {name: f(300, mean) for name, f in (("young", young_s), ("daly", daly_s))}
    lost = {
        name: simulate(interval, costs, mean, 20_000).loss.share for name, interval in at.items()
    }
    assert lost["daly"] < lost["young"]
    for name, interval in at.items():
        expected = expected_loss(interval, costs, mean).share
        assert lost[name] == pytest.approx(expected, rel=0.02)


def test_every_second_is_accounted_for() -> None:
    tally = simulate(100.0, Costs(5, 40, 20), 700.0, failures=500)
    assert tally.failures == 500
    # 500 lives of 700 s on average, give or take 700 / sqrt(500) = 31 s; three times it.
    assert tally.total / 500 == pytest.approx(700, abs=94)
    # New work comes in whole intervals: what a checkpoint holds.
    assert tally.useful / 100 == pytest.approx(round(tally.useful / 100))


@pytest.mark.parametrize("write_s", [0.0, 30.0, 100.0])
def test_passing_over_quiet_cycles_changes_nothing(write_s: float) -> None:
    costs = Costs(5, 40, write_s)
    leaping = simulate(100.0, costs, 3000.0, 200, seed=3)
    literal = simulate(100.0, costs, 3000.0, 200, seed=3, leap=False)
    for name in ("useful", "saving", "redone", "restarting"):
        assert math.isclose(getattr(leaping, name), getattr(literal, name), rel_tol=1e-9)


def test_a_write_in_the_background_costs_each_failure_its_time() -> None:
    mean, at_once, behind = 20 * HOUR, Costs(1, 100), Costs(1, 100, write_s=200)
    quick, slow = (simulate(600.0, costs, mean, 20_000).loss for costs in (at_once, behind))
    assert slow.per_failure_s - quick.per_failure_s == pytest.approx(200, rel=0.02)
    assert slow.share == pytest.approx(expected_loss(600.0, behind, mean).share, rel=0.022)


def test_a_write_that_is_not_done_when_the_next_is_due_is_refused() -> None:
    with pytest.raises(ValueError, match=r"write_s=61 must not be above interval_s=60\."):
        simulate(60, Costs(1, 1, 61), 1000, 1)


def test_the_tables_have_a_row_for_each_number_of_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--lives", "50", "--failures", "rsc1", "--write_s", "120"])
    out = capsys.readouterr().out
    rows = re.findall(r"^\| ([\d,]+) \|", out, re.M)
    assert rows == [f"{gpus:,}" for gpus in GPUS] * 3
    # 120 s are not written when the next checkpoint is due after 60.
    assert out.count("| not written in time | ") == 2 * len(GPUS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--failures many", "--failures many must be a number or llama3, rsc1, "),
        ("--failures 0", "--failures 0.0 must be above 0"),
        ("--save_s 0", "--save_s 0.0 must be above 0"),
        ("--restart_s -1", "must not be below 0"),
    ],
)
def test_wrong_arguments(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(line.split())
    assert message in capsys.readouterr().err
