"""Trains for some seconds and says how fast it went, and how long it waited for batches."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback

from resscale.bench.peaks import wait_for

# The first steps start readers, compile and choose kernels.
_WARM_UP_STEPS = 3


class TimedFit(Callback):
    """Times a training's steps behind its first few, and stops it.

    Args:
        rows: images of a step.
        seconds: how long, but at least two steps.
    """

    def __init__(self, rows: int, seconds: float) -> None:
        self.rows = rows
        self.seconds = seconds
        self.images_per_s = 0.0
        self.data_wait = 0.0
        self._steps = 0
        self._started_s = 0.0
        self._waited_s = 0.0

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Begin the clock, or read it."""
        self._steps += 1
        timed = self._steps - _WARM_UP_STEPS
        if timed < 0:
            return
        if timed == 0:
            wait_for(trainer.strategy.root_device)
            self._started_s, self._waited_s = time.perf_counter(), trainer.datamodule.wait_s
            return
        if timed < 2 or time.perf_counter() - self._started_s < self.seconds:
            return
        wait_for(trainer.strategy.root_device)
        elapsed_s = time.perf_counter() - self._started_s
        self.images_per_s = timed * self.rows / elapsed_s
        self.data_wait = (trainer.datamodule.wait_s - self._waited_s) / elapsed_s
        trainer.should_stop = True
