"""Measures and logs training: loss, top-1, rate, waiting; counts damaged samples; stops on NaN.

Values are read from the device once per logging interval, in one collective; between, nothing
waits.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, distributed

from resscale.data.dataset import Batch
from resscale.errors import TrainingStopped
from resscale.training.classifier import ImageClassifier
from resscale.training.position import Position
from resscale.training.rundir import RunDir

# Damaged samples that a message names; the ledger has them all.
_NAMED = 20


class Monitor(Callback):
    """Logs a row every `trainer.log_every_n_steps` optimizer steps and one per evaluation.

    Attributes:
        latest: the newest values by column name, for progress displays.
        bad_samples: damaged samples over all ranks in this process's life.
    """

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}
        self.bad_samples = 0
        self.trained_samples = 0
        self.trained_s = 0.0
        self._bad_here = 0
        self._bad_in_epoch = 0
        self._lr = 0.0
        self._started = 0.0
        self._wait_before = 0.0
        self._step_before = 0

    @property
    def images_per_s(self) -> float:
        """Global training rate over this process's life, evaluation left out."""
        return self.trained_samples / self.trained_s if self.trained_s else 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin an interval."""
        self._bad_in_epoch = 0
        self._begin(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin an interval: a run resumed in mid-epoch has no epoch start."""
        self._begin(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the evaluation's row; its time is not training's."""
        if trainer.sanity_checking or (not trainer.training and not trainer.validating):
            return
        values = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        self.latest.update(values)
        _log(trainer, values)
        self._begin(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Remember the rate that this step uses: behind it, the schedule has moved on."""
        self._lr = float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Note damaged samples; log where an interval ends."""
        if batch["bad"]:
            self._note_bad(trainer, batch)
        position = Position.of(trainer)
        last = position.at_epoch_start
        interval = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set at run time
        due = trainer.global_step % max(1, interval) == 0
        if position.is_step_boundary and (due or last):
            self._log_interval(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what an epoch cut short (`trainer.max_steps`) has left over."""
        if trainer.global_step > self._step_before:
            self._log_interval(trainer, pl_module)

    def _log_interval(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ImageClassifier), "only it keeps the sums that are logged"
        data = trainer.datamodule  # type: ignore[attr-defined]
        elapsed = time.perf_counter() - self._started
        steps = trainer.global_step - self._step_before
        samples = steps * data.global_batch_size
        local = torch.cat(
            [
                pl_module.take_sums(),
                torch.tensor([self._bad_here, data.wait_s - self._wait_before]).double(),
            ]
        )
        loss, correct, rows, bad, wait_s = _sum_over_ranks(local, trainer).tolist()
        self._bad_here = 0
        self.bad_samples += int(bad)
        self._bad_in_epoch += int(bad)
        self.trained_samples += samples
        self.trained_s += elapsed
        self.latest.update(
            {
                "train/loss": loss / max(1.0, rows),
                "train/top1": correct / max(1.0, rows),
                "lr": self._lr,
                "images_per_s": samples / elapsed if elapsed else 0.0,
                "data_wait": min(1.0, wait_s / trainer.world_size / elapsed) if elapsed else 0.0,
            }
        )
        names = ("train/loss", "train/top1", "lr", "images_per_s", "data_wait")
        _log(trainer, {name: self.latest[name] for name in names})
        self._begin(trainer)
        # Every rank has the same sums, so every rank stops at the same step.
        self._check_loss(trainer)
        self._check_budget(trainer)

    def _begin(self, trainer: Trainer) -> None:
        self._started = time.perf_counter()
        self._wait_before = trainer.datamodule.wait_s  # type: ignore[attr-defined]
        self._step_before = trainer.global_step

    def _note_bad(self, trainer: Trainer, batch: Batch) -> None:
        self._bad_here += len(batch["bad"])
        run = RunDir(trainer.default_root_dir)
        for sample in batch["bad"]:
            run.append_event(
                "bad_sample",
                rank=trainer.global_rank,
                epoch=batch["epoch"],
                step=batch["step"],
                **sample._asdict(),
            )

    def _check_loss(self, trainer: Trainer) -> None:
        if not math.isfinite(self.latest["train/loss"]):
            raise TrainingStopped(
                f"the loss is {self.latest['train/loss']} at step {trainer.global_step}: training "
                f"has diverged. Lower model.optimizer.lr or lengthen model.schedule.warmup_epochs, "
                f"then go on from an earlier checkpoint."
            )

    def _check_budget(self, trainer: Trainer) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        budget = data.max_bad_fraction * data.manifest("train").num_samples
        if self._bad_in_epoch > budget:
            run = RunDir(trainer.default_root_dir)
            raise TrainingStopped(
                f"{self._bad_in_epoch} damaged samples in this epoch, more than "
                f"data.max_bad_fraction={data.max_bad_fraction:g} of "
                f"{data.manifest('train').num_samples} allows: {_name_bad(run)} (listed with their "
                f"shards and reasons in {run.events}). Mend or pack the data again, or raise the "
                f"fraction."
            )


def _name_bad(run: RunDir) -> str:
    """Return the keys of the newest damaged samples in the ledger, of all ranks."""
    keys = [str(line["key"]) for line in run.read_events("bad_sample")]
    shown = ", ".join(keys[-_NAMED:])
    return f"... {shown}" if len(keys) > _NAMED else shown


def _sum_over_ranks(values: Tensor, trainer: Trainer) -> Tensor:
    """Sum a float64 host tensor over the ranks."""
    if trainer.world_size == 1:
        return values
    moved = values.to(trainer.strategy.root_device)
    distributed.all_reduce(moved)
    return moved.cpu()


def _log(trainer: Trainer, values: dict[str, float]) -> None:
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        logger.log_metrics({**values, "epoch": trainer.current_epoch}, step=trainer.global_step)
