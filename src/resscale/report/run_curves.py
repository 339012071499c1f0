"""The figures of one run: loss, top-1 and learning rate; rate and data wait; memory and MFU."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from resscale.report.curves import Picture, colours, upper_limit
from resscale.report.run_series import Course, Series, SeriesName

_WIDTH_IN = 6.4
_GRID, _SOFT = "#d9dce2", "#5b6472"
_TEST, _TRAINING, _AVERAGED = colours(3)
_FEW = 60  # points that are marked, each for itself
_RESUMES_SHOWN = 40  # more lines would be a grey field

# What a panel shows: the series, its name in the legend, its colour.
_Line = tuple[SeriesName, str, str]


def draw_run(course: Course) -> list[Picture]:
    """Return the pictures of one run's page, the widest first."""
    return [_learning(course), _throughput(course), _device(course)]


def _learning(course: Course) -> Picture:
    figure, (loss, top1, rate) = _figure([2.6, 2.8, 1.2], course)
    loss_lines: list[_Line] = [
        ("train_loss", "training", _TRAINING),
        ("test_loss", "validation", _TEST),
    ]
    _draw(loss, course, loss_lines, "loss")
    _limit_above(loss, [course.series[name] for name, _, _ in loss_lines])
    accuracies: list[_Line] = [
        ("train_top1_pct", "training", _TRAINING),
        ("test_top1_pct", "validation", _TEST),
        ("ema_top1_pct", "validation, averaged weights", _AVERAGED),
    ]
    _draw(top1, course, accuracies, "top-1, %")
    _draw(rate, course, [("lr", "", _SOFT)], "learning rate")
    _limit_from_zero(rate, course, "lr")
    return Picture(
        "learning",
        "Loss, top-1 and learning rate",
        "Training values are those of augmented batches while the weights change, each point the "
        "mean of a logging interval, or of several with a band from the least to the greatest. "
        "Validation values are measured on the validation images, in evaluation mode."
        + (" Dotted lines: the run went on from a checkpoint." if course.resumed_at else ""),
        figure,
    )


def _throughput(course: Course) -> Picture:
    figure, (rate, wait) = _figure([2.3, 2.0], course)
    _draw(rate, course, [("images_per_s", "", _TEST)], "images/s")
    _limit_from_zero(rate, course, "images_per_s")
    _draw(wait, course, [("data_wait_pct", "", _TRAINING)], "waiting for data, %")
    _limit_from_zero(wait, course, "data_wait_pct", least=1.0)
    return Picture(
        "rate",
        "Images/s and data wait",
        "Training images per second over all ranks, and the share of the time in which training "
        "waited for batches, per logging interval; evaluation is left out.",
        figure,
    )


def _device(course: Course) -> Picture:
    has_mfu = bool(course.series["mfu_pct"].at)
    figure, panels = _figure([2.3, 2.0] if has_mfu else [4.3], course)
    _draw(panels[0], course, [("memory_gib", "", _TEST)], "memory, GiB")
    _limit_from_zero(panels[0], course, "memory_gib")
    if has_mfu:
        _draw(panels[1], course, [("mfu_pct", "", _TRAINING)], "MFU, %")
        _limit_from_zero(panels[1], course, "mfu_pct")
    return Picture(
        "memory",
        "Memory and MFU" if has_mfu else "Memory",
        "Of the rank with the most: on a GPU the most bytes that tensors have taken since the "
        "process began, on a CPU the process's resident set at the end of each interval."
        + (" MFU: the share of the device's peak that the net's arithmetic needs." * has_mfu),
        figure,
    )


def _figure(heights_in: Sequence[float], course: Course) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels over one axis."""
    figure = Figure(figsize=(_WIDTH_IN, sum(heights_in) + 0.2), layout="constrained")
    panels = figure.subplots(
        len(heights_in), 1, sharex=True, squeeze=False, height_ratios=heights_in
    )[:, 0]
    last = max((series.at[-1] for series in course.series.values() if series.at), default=1.0)
    for axis in panels:
        axis.grid(color=_GRID, linewidth=0.7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axis.set_xlim(0, last * 1.02)
        axis.set_axisbelow(True)
        for place in course.resumed_at[-_RESUMES_SHOWN:]:
            axis.axvline(place, color=_SOFT, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    panels[-1].set_xlabel(course.unit)
    return figure, list(panels)


def _draw(axis: Axes, course: Course, lines: Sequence[_Line], label: str) -> None:
    """Draw the lines that have points, and name them where there are several."""
    drawn = 0
    for name, title, colour in lines:
        series = course.series[name]
        if not series.at:
            continue
        drawn += 1
        # Evaluations are few: marked, so that each can be seen, and a single one at all.
        is_evaluation = name in ("test_loss", "test_top1_pct", "ema_top1_pct")
        marker = "o" if len(series.at) < 3 or (is_evaluation and len(series.at) <= _FEW) else None
        axis.plot(
            series.at,
            series.mean,
            color=colour,
            linewidth=1.8 if is_evaluation else 1.3,
            # Told apart without colours too.
            linestyle=(0, (4, 2)) if name == "ema_top1_pct" else "solid",
            marker=marker,
            markersize=3.5,
            label=title,
        )
        if series.low != series.high:
            axis.fill_between(
                series.at, series.low, series.high, color=colour, alpha=0.18, linewidth=0
            )
    axis.set_ylabel(label)
    if not drawn:
        axis.text(0.5, 0.5, "not logged", transform=axis.transAxes, ha="center", va="center")
        axis.set(yticks=[])
    elif len(lines) > 1:
        axis.legend(frameon=False, fontsize=9)


def _limit_above(axis: Axes, shown: Sequence[Series]) -> None:
    """Cut off spikes and the first intervals, which would flatten the rest."""
    if any(series.at for series in shown):
        lowest = min(min(series.low) for series in shown if series.at)
        upper = upper_limit([series.mean for series in shown])
        axis.set_ylim(0.0 if lowest < 0.35 * upper else lowest - 0.06 * (upper - lowest), upper)


def _limit_from_zero(axis: Axes, course: Course, name: SeriesName, least: float = 0.0) -> None:
    """Let an axis begin at 0: half as high is half as much."""
    highest = max(course.series[name].high, default=0.0)
    axis.set_ylim(0.0, 1.12 * max(highest, least) or 1.0)
