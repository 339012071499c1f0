"""A second network that holds a running average of the first one's weights, under any strategy.

Under ZeRO-3 a rank averages the shares of the weights that it holds, and the whole is brought
together where it is needed: to evaluate and to save.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from resscale.errors import UserInputError
from resscale.training.batchnorm import average_batchnorm_statistics
from resscale.training.ema_checkpoint import PREFIX
from resscale.training.partition import (
    full_shape,
    gather_part,
    is_partitioned,
    local_part,
    own_part,
)


class AveragedNetwork:
    """A network in evaluation mode whose weights follow those of another as an average.

    Weights and BatchNorm's running statistics are averaged, in float32; tensors that count
    (BatchNorm's `num_batches_tracked`) are copied. It is no `nn.Module`, so that no strategy wraps
    it and no state dict takes it up.

    Args:
        network: the network to follow, whole: before a strategy shares it out.

    Attributes:
        network: the average. Under ZeRO-3 it is whole between `gather` and `release` only.
        updates: how often the average has moved.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = copy.deepcopy(_uncompiled(network)).float().eval().requires_grad_(False)
        self.updates = 0
        self._parameters: list[nn.Parameter] = []
        self._parts: list[Tensor] = []
        self._live_buffers: list[Tensor] = []
        self._buffers: list[Tensor] = []

    @property
    def is_attached(self) -> bool:
        """Whether `attach` was called."""
        return bool(self._parameters)

    def attach(self, network: nn.Module, device: torch.device) -> None:
        """Begin to follow the network as a strategy has set it up, from its values now.

        Args:
            network: of the same keys as the one given first, and updated in place.
            device: where evaluation runs.
        """
        self.network.to(device)
        network = _uncompiled(network)
        parameters, buffers = dict(network.named_parameters()), dict(network.named_buffers())
        names = [name for name, _ in self.network.named_parameters()]
        self._parameters = [parameters[name] for name in names]
        self._live_buffers = [buffers[name] for name, _ in self.network.named_buffers()]
        self._buffers = list(self.network.buffers())
        # The network's own memory where a rank holds whole weights; beside it where it does not.
        self._parts = [
            local_part(parameter).float().clone() if is_partitioned(parameter) else average.data
            for parameter, average in zip(self._parameters, self.network.parameters(), strict=True)
        ]
        self.release()
        self.take()

    @torch.no_grad()
    def take(self) -> None:
        """Be equal to the network that is followed."""
        torch._foreach_copy_([*self._parts, *self._buffers], [*self._live(), *self._live_buffers])

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Move by `1 - decay` of the way to the network that is followed.

        Nothing is read off the device. To be called once per optimizer step.

        Args:
            decay: share of the average that is kept, from 0 to 1.
        """
        pairs = list(zip(self._buffers, self._live_buffers, strict=True))
        moving = [(average, live) for average, live in pairs if average.is_floating_point()]
        counting = [(average, live) for average, live in pairs if not average.is_floating_point()]
        averages = [*self._parts, *(average for average, _ in moving)]
        live = [*self._live(), *(live.float() for _, live in moving)]
        torch._foreach_lerp_(averages, live, 1.0 - decay)
        if counting:
            torch._foreach_copy_([average for average, _ in counting], [it for _, it in counting])
        self.updates += 1

    @torch.inference_mode(False)
    @torch.no_grad()
    def gather(self) -> nn.Module:
        """Return the whole average, with equal bytes on all ranks; every rank must call it."""
        for average, part, parameter in self._shares():
            # A share that is kept on the host (offload) cannot be gathered over nccl.
            average.data = gather_part(part.to(average.device), parameter)
        average_batchnorm_statistics(self.network)
        return self.network

    def release(self) -> None:
        """Give the memory back that `gather` took: under ZeRO-3 the whole weights."""
        for average, _, _ in self._shares():
            average.data = average.new_empty(0)

    def state_dict(self) -> dict[str, Tensor]:
        """Return whole tensors by the keys of the LightningModule; every rank must call it."""
        state = self.gather().state_dict()
        self.release()
        return {PREFIX + name: tensor.detach() for name, tensor in state.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the values of a `state_dict()`, of any strategy and number of ranks.

        Raises:
            UserInputError: other keys or shapes than the network's.
        """
        parameters = [name for name, _ in self.network.named_parameters()]
        kept = set(self.network.state_dict())
        buffers = [(name, it) for name, it in self.network.named_buffers() if name in kept]
        shapes = {
            name: full_shape(parameter)
            for name, parameter in zip(parameters, self._parameters, strict=True)
        }
        shapes.update({name: buffer.shape for name, buffer in buffers})
        for name, shape in shapes.items():
            found = state.get(PREFIX + name)
            if found is None or found.shape != shape:
                raise UserInputError(
                    f"the checkpoint's averaged {PREFIX + name} is "
                    f"{'not there' if found is None else list(found.shape)}, the network's is "
                    f"{list(shape)}: they are of different networks. Set model.model as it was, "
                    f"or leave ema.decay out."
                )
        for name, parameter, part in zip(parameters, self._parameters, self._parts, strict=True):
            part.copy_(own_part(state[PREFIX + name], parameter))
        for name, buffer in buffers:
            buffer.copy_(state[PREFIX + name])

    def _live(self) -> list[Tensor]:
        """Return this rank's part of each weight; anew each time, as DeepSpeed may move them."""
        return [local_part(parameter).float() for parameter in self._parameters]

    def _shares(self) -> list[tuple[nn.Parameter, Tensor, nn.Parameter]]:
        """Return (average, this rank's part of it, weight that it follows), where ranks share."""
        averages = self.network.parameters() if self._parameters else ()
        triples = zip(averages, self._parts, self._parameters, strict=True)
        return [triple for triple in triples if is_partitioned(triple[2])]


def _uncompiled(network: nn.Module) -> nn.Module:
    """Return the network inside torch.compile's wrapper, whose keys are those of checkpoints."""
    inner = getattr(network, "_orig_mod", network)
    assert isinstance(inner, nn.Module)
    return inner
