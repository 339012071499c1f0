"""What LARS and LAMB have in common: a step scaled for each layer by a ratio of two norms.

With ZeRO an optimizer is given flat shares of many layers in place of weights;
`LayerwiseOptimizer.set_fragments` says which layer each piece belongs to, and the ranks add their
squared norms up. All of it is in torch's foreach operations, which torch.optim is made of: on a GPU
one kernel for many tensors. Their names begin with an underscore and have not changed since 2021.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
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


class Directions(NamedTuple):
    """Where a group's parameters would move, before the layers' ratios.

    Args:
        parameters: those that have a gradient.
        measured: per parameter, the tensor whose norm stands in the ratio beside the weights'.
        moves: per parameter, what the ratio is multiplied with; the optimizer may change them.
    """

    parameters: list[Tensor]
    measured: list[Tensor]
    moves: list[Tensor]


class _Layout(NamedTuple):
    fragments: dict[Tensor, Sequence[Fragment]]
    # Per tensor, the layer of each of its fragments, on the tensor's device: made once, so that no
    # step copies anything to the device.
    layers: dict[Tensor, Tensor]
    num_layers: int
    reduce: Reduce


class LayerwiseOptimizer(Optimizer):
    """An optimizer with a ratio for each layer; groups with `adapt=False` have the ratio 1.

    Nothing is read off the device.
    """

    # A class attribute: a copied or unpickled optimizer has none of its own.
    _layout: _Layout | None = None

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
        found = []
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                gradients = [p.grad for p in parameters]
                found.append((group, self._directions(group, parameters, gradients)))
        adapted = [directions for group, directions in found if group["adapt"]]
        sums = None if self._layout is None else self._squared_norms(self._layout, adapted)
        for group, directions in found:
            if group["adapt"]:
                self._scale(group, directions, sums)
            self._move(group, directions)
        return loss

    @abstractmethod
    def _directions(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]
    ) -> Directions:
        """Return where a group's parameters would move; gradients are left as they are."""

    @abstractmethod
    def _ratios(self, weight: Tensor, measured: Tensor, group: dict[str, Any]) -> Tensor:
        """Return a ratio for each layer of two vectors of norms; where one is 0, it is not used."""

    @abstractmethod
    def _move(self, group: dict[str, Any], directions: Directions) -> None:
        """Move a group's parameters."""

    def _scale(self, group: dict[str, Any], directions: Directions, sums: Tensor | None) -> None:
        """Multiply the moves by their layers' ratios; `sums` are squared norms, (2, layers)."""
        parameters, measured, moves = directions
        if self._layout is None:
            weight_norms, norms = _norms(parameters), _norms(measured)
        else:
            assert sums is not None
            weight_norms, norms = sums.sqrt()
        ratios = self._ratios(weight_norms, norms, group)
        ratios = torch.where((weight_norms > 0) & (norms > 0), ratios, 1.0).float()
        if self._layout is not None:
            ratios = ratios[torch.cat([self._layout.layers[p] for p in parameters])]
            moves = _cut(moves, [self._layout.fragments[p] for p in parameters])
        if moves:
            torch._foreach_mul_(moves, ratios.unbind())

    def _squared_norms(self, layout: _Layout, adapted: list[Directions]) -> Tensor | None:
        """Return squared norms of weights and `measured` by layer, over all ranks: (2, layers)."""
        flats = [p for group in self.param_groups if group["adapt"] for p in group["params"]]
        if not flats:
            return None
        # A tensor without a gradient counts as nothing, yet its rank takes part in the sum.
        given = [p for directions in adapted for p in directions.parameters]
        measured = [m for directions in adapted for m in directions.measured]
        sums = torch.zeros(2, layout.num_layers, dtype=torch.float64, device=flats[0].device)
        cuts = [layout.fragments[p] for p in given]
        pieces = _cut(given, cuts)
        if pieces:
            layers = torch.cat([layout.layers[p] for p in given])
            norms = torch.stack([_norms(pieces), _norms(_cut(measured, cuts))])
            sums.index_add_(1, layers, norms.square())
        layout.reduce(sums.view(-1))
        return sums


def _norms(tensors: list[Tensor]) -> Tensor:
    """Return the tensors' Euclidean norms as one float64 vector, on their device."""
    # A CPU adds floats one behind the other: 2.4 million of them are wrong by 4e-5, and by another
    # amount in pieces. A GPU adds them in a tree.
    on_cpu = tensors[0].device.type == "cpu"
    norms = torch._foreach_norm(tensors, dtype=torch.float64 if on_cpu else None)
    return torch.stack(norms).double()


def _cut(tensors: Sequence[Tensor], cuts: list[Sequence[Fragment]]) -> list[Tensor]:
    """Return views of all fragments of flat tensors, one tensor's after the other's."""
    pairs = zip(tensors, cuts, strict=True)
    return [t.narrow(0, f.start, f.length) for t, fragments in pairs for f in fragments]
