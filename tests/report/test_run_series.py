"""One run over its course: intervals as they were logged, and where in training they stand."""

from collections.abc import Callable
from pathlib import Path

import pytest

from resscale.report.run_series import bin_series, read_course, steps_per_epoch
from resscale.report.runs import Run, load_run
from resscale.training.rundir import RunDir

Made = Callable[..., Run]


def test_intervals_stand_where_they_end_and_evaluations_where_they_ran(made: Made) -> None:
    # 10 steps an epoch, logged every 5.
    course = read_course(made("a", epochs=2))
    assert course.unit == "epoch"
    train, test = course.series["train_top1_pct"], course.series["test_top1_pct"]
    assert train.at == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert train.mean == pytest.approx([60, 60, 61, 61])
    assert (test.at, test.mean) == (pytest.approx([1.0, 2.0]), pytest.approx([50, 51]))
    assert course.series["lr"].mean == [0.1] * 4
    assert course.series["data_wait_pct"].mean == [25.0] * 4
    assert course.series["ema_top1_pct"].at == []


def test_memory_and_mfu_are_those_of_the_table_of_speed(made: Made) -> None:
    run = made("a", epochs=2)
    files = RunDir(run.path)
    files.append_speed({"epoch": 0, "step": 5, "memory_bytes": 3 * 2**30})
    files.append_speed({"epoch": 0, "step": 10, "memory_bytes": 2**29, "mfu": 0.25})
    course = read_course(run)
    assert course.series["memory_gib"].at == pytest.approx([0.5, 1.0])
    assert course.series["memory_gib"].mean == [3.0, 0.5]
    assert (course.series["mfu_pct"].at, course.series["mfu_pct"].mean) == ([1.0], [25.0])


def test_a_run_of_an_older_version_has_no_memory(made: Made) -> None:
    assert read_course(made("a")).series["memory_gib"].at == []


def test_resumes_stand_on_the_same_axis(made: Made) -> None:
    path = made("a", epochs=2).path
    RunDir(path).append_event("resumed", step=15)
    assert read_course(load_run(path)).resumed_at == (1.5,)


def test_a_step_that_stands_twice_counts_as_it_was_logged_last(made: Made) -> None:
    run = made("a", epochs=2)
    RunDir(run.path).append_metrics({"epoch": 1, "step": 20, "train/loss": 9.0})
    losses = read_course(run).series["train_loss"]
    assert losses.at == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert losses.mean[-1] == 9.0


def test_a_run_in_its_first_epoch_is_drawn_over_steps(made: Made) -> None:
    run = made("a", epochs=1, summary={"status": "running", "epoch": 0})
    course = read_course(run)
    assert course.unit == "optimizer step"
    assert course.series["lr"].at == [5.0, 10.0]


def test_a_run_that_has_logged_nothing_has_empty_series(tmp_path: Path) -> None:
    RunDir(tmp_path).write_summary({"status": "failed"})
    course = read_course(load_run(tmp_path))
    assert all(not series.at for series in course.series.values())


def row(epoch: int, step: int) -> dict[str, float]:
    return {"epoch": epoch, "step": step, "train/loss": 1.0}


def test_the_last_interval_of_an_epoch_tells_its_steps() -> None:
    rows = [row(0, 4), row(0, 7), row(1, 11), row(1, 14), row(2, 18)]
    assert steps_per_epoch(rows, {}) == 7  # 14 steps behind two epochs
    assert steps_per_epoch(rows[:3], {}) == 7
    assert steps_per_epoch(rows[:2], {}) is None
    assert steps_per_epoch([], {}) is None


def test_of_a_run_of_one_epoch_that_is_done_the_summary_tells() -> None:
    done = {"status": "done", "epoch": 1, "global_step": 8}
    assert steps_per_epoch([row(0, 4), row(0, 8)], done) == 8
    assert steps_per_epoch([], {**done, "status": "running"}) is None


def test_neighbours_become_one_point_with_a_band() -> None:
    points = [(1.0, 3.0), (2.0, 5.0), (3.0, 1.0), (4.0, 2.0), (5.0, 7.0)]
    series = bin_series(points, most_points=3)
    assert series.at == [2.0, 4.0, 5.0]  # by twos, and what is left
    assert series.mean == [4.0, 1.5, 7.0]
    assert (series.low, series.high) == ([3.0, 1.0, 7.0], [5.0, 2.0, 7.0])


@pytest.mark.parametrize("count", [0, 1, 399, 400, 401, 9999])
def test_a_long_run_has_no_more_points_than_can_be_seen(count: int) -> None:
    points = [(float(n), float(n)) for n in range(count)]
    series = bin_series(points, most_points=400)
    assert len(series.at) <= 400
    assert len(series.at) == count or count > 400
    assert max(series.high, default=0.0) == max(0, count - 1)  # no spike is lost
