"""The one ResNet class (He et al. 2015, table 1 and section 4.2), and its cost in MACs.

Shapes: B batch, C channels in, H x W pixels, K classes, D channels of the last stage.

```
(B, C, H, W) -> stem: conv1, bn1, relu, maxpool -> layer1 .. layerN -> mean over pixels -> fc
                (imagenet: H/4, cifar: H)          (each but the first halves)  (B, D)   (B, K)
```
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from resscale.errors import UserInputError, nearest
from resscale.models.blocks import BasicBlock, Bottleneck, ResNetOptions, make_conv

BlockName = Literal["basic", "bottleneck"]

_BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {
    "basic": BasicBlock,
    "bottleneck": Bottleneck,
}


class ResNet(nn.Module):
    """A residual or plain net: floating-point `(B, in_channels, H, W)` to logits `(B, K)`.

    Args:
        block: "basic" (two 3x3 convolutions) or "bottleneck" (1x1, 3x3, 1x1), figure 5.
        depths: blocks per stage, as `(3, 4, 6, 3)` in table 1.
        widths: channels of each stage's 3x3 convolutions; the stem has `widths[0]`.
        num_classes: outputs K of the fully connected layer `fc`.
        in_channels: channels of the input, 3 for RGB.
        options: everything else that may differ; defaults are torchvision's.

    Convolutions start He-normal (fan-out), BN at 1 and 0, `fc` as torch's default.
    State-dict keys and shapes are torchvision's.
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
        _check_arguments(block, depths, widths, num_classes, in_channels)
        self.options = options or ResNetOptions()
        self._add_stem(in_channels, widths[0])
        self.stage_names = tuple(f"layer{i}" for i in range(1, len(depths) + 1))
        channels = widths[0]
        for i, (depth, planes) in enumerate(zip(depths, widths, strict=True)):
            stage = _make_stage(
                _BLOCKS[block], channels, planes, depth, min(i, 1) + 1, self.options
            )
            self.add_module(self.stage_names[i], stage)
            channels = planes * _BLOCKS[block].expansion
        self.num_features = channels
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self._initialize()

    def _add_stem(self, in_channels: int, width: int) -> None:
        self.maxpool: nn.Module
        if self.options.stem == "imagenet":
            self.conv1 = make_conv(in_channels, width, 7, stride=2)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = make_conv(in_channels, width, 3)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock | Bottleneck) and self.options.zero_init_residual:
                nn.init.zeros_(module.last_bn.weight)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's map `(B, num_features, h, w)` for `x` `(B, C, H, W)`."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self.stage_names:
            # By name, so that a stage wrapped or sharded from outside is the one that runs.
            x = getattr(self, name)(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `(B, K)` for `x` `(B, C, H, W)`, in the dtype of the parameters."""
        x = self.avgpool(self.forward_features(x)).flatten(1)
        return cast(Tensor, self.fc(x))


def _make_stage(
    block: type[BasicBlock] | type[Bottleneck],
    in_channels: int,
    planes: int,
    depth: int,
    stride: int,
    options: ResNetOptions,
) -> nn.Sequential:
    out_channels = planes * block.expansion
    first = block(in_channels, planes, stride, options)
    return nn.Sequential(
        first, *(block(out_channels, planes, 1, options) for _ in range(depth - 1))
    )


def _check_arguments(
    block: str, depths: Sequence[int], widths: Sequence[int], num_classes: int, in_channels: int
) -> None:
    if block not in _BLOCKS:
        valid = ", ".join(map(repr, _BLOCKS))
        raise UserInputError(
            f"block={block!r} must be one of {valid}.{nearest(str(block), _BLOCKS)}"
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
        _check_positive(name, value)


def _check_positive(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserInputError(f"{name}={value!r} must be a whole number of at least 1.")


def count_macs(model: nn.Module, image_size: int, in_channels: int = 3) -> int:
    """Return the multiply-accumulates of one image's forward pass (convolutions and linear).

    The unit is that of table 1's "FLOPs": one multiply and one add count as 1. A training step
    costs about `3 * 2 * MACs` floating-point operations per image (backward is twice forward).
    Nothing is computed and the model is left as it was: it runs on shapes alone.

    Args:
        model: any net from `(B, in_channels, image_size, image_size)`, on any device.
        image_size: pixels per side.
        in_channels: channels of the input.
    """
    _check_positive("image_size", image_size)
    _check_positive("in_channels", in_channels)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    # Stand-ins take BN's running statistics as well, which a training-mode forward would change.
    stand_ins = {k: torch.empty(t.shape, dtype=t.dtype, device="meta") for k, t in tensors.items()}
    dtype = next((p.dtype for p in model.parameters()), torch.get_default_dtype())
    # Two images, because a training-mode BN refuses a single value per channel.
    batch = 2
    x = torch.empty(batch, in_channels, image_size, image_size, dtype=dtype, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        functional_call(model, stand_ins, (x,))
    return int(counter.get_total_flops()) // (2 * batch)
