"""LARS: SGD whose rate is scaled for each layer by the norms of its weights and gradient.

You, Gitman and Ginsburg 2017, "Large Batch Training of Convolutional Networks", algorithm 1. With
ZeRO the optimizer is given flat shares of many layers in place of weights; `Lars.set_fragments`
says which layer each piece belongs to, and the ranks add their squared norms up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

Reduce = Callable[[Tensor], None]


class Fragment(NamedTuple):
    """A piece of a flat tensor that belongs to one layer.

    Args:
        start: its first element.
        length: how many elements.
        layer: number of the layer, the same on all ranks, from 0.
    """

    start: int
    length: int
    layer: int


class _Layout(NamedTuple):
    fragments: dict[Tensor, Sequence[Fragment]]
    # Per tensor, the layer of each of its fragments, on the tensor's device: made once, so that no
    # step copies anything to the device.
    layers: dict[Tensor, Tensor]
    num_layers: int
    reduce: Reduce


class Lars(Optimizer):
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

    # A class attribute: a copied or unpickled optimizer has none of its own.
    _layout: _Layout | None = None

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

    def set_fragments(
        self, fragments: Mapping[Tensor, Sequence[Fragment]], num_layers: int, reduce: Reduce
    ) -> None:
        """Say which layers the optimizer's flat tensors hold; to be called by every rank.

        Each `step` then calls `reduce` once if it has adapted tensors at all, so every rank must
        step the same groups, or skip the step, together.

        Args:
            fragments: for each tensor of an adapted group, one-dimensional, its pieces on this rank
                (none, where it holds padding alone). What no piece covers is padding: its ratio
                is 1.
            num_layers: layers over all groups and ranks.
            reduce: adds a float64 vector of `2 * num_layers` up over the ranks, in place.
        """
        layers = {
            tensor: torch.tensor([f.layer for f in found], dtype=torch.int64, device=tensor.device)
            for tensor, found in fragments.items()
        }
        self._layout = _Layout(dict(fragments), layers, num_layers, reduce)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the parameters that have a gradient; return what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        sums = None if self._layout is None else self._squared_norms(self._layout)
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(group, parameters, sums)
        return loss

    def _update(self, group: dict[str, Any], parameters: list[Tensor], sums: Tensor | None) -> None:
        """Update a group's parameters; `sums` are the squared norms by layer, (2, layers)."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        deltas = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        if group["adapt"] and self._layout is None:
            norms = torch.stack([_norms(parameters), _norms(gradients)])
            torch._foreach_mul_(deltas, _ratios(norms, group).unbind())
        elif group["adapt"]:
            assert self._layout is not None
            assert sums is not None
            layers = [self._layout.layers[p] for p in parameters]
            ratios = _ratios(sums.sqrt(), group)[torch.cat(layers)]
            pieces = _cut(deltas, [self._layout.fragments[p] for p in parameters])
            if pieces:
                torch._foreach_mul_(pieces, ratios.unbind())
        if group["momentum"]:
            buffers = [self._buffer(p) for p in parameters]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, deltas)
            if group["nesterov"]:
                torch._foreach_add_(deltas, buffers, alpha=group["momentum"])
            else:
                deltas = buffers
        torch._foreach_add_(parameters, deltas, alpha=-group["lr"])

    def _squared_norms(self, layout: _Layout) -> Tensor | None:
        """Return squared norms of weights and gradients by layer, over all ranks: (2, layers)."""
        adapted = [p for group in self.param_groups if group["adapt"] for p in group["params"]]
        if not adapted:
            return None
        # A tensor without a gradient counts as nothing, yet its rank takes part in the sum.
        given = [p for p in adapted if p.grad is not None]
        sums = torch.zeros(2, layout.num_layers, dtype=torch.float64, device=adapted[0].device)
        cuts = [layout.fragments[p] for p in given]
        pieces = _cut(given, cuts)
        if pieces:
            gradients = _cut([p.grad for p in given if p.grad is not None], cuts)
            layers = torch.cat([layout.layers[p] for p in given])
            norms = torch.stack([_norms(pieces), _norms(gradients)])
            sums.index_add_(1, layers, norms.square())
        layout.reduce(sums.view(-1))
        return sums

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def _norms(tensors: list[Tensor]) -> Tensor:
    """Return the tensors' Euclidean norms as one float64 vector, on their device."""
    # A CPU adds floats one behind the other: 2.4 million of them are wrong by 4e-5, and by another
    # amount in pieces. A GPU adds them in a tree.
    on_cpu = tensors[0].device.type == "cpu"
    norms = torch._foreach_norm(tensors, dtype=torch.float64 if on_cpu else None)
    return torch.stack(norms).double()


def _ratios(norms: Tensor, group: dict[str, Any]) -> Tensor:
    """Return a float32 ratio for each column of norms (2, n) of weights and gradients: (n,)."""
    weight, gradient = norms
    bound = gradient + group["weight_decay"] * weight + group["eps"]
    ratio = group["trust_coefficient"] * weight / bound
    return torch.where((weight > 0) & (gradient > 0), ratio, 1.0).float()


def _cut(tensors: Sequence[Tensor], cuts: list[Sequence[Fragment]]) -> list[Tensor]:
    """Return views of all fragments of flat tensors, one tensor's after the other's."""
    pairs = zip(tensors, cuts, strict=True)
    return [t.narrow(0, f.start, f.length) for t, fragments in pairs for f in fragments]
