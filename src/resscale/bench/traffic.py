"""How many bytes a pass through a network must move: an estimate, from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

# What lies between them (ReLU, additions, BatchNorm's scaling) can be fused into what reads its
# result or writes its input. A BatchNorm in training cannot all be: its statistics need a pass.
_READ_AND_WRITTEN = (nn.Conv2d, nn.Linear, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_READ = (nn.modules.batchnorm._BatchNorm,)


@dataclass(frozen=True)
class Traffic:
    """Bytes of a forward pass.

    Args:
        activation_bytes: of one image: what convolutions, pooling and linear layers read and write,
            and what BatchNorms read for their statistics.
        weight_bytes: of one pass, whatever its images: each weight read once.
    """

    activation_bytes: int
    weight_bytes: int


def estimate_traffic(
    network: nn.Module, image_size: int, in_channels: int, itemsize: int
) -> Traffic:
    """Return what a forward pass in training moves at least, if all that can be fused is.

    Nothing is computed and the network is left as it is: it runs on shapes.

    Args:
        network: any net from (B, in_channels, image_size, image_size).
        image_size: pixels per side.
        in_channels: channels of the images.
        itemsize: bytes of a number: 2 in mixed precision, 4 in float32.
    """
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    stand_ins = {k: torch.empty(t.shape, dtype=t.dtype, device="meta") for k, t in tensors.items()}
    numbers = 0

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal numbers
        numbers += sum(value.numel() for value in inputs if isinstance(value, Tensor))
        if isinstance(module, _READ_AND_WRITTEN):
            numbers += output.numel()

    hooks = [
        module.register_forward_hook(count)
        for module in network.modules()
        if isinstance(module, _READ_AND_WRITTEN + _READ)
    ]
    # Two images: a BatchNorm in training refuses a single value per channel.
    images = torch.empty(2, in_channels, image_size, image_size, device="meta")
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            functional_call(network, stand_ins, (images,))
    finally:
        for hook in hooks:
            hook.remove()
    weights = sum(parameter.numel() for parameter in network.parameters())
    return Traffic(numbers * itemsize // 2, weights * itemsize)
