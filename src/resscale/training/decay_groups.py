"""Which parameters decay, and which have a ratio of their own under LARS and LAMB: by type."""

from __future__ import annotations

from typing import Any

from torch import nn

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


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


def adapted_groups(
    module: nn.Module, weight_decay: float, decay_norm_and_bias: bool
) -> list[dict[str, Any]]:
    """Split the parameters for LARS or LAMB: norms and biases are never adapted.

    They may decay, as `parameter_groups` has it.

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
            # BatchNorm and bias carry no decay: it shifts activations, not capacity. Attention's
            # bias is called `in_proj_bias`.
            norm_or_bias = isinstance(owner, _NORMS) or name == "bias" or name.endswith("_bias")
            (spared if spare and norm_or_bias else decayed).append(parameter)
    return decayed, spared
