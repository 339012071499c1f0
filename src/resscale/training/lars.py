"""LARS: SGD whose rate is scaled for each layer by the norms of its weights and gradient.

You, Gitman and Ginsburg 2017, "Large Batch Training of Convolutional Networks", algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from resscale.training.layerwise import Directions, LayerwiseOptimizer


class Lars(LayerwiseOptimizer):
    """SGD with momentum at a rate of lr × ratio for each layer.

    With weights w, gradient g, decay b and momentum m:

    ```
    ratio = trust_coefficient × |w| / (|g| + b × |w| + eps),  1 where |w| or |g| is 0
    d = ratio × (g + b × w)
    v = m × v + d
    w = w - lr × v,  with Nesterov's momentum  w - lr × (d + m × v)
    ```

    The rate stands outside the momentum as in torch's SGD, so a rate that changes acts at once; the
    paper has it inside, which is the same while the rate is constant. Groups with `adapt=False`
    (norms and biases) have the ratio 1. The state is torch's SGD's: `momentum_buffer`.

    Args:
        params: parameters, or groups of them with options of their own.
        lr: the rate.
        momentum: m; 0: none, and no state.
        nesterov: Nesterov's form of momentum.
        weight_decay: b.
        trust_coefficient: how far a step may move a layer, relative to the layer's norm.
        eps: keeps the ratio finite.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        eps: float = 1e-8,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
            "adapt": True,
        }
        super().__init__(params, defaults)

    def _directions(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]
    ) -> Directions:
        moves = torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])
        return Directions(parameters, gradients, list(moves))

    def _ratios(self, weight: Tensor, measured: Tensor, group: dict[str, Any]) -> Tensor:
        bound = measured + group["weight_decay"] * weight + group["eps"]
        ratios: Tensor = group["trust_coefficient"] * weight / bound
        return ratios

    def _move(self, group: dict[str, Any], directions: Directions) -> None:
        parameters, _, moves = directions
        if group["momentum"]:
            buffers = [self._buffer(p) for p in parameters]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, moves)
            if group["nesterov"]:
                torch._foreach_add_(moves, buffers, alpha=group["momentum"])
            else:
                moves = buffers
        torch._foreach_add_(parameters, moves, alpha=-group["lr"])

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer
