"""Shortcuts: identity, zero-padding and projection (He et al. 2015, sections 3.2, 3.3, 4.1)."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from resscale.errors import UserInputError
from resscale.models.layers import BlurPool, ZeroPadShortcut, make_conv, make_norm
from resscale.models.options import ResNetOptions


def make_shortcut(
    options: ResNetOptions, in_channels: int, out_channels: int, stride: int
) -> nn.Module | None:
    """Return the module from `(B, C, H, W)` to `(B, D, ceil(H/s), ceil(W/s))`; None if plain.

    Options A, B and C are those of section 4.1. A projection is a 1x1 convolution and a BN, or the
    convolution alone before pre-activation blocks.

    Raises:
        UserInputError: option A where the number of channels falls.
    """
    kind = options.shortcut
    same_size = stride == 1 and in_channels == out_channels
    if kind == "none":
        return None
    if same_size and kind != "C":
        return nn.Identity()
    if kind == "A":
        return _zero_pad(options, in_channels, out_channels, stride)
    pool = _pool(options, in_channels, stride)
    conv_stride = 1 if pool is not None else stride
    # timm numbers an identity in the pool's place, so that avg's keys are equal for any stride.
    if pool is None and options.downsample == "avg":
        pool = nn.Identity()
    conv = make_conv(in_channels, out_channels, 1, conv_stride, norm=options.norm)
    if options.preact:
        parts = [] if pool is None else [("pool", pool)]
        return nn.Sequential(OrderedDict([*parts, ("conv", conv)]))
    norm = make_norm(out_channels, options.norm)
    return nn.Sequential(conv, norm) if pool is None else nn.Sequential(pool, conv, norm)


def _pool(options: ResNetOptions, channels: int, stride: int) -> nn.Module | None:
    """Return what strides in the projection's place, if anything does."""
    if stride == 1:
        return None
    if options.downsample == "avg":
        return nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)
    return BlurPool(channels, stride) if options.blurpool else None


def _zero_pad(
    options: ResNetOptions, in_channels: int, out_channels: int, stride: int
) -> nn.Module:
    if out_channels < in_channels:
        raise UserInputError(
            f"Option shortcut='A' cannot go from {in_channels} to {out_channels} channels: it "
            f"only adds channels. Use shortcut='B', or a width of {in_channels} or more."
        )
    extra = out_channels - in_channels
    if options.blurpool and stride > 1:
        return nn.Sequential(BlurPool(in_channels, stride), ZeroPadShortcut(extra, 1))
    return ZeroPadShortcut(extra, stride)
