"""Small host arrays onto the device, without waiting for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def to_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Return an array as a tensor on a device; the host goes on at once.

    Args:
        array: of any shape and of a type that torch knows.
        device: a GPU copies by itself, from page-locked memory that torch keeps until it has.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cpu":
        return tensor
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def select_rows(images: Tensor, rows: Tensor) -> Tensor:
    """Return some rows of a batch: (n, C, H, W) in channels_last memory, a copy.

    Args:
        images: (N, C, H, W).
        rows: which, int64 (n,), on the images' device.
    """
    # Over the memory as it lies: torch's index_select gives plain memory whatever it is given.
    return images.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
