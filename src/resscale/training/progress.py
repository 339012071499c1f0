"""Progress: a bar in a terminal, plain lines elsewhere, so that log files stay readable."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from resscale.data.datamodule import ShardDataModule
from resscale.training.eta import Course, Pace, describe_end, left_s
from resscale.training.monitor import Monitor
from resscale.training.rank_log import keep_copying, write_to_log

_COLUMNS = 80
# The end is worked out at most so often: a bar is told of every batch.
_END_EVERY_S = 1.0
# Below this, waiting for data is no news.
_WAITS = 0.05


def describe(latest: dict[str, float], leave_out: Sequence[str] = ()) -> str:
    """Return the newest values as text: loss, top-1, images/s, data-wait %.

    Args:
        latest: by column name.
        leave_out: columns that are not shown.
    """
    parts = []
    for name, form in (
        ("train/loss", "loss {:.3f}"),
        ("train/top1", "top-1 {:.1%}"),
        ("val/top1", "val {:.1%}"),
        ("val/ema_top1", "ema {:.1%}"),
        ("images_per_s", "{:,.0f} images/s"),
        ("data_wait", "data-wait {:.0%}"),
    ):
        if name in latest and name not in leave_out:
            parts.append(form.format(latest[name]))
    return "  ".join(parts)


def epoch_line(epoch: str, latest: dict[str, float], end: str) -> str:
    """Return an epoch's line, short enough for 80 columns where the end of training is known.

    What says least is left out until it fits: a wait for data that is none, then the accuracy on
    training images, then the wait, then the rate. `metrics.csv` has all of them.

    Args:
        epoch: which.
        latest: the newest values by column name.
        end: when training ends, or "".
    """
    waits = latest.get("data_wait", 0.0) >= _WAITS
    drops = ("train/top1", "data_wait") if waits else ("data_wait", "train/top1")
    for count in range(4):
        left_out = (*drops, "images_per_s")[:count]
        line = "  ".join(filter(None, (epoch, describe(latest, left_out), end)))
        if not end or len(line) <= _COLUMNS:
            break
    return line


class ProgressDisplay(Callback):
    """Shows where training stands, on rank 0, to stderr.

    Args:
        monitor: knows the newest values.
        line_every_s: seconds between plain lines, where stderr is no terminal.
    """

    def __init__(self, monitor: Monitor, line_every_s: float = 10.0) -> None:
        self.monitor = monitor
        self.line_every_s = line_every_s
        self._console = Console(file=sys.stderr)
        self._bar: Progress | None = None
        self._task: Any = None
        self._printed = 0.0
        self._pace = Pace()
        # When the end was worked out, and what it came to.
        self._end: tuple[float, float | None] = (-math.inf, None)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        if trainer.is_global_zero and self._console.is_terminal:
            wide = self._console.width >= 120
            self._bar = Progress(
                TextColumn("{task.description}"),
                # In 80 columns the values matter more than the bar.
                *([BarColumn(bar_width=24)] if wide else []),
                MofNCompleteColumn(),
                *([TextColumn("{task.fields[end]}")] if wide else []),
                TextColumn("{task.fields[values]}"),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=None, values="", end="")
            before = (sys.stdout, sys.stderr)
            self._bar.start()
            keep_copying(before)
        self._printed = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Move on."""
        if not trainer.is_global_zero:
            return
        total = int(trainer.num_training_batches)
        done = batch_idx + 1
        now_s = time.monotonic()
        course = course_of(trainer)
        self._pace.note_batch(now_s, course.work_of(trainer.current_epoch * total + batch_idx))
        is_due = now_s - self._printed >= self.line_every_s
        if is_due or now_s - self._end[0] >= _END_EVERY_S:
            # The evaluation behind this batch, if there is one, is still to come.
            self._work_out_end(trainer, course, done, evaluated=batch_idx)
        if self._bar is not None:
            # rich redraws ten times a second, whatever the rate of updates.
            self._bar.update(
                self._task,
                description=_epoch(trainer),
                completed=done,
                total=total,
                values=describe(self.monitor.latest),
                end=self._describe_end(with_clock=True),
            )
        if is_due:
            values, end = describe(self.monitor.latest), self._describe_end(with_clock=True)
            self._line("  ".join(filter(None, (_epoch(trainer), f"{done}/{total}", values, end))))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop training's clock."""
        self._pace.begin_evaluation(time.monotonic())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what the evaluation took: as many others will take as long."""
        self._pace.end_evaluation(time.monotonic())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave one line per epoch behind."""
        if trainer.is_global_zero:
            total = int(trainer.num_training_batches)
            self._work_out_end(trainer, course_of(trainer), total, evaluated=total)
            text = epoch_line(_epoch(trainer), self.monitor.latest, self._describe_end())
            if self._bar is not None:
                self._bar.console.print(text, highlight=False)
            self._line(text)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Close the bar."""
        self._close()

    def _work_out_end(self, trainer: Trainer, course: Course, done: int, evaluated: int) -> None:
        """Work out when training ends.

        Args:
            trainer: the trainer.
            course: of its training.
            done: batches of this epoch that are done.
            evaluated: those whose evaluations are done.
        """
        before = trainer.current_epoch * course.batches_per_epoch
        left = left_s(
            self._pace, course, before + done, before + evaluated, _evaluation_work(trainer)
        )
        self._end = (time.monotonic(), left)

    def _describe_end(self, *, with_clock: bool = False) -> str:
        left = self._end[1]
        if not left:
            return ""
        return describe_end(left, datetime.now() if with_clock else None)

    def _line(self, text: str) -> None:
        """Say where training stands in a line: beside a bar, in the rank's file alone."""
        if self._bar is None:
            print(text, file=sys.stderr, flush=True)
        else:
            write_to_log(text)
        self._printed = time.monotonic()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _epoch(trainer: Trainer) -> str:
    return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"


def course_of(trainer: Trainer) -> Course:
    """Return what a trainer that is fitting will do, in batches of this rank.

    Args:
        trainer: with its loaders set up.
    """
    per_epoch = max(1, int(trainer.num_training_batches))
    last = (trainer.max_epochs or 1) * per_epoch
    if trainer.max_steps > 0:
        last = min(last, trainer.max_steps * trainer.accumulate_grad_batches)
    every = trainer.val_check_batch
    if every is None or math.isinf(every) or not trainer.enable_validation:
        every = None
    return Course(
        batches_per_epoch=per_epoch,
        last_batch=last,
        size_at=lambda epoch: _size_at(trainer, epoch),
        check_every_batches=None if every is None else max(1, int(every)),
        check_every_epochs=trainer.check_val_every_n_epoch,
    )


def _size_at(trainer: Trainer, epoch: int) -> int:
    """Return the side of an epoch's training images; without a data module of ours, all are 1."""
    data = trainer.datamodule  # type: ignore[attr-defined]  # set at run time
    return data.size_at(epoch) if isinstance(data, ShardDataModule) else 1


def _evaluation_work(trainer: Trainer) -> float:
    """Return what an evaluation costs in training batches' unit: images of either, their pixels."""
    data = trainer.datamodule  # type: ignore[attr-defined]  # set at run time
    if not isinstance(data, ShardDataModule) or data.locations["val"] is None:
        return 0.0
    world_size = trainer.world_size
    batch = data.plan(world_size).micro_batch_size * world_size
    return data.manifest("val").num_samples / batch * data.eval_crop.size**2
