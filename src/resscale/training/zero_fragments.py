"""Where each parameter's elements lie in the flat tensors that a ZeRO optimizer steps.

ZeRO 1 and 2 lay all parameters of a group end to end and give each rank one stretch of it; ZeRO 3
gives each rank an equal share of every parameter. Both come down to a list of fragments, and with
it optimizer state moves between ZeRO and torch's own form, and LARS and LAMB find their layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from resscale.training.optimizer_kernels import KERNEL_OPTIONS, is_step_on_device
from resscale.training.partition import full_shape, is_partitioned

ParameterGroups = list[list[nn.Parameter]]


@dataclass(frozen=True, eq=False)
class Fragment:
    """A stretch of a parameter that this rank updates.

    Args:
        parameter: index of the parameter, counted through the groups.
        flat: the flat tensor that the optimizer steps.
        flat_start: first element in `flat`.
        start: first element in the flattened parameter.
        length: elements.
    """

    parameter: int
    flat: Tensor
    flat_start: int
    start: int
    length: int

    def of_flat(self, values: Tensor) -> Tensor:
        """Return the stretch of a tensor shaped like `flat`."""
        return values.narrow(0, self.flat_start, self.length)

    def of_whole(self, whole: Tensor) -> Tensor:
        """Return the stretch of a tensor shaped like the parameter."""
        return whole.flatten().narrow(0, self.start, self.length)


def find_fragments(zero_optimizer: Any, groups: ParameterGroups) -> list[Fragment]:
    """Return this rank's fragments, in the order of the parameters.

    Args:
        zero_optimizer: DeepSpeed's optimizer of stage 1, 2 or 3.
        groups: the parameters of each group, as the optimizer was built with them.
    """
    found = []
    for index, parameter in enumerate(p for group in groups for p in group):
        find = _share if is_partitioned(parameter) else _stretch
        fragment = find(zero_optimizer, index, parameter)
        if fragment is not None and fragment.length:
            found.append(fragment)
    return found


def gather_state(
    optimizer: Optimizer, groups: ParameterGroups, fragments: Iterable[Fragment]
) -> dict[str, Any]:
    """Return the state of all parameters in the form of torch's `Optimizer.state_dict`.

    Every rank must call it. Tensors are whole, fp32, on the host.

    Args:
        optimizer: torch's, under the ZeRO optimizer; its state is kept by flat tensor.
        groups: the parameters of each group.
        fragments: this rank's.
    """
    fragments = list(fragments)
    parameters = [p for group in groups for p in group]
    own = {fragment.parameter: fragment for fragment in fragments}
    states = [optimizer.state[fragment.flat] for fragment in fragments]
    keys = _union(key for state in states for key, value in state.items() if _is_flat(value))
    counts = {k: v for state in states for k, v in state.items() if not _is_flat(v)}
    state: dict[int, dict[str, Any]] = {}
    for index, parameter in enumerate(parameters):
        entry: dict[str, Any] = {k: _own(v) for k, v in counts.items()} if keys else {}
        for key in keys:
            whole = torch.zeros(full_shape(parameter), dtype=torch.float32, device=_device(groups))
            fragment = own.get(index)
            if fragment is not None:
                mine = optimizer.state[fragment.flat][key]
                fragment.of_whole(whole).copy_(fragment.of_flat(mine))
            distributed.all_reduce(whole)
            entry[key] = whole.cpu()
        if entry:
            state[index] = entry
    return {"state": state, "param_groups": _packed_groups(optimizer, groups)}


def scatter_state(
    optimizer: Optimizer, state_dict: Mapping[str, Any], fragments: Iterable[Fragment]
) -> None:
    """Take over a state in torch's form: this rank's stretches of it.

    Args:
        optimizer: torch's, under the ZeRO optimizer.
        state_dict: of `gather_state`, or of a torch optimizer over the same groups.
        fragments: this rank's.
    """
    on_device: set[int] = set()
    for group, saved in zip(optimizer.param_groups, state_dict["param_groups"], strict=True):
        left = ("params", *KERNEL_OPTIONS)
        group.update({name: value for name, value in saved.items() if name not in left})
        on_device.update(saved["params"] if is_step_on_device(group) else ())
    for fragment in fragments:
        for key, value in state_dict["state"].get(fragment.parameter, {}).items():
            flat_state = optimizer.state[fragment.flat]
            if not _is_flat(value):
                # The steps done. What lies in one flat tensor has been stepped together.
                where = fragment.flat.device if fragment.parameter in on_device else "cpu"
                flat_state[key] = _own(value).to(where) if torch.is_tensor(value) else value
                continue
            if key not in flat_state:
                flat_state[key] = torch.zeros_like(fragment.flat)
            fragment.of_flat(flat_state[key]).copy_(fragment.of_whole(value))


def _stretch(zero_optimizer: Any, index: int, parameter: nn.Parameter) -> Fragment | None:
    """Return this rank's fragment under ZeRO 1 or 2: DeepSpeed has noted it at the parameter."""
    mapping = getattr(parameter, "_hp_mapping", None)
    if mapping is None:
        return None
    flat = zero_optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
    there, here = mapping.hp_fragment_address, mapping.lp_fragment_address
    return Fragment(index, flat, there.start, here.start, here.numel)


def _share(zero_optimizer: Any, index: int, parameter: nn.Parameter) -> Fragment | None:
    """Return this rank's fragment under ZeRO 3; the padding of the last share is left out."""
    number = zero_optimizer.get_param_id(parameter)
    group, flat_start, share = zero_optimizer.grad_position[number]
    start = distributed.get_rank() * share
    length = max(0, min(share, full_shape(parameter).numel() - start))
    flat = zero_optimizer.fp32_partitioned_groups_flat[group]
    return Fragment(index, flat, flat_start, start, length)


def _packed_groups(optimizer: Optimizer, groups: ParameterGroups) -> list[dict[str, Any]]:
    packed, start = [], 0
    for options, parameters in zip(optimizer.param_groups, groups, strict=True):
        numbers = list(range(start, start + len(parameters)))
        start += len(parameters)
        plain = {name: value for name, value in options.items() if name != "params"}
        packed.append({**plain, "params": numbers})
    return packed


def _union(keys: Iterable[str]) -> list[str]:
    """Return the ranks' keys in one order: a rank may hold no fragment at all."""
    mine = list(dict.fromkeys(keys))
    if distributed.get_world_size() == 1:
        return mine
    parts: list[list[str] | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, mine)
    return list(dict.fromkeys(key for part in parts for key in part or []))


def _is_flat(value: Any) -> bool:
    return torch.is_tensor(value) and value.dim() > 0


def _own(value: Any) -> Any:
    """Return a copy on the host: entries that share a tensor would count each step many times."""
    return value.detach().cpu().clone() if torch.is_tensor(value) else value


def _device(groups: ParameterGroups) -> torch.device:
    return groups[0][0].device
