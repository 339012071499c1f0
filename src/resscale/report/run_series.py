"""One run over its course: what was logged at each interval and evaluation, and where in training.

The curves of `metrics.py` are means of epochs, to compare runs by. These are the intervals as they
were logged, so that a slow hour or a jump of the loss within an epoch can be seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from resscale.report.metrics import Row, read_rows
from resscale.report.runs import Run
from resscale.training.rundir import RunDir

# More cannot be told apart in a figure 960 pixels wide, and a page of a long run stays small.
MOST_POINTS = 400
_GIB = 2.0**30

SeriesName = Literal[
    "train_loss",
    "test_loss",
    "train_top1_pct",
    "test_top1_pct",
    "ema_top1_pct",
    "lr",
    "images_per_s",
    "data_wait_pct",
    "memory_gib",
    "mfu_pct",
]
# Column and factor, of metrics.csv and of speed.csv.
_METRICS: dict[SeriesName, tuple[str, float]] = {
    "train_loss": ("train/loss", 1.0),
    "test_loss": ("val/loss", 1.0),
    "train_top1_pct": ("train/top1", 100.0),
    "test_top1_pct": ("val/top1", 100.0),
    "ema_top1_pct": ("val/ema_top1", 100.0),
    "lr": ("lr", 1.0),
    "images_per_s": ("images_per_s", 1.0),
    "data_wait_pct": ("data_wait", 100.0),
}
_SPEED: dict[SeriesName, tuple[str, float]] = {
    "memory_gib": ("memory_bytes", 1 / _GIB),
    "mfu_pct": ("mfu", 100.0),
}


@dataclass(frozen=True)
class Series:
    """A quantity over training; of a long run, each point stands for several intervals.

    Args:
        at: where the points stand: epochs done, or optimizer steps.
        mean: of the intervals of each point.
        low: the least of them.
        high: the greatest of them.
    """

    at: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Course:
    """All quantities of a run over one axis.

    Args:
        unit: what the axis counts, "epoch" or "optimizer step".
        series: by name; empty ones where nothing was logged.
        resumed_at: where the run went on from a checkpoint, on the same axis.
    """

    unit: str
    series: Mapping[SeriesName, Series]
    resumed_at: tuple[float, ...]


def read_course(run: Run, most_points: int = MOST_POINTS) -> Course:
    """Return a run's quantities over its course.

    Args:
        run: whose tables are read.
        most_points: of each series.

    Raises:
        DataFormatError: metrics.csv or speed.csv has no heading of ours.
    """
    files = RunDir(run.path)
    metrics, speed = read_rows(files.metrics), read_rows(files.speed)
    steps = steps_per_epoch(metrics, run.summary)
    scale = 1.0 if steps is None else 1 / steps
    series = {
        name: bin_series(_column(rows, column, factor, scale), most_points)
        for rows, names in ((metrics, _METRICS), (speed, _SPEED))
        for name, (column, factor) in names.items()
    }
    unit = "optimizer step" if steps is None else "epoch"
    return Course(unit, series, tuple(step * scale for step in run.resumed_at))


def steps_per_epoch(rows: Sequence[Row], summary: Mapping[str, Any]) -> float | None:
    """Return optimizer steps per epoch; None while no epoch is known to have ended.

    Args:
        rows: of metrics.csv; an interval ends where an epoch does, so the last interval of an epoch
            has its steps.
        summary: of the run; that of one that is done has both counts.
    """
    trained = sorted((row["step"], row["epoch"]) for row in rows if "train/loss" in row)
    for (step, epoch), (_, following) in zip(trained[-2::-1], trained[:0:-1], strict=True):
        if following > epoch:
            return step / (epoch + 1)
    epochs, steps = summary.get("epoch"), summary.get("global_step")
    if summary.get("status") == "done" and epochs and steps:
        return float(steps) / float(epochs)
    return None


def bin_series(points: Sequence[tuple[float, float]], most_points: int) -> Series:
    """Return points as a series of no more than so many: neighbours become mean, least, greatest.

    Args:
        points: place and value, by ascending place.
        most_points: at least 1.
    """
    # The least width that leaves few enough: the points are spread evenly, as intervals are.
    width = max(1, -(-len(points) // most_points))
    bins = [points[start : start + width] for start in range(0, len(points), width)]
    values = [[value for _, value in chosen] for chosen in bins]
    return Series(
        # A point stands where its last interval ends, as that of a single one does.
        at=[chosen[-1][0] for chosen in bins],
        mean=[math.fsum(chosen) / len(chosen) for chosen in values],
        low=[min(chosen) for chosen in values],
        high=[max(chosen) for chosen in values],
    )


def _column(
    rows: Sequence[Row], column: str, factor: float, scale: float
) -> list[tuple[float, float]]:
    """Return place and value of a column's finite cells; a step that stands twice counts once."""
    by_step = {
        row["step"]: factor * row[column]
        for row in rows
        if math.isfinite(row.get(column, math.nan))
    }
    return [(step * scale, by_step[step]) for step in sorted(by_step)]
