"""What a rank holds of a parameter: all of it, or under ZeRO-3 a share.

DeepSpeed's stage 3 empties each parameter between uses and keeps an equal, flat, padded share of it
on each rank (Rajbhandari et al. 2020, section 5.3). Everything that touches weights between steps
goes through these functions, and so works under every strategy.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn


def is_partitioned(parameter: nn.Parameter) -> bool:
    """Tell whether ranks hold shares of a parameter, as under ZeRO-3."""
    return hasattr(parameter, "ds_tensor")


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """Return the shape of the whole parameter."""
    return torch.Size(_ds(parameter).ds_shape if is_partitioned(parameter) else parameter.shape)


def local_part(parameter: nn.Parameter) -> Tensor:
    """Return what this rank holds and updates: the parameter's data, or its flat padded share."""
    part: Tensor = _ds(parameter).ds_tensor if is_partitioned(parameter) else parameter.detach()
    return part.detach()


def gather_part(part: Tensor, parameter: nn.Parameter) -> Tensor:
    """Return the whole tensor out of all ranks' parts; every rank must call it, in one order.

    Args:
        part: of the form of `local_part(parameter)`; its values may be others (an average, say).
            It may lie on the host, as shares do that are offloaded.
        parameter: says the shape.
    """
    if not is_partitioned(parameter):
        return part
    # nccl knows no host tensors. Emptied as it is, the parameter is on the rank's device.
    part = part.to(parameter.device)
    ranks = distributed.get_world_size()
    flat = part.new_empty(ranks * part.numel())
    distributed.all_gather(list(flat.chunk(ranks)), part.contiguous())
    shape = full_shape(parameter)
    return flat[: shape.numel()].view(shape)


def own_part(whole: Tensor, parameter: nn.Parameter) -> Tensor:
    """Return this rank's part of a whole tensor, in the form of `local_part(parameter)`."""
    if not is_partitioned(parameter):
        return whole
    share = _ds(parameter).ds_tensor
    size = share.numel()
    start = distributed.get_rank() * size
    part = torch.zeros(size, dtype=whole.dtype, device=whole.device)
    mine = whole.flatten()[start : start + size]
    part[: mine.numel()] = mine
    return part


def _ds(parameter: nn.Parameter) -> Any:
    """Return the parameter with the attributes that DeepSpeed adds, which no type knows."""
    return parameter
