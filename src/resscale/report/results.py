"""What a group of runs reached, as the numbers of the results table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from resscale.report.groups import Group
from resscale.report.metrics import CurveName
from resscale.report.runs import Run


@dataclass(frozen=True)
class Statistic:
    """A mean over runs.

    Args:
        mean: over `count` runs.
        sd: sample standard deviation (n - 1); None for a single run.
        count: the runs that have a value.
    """

    mean: float
    sd: float | None
    count: int


@dataclass(frozen=True)
class Result:
    """The row of a group; None stands for what no run has recorded.

    Args:
        name: of the group.
        seeds: of its runs, in their order.
        num_done: the runs that reached their end.
        final_test_error_pct: at the last validation.
        best_test_error_pct: at the best validation.
        final_train_error_pct: mean over the last epoch's training batches.
        final_ema_error_pct: of the averaged weights, at the last validation.
        num_parameters: of the network.
        num_macs: multiply-adds per image.
        images_per_s: mean over the runs of each one's whole training.
        data_wait_pct: the same, of the time spent waiting for data.
        epochs: of each run that is counted, in their order.
        states: of the runs that are not done, in words.
    """

    name: str
    seeds: tuple[str, ...]
    num_done: int
    final_test_error_pct: Statistic | None
    best_test_error_pct: Statistic | None
    final_train_error_pct: Statistic | None
    final_ema_error_pct: Statistic | None
    num_parameters: int | None
    num_macs: int | None
    images_per_s: float | None
    data_wait_pct: float | None
    epochs: tuple[int, ...]
    states: tuple[str, ...]


def summarise(group: Group) -> Result:
    """Return the numbers of a group.

    Errors are those of the runs that are done; where none is, of all runs as far as they are.
    """
    done = [run for run in group.runs if run.is_done]
    counted = done or list(group.runs)
    return Result(
        name=group.name,
        seeds=tuple(run.seed for run in group.runs),
        num_done=len(done),
        final_test_error_pct=_statistic([_final_test_error_pct(run) for run in counted]),
        best_test_error_pct=_statistic([_best_test_error_pct(run) for run in counted]),
        final_train_error_pct=_statistic([_last(run, "train_error_pct") for run in counted]),
        final_ema_error_pct=_statistic([_last(run, "ema_error_pct") for run in counted]),
        num_parameters=_recorded(group.runs, "num_parameters"),
        num_macs=_recorded(group.runs, "num_macs"),
        images_per_s=_mean([run.images_per_s for run in group.runs]),
        data_wait_pct=_mean([run.data_wait_pct for run in group.runs]),
        epochs=tuple(run.epochs_done for run in counted),
        states=tuple(_state(run, group) for run in group.runs if not run.is_done),
    )


def _last(run: Run, name: CurveName) -> float | None:
    curve = run.curves[name]
    return curve[max(curve)] if curve else None


def _final_test_error_pct(run: Run) -> float | None:
    top1 = run.summary.get("val_top1")
    logged = _last(run, "test_error_pct")
    return 100 * (1 - top1) if logged is None and top1 is not None else logged


def _best_test_error_pct(run: Run) -> float | None:
    errors = list(run.curves["test_error_pct"].values())
    top1 = run.summary.get("best_val_top1")
    return min([*errors, 100 * (1 - top1)] if top1 is not None else errors, default=None)


def _recorded(runs: Sequence[Run], key: str) -> int | None:
    return next((int(run.summary[key]) for run in runs if run.summary.get(key)), None)


def _state(run: Run, group: Group) -> str:
    return run.state if len(group.runs) == 1 else f"seed {run.seed}: {run.state}"


def _statistic(values: Sequence[float | None]) -> Statistic | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    sd = statistics.stdev(known) if len(known) > 1 else None
    return Statistic(statistics.fmean(known), sd, len(known))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
