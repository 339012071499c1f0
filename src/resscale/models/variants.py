"""The named nets: a table from name to blocks, depths, widths and options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any, cast

from resscale.errors import UserInputError, nearest
from resscale.models.blocks import ResNetOptions
from resscale.models.resnet import BlockName, ResNet


@dataclass(frozen=True)
class Variant:
    """One row of the table: the arguments of `ResNet` that a name stands for."""

    block: BlockName
    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    options: ResNetOptions = field(default_factory=ResNetOptions)


# He et al. 2015, table 1.
_IMAGENET: dict[int, Variant] = {
    18: Variant("basic", (2, 2, 2, 2)),
    34: Variant("basic", (3, 4, 6, 3)),
    50: Variant("bottleneck", (3, 4, 6, 3)),
    101: Variant("bottleneck", (3, 4, 23, 3)),
    152: Variant("bottleneck", (3, 8, 36, 3)),
}

# Section 4.2: 6n + 2 layers are three stages of n blocks, the stem and fc.
_CIFAR: dict[int, Variant] = {
    depth: Variant(
        "basic",
        ((depth - 2) // 6,) * 3,
        (16, 32, 64),
        ResNetOptions(shortcut="A", stem="cifar"),
    )
    for depth in (20, 32, 44, 56, 110)
}


def _plain(variant: Variant) -> Variant:
    return replace(variant, options=replace(variant.options, shortcut="none"))


_VARIANTS: dict[str, Variant] = {
    **{f"resnet{depth}": variant for depth, variant in _IMAGENET.items()},
    "resnet50_v1": replace(_IMAGENET[50], options=ResNetOptions(stride_on="1x1")),
    **{f"plain{depth}": _plain(_IMAGENET[depth]) for depth in (18, 34)},
    **{f"resnet{depth}_cifar": variant for depth, variant in _CIFAR.items()},
    **{f"plain{depth}_cifar": _plain(variant) for depth, variant in _CIFAR.items()},
}


def list_models(pattern: str = "*") -> list[str]:
    """Return the sorted names that match a shell pattern such as `"*_cifar"`."""
    return sorted(name for name in _VARIANTS if fnmatchcase(name, pattern))


def create_model(
    name: str, num_classes: int = 1000, in_channels: int = 3, **options: object
) -> ResNet:
    """Build the net `name` with fresh weights: `(B, in_channels, H, W)` to `(B, num_classes)`.

    Args:
        name: one of `list_models()`; `resnet50` is "v1.5", `resnet50_v1` the paper's.
        num_classes: outputs of the last layer; the CIFAR nets default to 1000 as the others do.
        in_channels: channels of the input, 3 for RGB.
        options: fields of `ResNetOptions` that replace the name's own.

    Raises `UserInputError` for a name, option or value that does not exist.
    """
    if name not in _VARIANTS:
        raise UserInputError(
            f"Model {name!r} must be one of the {len(_VARIANTS)} names that "
            f"resscale.list_models() returns.{nearest(str(name), _VARIANTS)}"
        )
    _check_option_names(options)
    variant = _VARIANTS[name]
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
