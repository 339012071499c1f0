"""Room for checkpoints on the disk: what one needs, what is free, what to say where it is short."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from resscale.errors import CheckpointError
from resscale.training.host_copy import storage_bytes
from resscale.training.partition import full_shape

# Of the archive beside the tensors: headers of a record, and the structure with the configuration.
_BYTES_PER_RECORD = 512
_BYTES_OF_STRUCTURE = 1 << 20


def needed_bytes(checkpoint: dict[str, Any]) -> int:
    """Return what a checkpoint takes on the disk, rounded up by a margin."""
    data, records = storage_bytes(checkpoint)
    return data + records * _BYTES_PER_RECORD + _BYTES_OF_STRUCTURE


def expected_bytes(module: nn.Module, optimizers: list[Optimizer], averaged: bool) -> int:
    """Return what checkpoints of a run will take each, before there is one.

    Args:
        module: the network with its buffers; under ZeRO-3 as good as whole.
        optimizers: a momentum is counted for those that have one, two moments for Adam's kin.
        averaged: averaged weights are saved too.
    """
    weights = sum(full_shape(p).numel() * p.element_size() for p in module.parameters())
    buffers = sum(b.numel() * b.element_size() for b in module.buffers())
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    kept = max((2 if "betas" in g else bool(g.get("momentum")) for g in groups), default=0)
    state = kept * sum(full_shape(p).numel() * 4 for p in trained)
    return weights + buffers + state + (weights + buffers if averaged else 0) + _BYTES_OF_STRUCTURE


def free_bytes(folder: Path) -> int | None:
    """Return what may be written to a folder's disk; None where its file system does not say."""
    usage = shutil.disk_usage(folder)
    return usage.free if usage.total else None


def require_space(target: Path, needed: int, make_room: Callable[[], bool] | None) -> None:
    """See to it that a file fits on the disk before it is begun.

    Args:
        target: the file, in a folder that exists.
        needed: its bytes.
        make_room: removes a file that may go, and tells whether there was one.

    Raises:
        CheckpointError: it does not fit, and nothing more may go.
    """
    while (free := free_bytes(target.parent)) is not None and free < needed:
        if make_room is None or not make_room():
            raise CheckpointError(
                f"the checkpoint {target} needs {in_mb(needed)} and its disk has {in_mb(free)} "
                f"free: it was not begun, and those before it are kept. Free space there, then go "
                f"on with --ckpt_path auto."
            )


def shortage(folder: Path, size: int, keep_last: int, present: int) -> str | None:
    """Return a warning where the checkpoints of a run will not all fit, None where they will.

    Args:
        folder: where they are written; it exists.
        size: bytes of one.
        keep_last: how many of the newest are kept; the best and the one being written add to them.
        present: how many are there already.
    """
    free = free_bytes(folder)
    count = keep_last + 2
    needed = max(0, count - present) * size
    if free is None or free >= needed:
        return None
    return (
        f"{folder} has {in_mb(free)} free, and {count} checkpoints of {in_mb(size)} "
        f"(checkpoint.keep_last={keep_last}, the best, and the one being written) want "
        f"{in_mb(needed)}: free space before it runs out."
    )


def in_mb(count: int) -> str:
    """Return bytes as megabytes, for people."""
    return f"{count / 1e6:,.1f} MB"
