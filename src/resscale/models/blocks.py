"""Residual blocks and their shortcuts (He et al. 2015, sections 3.2, 3.3 and 4.1).

Shapes: B batch, C channels in, D channels out, H x W pixels in, s stride. A block maps
`(B, C, H, W)` to `(B, D, ceil(H/s), ceil(W/s))` in the input's floating-point dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from resscale.errors import UserInputError, nearest

Shortcut = Literal["A", "B", "C", "none"]
StrideOn = Literal["1x1", "3x3"]
Stem = Literal["imagenet", "cifar"]


@dataclass(frozen=True)
class ResNetOptions:
    """What may differ between nets of the same depth; every field is an option of `create_model`.

    Raises `UserInputError` for a value that is not valid.
    """

    shortcut: Shortcut = "B"
    """A zero-pads and B projects where the size differs, C always projects, none is plain."""

    stride_on: StrideOn = "3x3"
    """The bottleneck convolution that strides: the paper's 1x1, or the 3x3 of "v1.5"."""

    stem: Stem = "imagenet"
    """imagenet: 7x7 stride 2 and a 3x3 stride 2 max-pool; cifar: 3x3 stride 1 (section 4.2)."""

    zero_init_residual: bool = False
    """Start the last BN gamma of each block at 0, so each block begins as its shortcut."""

    def __post_init__(self) -> None:
        _check_choice("shortcut", self.shortcut, get_args(Shortcut))
        _check_choice("stride_on", self.stride_on, get_args(StrideOn))
        _check_choice("stem", self.stem, get_args(Stem))
        if not isinstance(self.zero_init_residual, bool):
            raise UserInputError(
                f"Option zero_init_residual={self.zero_init_residual!r} must be True or False."
            )
        if self.shortcut == "none" and self.zero_init_residual:
            # Without a shortcut a zero gamma makes the output and all gradients zero.
            raise UserInputError(
                "Option zero_init_residual=True needs shortcuts, and shortcut='none' has none: "
                "use zero_init_residual=False or another shortcut."
            )


def _check_choice(option: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        valid = ", ".join(map(repr, choices))
        raise UserInputError(
            f"Option {option}={value!r} must be one of {valid}.{nearest(str(value), choices)}"
        )


def make_conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Return the family's convolution, `(B, C, H, W)` to `(B, D, ceil(H/s), ceil(W/s))`.

    `kernel` is odd.
    """
    # No bias: the BN that follows would cancel it.
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


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


def make_shortcut(
    kind: Shortcut, in_channels: int, out_channels: int, stride: int
) -> nn.Module | None:
    """Return the module from `(B, C, H, W)` to `(B, D, ceil(H/s), ceil(W/s))`; None if plain.

    Options A, B and C are those of section 4.1. A projection is a 1x1 convolution and a BN.
    """
    same_size = stride == 1 and in_channels == out_channels
    if kind == "none":
        return None
    if same_size and kind != "C":
        return nn.Identity()
    if kind == "A":
        if out_channels < in_channels:
            raise UserInputError(
                f"Option shortcut='A' cannot go from {in_channels} to {out_channels} channels: it "
                "only adds channels. Use shortcut='B' or widths that never shrink."
            )
        return ZeroPadShortcut(out_channels - in_channels, stride)
    return nn.Sequential(
        make_conv(in_channels, out_channels, kernel=1, stride=stride), nn.BatchNorm2d(out_channels)
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (figure 5, left): `(B, C, H, W)` to `(B, planes, ceil(H/s), ceil(W/s))`.

    The first convolution strides.
    """

    expansion: Final = 1

    def __init__(self, in_channels: int, planes: int, stride: int, options: ResNetOptions) -> None:
        super().__init__()
        if options.stride_on == "1x1":
            raise UserInputError(
                "Option stride_on='1x1' needs bottleneck blocks (50 layers and more): basic "
                "blocks have no 1x1 convolution. Use stride_on='3x3'."
            )
        self.conv1 = make_conv(in_channels, planes, 3, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = make_conv(planes, planes, 3)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = make_shortcut(options.shortcut, in_channels, planes, stride)

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        """The BN whose output is added to the shortcut."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """Return `relu(F(x) + shortcut(x))`, or `relu(F(x))` where there is no shortcut."""
        out: Tensor = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            out = out + self.downsample(x)
        out = self.relu(out)
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions (figure 5, right): `(B, C, H, W)` to 4 * planes channels.

    `options.stride_on` says which of the first two strides.
    """

    expansion: Final = 4

    def __init__(self, in_channels: int, planes: int, stride: int, options: ResNetOptions) -> None:
        super().__init__()
        out_channels = planes * self.expansion
        stride_1x1, stride_3x3 = (stride, 1) if options.stride_on == "1x1" else (1, stride)
        self.conv1 = make_conv(in_channels, planes, 1, stride_1x1)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = make_conv(planes, planes, 3, stride_3x3)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = make_conv(planes, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = make_shortcut(options.shortcut, in_channels, out_channels, stride)

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        """The BN whose output is added to the shortcut."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """Return `relu(F(x) + shortcut(x))`, or `relu(F(x))` where there is no shortcut."""
        out: Tensor = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            out = out + self.downsample(x)
        out = self.relu(out)
        return out
