"""Says at the end of each epoch what was read from servers and from the cache."""

from __future__ import annotations

import sys
from dataclasses import asdict, astuple
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from resscale.data.remote_counts import ReadCounts
from resscale.training.rundir import RunDir


def describe_reading(read: ReadCounts) -> str:
    """Return counts as one line: bytes, requests, tries again, share of the cache."""
    samples = read.hits + read.direct
    cached = f", {read.hits / samples:.1%} of the samples from the cache" if samples else ""
    return (
        f"read {read.bytes / 1e6:,.1f} MB from servers in {read.requests:,} requests, "
        f"{read.retries:,} of them tried again{cached}"
    )


class ReadingReport(Callback):
    """Prints a line per epoch and adds a `read` event, where shards are read from servers.

    Counts are those of all ranks and their reading processes since the epoch before.
    """

    def __init__(self) -> None:
        self._before = ReadCounts()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add up over the ranks and say it."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not data.caching.is_used:
            return  # the same on all ranks
        now = data.caching.counts()
        own = torch.tensor(astuple(now - self._before), dtype=torch.float64)
        self._before = now
        total = trainer.strategy.reduce(own.to(pl_module.device), reduce_op="sum")
        read = ReadCounts(*(int(value) for value in total.tolist()))
        if trainer.is_global_zero:
            epoch = trainer.current_epoch
            print(f"epoch {epoch + 1}: {describe_reading(read)}", file=sys.stderr, flush=True)
            RunDir(trainer.default_root_dir).append_event("read", epoch=epoch, **asdict(read))
