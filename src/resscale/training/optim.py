"""Optimizers by name, and their numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from resscale.errors import UserInputError, nearest
from resscale.training.decay_groups import adapted_groups, parameter_groups
from resscale.training.lamb import Lamb
from resscale.training.lars import Lars
from resscale.training.optimizer_kernels import (
    IMPLEMENTATIONS,
    KERNEL_OPTIONS,
    Implementation,
    choose_optimizer_kernels,
    keep_kernels,
)

_Name = Literal["sgd", "lars", "lamb", "adamw"]
_NAMES: tuple[str, ...] = get_args(_Name)
_Scaling = Literal["linear", "sqrt"]
_SCALINGS: tuple[str, ...] = get_args(_Scaling)
# Options that not every optimizer has, and which have them.
_OWNERS: dict[str, tuple[str, ...]] = {
    "momentum": ("sgd", "lars"),
    "nesterov": ("sgd", "lars"),
    "trust_coefficient": ("lars",),
    "betas": ("adamw", "lamb"),
    "eps": ("lars", "adamw", "lamb"),
}
_EPS = {"sgd": 1e-8, "lars": 1e-8, "lamb": 1e-6, "adamw": 1e-8}
# LAMB's rates for ResNet-50 end at 0.04, for batches of 32,768 (You et al. 2019); AdamW's below.
_LARGE_LR = 0.1


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its numbers.

    An option that the optimizer does not have must be left at its default.

    Args:
        name: "sgd" (with momentum), "adamw", or for global batches of many thousands "lars" or
            "lamb".
        lr: learning rate at a global batch of `lr_batch_size`.
        lr_batch_size: the global batch that `lr` is stated for. None: `lr` is used as it is.
        lr_scaling: how the rate follows the global batch: "linear" (Goyal et al. 2017, section
            2.1), or "sqrt", with its square root (Krizhevsky 2014; You et al. 2019).
        momentum: of SGD and LARS.
        nesterov: Nesterov's form of momentum.
        betas: of AdamW and LAMB: how much of the mean of gradients, and of their squares, a step
            keeps.
        weight_decay: L2 penalty of SGD and LARS; of AdamW and LAMB decoupled (Loshchilov and
            Hutter 2017).
        decay_norm_and_bias: let norms and biases decay too, as torchvision's first recipe does.
        trust_coefficient: of LARS: how far a step may move a layer, relative to its weights' norm.
        eps: keeps the steps of LARS, AdamW and LAMB finite where gradients are near 0. None: 1e-6
            for LAMB, 1e-8 for the others.
        implementation: "auto": torch's fused kernels where the parameters are on a GPU and the
            optimizer has them (SGD and AdamW), else "foreach"; "for_loop": one parameter at a time.
    """

    name: _Name = "sgd"
    lr: float = 0.1
    lr_batch_size: int | None = 256
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    decay_norm_and_bias: bool = False
    trust_coefficient: float = 0.001
    eps: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    lr_scaling: _Scaling = "linear"
    implementation: Implementation = "auto"

    def __post_init__(self) -> None:
        _check_name("name", self.name, _NAMES)
        _check_name("lr_scaling", self.lr_scaling, _SCALINGS)
        _check_name("implementation", self.implementation, IMPLEMENTATIONS)
        self._check_numbers()
        self._check_owners()
        if self.nesterov and self.momentum == 0:
            raise UserInputError(
                "model.optimizer.nesterov=true needs momentum above 0; set nesterov to false."
            )
        if self.lr_batch_size is None and self.lr_scaling != "linear":
            raise UserInputError(
                f"model.optimizer.lr_scaling={self.lr_scaling} scales from lr_batch_size, which is "
                f"null: state the global batch that lr is meant for, or leave lr_scaling out."
            )
        if self.name in ("lars", "lamb") and self.implementation not in ("auto", "foreach"):
            raise UserInputError(
                f"model.optimizer.implementation={self.implementation} is for sgd and adamw: "
                f"{self.name} has only the form foreach; leave implementation out."
            )

    def _check_numbers(self) -> None:
        for name in ("lr", "momentum", "weight_decay", "eps"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise UserInputError(f"model.optimizer.{name}={value} must be finite, 0 or more.")
        if self.lr_batch_size is not None and self.lr_batch_size < 1:
            raise UserInputError(
                f"model.optimizer.lr_batch_size={self.lr_batch_size} must be 1 or more: the global "
                f"batch that lr is stated for; or null, to use lr as it is."
            )
        if not self.trust_coefficient > 0:
            raise UserInputError(
                f"model.optimizer.trust_coefficient={self.trust_coefficient} must be above 0: it "
                f"scales the rate of every layer. The paper's is 0.001."
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserInputError(
                f"model.optimizer.betas={list(self.betas)} must each be from 0 up to, not "
                f"including, 1: the shares of the two means that a step keeps."
            )
        if self.eps == 0 and self.name in ("adamw", "lamb"):
            raise UserInputError(
                f"model.optimizer.eps=0 lets {self.name} divide 0 by 0 where a gradient is 0: give "
                f"it a value above 0, such as 1e-8."
            )

    def _check_owners(self) -> None:
        for option, owners in _OWNERS.items():
            value = getattr(self, option)
            default = type(self).__dataclass_fields__[option].default
            unset = (default, _EPS[self.name]) if option == "eps" else (default,)
            if self.name not in owners and value not in unset:
                raise UserInputError(
                    f"model.optimizer.{option}={_plain(value)} is for {', '.join(owners)}, and "
                    f"model.optimizer.name is {self.name}, which would ignore it: leave {option} "
                    f"out{_instead(option, self.name)}."
                )

    def scaled_lr(self, global_batch_size: int) -> float:
        """Return the rate for a global batch."""
        if self.lr_batch_size is None:
            return self.lr
        if self.lr_scaling == "sqrt":
            return self.lr * math.sqrt(global_batch_size / self.lr_batch_size)
        return self.lr * global_batch_size / self.lr_batch_size

    def explain_lr(self, global_batch_size: int) -> str:
        """Return the scaling's arithmetic, for people."""
        lr = self.scaled_lr(global_batch_size)
        if self.lr_batch_size in (None, global_batch_size):
            return f"lr {lr:g}"
        ratio = f"{global_batch_size}/{self.lr_batch_size}"
        factor = f"√({ratio})" if self.lr_scaling == "sqrt" else ratio
        return f"lr {self.lr:g} × {factor} = {lr:g}"

    def warn_of_lr(self, global_batch_size: int) -> str | None:
        """Return a warning where the rate is far above what the optimizer trains with, else None.

        SGD and LARS have rates of any size. A step of LAMB moves each layer by the rate times the
        norm of its weights, a step of AdamW each weight by about the rate.
        """
        lr = self.scaled_lr(global_batch_size)
        if lr < _LARGE_LR or self.name not in ("lamb", "adamw"):
            return None
        moved = (
            f"each layer by {lr:.0%} of its norm" if self.name == "lamb" else f"weights by {lr:g}"
        )
        return (
            f"warning: model.optimizer.lr comes to {lr:g}: a step of {self.name} moves {moved}. "
            f"LAMB's published rates end at 0.04, AdamW's are lower still."
        )


def build_optimizer(
    module: nn.Module,
    config: OptimizerConfig,
    global_batch_size: int,
    device: torch.device | None = None,
) -> Optimizer:
    """Build the optimizer over a module's parameters.

    Args:
        module: its trainable parameters are optimized.
        config: the user's options.
        global_batch_size: scales the rate.
        device: where the parameters will be stepped; None: where they are.
    """
    lr = config.scaled_lr(global_batch_size)
    eps = _EPS[config.name] if config.eps is None else config.eps
    decay = (config.weight_decay, config.decay_norm_and_bias)
    momentum: dict[str, Any] = {"momentum": config.momentum, "nesterov": config.nesterov}
    optimizer: Optimizer
    if config.name == "lars":
        optimizer = Lars(
            adapted_groups(module, *decay),
            lr=lr,
            **momentum,
            trust_coefficient=config.trust_coefficient,
            eps=eps,
        )
    elif config.name == "lamb":
        optimizer = Lamb(adapted_groups(module, *decay), lr=lr, betas=config.betas, eps=eps)
    else:
        groups = parameter_groups(module, *decay)
        if device is None:
            device = groups[0]["params"][0].device if groups else torch.device("cpu")
        kernels = choose_optimizer_kernels(config.implementation, device)
        if config.name == "adamw":
            optimizer = AdamW(groups, lr=lr, betas=config.betas, eps=eps, **kernels)
        else:
            optimizer = SGD(groups, lr=lr, **momentum, **kernels)
    keep_kernels(optimizer)
    return optimizer


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
        # The kernels are those of the optimizer that takes the state over.
        left = ("params", *KERNEL_OPTIONS)
        numbers = {name: value for name, value in now.items() if name not in left}
        saved.update({**numbers, "lr": rate, "initial_lr": now["lr"]})
    for scheduler in checkpoint.get("lr_schedulers") or ():
        scheduler["base_lrs"] = [group["lr"] for group in fresh.param_groups]


def _check_name(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserInputError(
            f"model.optimizer.{option}={value} must be one of {', '.join(known)}."
            f"{nearest(value, known)}"
        )


def _instead(option: str, name: str) -> str:
    """Return what an optimizer has in the place of an option."""
    if name in ("adamw", "lamb") and option in ("momentum", "nesterov"):
        return "; its momentum is the first of betas"
    return ""


def _plain(value: Any) -> str:
    """Return a value as a user writes it."""
    if isinstance(value, tuple):
        return str(list(value))
    return str(value).lower() if isinstance(value, bool) else str(value)
