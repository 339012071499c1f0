"""Fragments on real ranks of DeepSpeed: nothing missing, nothing twice, state in torch's form."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from zero_ranks import STAGES, Net, facts_of, optimizer_of, train_plainly

WORLD_SIZES = (1, 2, 3)
every_world = pytest.mark.parametrize("world_size", WORLD_SIZES)
every_stage = pytest.mark.parametrize("stage", STAGES)


def wholes() -> list[Tensor]:
    """The parameters as they began, flat, counted through the groups."""
    return [p.detach().flatten() for group in Net().groups() for p in group]


def assert_same_state(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Equal to the last bit, options and numbers of parameters included."""
    assert one["param_groups"] == other["param_groups"]
    assert one["state"].keys() == other["state"].keys()
    for number, entry in one["state"].items():
        assert entry.keys() == other["state"][number].keys()
        for key, value in entry.items():
            assert value.shape == other["state"][number][key].shape
            assert torch.equal(value, other["state"][number][key]), (number, key)


@every_world
@every_stage
def test_the_ranks_fragments_cover_each_element_of_each_group_once(
    stage: int, world_size: int
) -> None:
    covered: Counter[tuple[int, int]] = Counter()
    for rank in facts_of(world_size):
        for parameter, start, length in rank[stage]["fragments"]:
            assert length > 0
            covered.update((parameter, start + i) for i in range(length))
    sizes = [55, 35, 5, 7, 1]  # two weights; two biases; the scale
    assert covered == {(p, i): 1 for p, size in enumerate(sizes) for i in range(size)}


@every_world
@every_stage
def test_a_fragment_finds_its_elements_in_the_tensor_that_is_stepped(
    stage: int, world_size: int
) -> None:
    expected = wholes()
    for rank in facts_of(world_size):
        fragments = rank[stage]["fragments"]
        for (parameter, start, length), found in zip(
            fragments, rank[stage]["in_flats"], strict=True
        ):
            assert torch.equal(found, expected[parameter][start : start + length])


@every_world
@every_stage
def test_no_two_fragments_share_memory(stage: int, world_size: int) -> None:
    for rank in facts_of(world_size):
        places = Counter(
            (flat, start + i) for flat, start, length in rank[stage]["flats"] for i in range(length)
        )
        assert max(places.values()) == 1


@every_stage
def test_a_rank_may_hold_nothing_of_a_group(stage: int) -> None:
    held = [{p for p, _, _ in rank[stage]["fragments"]} for rank in facts_of(3)]
    # The scale, parameter 4, has one element for three ranks: one rank has it.
    assert [4 in parameters for parameters in held] == [True, False, False]


@every_world
@every_stage
def test_before_the_first_step_there_is_no_state_and_it_loads(stage: int, world_size: int) -> None:
    plain = optimizer_of("sgd", Net()).state_dict()
    assert plain["state"] == {}
    for rank in facts_of(world_size):
        assert_same_state(rank[stage]["before"], plain)
        assert_same_state(rank[stage]["before_again"], plain)


@every_world
@every_stage
def test_a_first_step_behind_an_empty_state_is_torchs(stage: int, world_size: int) -> None:
    expected, _ = train_plainly("sgd", 1)
    assert_trained(world_size, stage, "after_1", expected)


@every_world
@every_stage
def test_torchs_state_goes_into_zero_and_comes_back_to_the_bit(stage: int, world_size: int) -> None:
    _, state = train_plainly("sgd", 2)
    assert sorted(state["state"]) == [0, 1, 2, 3, 4]
    for rank in facts_of(world_size):
        assert_same_state(rank[stage]["gathered"], state)


@every_world
@every_stage
def test_a_step_behind_a_state_of_torch_is_torchs_next(stage: int, world_size: int) -> None:
    expected, _ = train_plainly("sgd", 3)
    assert_trained(world_size, stage, "after_3", expected)
    # Without the momentum of two steps it would be another.
    assert (expected["scale"] - train_plainly("sgd", 2)[0]["scale"]).abs() > 1e-3


@every_world
@every_stage
def test_lars_finds_its_layers(stage: int, world_size: int) -> None:
    elements: Counter[int] = Counter()
    for rank in facts_of(world_size):
        assert rank[stage]["lars_layers"] == 5
        for layer, length in rank[stage]["lars_fragments"]:
            elements[layer] += length
    assert elements == {0: 55, 1: 35, 2: 5, 3: 7, 4: 1}


@every_world
@every_stage
def test_lars_trains_as_on_one_process(stage: int, world_size: int) -> None:
    expected, _ = train_plainly("lars", 3)
    assert_trained(world_size, stage, "lars", expected)
    # Each weight has a ratio of its own: SGD's step would go elsewhere.
    sgd, _ = train_plainly("sgd", 3)
    assert (sgd["last.weight"] - expected["last.weight"]).abs().max() > 1e-2


adams = pytest.mark.parametrize("name", ["adamw", "lamb"])


@every_world
@every_stage
@adams
def test_moments_and_steps_are_gathered_as_torch_has_them(
    name: str, stage: int, world_size: int
) -> None:
    _, expected = train_plainly(name, 2)
    for rank in facts_of(world_size):
        found = rank[stage][f"{name} state_after_2"]
        assert found["param_groups"] == expected["param_groups"]
        for number, entry in expected["state"].items():
            assert found["state"][number].keys() == entry.keys()
            for key, value in entry.items():
                torch.testing.assert_close(found["state"][number][key], value, rtol=1e-4, atol=1e-7)


@every_world
@every_stage
@adams
def test_torchs_moments_and_steps_go_into_zero_and_come_back_to_the_bit(
    name: str, stage: int, world_size: int
) -> None:
    _, state = train_plainly(name, 2)
    assert {entry["step"].item() for entry in state["state"].values()} == {2}
    for rank in facts_of(world_size):
        assert_same_state(rank[stage][f"{name} gathered"], state)


@every_world
@every_stage
@adams
def test_a_step_behind_moments_of_torch_is_torchs_next_and_counts_once(
    name: str, stage: int, world_size: int
) -> None:
    for steps in (2, 3):
        expected, _ = train_plainly(name, steps)
        assert_trained(world_size, stage, f"{name} after_{steps}", expected)
    for rank in facts_of(world_size):
        entries = rank[stage][f"{name} state_after_3"]["state"].values()
        # A tensor that entries shared would be counted up by each.
        assert [entry["step"].item() for entry in entries] == [3] * 5
        assert len({entry["step"].data_ptr() for entry in entries}) == 5


def assert_trained(world_size: int, stage: int, key: str, expected: dict[str, Tensor]) -> None:
    """Every rank gathers weights that are torch's, but for the rounding of the ranks' mean."""
    for rank in facts_of(world_size):
        for name, weight in expected.items():
            found = rank[stage][key][name]
            torch.testing.assert_close(found, weight.flatten(), rtol=1e-5, atol=1e-6)
