"""Holds ranks at one point of training, so that a test can do something to them just there.

Named by `--trainer.callbacks+=brake.Brake` of the real command.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

# Added to the number of steps done: where in between a rank stands.
SAVING = 0.25
VALIDATING = 0.5
_POLL_S = 0.05


class Brake(Callback):
    """Waits at the first point that is not before the number in `limit`.

    The rank writes `held-<rank>` then: the point, and how often SLURM had requeued the job.

    Args:
        folder: where `limit` stands; where it does not, nobody is held.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._hold(trainer, 0)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *arguments: Any
    ) -> None:
        self._hold(trainer, VALIDATING)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._hold(trainer, SAVING)

    def _hold(self, trainer: Trainer, part: float) -> None:
        point = trainer.global_step + part
        if point < self._limit():
            return
        restart = os.environ.get("SLURM_RESTART_COUNT", "0")
        target = self.folder / f"held-{trainer.global_rank}"
        temporary = target.with_suffix(".tmp")
        temporary.write_text(f"{point} {restart}")
        temporary.replace(target)
        while point >= self._limit():
            time.sleep(_POLL_S)

    def _limit(self) -> float:
        try:
            return float((self.folder / "limit").read_text())
        except FileNotFoundError:
            return float("inf")
