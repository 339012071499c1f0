"""The parts that blocks and stems are made of.

Shapes: B batch, C channels in, D channels out, H x W pixels in, s stride.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resscale.models.options import Norm

_SE_MULTIPLE = 8


def make_conv(
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int = 1,
    *,
    groups: int = 1,
    norm: Norm = "batch",
) -> nn.Conv2d:
    """Return the family's convolution, `(B, C, H, W)` to `(B, D, ceil(H/s), ceil(W/s))`.

    `kernel` is odd.
    """
    # No bias where a BN follows: it would cancel it.
    return nn.Conv2d(
        in_channels,
        out_channels,
        kernel,
        stride,
        padding=kernel // 2,
        groups=groups,
        bias=norm == "none",
    )


def make_norm(channels: int, norm: Norm = "batch") -> nn.Module:
    """Return the normalisation of `(B, C, H, W)`, or an identity for "none"."""
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.Identity()


class ZeroPadShortcut(nn.Module):
    """Option A (section 3.3): take every `stride`-th pixel and append channels of zeros.

    `(B, C, H, W)` to `(B, C + extra_channels, ceil(H/s), ceil(W/s))`, same dtype, no parameters.
    """

    def __init__(self, extra_channels: int, stride: int) -> None:
        super().__init__()
        self.extra_channels = extra_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return the subsampled input followed by `extra_channels` channels of zeros."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.extra_channels))

    def extra_repr(self) -> str:
        """Show both arguments in `repr`."""
        return f"extra_channels={self.extra_channels}, stride={self.stride}"


class BlurPool(nn.Module):
    """Subsample behind a binomial low-pass: `(B, C, H, W)` to `(B, C, ceil(H/s), ceil(W/s))`.

    Zhang 2019 (arXiv 1904.11486), section 3.2, with the 3x3 filter `[1, 2, 1] / 4` each way and
    mirrored borders. No parameters, and nothing in the state dict.

    Args:
        channels: C.
        stride: s.
    """

    kernel: Tensor

    def __init__(self, channels: int, stride: int = 2) -> None:
        super().__init__()
        self.channels = channels
        self.stride = stride
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        kernel = torch.outer(row, row).expand(channels, 1, 3, 3).clone()
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the filtered and subsampled input, in its dtype."""
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        kernel = self.kernel.to(x.dtype)
        return F.conv2d(x, kernel, stride=self.stride, groups=self.channels)

    def extra_repr(self) -> str:
        """Show both arguments in `repr`."""
        return f"channels={self.channels}, stride={self.stride}"


class SqueezeExcitation(nn.Module):
    """Scale channels by a gate computed from their means (Hu et al. 2017, section 3).

    `(B, C, H, W)` to the same. Keys and rounding are timm's: the inner width is the nearest
    multiple of 8, at least 8.

    Args:
        channels: C.
        reduction: C over the inner width.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        inner = max(_SE_MULTIPLE, round_half_up(channels / reduction, _SE_MULTIPLE))
        self.fc1 = nn.Conv2d(channels, inner, 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` times the sigmoid of the two layers over its means."""
        gate: Tensor = self.fc2(self.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * gate.sigmoid()


def round_half_up(value: float, multiple: int) -> int:
    """Return the multiple nearest to `value`; the upper of two that are equally near."""
    return int(value + multiple / 2) // multiple * multiple


class DropPath(nn.Module):
    """Stochastic depth: zero the whole branch of an image by chance, in training only.

    `(B, C, H, W)` to the same; what is kept is divided by its chance, so the mean stays (Huang
    et al. 2016, section 3, with the scaling at training in place of test).

    Args:
        rate: chance to drop, from 0 up to below 1.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch, zeroed for some images while training."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        return x * (x.new_empty((len(x), 1, 1, 1)).bernoulli_(keep) / keep)

    def extra_repr(self) -> str:
        """Show the rate in `repr`."""
        return f"rate={self.rate:g}"
