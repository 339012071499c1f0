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


# More than this is not worth a checkpoint's while: rounding apart, the average says as much.
_LARGEST_TABLE_BYTES = 64 << 20


def gather_rank_statistics(module: nn.Module) -> Tensor | None:
    """Return each rank's own running statistics, float32 (ranks, values), on the CPU.

    A run that is stopped between two averages goes on from them as if it had not been stopped:
    from the average it would, up to rounding. To be called by every rank, before the average.

    Args:
        module: its BatchNorm layers are meant.

    Returns:
        None where there is one rank, or so many that the table would be large.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    statistics, ranks = _running_statistics(module), distributed.get_world_size()
    num_bytes = 4 * ranks * sum(tensor.numel() for tensor in statistics)
    if not statistics or ranks == 1 or num_bytes > _LARGEST_TABLE_BYTES:
        return None
    own = torch.cat([tensor.flatten() for tensor in statistics])
    rows = [torch.empty_like(own) for _ in range(ranks)]
    distributed.all_gather(rows, own)
    return torch.stack(rows).cpu()


def restore_rank_statistics(module: nn.Module, table: Tensor, rank: int, world_size: int) -> None:
    """Take a rank's own running statistics up again, where there are as many ranks as there were.

    Args:
        module: its BatchNorm layers hold the average.
        table: of `gather_rank_statistics`.
        rank: this one.
        world_size: number of ranks now.
    """
    statistics = _running_statistics(module)
    if table.shape != (world_size, sum(tensor.numel() for tensor in statistics)):
        return
    start = 0
    for tensor in statistics:
        values = table[rank, start : start + tensor.numel()]
        tensor.copy_(values.view_as(tensor))
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
