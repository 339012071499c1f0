"""Progress: a bar in a terminal, plain lines elsewhere, so that log files stay readable."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from resscale.training.monitor import Monitor
from resscale.training.rank_log import keep_copying, write_to_log


def describe(latest: dict[str, float]) -> str:
    """Return the newest values as text: loss, top-1, images/s, data-wait %."""
    parts = []
    for name, form in (
        ("train/loss", "loss {:.3f}"),
        ("train/top1", "top-1 {:.1%}"),
        ("val/top1", "val {:.1%}"),
        ("val/ema_top1", "ema {:.1%}"),
        ("images_per_s", "{:,.0f} images/s"),
        ("data_wait", "data-wait {:.0%}"),
    ):
        if name in latest:
            parts.append(form.format(latest[name]))
    return "  ".join(parts)


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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        if trainer.is_global_zero and self._console.is_terminal:
            wide = self._console.width >= 120
            self._bar = Progress(
                TextColumn("{task.description}"),
                # In 80 columns the values matter more than the bar.
                *([BarColumn(bar_width=24)] if wide else []),
                MofNCompleteColumn(),
                *([TimeRemainingColumn(compact=True)] if wide else []),
                TextColumn("{task.fields[values]}"),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=None, values="")
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
        if self._bar is not None:
            # rich redraws ten times a second, whatever the rate of updates.
            self._bar.update(
                self._task,
                description=_epoch(trainer),
                completed=done,
                total=total,
                values=describe(self.monitor.latest),
            )
        if time.monotonic() - self._printed >= self.line_every_s:
            self._line(f"{_epoch(trainer)}  {done}/{total}  {describe(self.monitor.latest)}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave one line per epoch behind."""
        if trainer.is_global_zero:
            text = f"{_epoch(trainer)}  {describe(self.monitor.latest)}"
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
