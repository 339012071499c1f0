"""BatchNorm's running statistics: averaged over the ranks before they are used or saved."""

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


def _running_statistics(module: nn.Module) -> list[Tensor]:
    layers = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    found = [tensor for m in layers for tensor in (m.running_mean, m.running_var)]
    return [tensor for tensor in found if tensor is not None]
