"""The figures of one run: what is drawn, named and left out."""

import math
from collections.abc import Callable

import pytest
from matplotlib.figure import Figure

from resscale.report.run_curves import draw_run
from resscale.report.run_series import read_course
from resscale.report.runs import Run, load_run
from resscale.training.rundir import RunDir

Made = Callable[..., Run]


def figures(run: Run) -> dict[str, Figure]:
    return {picture.name: picture.figure for picture in draw_run(read_course(run))}


def names(figure: Figure) -> list[list[str]]:
    """The legend of each panel."""
    legends = [axis.get_legend() for axis in figure.axes]
    return [
        [text.get_text() for text in legend.get_texts()] if legend else [] for legend in legends
    ]


def test_loss_top1_and_learning_rate_stand_over_one_axis(made: Made) -> None:
    figure = figures(made("a"))["learning"]
    loss, top1, rate = figure.axes
    assert [axis.get_ylabel() for axis in figure.axes] == ["loss", "top-1, %", "learning rate"]
    assert rate.get_xlabel() == "epoch"
    assert loss.get_xlim() == top1.get_xlim() == rate.get_xlim() == pytest.approx((0, 3 * 1.02))
    assert names(figure)[:2] == [["training", "validation"]] * 2
    train, test = top1.get_lines()
    assert list(train.get_ydata()) == pytest.approx([60, 60, 61, 61, 62, 62])
    assert list(test.get_ydata()) == pytest.approx([50, 51, 52])
    assert rate.get_ylim()[0] == 0


def test_averaged_weights_are_drawn_where_there_are_some(made: Made) -> None:
    path = made("a").path
    RunDir(path).append_metrics({"epoch": 2, "step": 30, "val/top1": 0.5, "val/ema_top1": 0.75})
    top1 = figures(load_run(path))["learning"].axes[1]
    assert names(top1.figure)[1][-1] == "validation, averaged weights"  # type: ignore[arg-type]
    averaged = top1.get_lines()[-1]
    assert list(averaged.get_ydata()) == [75.0]
    assert averaged.get_marker() == "o"  # a single point has no line
    assert averaged.is_dashed()


def test_rates_begin_at_zero(made: Made) -> None:
    rate, wait = figures(made("a"))["rate"].axes
    assert rate.get_ylim() == pytest.approx((0, 112))  # 1.12 × 100 images/s
    assert wait.get_ylim() == pytest.approx((0, 28))  # 1.12 × 25%


def test_mfu_has_a_panel_where_it_is_known(made: Made) -> None:
    run = made("a")
    files = RunDir(run.path)
    files.append_speed({"epoch": 0, "step": 5, "memory_bytes": 2**31})
    assert [axis.get_ylabel() for axis in figures(run)["memory"].axes] == ["memory, GiB"]
    files.append_speed({"epoch": 0, "step": 10, "memory_bytes": 2**31, "mfu": 0.5})
    memory, mfu = figures(run)["memory"].axes
    assert (memory.get_ylabel(), mfu.get_ylabel()) == ("memory, GiB", "MFU, %")
    assert list(memory.get_lines()[0].get_ydata()) == [2.0, 2.0]
    assert list(mfu.get_lines()[0].get_ydata()) == [50.0]


def test_what_was_not_logged_is_said(made: Made) -> None:
    (memory,) = figures(made("a"))["memory"].axes
    assert [text.get_text() for text in memory.texts] == ["not logged"]
    for figure in figures(made("empty", epochs=0)).values():
        assert all(axis.texts[0].get_text() == "not logged" for axis in figure.axes)


def test_a_spike_does_not_flatten_the_loss(made: Made) -> None:
    path = made("a", epochs=20).path
    RunDir(path).append_metrics({"epoch": 10, "step": 105, "train/loss": 1e6, "train/top1": 0.1})
    loss = figures(load_run(path))["learning"].axes[0]
    assert loss.get_ylim()[1] < 10


def test_losses_that_are_not_finite_are_left_out(made: Made) -> None:
    path = made("a").path
    RunDir(path).append_metrics({"epoch": 2, "step": 25, "train/loss": math.nan})
    losses = figures(load_run(path))["learning"].axes[0].get_lines()[0].get_ydata()
    assert all(math.isfinite(loss) for loss in losses)


def test_resumes_are_marked_and_explained(made: Made) -> None:
    path = made("a").path
    assert "Dotted" not in draw_run(read_course(load_run(path)))[0].caption
    RunDir(path).append_event("resumed", step=15)
    picture = draw_run(read_course(load_run(path)))[0]
    assert "Dotted lines: the run went on from a checkpoint." in picture.caption
    dotted = [line for line in picture.figure.axes[0].get_lines() if len(line.get_xdata()) == 2]
    assert [list(line.get_xdata()) for line in dotted] == [[1.5, 1.5]]
