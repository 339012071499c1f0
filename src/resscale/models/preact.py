"""Pre-activation blocks: normalisation and ReLU before each convolution (ResNet v2).

He et al. 2016 (arXiv 1603.05027), section 4; keys are timm's. Nothing follows the addition, so
identity shortcuts join input and output directly.

Shapes: B batch, C channels in, D channels out, H x W pixels in, s stride. A block maps
`(B, C, H, W)` to `(B, D, ceil(H/s), ceil(W/s))` in the input's floating-point dtype.
"""

from __future__ import annotations

from typing import Final

from torch import Tensor, nn

from resscale.models.blocks import (
    bottleneck_layers,
    check_basic,
    inner_width,
    make_se,
    split_stride,
    zero_weights,
)
from resscale.models.layers import DropPath, make_conv, make_norm
from resscale.models.options import ResNetOptions
from resscale.models.shortcuts import make_shortcut


class PreActBasicBlock(nn.Module):
    """Two 3x3 convolutions: `(B, C, H, W)` to `(B, planes, ceil(H/s), ceil(W/s))`.

    With dropout between them the block of Zagoruyko and Komodakis 2016 (arXiv 1605.07146).

    Args:
        in_channels: C.
        planes: D.
        stride: s.
        options: what may differ.
        drop_path: chance that the branch is dropped.
    """

    expansion: Final = 1

    def __init__(
        self,
        in_channels: int,
        planes: int,
        stride: int,
        options: ResNetOptions,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        check_basic(options)
        norm = options.norm
        conv_stride, self.pool = split_stride(planes, stride, options)
        self.downsample = make_shortcut(options, in_channels, planes, stride)
        self.projects = has_weights(self.downsample)
        self.norm1 = make_norm(in_channels, norm)
        self.conv1 = make_conv(in_channels, planes, 3, conv_stride, norm=norm)
        self.norm2 = make_norm(planes, norm)
        self.conv2 = make_conv(planes, planes, 3, norm=norm)
        self.se = make_se(planes, options.se)
        self.relu = make_relu(options)
        self.dropout = nn.Dropout(options.block_dropout)
        self.drop_path = DropPath(drop_path)

    def zero_branch(self) -> None:
        """Make the residual branch 0, so that the block starts as its shortcut."""
        # Not a gamma: the ReLU behind it would pass no gradient back at exactly 0.
        zero_weights(self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        """Return `F(x) + shortcut(x)`, or `F(x)` where there is no shortcut."""
        before: Tensor = self.relu(self.norm1(x))
        out: Tensor = self.pool(self.relu(self.norm2(self.conv1(before))))
        out = self.se(self.conv2(self.dropout(out)))
        if self.downsample is not None:
            # A projection sees the activated input, an identity the bare one (section 4.1 there).
            out = self.drop_path(out) + self.downsample(before if self.projects else x)
        return out


class PreActBottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions: `(B, C, H, W)` to 4 * planes channels.

    Args:
        in_channels: C.
        planes: D / 4.
        stride: s.
        options: what may differ.
        drop_path: chance that the branch is dropped.
    """

    expansion: Final = 4

    def __init__(
        self,
        in_channels: int,
        planes: int,
        stride: int,
        options: ResNetOptions,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        out_channels = planes * self.expansion
        width = inner_width(planes, options)
        norm = options.norm
        self.downsample = make_shortcut(options, in_channels, out_channels, stride)
        self.projects = has_weights(self.downsample)
        layers = bottleneck_layers(in_channels, width, out_channels, stride, options)
        self.norm1 = make_norm(in_channels, norm)
        self.conv1 = layers.conv1
        self.norm2 = make_norm(width, norm)
        self.conv2 = layers.conv2
        self.norm3 = make_norm(width, norm)
        self.conv3 = layers.conv3
        self.se = make_se(out_channels, options.se)
        self.relu = make_relu(options)
        self.pool1, self.pool2 = layers.pool1, layers.pool2
        self.drop_path = DropPath(drop_path)

    def zero_branch(self) -> None:
        """Make the residual branch 0, so that the block starts as its shortcut."""
        # Not a gamma: the ReLU behind it would pass no gradient back at exactly 0.
        zero_weights(self.conv3)

    def forward(self, x: Tensor) -> Tensor:
        """Return `F(x) + shortcut(x)`, or `F(x)` where there is no shortcut."""
        before: Tensor = self.relu(self.norm1(x))
        out: Tensor = self.pool1(self.relu(self.norm2(self.conv1(before))))
        out = self.pool2(self.relu(self.norm3(self.conv2(out))))
        out = self.se(self.conv3(out))
        if self.downsample is not None:
            # A projection sees the activated input, an identity the bare one (section 4.1 there).
            out = self.drop_path(out) + self.downsample(before if self.projects else x)
        return out


def has_weights(shortcut: nn.Module | None) -> bool:
    """Say whether a shortcut is a projection."""
    return shortcut is not None and any(True for _ in shortcut.parameters())


def make_relu(options: ResNetOptions) -> nn.ReLU:
    """Return the ReLU behind a norm; in place only where the norm made a tensor of its own."""
    return nn.ReLU(inplace=options.norm == "batch")
