"""Writes the run directory: the tables of metrics and speed, the summary, the sample log."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from resscale.data.dataset import Batch
from resscale.errors import Preempted, TrainingStopped
from resscale.training.monitor import Monitor
from resscale.training.position import Position
from resscale.training.rundir import RunDir, append_line

_SPEED = "speed/"


class MetricsTable(Logger):
    """A Lightning logger that appends to `metrics.csv` and `speed.csv`, over restarts too.

    Args:
        run: the run directory.
    """

    def __init__(self, run: RunDir) -> None:
        super().__init__()
        self.run = run

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "metrics"

    @property
    def version(self) -> str:
        """The run's id."""
        return self.run.path.name

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row to each table that it has values of."""
        if any("/" in name or name == "lr" for name in metrics):
            self.run.append_metrics({**metrics, "step": step})
        speed = {
            name.removeprefix(_SPEED): value
            for name, value in metrics.items()
            if name.startswith(_SPEED)
        }
        if speed:
            self.run.append_speed({**speed, "epoch": metrics.get("epoch"), "step": step})

    def log_hyperparams(
        self,
        params: dict[str, Any] | Namespace,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Nothing to do: `config.yaml` holds them."""


class SampleLog(Callback):
    """Writes the ids of each consumed batch to `samples/rank-<r>.jsonl`."""

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Append one line."""
        ids = batch["id"].numpy().tolist()
        line = {"epoch": batch["epoch"], "step": batch["step"], "ids": ids}
        path = RunDir(trainer.default_root_dir).samples(trainer.global_rank)
        append_line(path, json.dumps(line))


class Recorder(Callback):
    """Keeps `summary.json` true from the first step to the end, however the run ends.

    Args:
        monitor: knows the newest values.
        command: the command line of this process.
        resumed_from: the checkpoint that training goes on from, if any.
    """

    def __init__(self, monitor: Monitor, command: str, resumed_from: Path | None = None) -> None:
        self.monitor = monitor
        self.command = command
        self.resumed_from = resumed_from
        self._best_top1: float | None = None
        self._bad_before = 0
        self._begun = False
        self._num_macs: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cut the run directory back to the checkpoint, and say that the run is under way."""
        run = RunDir(trainer.default_root_dir)
        self._begun = True
        if trainer.is_global_zero:
            before = run.read_summary()
            data = trainer.datamodule  # type: ignore[attr-defined]
            # Also to nothing: a start that was killed before its first checkpoint has logged steps.
            position = Position.of(trainer)
            step = trainer.global_step % position.steps_per_epoch
            run.cut_back(position.epoch, step, trainer.global_step)
            self._num_macs = pl_module.num_macs(data.train_crop.size)  # type: ignore[operator]
            if self.resumed_from is not None:
                self._bad_before = int(before.get("bad_samples", 0))
                self._best_top1 = before.get("best_val_top1")
                run.append_event("resumed", path=str(self.resumed_from), step=trainer.global_step)
            self._write(trainer, pl_module, "running")
        # No rank may log a sample before the old logs are cut back.
        trainer.strategy.barrier("recorder")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the accuracy."""
        if not trainer.sanity_checking and trainer.is_global_zero:
            top1 = self.monitor.latest.get("val/top1")
            if top1 is not None:
                self._best_top1 = max(top1, self._best_top1 or 0.0)
            if trainer.state.fn == "fit":
                self._write(trainer, pl_module, "running")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the run is done."""
        if trainer.is_global_zero:
            self._write(trainer, pl_module, "done")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Note how the run ended."""
        # What fails before training has begun leaves the record of the run as it was.
        if not trainer.is_global_zero or not self._begun:
            return
        status = "failed"
        if isinstance(exception, Preempted):
            status = "preempted"
        elif isinstance(exception, TrainingStopped):
            status = "stopped"
        reason = str(exception) or repr(exception)
        if isinstance(exception, KeyboardInterrupt):
            # Ended on purpose, without a checkpoint of its own: the newest is there to go on from.
            status, reason = "stopped", "given up by the user (Ctrl-C)"
        self._write(trainer, pl_module, status, reason=reason)

    def _write(
        self, trainer: Trainer, pl_module: LightningModule, status: str, **more: str
    ) -> None:
        run = RunDir(trainer.default_root_dir)
        latest = self.monitor.latest
        before = run.read_summary()
        data = trainer.datamodule  # type: ignore[attr-defined]
        facts = {
            "status": status,
            "epoch": trainer.current_epoch,
            "global_step": trainer.global_step,
            "samples_seen": trainer.global_step * data.global_batch_size,
            "val_top1": latest.get("val/top1", before.get("val_top1")),
            "val_top5": latest.get("val/top5", before.get("val_top5")),
            "best_val_top1": self._best_top1,
            **_counts(latest, before),
            **self.monitor.summary(),
            "num_parameters": pl_module.num_parameters,
            "num_macs": self._num_macs,
            "world_size": trainer.world_size,
            "decoder": data.decoder_name,
            "command": self.command,
            "resumed_from": str(self.resumed_from) if self.resumed_from else None,
            "bad_samples": self._bad_before + self.monitor.bad_samples,
            **more,
        }
        # Beside the accuracy that was measured with it: a resume may have dropped the average.
        measured = latest.get("val/ema_top1")
        ema_top1 = measured if "val/top1" in latest else before.get("val_ema_top1")
        if ema_top1 is not None:
            facts["val_ema_top1"] = ema_top1
        run.write_summary(facts)
        if status != "running":
            run.append_event("ended", status=status, step=trainer.global_step)


def _counts(latest: dict[str, float], before: dict[str, Any]) -> dict[str, int]:
    """Return what the newest evaluation visited: unique samples, rows of padding, damaged ones."""
    counts = {}
    for name in ("samples", "masked", "bad"):
        value = latest.get(f"val/{name}", before.get(f"val_{name}"))
        if value is not None:
            counts[f"val_{name}"] = int(value)
    return counts
