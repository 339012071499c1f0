"""Nets without values: shapes and costs of a name in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from resscale.models.resnet import ResNet
from resscale.models.variants import create_model

_INITIALIZERS = (Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_)


def create_on_meta(
    name: str, num_classes: int = 1000, in_channels: int = 3, **options: object
) -> ResNet:
    """Build the net `name` on the meta device: shapes, no memory, no initial values.

    The arguments are those of `create_model`.

    Raises:
        UserInputError: no such name or option.
    """
    with torch.device("meta"), _WithoutValues():
        return create_model(name, num_classes, in_channels, **options)


class _WithoutValues(TorchFunctionMode):
    """Leaves initial values out: on the meta device they say nothing and cost seconds."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return args[0] if func in _INITIALIZERS else func(*args, **(kwargs or {}))
