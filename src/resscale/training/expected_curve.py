"""The learning curve that a recipe promises, and a warning where a run falls off it."""

from __future__ import annotations

import csv
import math
import sys
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from resscale.errors import UserInputError
from resscale.training.rundir import RunDir

# One evaluation at a high learning rate may lie 20 points below its neighbours, in sound runs too.
WINDOW = 3


@dataclass(frozen=True)
class ExpectedCurve:
    """Top-1 that a run should have reached by certain epochs; between them, on straight lines.

    Args:
        top1: epochs completed, and top-1 (a fraction) on the validation set by then.
        tolerance: how far below a run may be, as a fraction: 0.03 is three points.
        source: where the numbers come from.

    Raises:
        UserInputError: an epoch or an accuracy that cannot be.
    """

    top1: dict[float, float] = field(default_factory=dict)
    tolerance: float = 0.03
    source: str = ""

    def __post_init__(self) -> None:
        # A saved configuration has been JSON, whose keys are texts.
        points = {_number(epoch): _number(top1) for epoch, top1 in self.top1.items()}
        object.__setattr__(self, "top1", points)
        for epoch, top1 in self.top1.items():
            if epoch <= 0 or not 0 <= top1 <= 1:
                raise UserInputError(
                    f"expected.top1 has {top1:g} for epoch {epoch:g}; epochs must be above 0, and "
                    f"accuracies fractions from 0 to 1, such as 0.761."
                )
        if not 0 <= self.tolerance < 1:
            raise UserInputError(
                f"expected.tolerance={self.tolerance:g} must be a fraction from 0 up to 1, such as "
                f"0.03 for three points."
            )

    def at(self, epoch: float) -> float | None:
        """Return the expected top-1 after `epoch` epochs; None before the first that is known.

        Args:
            epoch: epochs completed; behind the last that is known, its value holds.
        """
        points = sorted(self.top1.items())
        if not points or epoch < points[0][0]:
            return None
        for (left, low), (right, high) in pairwise(points):
            if epoch <= right:
                return low + (high - low) * (epoch - left) / (right - left)
        return points[-1][1]


def _number(value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        raise UserInputError(
            f"expected.top1 has {value!r}, which is no number; it maps epochs to accuracies, such "
            f"as {{90: 0.761}}."
        ) from None


def shortfall(newest: list[float], expected: float | None, tolerance: float) -> float | None:
    """Return how far a run lies below its curve; None where it does not, or too little is known.

    Args:
        newest: top-1 of the newest evaluations, at most `WINDOW`; the best of them counts.
        expected: top-1 of the curve; None where it says nothing.
        tolerance: how far below is no matter.
    """
    if expected is None or not newest:
        return None
    below = expected - max(newest)
    return below if below > tolerance or math.isnan(below) else None


def newest_evaluations(metrics: Path) -> list[tuple[int, float]]:
    """Return (optimizer step, top-1) of the last `WINDOW` evaluations in a metrics table.

    Args:
        metrics: `metrics.csv` of a run; none of the file is none of them.
    """
    if not metrics.exists():
        return []
    found = []
    with metrics.open(newline="") as file:
        for row in csv.DictReader(file):
            reached = [row[name] for name in ("val/top1", "val/ema_top1") if row.get(name)]
            if reached:
                found.append((int(row["step"]), max(map(float, reached))))
    return found[-WINDOW:]


def _steps_per_epoch(trainer: Trainer) -> float:
    return max(1.0, trainer.num_training_batches / trainer.accumulate_grad_batches)


class CurveWatch(Callback):
    """Warns once, on the console and in the ledger, each time a run falls off its curve.

    The better one of raw and averaged weights counts, and the best of the last `WINDOW`
    evaluations.

    Args:
        curve: what is expected.
    """

    def __init__(self, curve: ExpectedCurve) -> None:
        self.curve = curve
        self._newest: deque[float] = deque(maxlen=WINDOW)
        self._is_off = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up the evaluations of earlier starts, so that a resume changes no verdict."""
        found = newest_evaluations(RunDir(trainer.default_root_dir).metrics)
        self._newest = deque((top1 for _, top1 in found), maxlen=WINDOW)
        expected = self.curve.at(found[-1][0] / _steps_per_epoch(trainer)) if found else None
        self._is_off = shortfall(list(self._newest), expected, self.curve.tolerance) is not None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the newest evaluation."""
        if trainer.sanity_checking or not trainer.is_global_zero or trainer.state.fn != "fit":
            return
        found = [
            float(trainer.callback_metrics[name])
            for name in ("val/top1", "val/ema_top1")
            if name in trainer.callback_metrics
        ]
        if not found:
            return
        self._newest.append(max(found))
        epoch = trainer.global_step / _steps_per_epoch(trainer)
        expected = self.curve.at(epoch)
        below = shortfall(list(self._newest), expected, self.curve.tolerance)
        if below is not None and not self._is_off:
            assert expected is not None
            self._tell(trainer, epoch, expected)
        self._is_off = below is not None

    def _tell(self, trainer: Trainer, epoch: float, expected: float) -> None:
        top1 = max(self._newest)
        RunDir(trainer.default_root_dir).append_event(
            "off_curve",
            epoch=round(epoch, 3),
            top1=top1,
            expected_top1=expected,
            tolerance=self.curve.tolerance,
            global_step=trainer.global_step,
        )
        source = f" ({self.curve.source})" if self.curve.source else ""
        print(
            f"off the curve: top-1 {top1:.2%} after {epoch:g} epochs, the best of the last "
            f"{len(self._newest)} evaluations; {expected:.2%} is expected{source}, and "
            f"{self.curve.tolerance:.2%} below it is let pass. Compare learning rate, global batch "
            f"and data with the recipe's.",
            file=sys.stderr,
            flush=True,
        )
