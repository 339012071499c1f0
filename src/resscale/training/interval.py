"""What ranks tell each other at the end of a logging interval, in one collective."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from torch import distributed

from resscale.training.guard import NonFinite, pack_nonfinite, unpack_nonfinite


@dataclass(frozen=True)
class RankSums:
    """What one rank measured in an interval.

    Args:
        loss: sum of loss × samples.
        correct: right answers.
        rows: samples.
        bad: damaged samples.
        wait_s: seconds that training waited for batches.
        own_s: seconds per step that the rank needs by itself, not waiting for others.
        memory_bytes: see `read_memory_bytes`.
    """

    loss: float
    correct: float
    rows: float
    bad: float
    wait_s: float
    own_s: float
    memory_bytes: float


@dataclass(frozen=True)
class Interval:
    """What all ranks measured in an interval; every rank has the same.

    Args:
        ranks: by rank.
        nonfinite_count: losses that were not finite, over all ranks.
        nonfinite: the first of them from each rank.
    """

    ranks: tuple[RankSums, ...]
    nonfinite_count: int
    nonfinite: tuple[NonFinite, ...]

    def total(self, name: str) -> float:
        """Return the sum of a field of `RankSums` over the ranks."""
        return float(sum(getattr(rank, name) for rank in self.ranks))

    @property
    def mean_loss(self) -> float:
        """Over all samples."""
        return self.total("loss") / max(1.0, self.total("rows"))

    @property
    def top1(self) -> float:
        """Share of right answers."""
        return self.total("correct") / max(1.0, self.total("rows"))

    @property
    def memory_bytes(self) -> int:
        """Of the rank with the most."""
        return int(max(rank.memory_bytes for rank in self.ranks))


def exchange(sums: RankSums, nonfinite: Sequence[NonFinite], trainer: Trainer) -> Interval:
    """Give this rank's measurements and return those of all ranks; every rank must call it."""
    own = [*(getattr(sums, field.name) for field in fields(sums)), *pack_nonfinite(nonfinite)]
    return read_rows(_gather_rows(own, trainer))


def read_rows(rows: Sequence[Sequence[float]]) -> Interval:
    """Return the interval of what the ranks gave, a row of numbers each."""
    width = len(fields(RankSums))
    unpacked = [unpack_nonfinite(row[width:], rank) for rank, row in enumerate(rows)]
    return Interval(
        tuple(RankSums(*row[:width]) for row in rows),
        sum(count for count, _ in unpacked),
        tuple(entry for _, found in unpacked for entry in found),
    )


def gather_hosts(world_size: int) -> list[str]:
    """Return each rank's host name, by rank; every rank must call it."""
    hosts = [socket.gethostname()]
    if world_size == 1:
        return hosts
    gathered: list[str] = [""] * world_size
    distributed.all_gather_object(gathered, hosts[0])
    return gathered


def read_memory_bytes(device: torch.device) -> int:
    """Return the most bytes that tensors took on a GPU, or the process's resident set; 0: unknown.

    Args:
        device: where training runs.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        # Pages: whole size, resident, ...
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _gather_rows(values: list[float], trainer: Trainer) -> list[list[float]]:
    """Return each rank's values, by rank."""
    if trainer.world_size == 1:
        return [values]
    own = torch.tensor(values, dtype=torch.float64, device=trainer.strategy.root_device)
    rows = own.new_empty(trainer.world_size * len(values))
    distributed.all_gather(list(rows.chunk(trainer.world_size)), own)
    gathered: list[list[float]] = rows.view(trainer.world_size, len(values)).tolist()
    return gathered
