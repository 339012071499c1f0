"""Weights that are not finite are not saved: a run would resume from them."""

from __future__ import annotations

import torch
from torch import distributed, nn

from resscale.errors import TrainingStopped
from resscale.training.partition import local_part


def weights_are_finite(module: nn.Module) -> bool:
    """Tell whether all parameters are finite, on all ranks; every rank must call it.

    One number is read off the device, so it is for saving, not for each step.
    """
    parts = [local_part(parameter) for parameter in module.parameters()]
    parts = [part for part in parts if part.numel()]
    if not parts:
        return True
    # The largest element, not the sum of squares, which finite weights may overflow.
    largest = torch.stack(torch._foreach_norm(parts, float("inf")))
    finite = torch.isfinite(largest).all().float()
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(finite, distributed.ReduceOp.MIN)
    return bool(finite)


def refuse_to_save(module: nn.Module, global_step: int) -> None:
    """Stop training in place of saving weights that are not finite.

    Raises:
        TrainingStopped: they are not.
    """
    if not weights_are_finite(module):
        raise TrainingStopped(
            f"the weights are not finite at step {global_step}: training has diverged, and they "
            f"are not saved. Lower model.optimizer.lr or lengthen model.schedule.warmup_epochs, "
            f"then go on from an earlier checkpoint."
        )
