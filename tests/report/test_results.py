"""The numbers of the results table, with their arithmetic."""

from collections.abc import Callable

import pytest

from resscale.report.groups import Group
from resscale.report.results import summarise
from resscale.report.runs import Run

Made = Callable[..., Run]


def group(*runs: Run) -> Group:
    return Group("name", runs)


def test_errors_are_mean_and_sample_deviation_over_seeds(made: Made) -> None:
    result = summarise(group(*(made(f"s{seed}", seed=seed) for seed in (0, 1, 2))))
    final, training = result.final_test_error_pct, result.final_train_error_pct
    # 48, 47, 46: mean 47, sd √((1 + 0 + 1) / (3 - 1)) = 1
    assert final is not None
    assert training is not None
    assert (final.mean, final.sd, final.count) == (pytest.approx(47), pytest.approx(1), 3)
    assert training.mean == pytest.approx(37)  # 100 - (60 + 2 + 1)
    assert result.seeds == ("0", "1", "2")
    assert (result.num_done, result.states, result.epochs) == (3, (), (3, 3, 3))


def test_one_run_has_no_deviation(made: Made) -> None:
    final = summarise(group(made("a"))).final_test_error_pct
    assert final is not None
    assert final.sd is None


def test_the_best_error_is_each_runs_least(made: Made) -> None:
    # The last of the table is 48; an earlier one that the summary knows was 100 - 55 = 45.
    result = summarise(group(made("a", summary={"best_val_top1": 0.55})))
    assert result.best_test_error_pct is not None
    assert result.best_test_error_pct.mean == pytest.approx(45)


def test_runs_that_are_not_done_do_not_count_among_those_that_are(made: Made) -> None:
    late = {"status": "preempted", "epoch": 1}
    runs = [made("a", seed=0), made("b", seed=1, epochs=1, summary=late)]
    result = summarise(group(*runs))
    assert result.final_test_error_pct is not None
    assert (result.final_test_error_pct.mean, result.final_test_error_pct.count) == (48.0, 1)
    assert result.states == ("seed 1: preempted at epoch 1 of 1",)
    assert (result.num_done, result.epochs) == (1, (3,))


def test_where_none_is_done_all_count_as_far_as_they_are(made: Made) -> None:
    result = summarise(group(made("a", summary={"status": "running", "epoch": 3})))
    assert result.final_test_error_pct is not None
    assert result.final_test_error_pct.mean == pytest.approx(48)
    assert result.states == ("running at epoch 3 of 3",)


def test_the_table_is_newer_than_the_summary(made: Made) -> None:
    result = summarise(group(made("a", summary={"status": "running", "val_top1": 0.25})))
    assert result.final_test_error_pct is not None
    assert result.final_test_error_pct.mean == pytest.approx(48)


def test_the_summary_stands_in_for_a_table_without_validations(made: Made) -> None:
    run = made("a", summary={"val_top1": 0.75})
    run.curves["test_error_pct"].clear()
    result = summarise(group(run))
    assert result.final_test_error_pct is not None
    assert result.final_test_error_pct.mean == pytest.approx(25)


def test_what_is_not_recorded_is_none(made: Made) -> None:
    run = made("a", epochs=0)
    result = summarise(group(run))
    assert result.num_macs is None
    assert result.final_test_error_pct is None
    assert result.final_train_error_pct is None
    assert result.final_ema_error_pct is None
    assert result.images_per_s is None


def test_size_and_rates(made: Made) -> None:
    result = summarise(group(made("a", summary={"num_macs": 40_800_000})))
    assert (result.num_parameters, result.num_macs) == (269_434, 40_800_000)
    assert result.images_per_s == pytest.approx(100)
    assert result.data_wait_pct == pytest.approx(25)
