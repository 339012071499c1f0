"""Bytes that a pass moves at least, counted by hand on a small net."""

import copy

import pytest
import torch
from torch import nn

from resscale import create_model
from resscale.bench.traffic import estimate_traffic


class Small(nn.Module):
    """A convolution with BatchNorm and ReLU, pooled, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.conv(images)).relu()
        logits: torch.Tensor = self.fc(self.pool(hidden).flatten(1))
        return logits


def test_what_must_be_read_and_written_is_counted_per_image() -> None:
    found = estimate_traffic(Small(), 8, 1, itemsize=2)
    pixels = 8 * 8
    # conv: 1 in and 4 out; BatchNorm's statistics: 4; pool: 4 in; its results and the logits
    numbers = pixels * (1 + 4 + 4 + 4) + 4 + (4 + 3)
    assert found.activation_bytes == 2 * numbers
    assert found.weight_bytes == 2 * (4 * 9 + 2 * 4 + 4 * 3 + 3)


def test_a_net_is_left_as_it_was() -> None:
    network = create_model("resnet8_cifar", 10).train()
    before = copy.deepcopy(network.state_dict())
    estimate_traffic(network, 32, 3, itemsize=4)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(not module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("factor", [2, 4])
def test_it_grows_with_the_square_of_the_side(factor: int) -> None:
    network = create_model("resnet8_cifar", 10)
    small, large = (
        estimate_traffic(network, side, 3, itemsize=2).activation_bytes
        for side in (32, 32 * factor)
    )
    # All but what comes behind the pooling: 64 in, 64 and 10 numbers around the linear layer.
    rest = 2 * (64 + 64 + 10)
    assert large - rest == factor**2 * (small - rest)
