"""LAMB: Adam whose step is scaled for each layer to the norm of the layer's weights.

You et al. 2019, "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes",
algorithm 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from resscale.training.layerwise import Directions, LayerwiseOptimizer


class Lamb(LayerwiseOptimizer):
    """Adam with decoupled decay, each layer's step as long as lr × the norm of its weights.

    With weights w, gradient g, decay b and t steps done, this one included:

    ```
    m = beta1 × m + (1 - beta1) × g
    v = beta2 × v + (1 - beta2) × g²
    u = (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps) + b × w
    w = w - lr × ratio × u,  ratio = |w| / |u|,  1 where |w| or |u| is 0
    ```

    The paper leaves the function φ of |w| open; here it is the identity and the ratio is not
    clipped. Both moments are corrected for their start at 0, as in the paper, and norms are
    Euclidean. So do timm's and NVIDIA's implementations; they also clip the norm of all gradients
    together to 1, which is the trainer's matter here (`gradient_clip_val`). Groups with
    `adapt=False` (norms and biases) have the ratio 1. The state is that of torch's Adam: `step`,
    on the host, `exp_avg` and `exp_avg_sq`.

    Args:
        params: parameters, or groups of them with options of their own.
        lr: the rate: how far a step moves a layer, relative to the norm of its weights.
        betas: beta1 and beta2.
        eps: keeps u finite where gradients are 0.
        weight_decay: b.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "adapt": True,
        }
        super().__init__(params, defaults)

    def _directions(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]
    ) -> Directions:
        beta1, beta2 = group["betas"]
        states = [self._state(p) for p in parameters]
        first, second, steps = (
            [state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step")
        )
        torch._foreach_add_(steps, 1.0)
        torch._foreach_lerp_(first, gradients, 1.0 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1.0 - beta2)
        # The steps are on the host: reading them waits for no device.
        counts = [float(step) for step in steps]
        divisors = list(torch._foreach_sqrt(second))
        torch._foreach_div_(divisors, [(1.0 - beta2**count) ** 0.5 for count in counts])
        torch._foreach_add_(divisors, group["eps"])
        moves = list(torch._foreach_div(first, [1.0 - beta1**count for count in counts]))
        torch._foreach_div_(moves, divisors)
        if group["weight_decay"]:
            torch._foreach_add_(moves, parameters, alpha=group["weight_decay"])
        return Directions(parameters, moves, moves)

    def _ratios(self, weight: Tensor, measured: Tensor, group: dict[str, Any]) -> Tensor:
        return weight / measured

    def _move(self, group: dict[str, Any], directions: Directions) -> None:
        torch._foreach_add_(directions.parameters, directions.moves, alpha=-group["lr"])

    def _state(self, parameter: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        if "exp_avg" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state
