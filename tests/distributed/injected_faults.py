"""Faults for one rank, named by `--trainer.callbacks+=...` of the real command."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from resscale.data.buffers import PixelBuffers
from resscale.data.dataset import BatchRequest, OpenBatch, ShardDataset


class Fault(Callback):
    """Does something bad to one rank at one step.

    Args:
        kind: what.
        rank: to whom.
        step: when, in optimizer steps done.
    """

    def __init__(self, kind: str, rank: int = 1, step: int = 3) -> None:
        self.kind = kind
        self.rank = rank
        self.step = step

    def _is_due(self, trainer: Trainer, kind: str) -> bool:
        here = (self.kind, self.rank, self.step)
        return here == (kind, trainer.global_rank, trainer.global_step)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.kind == "die early" and trainer.global_rank == self.rank:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.kind == "stuck read" and trainer.global_rank == self.rank:
            loader = trainer.datamodule._train_loader  # type: ignore[attr-defined]
            loader.dataset.__class__ = StuckDataset

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._is_due(trainer, "raise"):
            raise ArithmeticError("the injected error")

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        if self._is_due(trainer, "kill"):
            os.kill(os.getpid(), signal.SIGKILL)


class StuckDataset(ShardDataset):
    """Reads some batches and then hangs, as a network file system does."""

    def open_batch(self, request: BatchRequest, buffers: PixelBuffers | None = None) -> StuckBatch:
        return StuckBatch(self, request, buffers)


class StuckBatch(OpenBatch):
    """Hangs in a later step, in whatever process or thread reads it."""

    def read(self, start: int, stop: int) -> None:
        if self._request.step == 3:
            time.sleep(600)  # the injected hang
        super().read(start, stop)
