"""What stands before the first stage (He et al. 2015, table 1 and section 4.2), and its strides.

Shapes: B batch, C channels in, S channels out, H x W pixels. imagenet and deep map `(B, C, H, W)`
to `(B, S, ceil(H/4), ceil(W/4))`, cifar to `(B, S, H, W)`.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from resscale.models.layers import BlurPool, make_conv, make_norm
from resscale.models.options import ResNetOptions


def stem_channels(options: ResNetOptions, first_width: int) -> int:
    """Return S: `stem_width`, or the first stage's width; a deep stem always ends at the latter."""
    if options.stem == "deep" or options.stem_width is None:
        return first_width
    return options.stem_width


def stem_stride(options: ResNetOptions) -> int:
    """Return by how much the stem shrinks each side."""
    return 1 if options.stem == "cifar" else 4


def make_stem_conv(options: ResNetOptions, in_channels: int, channels: int) -> nn.Module:
    """Return the stem's convolution: `(B, C, H, W)` to `(B, S, H/2, W/2)`, or `(B, S, H, W)`."""
    if options.stem == "imagenet":
        return make_conv(in_channels, channels, 7, stride=2, norm=options.norm)
    if options.stem == "cifar":
        return make_conv(in_channels, channels, 3, norm=options.norm)
    inner = _deep_width(options, channels)
    first, second, third = _deep_convs(options, in_channels, channels)
    return nn.Sequential(
        first,
        make_norm(inner, options.norm),
        nn.ReLU(inplace=True),
        second,
        make_norm(inner, options.norm),
        nn.ReLU(inplace=True),
        third,
    )


def make_stem_pool(options: ResNetOptions, channels: int) -> nn.Module:
    """Return what halves the stem's map again, behind norm and ReLU; an identity for cifar."""
    if options.stem == "cifar":
        return nn.Identity()
    stride = 1 if options.blurpool else 2
    blur = [BlurPool(channels)] if options.blurpool else []
    if options.stem_pool == "conv":
        conv = make_conv(channels, channels, 3, stride, norm=options.norm)
        return nn.Sequential(conv, *blur, make_norm(channels, options.norm), nn.ReLU(inplace=True))
    pool = nn.MaxPool2d(3, stride, padding=1)
    return nn.Sequential(pool, *blur) if blur else pool


def make_preact_stem(options: ResNetOptions, in_channels: int, channels: int) -> nn.Sequential:
    """Return a whole stem without the norm that the first block begins with; keys are timm's."""
    if options.stem == "deep":
        inner = _deep_width(options, channels)
        first, second, third = _deep_convs(options, in_channels, channels)
        parts: list[tuple[str, nn.Module]] = [
            ("conv1", first),
            ("norm1", make_norm(inner, options.norm)),
            ("relu1", nn.ReLU(inplace=True)),
            ("conv2", second),
            ("norm2", make_norm(inner, options.norm)),
            ("relu2", nn.ReLU(inplace=True)),
            ("conv3", third),
        ]
    else:
        parts = [("conv", make_stem_conv(options, in_channels, channels))]
    return nn.Sequential(OrderedDict([*parts, ("pool", make_stem_pool(options, channels))]))


def _deep_width(options: ResNetOptions, channels: int) -> int:
    return options.stem_width or max(1, channels // 2)


def _deep_convs(
    options: ResNetOptions, in_channels: int, channels: int
) -> tuple[nn.Conv2d, nn.Conv2d, nn.Conv2d]:
    inner, norm = _deep_width(options, channels), options.norm
    return (
        make_conv(in_channels, inner, 3, stride=2, norm=norm),
        make_conv(inner, inner, 3, norm=norm),
        make_conv(inner, channels, 3, norm=norm),
    )
