"""The named nets: one table from name to blocks, depths, widths, options and source."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any, cast

from resscale.errors import UserInputError, nearest
from resscale.models.options import ResNetOptions
from resscale.models.resnet import BlockName, ResNet

_HE = "He et al. 2015"
_HE_V2 = "He et al. 2016"
_XIE = "Xie et al. 2016"
_WIDE = "Zagoruyko and Komodakis 2016"
_HU = "Hu et al. 2017"
_BAG = "He et al. 2018"
_RS = "Bello et al. 2021"


@dataclass(frozen=True)
class Variant:
    """One row of the table: the arguments of `ResNet` that a name stands for."""

    block: BlockName
    depths: tuple[int, ...]
    source: str
    """Paper and section."""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    options: ResNetOptions = field(default_factory=ResNetOptions)
    image_size: int = 224
    """Pixels per side that the source evaluates at."""

    def having(self, source: str, image_size: int | None = None, **options: object) -> Variant:
        """Return this row with another source and other options."""
        changed = replace(self.options, **cast(dict[str, Any], options))
        return replace(
            self, source=source, options=changed, image_size=image_size or self.image_size
        )


# He et al. 2015, table 1; 26 and 200 fill the same pattern.
_R: dict[int, Variant] = {
    18: Variant("basic", (2, 2, 2, 2), f"{_HE}, table 1"),
    26: Variant("bottleneck", (2, 2, 2, 2), "timm; pattern of table 1"),
    34: Variant("basic", (3, 4, 6, 3), f"{_HE}, table 1"),
    50: Variant("bottleneck", (3, 4, 6, 3), f"{_HE}, table 1; stride on the 3x3"),
    101: Variant("bottleneck", (3, 4, 23, 3), f"{_HE}, table 1; stride on the 3x3"),
    152: Variant("bottleneck", (3, 8, 36, 3), f"{_HE}, table 1; stride on the 3x3"),
    200: Variant("bottleneck", (3, 24, 36, 3), f"timm; depths of {_HE_V2}"),
}
# Bello et al. 2021, appendix: depth -> (blocks per stage, pixels per side).
_RS_NETS: dict[int, tuple[tuple[int, ...], int]] = {
    50: ((3, 4, 6, 3), 160),
    101: ((3, 4, 23, 3), 192),
    152: ((3, 8, 36, 3), 256),
    200: ((3, 24, 36, 3), 256),
    270: ((4, 29, 53, 4), 256),
    350: ((4, 36, 72, 4), 320),
    420: ((4, 44, 87, 4), 320),
}
_CIFAR_DEPTHS = (20, 32, 44, 56, 110, 1202)
_CIFAR_NAME = re.compile(r"(resnet|plain|resnetv2_)(0|[1-9]\d*)(_bottleneck)?_cifar")


def _cifar(depth: int, source: str = f"{_HE}, section 4.2") -> Variant:
    """Section 4.2: 6n + 2 layers are three stages of n blocks, the stem and fc."""
    options = ResNetOptions(shortcut="A", stem="cifar")
    return Variant("basic", ((depth - 2) // 6,) * 3, source, (16, 32, 64), options, 32)


def _cifar_bottleneck(depth: int, source: str = f"{_HE}, sections 4.1 and 4.2") -> Variant:
    """9n + 2 layers: the same stages of n bottlenecks, which cost what n basic blocks cost.

    The stride is on the 1x1, as in the code of He et al. 2016 (github: KaimingHe/resnet-1k-layers).
    """
    options = ResNetOptions(shortcut="B", stride_on="1x1", stem="cifar")
    return Variant("bottleneck", ((depth - 2) // 9,) * 3, source, (16, 32, 64), options, 32)


def _wrn(depth: int, k: int) -> Variant:
    """Zagoruyko and Komodakis 2016, table 1: 6n + 4 layers, k times as wide."""
    options = ResNetOptions(preact=True, stem="cifar", stem_width=16)
    widths = (16 * k, 32 * k, 64 * k)
    return Variant("basic", ((depth - 4) // 6,) * 3, f"{_WIDE}, table 1", widths, options, 32)


def _plain(variant: Variant, source: str) -> Variant:
    return variant.having(source, shortcut="none")


def _v2_cifar(variant: Variant) -> Variant:
    return variant.having(f"{_HE_V2}, tables 2 and 4", preact=True)


_D: dict[str, Any] = {"stem": "deep", "downsample": "avg"}
_D_SOURCE = f"{_BAG}, ResNet-D"

_VARIANTS: dict[str, Variant] = {
    **{f"resnet{depth}": variant for depth, variant in _R.items()},
    **{
        f"resnet{depth}_v1": _R[depth].having(f"{_HE}, table 1", stride_on="1x1")
        for depth in (50, 101, 152)
    },
    **{f"plain{depth}": _plain(_R[depth], f"{_HE}, table 2") for depth in (18, 34)},
    **{f"resnet{depth}_cifar": _cifar(depth) for depth in _CIFAR_DEPTHS},
    **{
        f"plain{depth}_cifar": _plain(_cifar(depth), f"{_HE}, figure 6")
        for depth in _CIFAR_DEPTHS[:-1]
    },
    **{f"resnet{d}_bottleneck_cifar": _cifar_bottleneck(d) for d in (29, 83, 164)},
    "resnetv2_110_cifar": _v2_cifar(_cifar(110)),
    "resnetv2_164_bottleneck_cifar": _v2_cifar(_cifar_bottleneck(164)),
    "resnetv2_1001_bottleneck_cifar": _v2_cifar(_cifar_bottleneck(1001)),
    **{
        f"resnetv2_{depth}": _R[depth].having(f"{_HE_V2}, section 4", preact=True)
        for depth in (18, 34, 50, 101, 152)
    },
    **{f"wrn{depth}_{k}_cifar": _wrn(depth, k) for depth, k in ((16, 8), (28, 10), (40, 4))},
    "wide_resnet50_2": _R[50].having(f"{_WIDE}, section 3; as in torchvision", width_per_group=128),
    "wide_resnet101_2": _R[101].having(
        f"{_WIDE}, section 3; as in torchvision", width_per_group=128
    ),
    **{
        f"resnext{depth}_{groups}x{width}d": _R[depth].having(
            f"{_XIE}, section 4", groups=groups, width_per_group=width
        )
        for depth, groups, width in ((50, 32, 4), (101, 32, 4), (101, 64, 4), (101, 32, 8))
    },
    **{
        f"seresnet{depth}": _R[depth].having(f"{_HU}, section 3", se=16)
        for depth in (18, 34, 50, 101, 152)
    },
    **{
        f"seresnext{depth}_{groups}x{width}d": _R[depth].having(
            f"{_HU}, table 2", groups=groups, width_per_group=width, se=16
        )
        for depth, groups, width in ((50, 32, 4), (101, 32, 4), (101, 32, 8))
    },
    **{
        f"resnet{depth}d": _R[depth].having(_D_SOURCE, **_D)
        for depth in (18, 26, 34, 50, 101, 152, 200)
    },
    "resnext50d_32x4d": _R[50].having(_D_SOURCE, groups=32, width_per_group=4, **_D),
    "seresnet152d": _R[152].having(_D_SOURCE, se=16, **_D),
    **{
        f"resnetrs{depth}": replace(_R[50], depths=depths).having(
            f"{_RS}, section 3", image_size, se=4, stem_pool="conv", **_D
        )
        for depth, (depths, image_size) in _RS_NETS.items()
    },
}


def list_models(pattern: str = "*") -> list[str]:
    """Return the sorted names that match a shell pattern such as `"*_cifar"`."""
    return sorted(name for name in _VARIANTS if fnmatchcase(name, pattern))


def find_variant(name: str) -> Variant:
    """Return the row of a name; CIFAR nets of other depths follow their rule, 6n + 2 or 9n + 2.

    Raises:
        UserInputError: no such name, or a depth that is against the rule.
    """
    if name in _VARIANTS:
        return _VARIANTS[name]
    if match := _CIFAR_NAME.fullmatch(str(name)):
        return _cifar_by_rule(match[1], int(match[2]), match[3] or "")
    raise UserInputError(
        f"Model {name!r} must be one of the {len(_VARIANTS)} names that "
        f"resscale.list_models() returns.{nearest(str(name), _VARIANTS)}"
    )


def _cifar_by_rule(family: str, depth: int, bottleneck: str) -> Variant:
    step = 9 if bottleneck else 6
    if depth < step + 2 or (depth - 2) % step:
        valid = max(1, round((depth - 2) / step)) * step + 2
        raise UserInputError(
            f"Model '{family}{depth}{bottleneck}_cifar' has {depth} layers, and CIFAR nets of "
            f"{'bottleneck' if bottleneck else 'basic'} blocks have {step}n + 2: use "
            f"'{family}{valid}{bottleneck}_cifar'."
        )
    source = f"{_HE}, section 4.2; rule {step}n + 2"
    variant = _cifar_bottleneck(depth, source) if bottleneck else _cifar(depth, source)
    if family == "plain":
        return _plain(variant, source)
    return variant.having(source, preact=True) if family == "resnetv2_" else variant


def create_model(
    name: str, num_classes: int = 1000, in_channels: int = 3, **options: object
) -> ResNet:
    """Build the net `name` with fresh weights: `(B, in_channels, H, W)` to `(B, num_classes)`.

    Args:
        name: one of `list_models()`; `resnet50` is "v1.5", `resnet50_v1` the paper's.
            `resnet{6n+2}_cifar`, `plain{6n+2}_cifar` and `resnetv2_{6n+2}_cifar` exist for every
            n, and `{9n+2}_bottleneck_cifar` likewise.
        num_classes: outputs of the last layer; the CIFAR nets default to 1000 as the others do.
        in_channels: channels of the input, 3 for RGB.
        options: fields of `ResNetOptions` that replace the name's own.

    Raises `UserInputError` for a name, option or value that does not exist.
    """
    variant = find_variant(name)
    _check_option_names(options)
    return ResNet(
        variant.block,
        variant.depths,
        variant.widths,
        num_classes=num_classes,
        in_channels=in_channels,
        options=replace(variant.options, **cast(dict[str, Any], options)),
    )


def _check_option_names(options: Mapping[str, object]) -> None:
    valid = [f.name for f in fields(ResNetOptions)]
    for option in options:
        if option not in valid:
            raise UserInputError(
                f"Model option {option!r} must be one of {', '.join(map(repr, valid))}."
                f"{nearest(option, valid)}"
            )
