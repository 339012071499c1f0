"""Step times by a clock of the test's, percentiles, and which rank is the slowest."""

import pytest

from resscale.training.throughput import (
    HostClock,
    Slowest,
    StepTimer,
    Times,
    find_slowest,
    percentile,
    step_percentiles,
)


class HandClock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 10.0

    def mark(self) -> float:
        return self.now

    def between_s(self, first: float, second: float) -> float:
        return second - first


def test_a_percentile_is_the_smallest_value_that_covers_its_share() -> None:
    values = [30.0, 10.0, 20.0, 40.0]
    assert percentile(values, 0.5) == 20.0  # 2 of 4 are at most 20
    assert percentile(values, 0.51) == 30.0
    assert percentile(values, 0.9) == 40.0  # 3 of 4 are 75%
    assert percentile([7.0], 0.01) == 7.0


def test_the_percentiles_of_a_hundred_steps() -> None:
    times_s = [number / 1000 for number in range(100, 0, -1)]  # 1 to 100 ms
    assert step_percentiles(times_s) == {"p50": 0.05, "p90": 0.09, "p99": 0.099}
    assert step_percentiles([]) == {}


def test_a_step_lasts_from_the_end_of_the_one_before() -> None:
    clock = HandClock()
    timer = StepTimer(clock)
    timer.begin()
    for own_s, backward_s in ((1.0, 2.0), (3.0, 4.0)):
        clock.now += own_s
        timer.note_own_end()
        clock.now += backward_s
        timer.end_micro_batch(is_step_boundary=True)
    assert timer.take(1) == Times((3.0, 7.0), own_s=2.0)  # (1 + 3) / 2 steps
    assert timer.take(1) == Times((), own_s=0.0)


def test_micro_batches_add_up_to_their_step() -> None:
    clock = HandClock()
    timer = StepTimer(clock)
    timer.begin()
    for micro in range(4):
        clock.now += 1.0
        timer.note_own_end()
        clock.now += 0.5
        timer.end_micro_batch(is_step_boundary=micro % 2 == 1)
    # 2 steps of 2 micro-batches of 1.5 s, 1 s of each its own.
    assert timer.take(2) == Times((3.0, 3.0), own_s=2.0)


def test_the_first_three_steps_of_a_process_are_no_measure_of_its_own_time() -> None:
    clock = HandClock()
    timer = StepTimer(clock)
    timer.warm_up()
    timer.begin()
    for own_s in (9.0, 8.0, 7.0, 1.0, 2.0):
        clock.now += own_s
        timer.note_own_end()
        timer.end_micro_batch(is_step_boundary=True)
    assert timer.take(1) == Times((9.0, 8.0, 7.0, 1.0, 2.0), own_s=1.5)  # (1 + 2) / 2 steps


def test_what_lies_before_a_beginning_counts_nowhere() -> None:
    clock = HandClock()
    timer = StepTimer(clock)
    timer.begin()
    clock.now += 100.0  # an evaluation, say
    timer.begin()
    clock.now += 1.0
    timer.note_own_end()
    clock.now += 1.0
    timer.end_micro_batch(is_step_boundary=True)
    assert timer.take(1) == Times((2.0,), own_s=1.0)


def test_the_first_of_several_ends_counts() -> None:
    clock = HandClock()
    timer = StepTimer(clock)
    timer.begin()
    clock.now += 1.0
    timer.note_own_end()
    clock.now += 2.0  # waiting for others before a forward pass inside the first one
    timer.note_own_end()
    timer.end_micro_batch(is_step_boundary=True)
    assert timer.take(1).own_s == 1.0


def test_the_hosts_clock_goes_forward() -> None:
    clock = HostClock()
    first = clock.mark()
    assert clock.between_s(first, clock.mark()) >= 0.0


def test_the_slowest_rank_is_compared_with_the_median_one() -> None:
    # Sorted: 1.0, 1.0, 1.1, 3.0; the lower middle one is 1.0.
    slowest = find_slowest([1.0, 1.1, 3.0, 1.0], step_s=4.0)
    assert slowest == Slowest(rank=2, own_s=3.0, median_s=1.0, step_s=4.0)
    assert slowest.ratio == 3.0
    assert slowest.holds_others_up
    # Of two, the other one.
    assert find_slowest([2.0, 1.0], step_s=4.0).ratio == 2.0


@pytest.mark.parametrize(
    ("own_s", "step_s", "told"),
    [
        ((1.0, 1.19), 1.5, False),  # 1.19 times the other: too little
        ((1.0, 1.21), 1.5, True),  # 0.21 s of 1.5 s
        ((0.001, 0.003), 1.0, False),  # three times, but 0.2% of a step
        ((1.0,), 1.5, False),  # nobody to compare with
        ((0.0, 0.0), 0.0, False),  # nothing measured
    ],
)
def test_a_rank_is_told_of_where_it_costs_the_others_much(
    own_s: tuple[float, ...], step_s: float, told: bool
) -> None:
    assert find_slowest(own_s, step_s).holds_others_up is told
