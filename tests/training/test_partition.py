"""What a rank holds of a parameter: plainly all of it, and shares on real ranks of ZeRO-3."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from zero_ranks import PERSISTENT, Net, facts_of

from resscale.training.partition import (
    full_shape,
    gather_part,
    is_partitioned,
    local_part,
    own_part,
)

WORLD_SIZES = (1, 2, 3)
SIZES = {name: parameter.numel() for name, parameter in Net().named_parameters()}


def test_a_parameter_of_torch_is_whole_everywhere() -> None:
    parameter = nn.Parameter(torch.arange(6.0).view(2, 3))
    assert not is_partitioned(parameter)
    assert full_shape(parameter) == (2, 3)
    part = local_part(parameter)
    assert not part.requires_grad
    part.fill_(7.0)  # the parameter's own memory
    assert parameter.detach().tolist() == [[7.0] * 3] * 2
    other = torch.zeros(2, 3)
    assert gather_part(other, parameter) is other
    assert own_part(other, parameter) is other


def test_the_tiny_nets_sizes_divide_neither_by_2_nor_by_3() -> None:
    assert SIZES == {
        "scale": 1,
        "first.weight": 5 * 11,
        "first.bias": 5,
        "last.weight": 7 * 5,
        "last.bias": 7,
    }
    assert all(size % world_size for size in SIZES.values() for world_size in (2, 3))


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_zero_3_shares_parameters_out(world_size: int) -> None:
    for rank in facts_of(world_size):
        for name, fact in rank[3]["parts"].items():
            assert fact["is_partitioned"]
            assert fact["full_shape"] == tuple(Net().get_parameter(name).shape)
            assert fact["local"].shape == (math.ceil(SIZES[name] / world_size),)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_the_ranks_meet_both_emptied_parameters_and_small_ones_kept_whole(world_size: int) -> None:
    for rank in facts_of(world_size):
        assert {fact["shape"] for fact in rank[3]["parts"].values()} == {(0,)}
        shapes = rank[3]["shapes_after_1"]
        emptied = {name for name, shape in shapes.items() if shape == (0,)}
        assert emptied == {name for name, size in SIZES.items() if size > PERSISTENT}
        assert len(emptied) == 2


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("stage", [1, 2])
def test_zero_1_and_2_leave_parameters_whole(stage: int, world_size: int) -> None:
    for rank in facts_of(world_size):
        for name, fact in rank[stage]["parts"].items():
            assert not fact["is_partitioned"]
            assert torch.equal(fact["local"], Net().get_parameter(name))


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_rank_gathers_the_whole_out_of_the_parts(stage: int, world_size: int) -> None:
    for rank in facts_of(world_size):
        for name, fact in rank[stage]["parts"].items():
            whole = Net().get_parameter(name).detach()
            assert torch.equal(fact["gathered"], whole)
            # An average's parts, say, are other values in the same form.
            assert torch.equal(fact["gathered_other"], 3 * whole)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_ranks_own_part_is_its_stretch_of_the_whole_and_zeros_behind_its_end(
    world_size: int,
) -> None:
    for number, rank in enumerate(facts_of(world_size)):
        for name, fact in rank[3]["parts"].items():
            flat = Net().get_parameter(name).detach().flatten()
            share = math.ceil(len(flat) / world_size)
            mine = flat[number * share : (number + 1) * share]
            assert torch.equal(fact["own"][: len(mine)], mine)
            assert fact["own"][len(mine) :].tolist() == [0.0] * (share - len(mine))
            # And it is what DeepSpeed gave to that rank; what it leaves in padding is its own.
            assert torch.equal(fact["local"][: len(mine)], mine)
