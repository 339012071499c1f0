"""A run's metrics.csv as curves: one value per epoch.

Rows with training values stand at logging intervals; an interval lies within one epoch, so the mean
weighted by its steps is exact. Rows with validation values stand where validation ran.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal

from resscale.errors import DataFormatError

Row = dict[str, float]
Curve = dict[int, float]  # epochs done, from 1 -> value
CurveName = Literal[
    "train_error_pct",
    "test_error_pct",
    "ema_error_pct",
    "train_loss",
    "test_loss",
    "lr",
    "images_per_s",
    "data_wait_pct",
]
Curves = Mapping[CurveName, Curve]


def _as_is(value: float) -> float:
    return value


def _percent(fraction: float) -> float:
    return 100 * fraction


def _error_pct(top1: float) -> float:
    return 100 * (1 - top1)


_Source = tuple[str, Callable[[float], float]]
_OVER_STEPS: dict[CurveName, _Source] = {
    "train_error_pct": ("train/top1", _error_pct),
    "train_loss": ("train/loss", _as_is),
    "lr": ("lr", _as_is),
}
_OVER_SECONDS: dict[CurveName, _Source] = {
    "images_per_s": ("images_per_s", _as_is),
    "data_wait_pct": ("data_wait", _percent),
}
_AT_VALIDATIONS: dict[CurveName, _Source] = {
    "test_error_pct": ("val/top1", _error_pct),
    "ema_error_pct": ("val/ema_top1", _error_pct),
    "test_loss": ("val/loss", _as_is),
}


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a metrics.csv, empty cells left out; no file gives no rows.

    A torn line is passed over: a run that is being written, or was killed, may end in one.

    Raises:
        DataFormatError: its heading lacks `epoch` or `step`.
    """
    if not path.exists():
        return []
    text = path.read_text(errors="replace")
    # The last line counts only once its end is written: `0.9` may have become `0.95`.
    lines = csv.reader(text[: text.rfind("\n") + 1].splitlines())
    header = next(lines, None)
    if header is None:
        return []
    if missing := {"epoch", "step"} - set(header):
        raise DataFormatError(
            f"{path} has no column {' and '.join(sorted(missing))}; its first line must name the "
            f"columns that `resscale fit` writes. Restore the file, or leave the run out."
        )
    rows = []
    for cells in lines:
        try:
            row = {name: float(cell) for name, cell in zip(header, cells, strict=True) if cell}
        except ValueError:
            continue
        if math.isfinite(row.get("epoch", math.nan)) and math.isfinite(row.get("step", math.nan)):
            rows.append(row)
    return rows


def epoch_curves(rows: Iterable[Row]) -> Curves:
    """Return the curves; training values are the mean of each epoch's intervals.

    A step that was logged twice counts once, as it was logged last. Values that are not finite are
    left out.

    Args:
        rows: of a metrics.csv, in its order.
    """
    rows = list(rows)
    intervals = _intervals(rows)
    curves: dict[CurveName, Curve] = {}
    for name, (column, unit) in {**_OVER_STEPS, **_OVER_SECONDS}.items():
        curves[name] = {}
        for epoch in sorted({int(row["epoch"]) for row, _ in intervals}):
            chosen = [(row, steps) for row, steps in intervals if int(row["epoch"]) == epoch]
            mean = _mean(chosen, column, over_seconds=name in _OVER_SECONDS)
            if mean is not None:
                curves[name][epoch + 1] = unit(mean)
    for name, (column, unit) in _AT_VALIDATIONS.items():
        curves[name] = {
            int(row["epoch"]) + 1: unit(row[column])
            for row in rows
            if math.isfinite(row.get(column, math.nan))
        }
    return curves


def rates(rows: Iterable[Row]) -> tuple[float | None, float | None]:
    """Return images/s and the percentage of time spent waiting for data, over the whole run."""
    intervals = _intervals(rows)
    data_wait = _mean(intervals, "data_wait", over_seconds=True)
    return (
        _mean(intervals, "images_per_s", over_seconds=True),
        None if data_wait is None else 100 * data_wait,
    )


def _intervals(rows: Iterable[Row]) -> list[tuple[Row, float]]:
    """Return the rows with training values in order, each with the steps it stands for."""
    by_step = {row["step"]: row for row in rows if "train/loss" in row}
    steps = sorted(by_step)
    found = []
    for number, step in enumerate(steps):
        before = steps[number - 1] if number else 0.0
        if number == 0 and by_step[step]["epoch"] > 0 and len(steps) > 1:
            before = step - (steps[1] - step)  # the table begins behind the start of the run
        found.append((by_step[step], step - before))
    return found


def _mean(
    intervals: Iterable[tuple[Row, float]], column: str, *, over_seconds: bool
) -> float | None:
    """Return the mean of a column weighted by steps or by seconds; None without finite values."""
    total = weights = 0.0
    for row, steps in intervals:
        value = row.get(column, math.nan)
        rate = row.get("images_per_s", math.nan)
        # A step has the same number of images everywhere, so steps / rate stands for seconds.
        weight = steps if not over_seconds else steps / rate if rate > 0 else math.nan
        if math.isfinite(value) and math.isfinite(weight) and weight > 0:
            total += weight * value
            weights += weight
    return total / weights if weights else None
