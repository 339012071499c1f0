"""Residual blocks (He et al. 2015, sections 3.2 and 4.1): normalisation and ReLU after a layer.

Shapes: B batch, C channels in, D channels out, H x W pixels in, s stride. A block maps
`(B, C, H, W)` to `(B, D, ceil(H/s), ceil(W/s))` in the input's floating-point dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from torch import Tensor, nn

from resscale.errors import UserInputError
from resscale.models.layers import (
    BlurPool,
    DropPath,
    SqueezeExcitation,
    make_conv,
    make_norm,
)
from resscale.models.options import ResNetOptions
from resscale.models.shortcuts import make_shortcut


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (figure 5, left): `(B, C, H, W)` to `(B, planes, ceil(H/s), ceil(W/s))`.

    The first convolution strides.

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
        conv_stride, pool = split_stride(planes, stride, options)
        self.conv1 = make_conv(in_channels, planes, 3, conv_stride, norm=norm)
        self.bn1 = make_norm(planes, norm)
        self.conv2 = make_conv(planes, planes, 3, norm=norm)
        self.bn2 = make_norm(planes, norm)
        self.se = make_se(planes, options.se)
        self.relu = nn.ReLU(inplace=True)
        self.pool = pool
        self.dropout = nn.Dropout(options.block_dropout)
        self.drop_path = DropPath(drop_path)
        self.downsample = make_shortcut(options, in_channels, planes, stride)

    def zero_branch(self) -> None:
        """Make the residual branch 0, so that the block starts as its shortcut."""
        zero_last(self.bn2, self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        """Return `relu(F(x) + shortcut(x))`, or `relu(F(x))` where there is no shortcut."""
        out: Tensor = self.pool(self.relu(self.bn1(self.conv1(x))))
        out = self.se(self.bn2(self.conv2(self.dropout(out))))
        if self.downsample is not None:
            out = self.drop_path(out) + self.downsample(x)
        out = self.relu(out)
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions (figure 5, right): `(B, C, H, W)` to 4 * planes channels.

    `options.stride_on` says which of the first two strides; `groups` and `width_per_group` make it
    a ResNeXt or a wide block.

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
        layers = bottleneck_layers(in_channels, width, out_channels, stride, options)
        norm = options.norm
        self.conv1 = layers.conv1
        self.bn1 = make_norm(width, norm)
        self.conv2 = layers.conv2
        self.bn2 = make_norm(width, norm)
        self.conv3 = layers.conv3
        self.bn3 = make_norm(out_channels, norm)
        self.se = make_se(out_channels, options.se)
        self.relu = nn.ReLU(inplace=True)
        self.pool1, self.pool2 = layers.pool1, layers.pool2
        self.drop_path = DropPath(drop_path)
        self.downsample = make_shortcut(options, in_channels, out_channels, stride)

    def zero_branch(self) -> None:
        """Make the residual branch 0, so that the block starts as its shortcut."""
        zero_last(self.bn3, self.conv3)

    def forward(self, x: Tensor) -> Tensor:
        """Return `relu(F(x) + shortcut(x))`, or `relu(F(x))` where there is no shortcut."""
        out: Tensor = self.pool1(self.relu(self.bn1(self.conv1(x))))
        out = self.pool2(self.relu(self.bn2(self.conv2(out))))
        out = self.se(self.bn3(self.conv3(out)))
        if self.downsample is not None:
            out = self.drop_path(out) + self.downsample(x)
        out = self.relu(out)
        return out


class BottleneckLayers(NamedTuple):
    """What a bottleneck of either order is made of, norms apart."""

    conv1: nn.Conv2d
    conv2: nn.Conv2d
    conv3: nn.Conv2d
    pool1: nn.Module
    """Subsamples behind the first ReLU after `conv1`, where that strides by a blur."""
    pool2: nn.Module
    """The same behind `conv2`."""


def bottleneck_layers(
    in_channels: int, width: int, out_channels: int, stride: int, options: ResNetOptions
) -> BottleneckLayers:
    """Return the 1x1, 3x3 and 1x1 convolutions, strided where `options.stride_on` says."""
    norm = options.norm
    conv_stride, pool = split_stride(width, stride, options)
    on_1x1 = options.stride_on == "1x1"
    first, second = (conv_stride, 1) if on_1x1 else (1, conv_stride)
    return BottleneckLayers(
        make_conv(in_channels, width, 1, first, norm=norm),
        make_conv(width, width, 3, second, groups=options.groups, norm=norm),
        make_conv(width, out_channels, 1, norm=norm),
        pool if on_1x1 else nn.Identity(),
        nn.Identity() if on_1x1 else pool,
    )


def split_stride(channels: int, stride: int, options: ResNetOptions) -> tuple[int, nn.Module]:
    """Return the strided convolution's stride, and what subsamples behind it and its ReLU."""
    if options.blurpool and stride > 1:
        return 1, BlurPool(channels, stride)
    return stride, nn.Identity()


def make_se(channels: int, reduction: int) -> nn.Module:
    """Return squeeze-and-excitation of `(B, C, H, W)`, or an identity for reduction 0."""
    return SqueezeExcitation(channels, reduction) if reduction else nn.Identity()


def zero_last(norm: nn.Module, conv: nn.Conv2d) -> None:
    """Zero what a branch ends with: the BN's gamma and beta, or without a BN the convolution."""
    zero_weights(norm if isinstance(norm, nn.BatchNorm2d) else conv)


def zero_weights(layer: nn.BatchNorm2d | nn.Conv2d) -> None:
    """Zero a layer's weight and bias, so that it returns 0 whatever it was trained to before."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def inner_width(planes: int, options: ResNetOptions) -> int:
    """Return the channels of a bottleneck's 3x3 convolution: planes x width/64 x groups.

    Raises:
        UserInputError: the groups do not divide `planes`, or the width is no whole number.
    """
    groups, per_group = options.groups, options.width_per_group
    if planes % groups:
        valid = min((n for n in range(1, planes + 1) if planes % n == 0), key=_distance(groups))
        raise UserInputError(
            f"Option groups={groups} does not divide the {planes} channels of a stage: "
            f"use groups={valid}."
        )
    if planes * per_group % 64:
        step = min(n for n in range(1, 65) if planes * n % 64 == 0)
        valid = max(step, round(per_group / step) * step)
        raise UserInputError(
            f"Option width_per_group={per_group} makes {planes * per_group / 64:g} channels per "
            f"group in a stage of {planes} (times width_per_group / 64), and that must be a whole "
            f"number: use width_per_group={valid}."
        )
    return planes * per_group // 64 * groups


def check_basic(options: ResNetOptions) -> None:
    """Raise `UserInputError` for options that only bottleneck blocks have."""
    if options.stride_on == "1x1":
        raise UserInputError(
            "Option stride_on='1x1' needs bottleneck blocks (50 layers and more): basic "
            "blocks have no 1x1 convolution. Use stride_on='3x3'."
        )
    for option, default in (("groups", 1), ("width_per_group", 64)):
        if (value := getattr(options, option)) != default:
            raise UserInputError(
                f"Option {option}={value} needs bottleneck blocks (50 layers and more): use "
                f"{option}={default}."
            )


def _distance(target: int) -> Callable[[int], int]:
    return lambda n: abs(n - target)
