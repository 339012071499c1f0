"""BatchNorm's running statistics: one update per optimizer step, averaged over the ranks.

A step's micro-batches lie one behind the other on one rank, or beside each other on several. For
both to give the same statistics, each micro-batch updates them from where the step began, and the
results are averaged.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn


def average_batchnorm_statistics(module: nn.Module) -> None:
    """Replace each running mean and variance by the ranks' average, in one collective.

    The ranks see different micro-batches and so drift apart; the update is linear, so averaging at
    any time gives the statistics of averaging all along. To be called by every rank.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    statistics = _running_statistics(module)
    if not statistics or distributed.get_world_size() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in statistics])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    start = 0
    for tensor in statistics:
        tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
        start += tensor.numel()


class StepStatistics:
    """Makes the micro-batches that a rank accumulates count as if each had been a rank's own.

    torch would update the statistics once per micro-batch, each on top of the one before: with
    momentum 0.1 a step of 4 would forget 1 - 0.9⁴ = 34% of the past, and 10% on 4 ranks.

    Args:
        module: its BatchNorm layers are meant.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._before: list[Tensor] = []
        self._sums: list[Tensor] = []

    def after_forward(self, number: int, count: int) -> None:
        """Note what micro-batch `number` (from 0) of a step's `count` made of the statistics."""
        if count == 1:
            return
        statistics = _running_statistics(self._module)
        if not statistics:
            return
        if number == 0:
            self._sums = [tensor.clone() for tensor in statistics]
        else:
            torch._foreach_add_(self._sums, statistics)
        if number == count - 1:
            torch._foreach_div_(self._sums, count)
            torch._foreach_copy_(statistics, self._sums)

    def before_forward(self, number: int, count: int) -> None:
        """Put the statistics back to where the step began."""
        if count == 1:
            return
        tensors = _running_statistics(self._module) + _batch_counts(self._module)
        if not tensors:
            return
        if number == 0:
            self._before = [tensor.clone() for tensor in tensors]
        else:
            torch._foreach_copy_(tensors, self._before)


def _running_statistics(module: nn.Module) -> list[Tensor]:
    found = [tensor for m in _layers(module) for tensor in (m.running_mean, m.running_var)]
    # .data: autograd holds them since the forward pass, but in training reads them no more.
    return [tensor.data for tensor in found if tensor is not None]


def _batch_counts(module: nn.Module) -> list[Tensor]:
    found = [m.num_batches_tracked for m in _layers(module)]
    return [tensor.data for tensor in found if tensor is not None]


def _layers(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
