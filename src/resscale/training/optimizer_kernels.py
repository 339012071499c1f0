"""Which of torch's kernels an optimizer steps with, and what keeps that true in a resumed run."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

Implementation = Literal["auto", "fused", "foreach", "for_loop"]
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)

# Of a parameter group: how it is computed, not what. They are the machine's, not the run's.
KERNEL_OPTIONS = ("foreach", "fused", "capturable", "differentiable")


def choose_optimizer_kernels(
    implementation: Implementation, device: torch.device
) -> dict[str, bool]:
    """Return the options that tell torch's SGD and AdamW which kernels to use.

    Args:
        implementation: "fused": the whole step of all parameters in one kernel; "foreach": an
            operation of all parameters in one kernel; "for_loop": an operation of one parameter.
            "auto": fused on CUDA, else foreach. The first rounds otherwise, the others are equal
            to the bit on a CPU.
        device: where the parameters will be when they are stepped.
    """
    if implementation == "auto":
        implementation = "fused" if device.type == "cuda" else "foreach"
    return {"foreach": implementation == "foreach", "fused": implementation == "fused"}


def keep_kernels(optimizer: Optimizer) -> None:
    """Make an optimizer keep its kernels and its layout when it takes over a state.

    torch would go on with the kernels of the checkpoint, which may come from another machine, and
    with the memory formats of its tensors, which under ZeRO are others; fused kernels refuse them
    on a GPU, and on a CPU take one element for another.

    With float16 torch leaves gradients to a fused optimizer as they are, scaled. Then nobody can
    clip them, and a skipped step counts as one done. So that is switched off: they are unscaled
    first, as for every other optimizer.
    """
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    optimizer.register_load_state_dict_pre_hook(_with_own_kernels)
    optimizer.register_load_state_dict_post_hook(_lay_out_like_parameters)


def is_step_on_device(group: dict[str, Any]) -> bool:
    """Tell whether a group's optimizer counts its steps on the parameters' device."""
    return bool(group.get("fused") or group.get("capturable"))


def _with_own_kernels(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    groups = []
    for saved, own in zip(state_dict["param_groups"], optimizer.param_groups, strict=False):
        kept = {name: own[name] for name in KERNEL_OPTIONS if name in own}
        groups.append({**saved, **kept})
    # Groups too many are left for torch to refuse.
    groups += state_dict["param_groups"][len(groups) :]
    return {**state_dict, "param_groups": groups}


def _lay_out_like_parameters(optimizer: Optimizer) -> None:
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if (
                isinstance(value, Tensor)
                and value.shape == parameter.shape
                and value.stride() != parameter.stride()
            ):
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
