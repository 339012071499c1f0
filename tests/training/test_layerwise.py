"""Layers in flat shares: LARS and LAMB move as they do on whole layers, on any number of ranks."""

import functools
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

from resscale.training.lamb import Lamb
from resscale.training.lars import Lars
from resscale.training.layerwise import Fragment, LayerwiseOptimizer

# Sizes of three adapted layers that lie one behind the other in a flat tensor of 120.
SIZES = (24, 81, 15)
STEPS = 3
BUILDERS: dict[str, Callable[..., LayerwiseOptimizer]] = {
    "lars": functools.partial(
        Lars, lr=3.0, nesterov=True, weight_decay=0.2, trust_coefficient=0.05
    ),
    "lamb": functools.partial(Lamb, lr=0.1, weight_decay=0.2),
}
both = pytest.mark.parametrize("name", BUILDERS)


def values_of(layer: int, number: int) -> Tensor:
    """Weights (number 0) and gradients (number 1 on) of a layer; norms differ by layer."""
    generator = torch.Generator().manual_seed(10 * layer + number)
    return torch.randn(SIZES[layer], generator=generator) * (layer + 1)


def flat_values(number: int) -> Tensor:
    return torch.cat([values_of(layer, number) for layer in range(len(SIZES))])


def whole_result(name: str) -> Tensor:
    """Three steps on whole tensors, laid flat."""
    layers = [nn.Parameter(values_of(layer, 0)) for layer in range(len(SIZES))]
    optimizer = BUILDERS[name](layers)
    for number in range(1, STEPS + 1):
        for layer, parameter in enumerate(layers):
            parameter.grad = values_of(layer, number)
        optimizer.step()
    return torch.cat([parameter.detach() for parameter in layers])


def shares_of(cuts: list[int]) -> list[tuple[slice, list[Fragment]]]:
    """Cut the flat layers at `cuts`; return per share its slice and what it holds of each layer."""
    bounds = [sum(SIZES[:layer]) for layer in range(len(SIZES) + 1)]
    shares = []
    for begin, end in zip([0, *cuts], [*cuts, bounds[-1]], strict=True):
        fragments = []
        for layer in range(len(SIZES)):
            low, high = max(begin, bounds[layer]), min(end, bounds[layer + 1])
            if low < high:
                fragments.append(Fragment(low - begin, high - low, layer))
        shares.append((slice(begin, end), fragments))
    return shares


def padded(values: Tensor, padding: int) -> Tensor:
    return torch.cat([values, torch.zeros(padding)])


def train_share(
    name: str,
    share: tuple[slice, list[Fragment]],
    reduce: Callable[[Tensor], None],
    padding: int = 0,
) -> Tensor:
    """Three steps on one rank's share of the flat layers, with zeros behind it."""
    place, fragments = share
    flat = nn.Parameter(padded(flat_values(0)[place], padding))
    optimizer = BUILDERS[name]([flat])
    optimizer.set_fragments({flat: fragments}, len(SIZES), reduce)
    for number in range(1, STEPS + 1):
        flat.grad = padded(flat_values(number)[place], padding)
        optimizer.step()
    return flat.detach()


def rank_of_two(rank: int, cut: int, folder: str) -> None:
    """A real rank under gloo; leaves its shares in `folder`."""
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    padding = 7 if rank == 1 else 0
    for name in BUILDERS:
        calls = []

        def reduce(sums: Tensor, calls: list[Any] = calls) -> None:
            calls.append(sums.shape)
            distributed.all_reduce(sums)

        share = train_share(name, shares_of([cut])[rank], reduce, padding)
        torch.save((share, calls), f"{folder}/{name}-{rank}.pt")
    distributed.destroy_process_group()


def test_two_ranks_with_shares_move_as_one_with_whole_layers(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), "60", str(tmp_path)])
        for rank in (0, 1)
    ]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    for name in BUILDERS:
        found = [torch.load(tmp_path / f"{name}-{r}.pt", weights_only=True) for r in (0, 1)]
        together = torch.cat([share for share, _ in found])
        torch.testing.assert_close(together[:120], whole_result(name), rtol=1e-6, atol=1e-6)
        assert torch.equal(together[120:], torch.zeros(7))  # padding stays 0
        # One collective a step, of two norms for each of 3 layers.
        assert found[0][1] == [torch.Size([6])] * STEPS


@both
@pytest.mark.parametrize("seed", range(20))
def test_shares_cut_anywhere_move_as_whole_layers(seed: int, name: str) -> None:
    cuts = sorted(random.Random(seed).sample(range(1, 120), 3))
    shares = shares_of(cuts)
    flats = [nn.Parameter(flat_values(0)[place]) for place, _ in shares]
    optimizer = BUILDERS[name]([{"params": flats[:2]}, {"params": flats[2:]}])
    fragments = {flat: found for flat, (_, found) in zip(flats, shares, strict=True)}
    # All shares are in one process: their sums are complete already.
    optimizer.set_fragments(fragments, len(SIZES), lambda sums: None)
    for number in range(1, STEPS + 1):
        for flat, (place, _) in zip(flats, shares, strict=True):
            flat.grad = flat_values(number)[place]
        optimizer.step()
    together = torch.cat([flat.detach() for flat in flats])
    torch.testing.assert_close(together, whole_result(name), rtol=1e-6, atol=1e-6)


@both
def test_a_share_without_its_neighbours_norms_would_move_otherwise(name: str) -> None:
    # Guards the tests above: were the ratio near 1 everywhere, they could not fail.
    alone = train_share(name, shares_of([60])[0], lambda sums: None)
    assert (alone - whole_result(name)[:60]).abs().max() > 1e-3


@both
def test_a_group_that_is_not_adapted_needs_no_collective(name: str) -> None:
    flat = nn.Parameter(torch.ones(4))
    flat.grad = torch.ones(4)
    optimizer = BUILDERS[name]([{"params": [flat], "adapt": False}])
    calls: list[Tensor] = []
    optimizer.set_fragments({}, 0, calls.append)
    optimizer.step()
    assert not calls
    assert (flat < 1).all()


@both
def test_a_rank_with_padding_alone_takes_part_in_the_sum(name: str) -> None:
    flat = nn.Parameter(torch.zeros(4))
    flat.grad = torch.zeros(4)
    optimizer = BUILDERS[name]([flat])
    calls: list[list[float]] = []
    optimizer.set_fragments({flat: []}, 2, lambda sums: calls.append(sums.tolist()))
    optimizer.step()
    assert calls == [[0.0] * 4]
    assert flat.tolist() == [0.0] * 4


@both
def test_a_rank_without_a_gradient_takes_part_in_the_sum(name: str) -> None:
    flat = nn.Parameter(torch.ones(4))
    optimizer = BUILDERS[name]([flat])
    calls: list[list[float]] = []
    optimizer.set_fragments({flat: [Fragment(0, 4, 1)]}, 2, lambda s: calls.append(s.tolist()))
    optimizer.step()
    assert calls == [[0.0] * 4]
    assert flat.tolist() == [1.0] * 4


@both
def test_a_step_reads_no_value_off_the_device(name: str) -> None:
    # A meta tensor has no values: `.item()`, `bool()` and `.cpu()` of one raise.
    parameters = [nn.Parameter(torch.ones(3, 4, device="meta")) for _ in range(2)]
    for parameter in parameters:
        parameter.grad = torch.ones(3, 4, device="meta")
    BUILDERS[name](parameters).step()
    flat = nn.Parameter(torch.ones(24, device="meta"))
    flat.grad = torch.ones(24, device="meta")
    optimizer = BUILDERS[name]([flat])
    optimizer.set_fragments({flat: [Fragment(0, 12, 0), Fragment(12, 12, 1)]}, 2, lambda sums: None)
    optimizer.step()


@both
def test_gradients_are_left_as_they_are(name: str) -> None:
    parameter = nn.Parameter(torch.tensor([3.0, 4.0]))
    parameter.grad = torch.tensor([0.6, 0.8])
    BUILDERS[name]([parameter]).step()
    assert torch.equal(parameter.grad, torch.tensor([0.6, 0.8]))


@both
def test_a_parameter_without_gradient_stays_and_has_no_state(name: str) -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    used.grad = torch.ones(2)
    optimizer = BUILDERS[name]([used, unused])
    optimizer.step()
    assert torch.equal(unused, torch.ones(2))
    assert list(optimizer.state) == [used]


@both
def test_the_closures_loss_is_returned(name: str) -> None:
    parameter = nn.Parameter(torch.tensor([3.0]))

    def closure() -> float:
        loss = (parameter * 2).sum()
        loss.backward()
        return loss.item()

    assert BUILDERS[name]([parameter]).step(closure) == 6.0
    assert parameter.item() < 3.0


if __name__ == "__main__":
    rank_of_two(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
