"""A copy in host memory: equal, of its own memory, and with what was shared still shared."""

from collections import OrderedDict

import torch
from torch import nn

from resscale.training.host_copy import HostCopier, storage_bytes


def test_the_copy_is_equal_and_does_not_move_with_the_original() -> None:
    tree = {"w": torch.arange(6.0).view(2, 3), "list": [torch.ones(2), 5], "t": (torch.zeros(1),)}
    copied = HostCopier().copy(tree)
    for tensor in (tree["w"], tree["list"][0], tree["t"][0]):
        tensor.add_(100)
    assert torch.equal(copied["w"], torch.arange(6.0).view(2, 3))
    assert torch.equal(copied["list"][0], torch.ones(2))
    assert copied["list"][1] == 5
    assert torch.equal(copied["t"][0], torch.zeros(1))


def test_values_beside_tensors_are_copied_too() -> None:
    tree = {"config": {"lr": [0.1, 0.2]}, "step": 3}
    copied = HostCopier().copy(tree)
    tree["config"]["lr"].append(0.3)
    assert copied == {"config": {"lr": [0.1, 0.2]}, "step": 3}


def test_tensors_that_share_memory_share_it_in_the_copy() -> None:
    flat = torch.arange(12.0)
    copied = HostCopier().copy({"whole": flat, "part": flat[4:8], "again": flat})
    copied["whole"][5] = -1
    assert copied["part"][1] == -1
    assert copied["again"] is copied["whole"]
    assert storage_bytes(copied) == (48, 1)  # 12 floats of 4 bytes, once


def test_layout_and_type_are_kept() -> None:
    weight = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    copied = HostCopier().copy(
        {"w": weight, "n": torch.tensor(7), "half": torch.ones(3).bfloat16()}
    )
    assert copied["w"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(copied["w"], weight)
    assert copied["n"].dtype == torch.int64
    assert copied["n"].shape == ()
    assert copied["half"].dtype == torch.bfloat16


def test_a_state_dict_stays_one() -> None:
    state = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).state_dict()
    copied = HostCopier().copy(state)
    assert type(copied) is OrderedDict
    assert copied._metadata == state._metadata
    assert list(copied) == list(state)
    assert all(torch.equal(copied[name], state[name]) for name in state)


def test_empty_tensors_are_copied_each() -> None:
    copied = HostCopier().copy({"a": torch.empty(0), "b": torch.empty(0, 3)})
    assert copied["a"].shape == (0,)
    assert copied["b"].shape == (0, 3)


def test_the_memory_of_a_copy_is_used_again_for_the_next() -> None:
    copier = HostCopier()
    first = copier.copy({"a": torch.zeros(5), "b": torch.zeros(5), "gone": torch.zeros(7)})
    where = {first["a"].data_ptr(), first["b"].data_ptr()}
    second = copier.copy({"a": torch.ones(5), "b": torch.full((5,), 2.0), "new": torch.ones(3)})
    assert {second["a"].data_ptr(), second["b"].data_ptr()} == where
    assert (second["a"].tolist(), second["b"].tolist()) == ([1.0] * 5, [2.0] * 5)
    assert second["new"].tolist() == [1.0] * 3
