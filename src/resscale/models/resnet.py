"""The one ResNet class (He et al. 2015, table 1 and section 4.2).

Shapes: B batch, C channels in, H x W pixels, K classes, D channels of the last stage.

```
(B, C, H, W) -> stem: conv1, bn1, relu, maxpool -> layer1 .. layerN -> mean over pixels -> fc
                (imagenet: H/4, cifar: H)          (each but the first halves)  (B, D)   (B, K)
preact:         stem: conv, pool                -> stages.0 ..  -> norm, relu, mean    -> head.fc
```
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, cast

from torch import Tensor, nn

from resscale.errors import UserInputError, nearest
from resscale.models.blocks import BasicBlock, Bottleneck
from resscale.models.layers import make_norm
from resscale.models.options import ResNetOptions, check_positive
from resscale.models.preact import PreActBasicBlock, PreActBottleneck
from resscale.models.stem import (
    make_preact_stem,
    make_stem_conv,
    make_stem_pool,
    stem_channels,
    stem_stride,
)

BlockName = Literal["basic", "bottleneck"]
Block = BasicBlock | Bottleneck | PreActBasicBlock | PreActBottleneck

# (name, pre-activation) -> the block
_BLOCKS: dict[tuple[str, bool], type[Block]] = {
    ("basic", False): BasicBlock,
    ("basic", True): PreActBasicBlock,
    ("bottleneck", False): Bottleneck,
    ("bottleneck", True): PreActBottleneck,
}
_BLOCK_NAMES = ("basic", "bottleneck")


class ResNet(nn.Module):
    """A residual or plain net: floating-point `(B, in_channels, H, W)` to logits `(B, K)`.

    Args:
        block: "basic" (two 3x3 convolutions) or "bottleneck" (1x1, 3x3, 1x1), figure 5.
        depths: blocks per stage, as `(3, 4, 6, 3)` in table 1.
        widths: channels of each stage's 3x3 convolutions; the stem has `widths[0]`.
        num_classes: outputs K of the last layer.
        in_channels: channels of the input, 3 for RGB.
        options: everything else that may differ; defaults are torchvision's.

    Convolutions start He-normal (fan-out, for ReLU), BN at 1 and 0, `fc` as torch's default.
    State-dict keys and shapes are torchvision's; with `preact`, where torchvision has none, timm's.
    """

    def __init__(
        self,
        block: BlockName,
        depths: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512),
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        options: ResNetOptions | None = None,
    ) -> None:
        super().__init__()
        self.options = options or ResNetOptions()
        _check_arguments(block, depths, widths, num_classes, in_channels)
        _check_block_dropout(block, self.options)
        stages = _make_stages(_BLOCKS[block, self.options.preact], depths, widths, self.options)
        self.num_features = widths[-1] * _BLOCKS[block, self.options.preact].expansion
        self.total_stride = stem_stride(self.options) * 2 ** (len(depths) - 1)
        if self.options.preact:
            self._add_preact_layers(in_channels, stages, num_classes, widths[0])
        else:
            self._add_layers(in_channels, stages, num_classes, widths[0])
        self._initialize()

    def _add_layers(
        self, in_channels: int, stages: list[nn.Sequential], num_classes: int, first_width: int
    ) -> None:
        """Add the modules under torchvision's names."""
        channels = stem_channels(self.options, first_width)
        self.conv1 = make_stem_conv(self.options, in_channels, channels)
        self.bn1 = make_norm(channels, self.options.norm)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = make_stem_pool(self.options, channels)
        self.stage_names = tuple(f"layer{i}" for i in range(1, len(stages) + 1))
        for name, stage in zip(self.stage_names, stages, strict=True):
            self.add_module(name, stage)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(self.options.dropout)
        self.fc = nn.Linear(self.num_features, num_classes)

    def _add_preact_layers(
        self, in_channels: int, stages: list[nn.Sequential], num_classes: int, first_width: int
    ) -> None:
        """Add the modules under timm's names."""
        channels = stem_channels(self.options, first_width)
        self.stem = make_preact_stem(self.options, in_channels, channels)
        self.stage_names = tuple(f"stages.{i}" for i in range(len(stages)))
        self.stages = nn.Sequential(*(nn.Sequential(OrderedDict(blocks=stage)) for stage in stages))
        self.norm = make_norm(self.num_features, self.options.norm)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(self.options.dropout)
        # timm's classifier is a 1x1 convolution: the same numbers in another shape.
        self.head = nn.Sequential(OrderedDict(fc=nn.Conv2d(self.num_features, num_classes, 1)))

    def _initialize(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and name != "head.fc":
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.options.zero_init_residual:
            for module in self.modules():
                if isinstance(module, Block):
                    module.zero_branch()

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's map `(B, num_features, h, w)` for `x` `(B, C, H, W)`.

        Raises:
            UserInputError: an input so small that a strided layer would see a single pixel.
        """
        self.check_size(*x.shape[-2:])
        if self.options.preact:
            return cast(Tensor, self.relu(self.norm(self.stages(self.stem(x)))))
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self.stage_names:
            # By name, so that a stage wrapped or sharded from outside is the one that runs.
            x = getattr(self, name)(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `(B, K)` for `x` `(B, C, H, W)`, in the dtype of the parameters."""
        x = self.avgpool(self.forward_features(x))
        if self.options.preact:
            return cast(Tensor, self.head(self.dropout(x)).flatten(1))
        return cast(Tensor, self.fc(self.dropout(x.flatten(1))))

    def check_size(self, height: int, width: int) -> None:
        """Refuse an input so small that a strided layer would see a single pixel.

        Raises:
            UserInputError: it is that small.
        """
        smallest = self.total_stride // 2 + 1
        if min(height, width) < smallest:
            # A smaller one leaves a strided layer one pixel: it would compute on padding alone.
            stem = "" if self.options.stem == "cifar" else ", or stem='cifar', which strides less"
            raise UserInputError(
                f"An input of {height}x{width} pixels is too small for strides of "
                f"{self.total_stride} in all: use {smallest}x{smallest} or more{stem}."
            )


def _make_stages(
    block: type[Block], depths: Sequence[int], widths: Sequence[int], options: ResNetOptions
) -> list[nn.Sequential]:
    stages = []
    channels = stem_channels(options, widths[0])
    number, total = 0, sum(depths)
    for i, (depth, planes) in enumerate(zip(depths, widths, strict=True)):
        blocks: list[nn.Module] = []
        for j in range(depth):
            number += 1
            stride = 2 if i > 0 and j == 0 else 1
            # Huang et al. 2016, section 3: the chance grows linearly with the block's number.
            rate = options.drop_path * number / total
            blocks.append(block(channels, planes, stride, options, rate))
            channels = planes * block.expansion
        stages.append(nn.Sequential(*blocks))
    return stages


def _check_arguments(
    block: str, depths: Sequence[int], widths: Sequence[int], num_classes: int, in_channels: int
) -> None:
    if block not in _BLOCK_NAMES:
        valid = ", ".join(map(repr, _BLOCK_NAMES))
        raise UserInputError(
            f"block={block!r} must be one of {valid}.{nearest(str(block), _BLOCK_NAMES)}"
        )
    if not depths or len(depths) != len(widths):
        raise UserInputError(
            f"depths={tuple(depths)} and widths={tuple(widths)} must be equally long and not "
            "empty: give one of each per stage."
        )
    positive = {"num_classes": num_classes, "in_channels": in_channels}
    positive |= {f"depths[{i}]": n for i, n in enumerate(depths)}
    positive |= {f"widths[{i}]": n for i, n in enumerate(widths)}
    for name, value in positive.items():
        check_positive(name, value)


def _check_block_dropout(block: str, options: ResNetOptions) -> None:
    if options.block_dropout and block != "basic":
        raise UserInputError(
            f"Option block_dropout={options.block_dropout} needs basic blocks: it stands between "
            "their two convolutions. Use block_dropout=0, and dropout before fc if wanted."
        )
