"""When training ends, by arithmetic: the pace, what is left, and the evaluations between."""

from datetime import datetime

import pytest

from resscale.training.eta import Course, Pace, describe_end, left_s


def course(**changed: object) -> Course:
    """10 epochs of 100 batches at 10 pixels, an evaluation behind each."""
    values = {
        "batches_per_epoch": 100,
        "last_batch": 1000,
        "size_at": lambda epoch: 10,
        "check_every_batches": 100,
    }
    return Course(**{**values, **changed})  # type: ignore[arg-type]


def trained(batches: int, batch_s: float, work: float, *, start_s: float = 50.0) -> Pace:
    """The pace behind so many batches of equal length, the first of which is the process's."""
    pace = Pace()
    for number in range(batches):
        pace.note_batch(start_s + number * batch_s, work)
    return pace


def test_the_work_left_weighs_an_epoch_by_the_square_of_its_images() -> None:
    progressive = course(size_at=lambda epoch: 8 if epoch < 5 else 16, last_batch=700)
    # 30 more of epoch 4 at 8 pixels, 2 epochs of 100 at 16
    assert progressive.work_left(470) == 30 * 8**2 + 200 * 16**2
    assert progressive.work_of(499) == 8**2
    assert progressive.work_of(500) == 16**2
    assert progressive.work_left(700) == 0


@pytest.mark.parametrize(
    ("changed", "done", "left"),
    [
        ({}, 0, 10),
        ({}, 100, 9),  # that behind batch 100 is done
        ({}, 99, 10),  # and here it is not
        ({"check_every_batches": 40}, 0, 20),  # behind 40 and 80 of each epoch
        ({"check_every_batches": 40}, 941, 1),  # behind 980
        ({"check_every_epochs": 3}, 0, 3),  # epochs 3, 6 and 9
        ({"check_every_epochs": 3}, 300, 2),
        ({"check_every_epochs": None, "check_every_batches": 250}, 251, 3),  # 500, 750, 1000
        ({"last_batch": 250}, 0, 2),  # cut short in the third epoch
        ({"check_every_batches": None}, 0, 0),
    ],
)
def test_the_evaluations_left_are_counted(changed: dict[str, object], done: int, left: int) -> None:
    assert course(**changed).evaluations_left(done) == left


def test_the_pace_leaves_the_first_batches_and_evaluations_out() -> None:
    pace = Pace()
    # Two slow batches begin the process; the clock runs from the third.
    for now_s in (100.0, 200.0, 300.0):
        pace.note_batch(now_s, 4.0)
        assert pace.s_per_work is None
    pace.note_batch(302.0, 4.0)
    assert pace.s_per_work == 2.0 / 4.0
    pace.begin_evaluation(302.0)
    pace.end_evaluation(332.0)
    pace.note_batch(334.0, 4.0)
    assert pace.s_per_work == 4.0 / 8.0
    assert pace.evaluation_s == 30.0


def test_the_pace_is_that_of_the_newest_minutes() -> None:
    pace = Pace(window_s=10.0)
    now_s = 0.0
    for seconds in [1.0] * 40 + [2.0] * 40:
        now_s += seconds
        pace.note_batch(now_s, 1.0)
    assert pace.s_per_work == 2.0


def test_training_ends_behind_its_batches_and_evaluations() -> None:
    pace = trained(53, batch_s=0.5, work=100.0)
    pace.begin_evaluation(1000.0)
    pace.end_evaluation(1007.0)
    # 900 batches of half a second, 9 evaluations of 7 s
    assert left_s(pace, course(), 100, 100, evaluation_work=1.0) == pytest.approx(
        900 * 0.5 + 9 * 7.0
    )


def test_before_the_first_evaluation_it_costs_a_third_of_training_on_as_many_images() -> None:
    pace = trained(53, batch_s=0.5, work=100.0)
    # 30 batches' worth of images at 20 pixels for 10, forward alone: 30 × 4 × 0.5 s / 3
    expected = 950 * 0.5 + 10 * (30 * 4 * 0.5 / 3)
    assert left_s(pace, course(), 50, 50, evaluation_work=30 * 20.0**2) == pytest.approx(expected)


def test_larger_images_to_come_make_it_longer() -> None:
    pace = trained(53, batch_s=0.5, work=100.0)
    grown = course(
        size_at=lambda epoch: 10 if epoch < 5 else 20, check_every_batches=None, last_batch=1000
    )
    # 400 more batches of half a second, 500 of four times as long
    assert left_s(pace, grown, 100, 100, 0.0) == pytest.approx(400 * 0.5 + 500 * 2.0)


def test_a_resumed_process_knows_its_pace_and_what_the_whole_run_has_left() -> None:
    pace = trained(10, batch_s=2.0, work=100.0, start_s=7.0)
    assert left_s(pace, course(), 990, 989, 0.0) == pytest.approx(10 * 2.0)


def test_without_a_pace_there_is_no_end() -> None:
    assert left_s(Pace(), course(), 0, 0, 0.0) is None


def test_the_end_is_said_with_the_time_of_day() -> None:
    now = datetime(2026, 11, 24, 11, 8)  # a Tuesday
    seconds = 3 * 3600 + 12 * 60 + 5.2
    assert describe_end(seconds) == "ends in 3:12:05"
    assert describe_end(seconds, now) == "ends in 3:12:05 (Tue 14:20)"
    assert describe_end(59.6, now) == "ends in 0:01:00 (Tue 11:08)"
    # 200 h behind Tuesday 11:08 is Wednesday of the next week, 19:08
    assert describe_end(200 * 3600, now) == "ends in 200:00:00 (Wed 02 Dec 19:08)"
