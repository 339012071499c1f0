"""Optimizers, and which parameters decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn
from torch.optim import SGD, Optimizer

from resscale.errors import UserInputError, nearest
from resscale.training.lars import Lars

_Name = Literal["sgd", "lars"]
_NAMES: tuple[str, ...] = get_args(_Name)
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
        name: "sgd" (with momentum), or "lars" for global batches of many thousands.
        lr: learning rate at a global batch of `lr_batch_size`.
        lr_batch_size: the global batch that `lr` is stated for; the rate scales linearly with the
            global batch (Goyal et al. 2017, section 2.1). None: `lr` is used as it is.
        momentum: of SGD.
        nesterov: Nesterov's form of momentum.
        weight_decay: L2 penalty.
        decay_norm_and_bias: let norms and biases decay too, as torchvision's first recipe does.
        trust_coefficient: of LARS: how far a step may move a layer, relative to its weights' norm.
        eps: of LARS: keeps a layer's rate finite where its gradient is near 0.
    """

    name: _Name = "sgd"
    lr: float = 0.1
    lr_batch_size: int | None = 256
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    decay_norm_and_bias: bool = False
    trust_coefficient: float = 0.001
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if self.name not in _NAMES:
            raise UserInputError(
                f"model.optimizer.name={self.name} must be one of {', '.join(_NAMES)}."
                f"{nearest(self.name, _NAMES)}"
            )
        for name in ("lr", "momentum", "weight_decay", "eps"):
            value = getattr(self, name)
            if value < 0:
                raise UserInputError(f"model.optimizer.{name}={value} must not be below 0.")
        if self.nesterov and self.momentum == 0:
            raise UserInputError(
                "model.optimizer.nesterov=true needs momentum above 0; set nesterov to false."
            )
        if self.trust_coefficient <= 0:
            raise UserInputError(
                f"model.optimizer.trust_coefficient={self.trust_coefficient} must be above 0: it "
                f"scales the rate of every layer. The paper's is 0.001."
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
    decayed, spared = _split(module, spare=not decay_norm_and_bias)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def lars_groups(
    module: nn.Module, weight_decay: float, decay_norm_and_bias: bool
) -> list[dict[str, Any]]:
    """Split the parameters for LARS: norms and biases are not adapted, whether they decay or not.

    Returns:
        One or two groups with `params`, `weight_decay` and `adapt`.
    """
    decayed, spared = _split(module, spare=True)
    spared_decay = weight_decay if decay_norm_and_bias else 0.0
    groups = [
        {"params": decayed, "weight_decay": weight_decay, "adapt": True},
        {"params": spared, "weight_decay": spared_decay, "adapt": False},
    ]
    return [group for group in groups if group["params"]]


def _split(module: nn.Module, *, spare: bool) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the trainable parameters, and apart from them norms and biases where they are spared.

    Both are in the module's order, in which checkpoints number them; each parameter is there once.
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
            norm_or_bias = isinstance(owner, _NORMS) or name == "bias"
            (spared if spare and norm_or_bias else decayed).append(parameter)
    return decayed, spared


def build_optimizer(
    module: nn.Module, config: OptimizerConfig, global_batch_size: int
) -> Optimizer:
    """Build the optimizer over a module's parameters."""
    lr = config.scaled_lr(global_batch_size)
    if config.name == "lars":
        return Lars(
            lars_groups(module, config.weight_decay, config.decay_norm_and_bias),
            lr=lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            trust_coefficient=config.trust_coefficient,
            eps=config.eps,
        )
    groups = parameter_groups(module, config.weight_decay, config.decay_norm_and_bias)
    return SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.nesterov)


def take_numbers(checkpoint: dict[str, Any], fresh: Optimizer) -> None:
    """Put an optimizer's numbers in the place of those in a checkpoint; what it has kept stays.

    torch would go on with the checkpoint's, whatever the configuration says.

    Args:
        checkpoint: its `optimizer_states` and `lr_schedulers` are changed. Where it has none, or
            they are of another optimizer, nothing is.
        fresh: of the same groups, before a schedule has changed its rate.
    """
    states = checkpoint.get("optimizer_states")
    groups = states[0]["param_groups"] if states else []
    names = [group.keys() - {"initial_lr"} for group in groups]
    if names != [group.keys() for group in fresh.param_groups]:
        return
    for saved, now in zip(groups, fresh.param_groups, strict=True):
        before = saved.get("initial_lr", saved["lr"])
        # The schedule stands where it stood. Equal rates stay equal to the bit.
        same = before == now["lr"] or not before
        rate = saved["lr"] if same else saved["lr"] / before * now["lr"]
        numbers = {name: value for name, value in now.items() if name != "params"}
        saved.update({**numbers, "lr": rate, "initial_lr": now["lr"]})
    for scheduler in checkpoint.get("lr_schedulers") or ():
        scheduler["base_lrs"] = [group["lr"] for group in fresh.param_groups]
