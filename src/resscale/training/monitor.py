"""Measures and logs training: loss, top-1, rate, waiting, step times, the slowest rank, MFU.

Values are read from the device once per logging interval, and ranks exchange them in one
collective; between, nothing waits. What is found wrong there, the guards end.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from resscale.data.dataset import Batch
from resscale.errors import UserInputError
from resscale.training.classifier import ImageClassifier
from resscale.training.guard import LossTrail, NonFiniteGuard, check_bad_samples
from resscale.training.interval import Interval, RankSums, exchange, gather_hosts, read_memory_bytes
from resscale.training.loss_scale import skipped_steps
from resscale.training.partition import is_partitioned
from resscale.training.peak_flops import find_peak_flops_per_s
from resscale.training.position import Position
from resscale.training.rundir import RunDir
from resscale.training.speed import Speed
from resscale.training.throughput import CudaClock, HostClock, StepTimer


class Monitor(Callback):
    """Logs a row every `trainer.log_every_n_steps` optimizer steps and one per evaluation.

    Must come before other callbacks: what they do then counts as a step's time.

    Args:
        peak_flops_per_s: most floating-point operations per second of a rank's device, which MFU
            is a share of. None: by the device's name; unknown on a CPU, where there is no MFU.

    Attributes:
        guard: ends training at losses that are not finite.
        latest: the newest values by column name, for progress displays.
        bad_samples: damaged samples over all ranks in this process's life.
        speed: rates and step times.
    """

    def __init__(self, peak_flops_per_s: float | None = None) -> None:
        if peak_flops_per_s is not None and not peak_flops_per_s > 0:
            raise UserInputError(
                f"monitor.peak_flops_per_s={peak_flops_per_s} must be above 0: state the device's "
                f"peak (312e12 is that of an A100 in bf16), or leave it out."
            )
        self.peak_flops_per_s = peak_flops_per_s
        self.guard = NonFiniteGuard()
        self.latest: dict[str, float] = {}
        self.bad_samples = 0
        self.speed = Speed([""])
        self._skipped_steps = 0
        self._told_slow: set[int] = set()
        self._timer = StepTimer(HostClock())
        self._trail = LossTrail()
        self._forward_hook: Any = None
        self._bad_here = 0
        self._bad_in_epoch = 0
        self._lr = 0.0
        self._started = 0.0
        self._paused = 0.0
        self._wait_before = 0.0
        self._step_before = 0
        # Of the interval: none reaches over the end of an epoch.
        self._epoch = 0

    def summary(self) -> dict[str, Any]:
        """Return what `summary.json` says of this process's life."""
        return {
            **self.speed.summary(),
            "skipped_steps": self._skipped_steps,
            "nonfinite_losses": self.guard.count,
        }

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin an interval: a run resumed in mid-epoch has no epoch start."""
        device = trainer.strategy.root_device
        peak = self.peak_flops_per_s
        if device.type == "cuda":
            self._timer = StepTimer(CudaClock())
            peak = peak or find_peak_flops_per_s(torch.cuda.get_device_name(device))
        self._timer.warm_up()
        self.speed = Speed(gather_hosts(trainer.world_size), peak)
        if _forward_waits(pl_module):
            # Before the hooks that gather shares of the weights.
            self._forward_hook = pl_module.register_forward_pre_hook(
                self._note_forward, prepend=True
            )
        self._begin(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin an interval."""
        self._bad_in_epoch = 0
        self._told_slow.clear()
        self.speed.begin_epoch()
        data, epoch = trainer.datamodule, trainer.current_epoch  # type: ignore[attr-defined]
        if data.size_at(epoch) != data.size_at(max(0, epoch - 1)):
            # The first steps of a size compile and choose kernels.
            self._timer.warm_up()
        self._begin(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock: an evaluation's time is not training's."""
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the evaluation's row."""
        if trainer.sanity_checking or (not trainer.training and not trainer.validating):
            return
        values = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        self.latest.update(values)
        _log(trainer, values)
        self._started += time.perf_counter() - self._paused
        self._timer.begin()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Remember the rate that this step uses: behind it, the schedule has moved on."""
        self._lr = float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor
    ) -> None:
        """From here on this rank may wait for others, unless it already may in the forward pass."""
        if self._forward_hook is None:
            self._timer.note_own_end()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Note times, the loss and damaged samples; log where an interval ends."""
        position = Position.of(trainer)
        self._epoch = batch["epoch"]
        self._timer.end_micro_batch(is_step_boundary=position.is_step_boundary)
        self._trail.add(outputs["loss"], batch["epoch"], batch["step"])
        if batch["bad"]:
            self._note_bad(trainer, batch)
        interval = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set at run time
        due = trainer.global_step % max(1, interval) == 0
        if position.is_step_boundary and (due or position.at_epoch_start):
            self._end_interval(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what an epoch cut short (`trainer.max_steps`) has left over."""
        self._remove_hook()
        if trainer.global_step > self._step_before:
            self._end_interval(trainer, pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the module as it was."""
        self._remove_hook()

    def _end_interval(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ImageClassifier), "only it keeps the sums that are logged"
        data = trainer.datamodule  # type: ignore[attr-defined]
        elapsed_s = time.perf_counter() - self._started
        # The device is read here, and only here: behind these lines it has passed all marks.
        loss, correct, rows = pl_module.take_sums().tolist()
        nonfinite = self._trail.take(trainer.global_rank)
        times = self._timer.take(trainer.accumulate_grad_batches)
        own = RankSums(
            loss=loss,
            correct=correct,
            rows=rows,
            bad=self._bad_here,
            wait_s=data.wait_s - self._wait_before,
            own_s=times.own_s,
            memory_bytes=read_memory_bytes(trainer.strategy.root_device),
        )
        interval = exchange(own, nonfinite, trainer)
        self._bad_here = 0
        self.bad_samples += int(interval.total("bad"))
        self._bad_in_epoch += int(interval.total("bad"))
        self._skipped_steps = skipped_steps(trainer)
        samples = (trainer.global_step - self._step_before) * data.global_batch_size
        # Counting them takes a moment, so only where they are wanted.
        wanted = trainer.is_global_zero and self.speed.peak_flops_per_s
        size = data.size_at(self._epoch)
        macs = pl_module.num_macs(size) if wanted else None
        values = self.speed.add(interval, times, samples, elapsed_s, macs)
        values["speed/image_size"] = float(size)
        self._log_interval(interval, samples, elapsed_s, values, trainer)
        self._tell_slow(trainer)
        # Every rank has the same interval, so every rank stops at the same step.
        self._check(interval, trainer)
        self._begin(trainer)

    def _log_interval(
        self,
        interval: Interval,
        samples: int,
        elapsed_s: float,
        speed: dict[str, float],
        trainer: Trainer,
    ) -> None:
        waited_s = interval.total("wait_s") / trainer.world_size
        columns = {
            "train/loss": interval.mean_loss,
            "train/top1": interval.top1,
            "lr": self._lr,
            "images_per_s": samples / elapsed_s if elapsed_s else 0.0,
            "data_wait": min(1.0, waited_s / elapsed_s) if elapsed_s else 0.0,
        }
        self.latest.update(columns)
        # The table keeps its columns; TensorBoard takes all.
        _log(trainer, {**columns, **speed, "speed/skipped_steps": float(self._skipped_steps)})

    def _check(self, interval: Interval, trainer: Trainer) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        run = RunDir(trainer.default_root_dir)
        if interval.nonfinite_count:
            self.guard.note(
                interval.nonfinite_count,
                interval.nonfinite,
                order=data.order(),
                plan=data.plan(trainer.world_size),
                samples=data.samples("train"),
                steps_per_epoch=Position.of(trainer).steps_per_epoch,
                ledger=run if trainer.is_global_zero else None,
            )
            self.guard.check()
        if self._bad_in_epoch:
            num_samples = data.manifest("train").num_samples
            check_bad_samples(self._bad_in_epoch, data.max_bad_fraction, num_samples, run)

    def _begin(self, trainer: Trainer) -> None:
        self._started = time.perf_counter()
        self._wait_before = trainer.datamodule.wait_s  # type: ignore[attr-defined]
        self._step_before = trainer.global_step
        self._timer.begin()

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

    def _tell_slow(self, trainer: Trainer) -> None:
        """Tell of a rank that holds the others up: once per epoch each, on the console one."""
        slowest = self.speed.slowest
        if slowest is None or not slowest.holds_others_up or slowest.rank in self._told_slow:
            return
        first = not self._told_slow
        self._told_slow.add(slowest.rank)
        if not trainer.is_global_zero:
            return
        host = self.speed.hosts[slowest.rank]
        RunDir(trainer.default_root_dir).append_event(
            "straggler",
            rank=slowest.rank,
            host=host,
            ratio=round(slowest.ratio, 3),
            own_s=slowest.own_s,
            median_own_s=slowest.median_s,
            step_s=slowest.step_s,
            epoch=trainer.current_epoch,
            global_step=trainer.global_step,
        )
        if first:
            print(
                f"rank {slowest.rank} on {host} holds the others up: {slowest.own_s:.3g} s of its "
                f"own per step (data, callbacks, forward pass), the median rank "
                f"{slowest.median_s:.3g} s, a whole step {slowest.step_s:.3g} s.",
                file=sys.stderr,
                flush=True,
            )

    def _note_forward(self, module: nn.Module, inputs: Any) -> None:
        self._timer.note_own_end()

    def _remove_hook(self) -> None:
        if self._forward_hook is not None:
            self._forward_hook.remove()
            self._forward_hook = None


def _forward_waits(module: nn.Module) -> bool:
    """Tell whether ranks wait for each other in the forward pass: for shares of weights, or BN."""
    partitioned = any(is_partitioned(parameter) for parameter in module.parameters())
    return partitioned or any(isinstance(m, nn.SyncBatchNorm) for m in module.modules())


def _log(trainer: Trainer, values: dict[str, float]) -> None:
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        logger.log_metrics({**values, "epoch": trainer.current_epoch}, step=trainer.global_step)
