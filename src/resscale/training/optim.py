"""Optimizers, and which parameters decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.optim import SGD, Optimizer

from resscale.errors import UserInputError

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its numbers.

    Args:
        name: "sgd" (with momentum).
        lr: learning rate at a global batch of `lr_batch_size`.
        lr_batch_size: the global batch that `lr` is stated for; the rate scales linearly with the
            global batch (Goyal et al. 2017, section 2.1). None: `lr` is used as it is.
        momentum: of SGD.
        nesterov: Nesterov's form of momentum.
        weight_decay: L2 penalty.
        decay_norm_and_bias: let norms and biases decay too, as torchvision's first recipe does.
    """

    name: Literal["sgd"] = "sgd"
    lr: float = 0.1
    lr_batch_size: int | None = 256
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    decay_norm_and_bias: bool = False

    def __post_init__(self) -> None:
        for name in ("lr", "momentum", "weight_decay"):
            value = getattr(self, name)
            if value < 0:
                raise UserInputError(f"model.optimizer.{name}={value} must not be below 0.")
        if self.nesterov and self.momentum == 0:
            raise UserInputError(
                "model.optimizer.nesterov=true needs momentum above 0; set nesterov to false."
            )

    def scaled_lr(self, global_batch_size: int) -> float:
        """Return the rate for a global batch."""
        if self.lr_batch_size is None:
            return self.lr
        return self.lr * global_batch_size / self.lr_batch_size

    def explain_lr(self, global_batch_size: int) -> str:
        """Return the scaling's arithmetic, for people."""
        lr = self.scaled_lr(global_batch_size)
        if self.lr_batch_size in (None, global_batch_size):
            return f"lr {lr:g}"
        return f"lr {self.lr:g} × {global_batch_size}/{self.lr_batch_size} = {lr:g}"


def parameter_groups(
    module: nn.Module, weight_decay: float, decay_norm_and_bias: bool
) -> list[dict[str, Any]]:
    """Split the parameters into those that decay and those that do not, by the owner's type.

    Returns:
        One or two groups with `params` and `weight_decay`; each parameter is in exactly one.
    """
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    seen: set[nn.Parameter] = set()
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            # BatchNorm and bias carry no decay: it shifts activations, not capacity.
            spare = isinstance(owner, _NORMS) or name == "bias"
            (spared if spare and not decay_norm_and_bias else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    module: nn.Module, config: OptimizerConfig, global_batch_size: int
) -> Optimizer:
    """Build the optimizer over a module's parameters."""
    groups = parameter_groups(module, config.weight_decay, config.decay_norm_and_bias)
    return SGD(
        groups,
        lr=config.scaled_lr(global_batch_size),
        momentum=config.momentum,
        nesterov=config.nesterov,
    )
