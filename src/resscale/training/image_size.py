"""Says when training images change their size."""

from __future__ import annotations

import sys

from lightning.pytorch import Callback, LightningModule, Trainer

from resscale.data.datamodule import ShardDataModule
from resscale.training.position import Position


class ImageSizeReport(Callback):
    """Prints a line at each epoch whose images are larger than before, and where a run goes on."""

    def __init__(self) -> None:
        self._size = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say the size that a run goes on with: one that is resumed in mid-epoch has no start."""
        data = _growing(trainer)
        if data is None:
            return
        epoch = Position.of(trainer).epoch
        self._size = data.size_at(epoch)
        if trainer.global_step:
            _say(trainer, epoch, self._size)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say a new size."""
        data = _growing(trainer)
        if data is None:
            return
        size = data.size_at(trainer.current_epoch)
        if size != self._size:
            self._size = size
            _say(trainer, trainer.current_epoch, size)


def _growing(trainer: Trainer) -> ShardDataModule | None:
    """Return the data if its images grow."""
    data = trainer.datamodule  # type: ignore[attr-defined]  # set at run time
    grows = isinstance(data, ShardDataModule) and len(data.train_sizes.all) > 1
    return data if grows else None


def _say(trainer: Trainer, epoch: int, size: int) -> None:
    if trainer.is_global_zero:
        line = f"epoch {epoch + 1}: training images are {size}x{size} from here on"
        print(line, file=sys.stderr, flush=True)
