"""The optimizer: its kind, its rate, and which parameters decay."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from resscale import create_model
from resscale.errors import UserInputError
from resscale.training.lars import Lars
from resscale.training.optim import (
    OptimizerConfig,
    build_optimizer,
    parameter_groups,
    take_numbers,
)


class Odd(nn.Module):
    """Names that mislead: a norm called `weighted`, a convolution called `bn`."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.Conv2d(3, 4, 1)  # 12 weights, 4 biases
        self.weighted = nn.BatchNorm2d(4)  # 4 + 4
        self.group = nn.GroupNorm(2, 4)  # 4 + 4
        self.layer = nn.LayerNorm(4)  # 4 + 4


def sizes(groups: list[dict[str, list[nn.Parameter]]]) -> dict[float, int]:
    """Numbers by weight decay."""
    return {group["weight_decay"]: sum(p.numel() for p in group["params"]) for group in groups}


def test_each_parameter_of_a_network_is_in_exactly_one_group() -> None:
    model = create_model("resnet20_cifar", 10)
    grouped = [p for group in parameter_groups(model, 1e-4, False) for p in group["params"]]
    assert len(grouped) == len(set(map(id, grouped)))
    assert set(map(id, grouped)) == set(map(id, model.parameters()))


def test_norms_and_biases_are_spared_by_type_not_by_name() -> None:
    # Decay: the convolution's 12 weights. Spared: its 4 biases and 3 norms of 4 + 4.
    assert sizes(parameter_groups(Odd(), 0.5, False)) == {0.5: 12, 0.0: 4 + 3 * 8}


def test_of_a_resnet_only_convolutions_and_the_last_weight_decay() -> None:
    model = create_model("resnet20_cifar", 10)
    decayed = {id(p) for p in parameter_groups(model, 1e-4, False)[0]["params"]}
    expected = {id(m.weight) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert decayed == expected


def test_everything_decays_where_that_is_asked_for() -> None:
    assert sizes(parameter_groups(Odd(), 0.5, True)) == {0.5: 12 + 4 + 3 * 8}


def test_shared_parameters_are_listed_once_and_frozen_ones_not_at_all() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    second.bias.requires_grad_(False)
    groups = parameter_groups(nn.Sequential(first, second), 0.1, False)
    assert sizes(groups) == {0.1: 9, 0.0: 3}  # 3 × 3 weights once, 3 biases of the first


@pytest.mark.parametrize(
    ("lr_batch_size", "global_batch_size", "expected"),
    [
        (256, 1024, 0.4),  # 0.1 · 1024/256
        (256, 64, 0.025),  # 0.1 · 64/256
        (256, 256, 0.1),
        (None, 1024, 0.1),
    ],
)
def test_the_rate_scales_linearly_with_the_global_batch(
    lr_batch_size: int | None, global_batch_size: int, expected: float
) -> None:
    config = OptimizerConfig(lr=0.1, lr_batch_size=lr_batch_size)
    assert config.scaled_lr(global_batch_size) == pytest.approx(expected)
    groups = build_optimizer(Odd(), config, global_batch_size).param_groups
    assert [group["lr"] for group in groups] == pytest.approx([expected] * 2)


def test_the_scaling_is_explained() -> None:
    assert OptimizerConfig(lr=0.1).explain_lr(1024) == "lr 0.1 × 1024/256 = 0.4"
    assert OptimizerConfig(lr=0.1).explain_lr(256) == "lr 0.1"
    assert OptimizerConfig(lr=0.1, lr_batch_size=None).explain_lr(1024) == "lr 0.1"


def test_the_optimizer_is_sgd_with_nesterov_momentum() -> None:
    optimizer = build_optimizer(Odd(), OptimizerConfig(weight_decay=0.5), 256)
    assert type(optimizer) is torch.optim.SGD
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    for group in optimizer.param_groups:
        assert (group["momentum"], group["nesterov"], group["dampening"]) == (0.9, True, 0)


def test_two_steps_move_a_weight_as_nesterov_momentum_with_decay_says() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 1.0)
    config = OptimizerConfig(lr=0.1, momentum=0.5, weight_decay=0.2)
    optimizer = build_optimizer(layer, config, 256)
    for _ in range(2):
        layer.weight.grad = torch.ones(1, 1)
        optimizer.step()
    # g = 1 + 0.2·1 = 1.2, v = 1.2, w = 1 - 0.1·(1.2 + 0.5·1.2) = 0.82
    # g = 1 + 0.2·0.82 = 1.164, v = 0.6 + 1.164 = 1.764, w = 0.82 - 0.1·(1.164 + 0.882) = 0.6154
    assert layer.weight.item() == pytest.approx(0.6154)


def test_lars_adapts_weights_and_spares_norms_and_biases() -> None:
    config = OptimizerConfig(name="lars", lr=2.0, weight_decay=0.5, trust_coefficient=0.02, eps=0.1)
    optimizer = build_optimizer(Odd(), config, 512)
    assert type(optimizer) is Lars
    weights, rest = optimizer.param_groups
    assert [p.numel() for p in weights["params"]] == [12]  # the convolution's
    assert sum(p.numel() for p in rest["params"]) == 4 + 3 * 8  # its biases and 3 norms
    assert (weights["adapt"], rest["adapt"]) == (True, False)
    assert (weights["weight_decay"], rest["weight_decay"]) == (0.5, 0.0)
    for group in (weights, rest):
        assert group["lr"] == pytest.approx(4.0)  # 2 · 512/256
        assert (group["momentum"], group["nesterov"]) == (0.9, True)
        assert (group["trust_coefficient"], group["eps"]) == (0.02, 0.1)


def test_norms_that_decay_under_lars_are_still_not_adapted() -> None:
    config = OptimizerConfig(name="lars", weight_decay=0.5, decay_norm_and_bias=True)
    groups = build_optimizer(Odd(), config, 256).param_groups
    assert [(group["weight_decay"], group["adapt"]) for group in groups] == [
        (0.5, True),
        (0.5, False),
    ]


def test_parameters_that_all_decay_keep_the_modules_order() -> None:
    # Checkpoints number the optimizer's state by it.
    model = create_model("resnet20_cifar", 10)
    (group,) = parameter_groups(model, 1e-4, True)
    assert list(map(id, group["params"])) == list(map(id, model.parameters()))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "larz"}, "name=larz must be one of sgd, lars. Did you mean 'lars'?"),
        ({"lr": -1.0}, "lr=-1.0 must not be below 0."),
        ({"eps": -1e-8}, "eps=-1e-08 must not be below 0."),
        ({"trust_coefficient": 0.0}, "trust_coefficient=0.0 must be above 0: it scales the rate"),
        ({"momentum": 0.0}, "nesterov=true needs momentum above 0; set nesterov to false."),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_impossible_number_is_refused_with_the_rule(
    options: dict[str, object], said: str
) -> None:
    with pytest.raises(UserInputError) as refused:
        OptimizerConfig(**options)
    assert f"model.optimizer.{said}" in str(refused.value)


def half_way(name: str = "sgd") -> dict[str, Any]:
    """A checkpoint's part, with the schedule at half of the rate 0.1."""
    optimizer = build_optimizer(Odd(), OptimizerConfig(name=name, lr_batch_size=None), 64)
    scheduler = LambdaLR(optimizer, lambda step: 0.5)
    return {
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [scheduler.state_dict()],
    }


def test_going_on_takes_the_numbers_of_now() -> None:
    checkpoint = half_way()
    config = OptimizerConfig(lr=0.02, lr_batch_size=None, momentum=0.8, weight_decay=0.3)
    take_numbers(checkpoint, build_optimizer(Odd(), config, 64))
    decayed, spared = checkpoint["optimizer_states"][0]["param_groups"]
    # Half of 0.02, as the schedule stands there.
    assert [group["lr"] for group in (decayed, spared)] == pytest.approx([0.01, 0.01])
    assert [group["initial_lr"] for group in (decayed, spared)] == [0.02, 0.02]
    assert [group["momentum"] for group in (decayed, spared)] == [0.8, 0.8]
    assert [group["weight_decay"] for group in (decayed, spared)] == [0.3, 0.0]
    assert decayed["params"] == [0]
    assert checkpoint["lr_schedulers"][0]["base_lrs"] == [0.02, 0.02]


@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_going_on_with_the_same_numbers_changes_no_bit(name: str) -> None:
    checkpoint = half_way(name)
    before = copy.deepcopy(checkpoint)
    config = OptimizerConfig(name=name, lr_batch_size=None)
    take_numbers(checkpoint, build_optimizer(Odd(), config, 64))
    assert checkpoint == before


def test_the_state_of_another_optimizer_is_left_alone() -> None:
    for checkpoint in (half_way("lars"), {}):
        before = copy.deepcopy(checkpoint)
        take_numbers(checkpoint, build_optimizer(Odd(), OptimizerConfig(lr=0.02), 64))
        assert checkpoint == before
