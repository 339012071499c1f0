"""Curves of a metrics.csv: means weighted by steps and seconds, and rows that do not count."""

from pathlib import Path

import pytest

from resscale.errors import DataFormatError
from resscale.report.metrics import Row, epoch_curves, rates, read_rows
from resscale.training.rundir import RunDir


def train(epoch: int, step: int, loss: float, **more: float) -> Row:
    """A row of a logging interval."""
    return {"epoch": epoch, "step": step, "train/loss": loss, **more}


def val(epoch: int, step: int, top1: float) -> Row:
    """A row of a validation."""
    return {"epoch": epoch, "step": step, "val/top1": top1}


def test_an_epochs_value_is_the_mean_over_its_steps() -> None:
    rows = [train(0, 50, 2.0), train(0, 60, 5.0), train(1, 110, 1.0), train(1, 120, 1.0)]
    # 50 steps at 2 and 10 at 5: (100 + 50) / 60
    assert epoch_curves(rows)["train_loss"] == pytest.approx({1: 2.5, 2: 1.0})


def test_a_table_that_begins_late_does_not_overrate_its_first_row() -> None:
    rows = [train(9, 1000, 4.0), train(9, 1010, 2.0)]  # 10 steps each, not 1000 and 10
    assert epoch_curves(rows)["train_loss"] == pytest.approx({10: 3.0})


def test_accuracy_becomes_error_in_percent() -> None:
    curves = epoch_curves([train(0, 5, 1.0, **{"train/top1": 0.8}), val(0, 5, 0.75)])
    assert curves["train_error_pct"] == pytest.approx({1: 20.0})  # 100 × (1 - 0.8)
    assert curves["test_error_pct"] == pytest.approx({1: 25.0})


def test_rates_are_means_over_time() -> None:
    slow = train(0, 10, 1.0, images_per_s=100.0, data_wait=0.5)
    fast = train(0, 20, 1.0, images_per_s=300.0, data_wait=0.1)
    # Equal images take 3 s and 1 s: (3 × 100 + 300) / 4 and (3 × 50% + 10%) / 4
    assert rates([slow, fast]) == pytest.approx((150.0, 40.0))
    curves = epoch_curves([slow, fast])
    assert curves["images_per_s"] == pytest.approx({1: 150.0})
    assert curves["data_wait_pct"] == pytest.approx({1: 40.0})


def test_without_rows_there_are_no_rates_and_empty_curves() -> None:
    assert rates([]) == (None, None)
    assert all(curve == {} for curve in epoch_curves([]).values())


def test_a_step_that_was_logged_twice_counts_once_as_logged_last() -> None:
    rows = [train(0, 5, 9.0), train(0, 10, 2.0), val(0, 10, 0.1), train(0, 5, 4.0), val(0, 10, 0.5)]
    curves = epoch_curves(rows)
    assert curves["train_loss"] == pytest.approx({1: 3.0})  # (4 + 2) / 2
    assert curves["test_error_pct"] == pytest.approx({1: 50.0})


def test_a_loss_that_is_not_finite_is_left_out() -> None:
    rows = [train(0, 5, 1.0), train(1, 10, float("nan")), train(2, 15, float("inf"))]
    assert epoch_curves(rows)["train_loss"] == {1: 1.0}


def test_validations_stand_only_where_they_ran() -> None:
    rows = [train(epoch, 5 * epoch + 5, 1.0) for epoch in range(4)]
    curves = epoch_curves([*rows, val(1, 10, 0.5), val(3, 20, 0.5)])
    assert list(curves["test_error_pct"]) == [2, 4]
    assert list(curves["train_loss"]) == [1, 2, 3, 4]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path)
    run.append_metrics({"epoch": 0, "step": 5, "train/loss": 1.25})
    run.append_metrics({"epoch": 0, "step": 10, "train/loss": 1.5})
    return run


@pytest.mark.parametrize("torn", ["0,15,0.9", "0,15,0.95,0.5,,,,,0.1,10,0.0", "0", '0,15,"0.9'])
def test_a_last_line_without_its_end_is_passed_over(run: RunDir, torn: str) -> None:
    with run.metrics.open("a") as file:
        file.write(torn)
    assert [row["step"] for row in read_rows(run.metrics)] == [5, 10]


def test_a_torn_line_in_the_middle_is_passed_over(run: RunDir) -> None:
    with run.metrics.open("a") as file:
        file.write("0,15,0.\n")
    run.append_metrics({"epoch": 0, "step": 20, "train/loss": 0.5})
    assert [row["train/loss"] for row in read_rows(run.metrics)] == [1.25, 1.5, 0.5]


def test_empty_cells_are_left_out_of_a_row(run: RunDir) -> None:
    assert read_rows(run.metrics)[0] == {"epoch": 0, "step": 5, "train/loss": 1.25}


@pytest.mark.parametrize("text", [None, "", "epoch,st"])
def test_a_table_that_has_only_begun_has_no_rows(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "metrics.csv"
    if text is not None:
        path.write_text(text)
    assert read_rows(path) == []


def test_a_table_without_its_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,loss\n0,1\n")
    with pytest.raises(DataFormatError, match=r"metrics.csv has no column step; .* leave the run"):
        read_rows(path)
