"""The optimizer: its kind, its rate, and which parameters decay."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from resscale.errors import UserInputError
from resscale.training.lamb import Lamb
from resscale.training.lars import Lars
from resscale.training.optim import OptimizerConfig, build_optimizer, take_numbers


class Small(nn.Module):
    """A convolution and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)  # 12 weights, 4 biases
        self.norm = nn.BatchNorm2d(4)  # 4 + 4


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
    groups = build_optimizer(Small(), config, global_batch_size).param_groups
    assert [group["lr"] for group in groups] == pytest.approx([expected] * 2)


@pytest.mark.parametrize(
    ("global_batch_size", "expected"),
    [
        (4096, 0.02),  # 0.005 · √(4096/256) = 0.005 · 4
        (64, 0.0025),  # 0.005 · √(64/256) = 0.005/2
        (256, 0.005),
    ],
)
def test_the_rate_scales_with_the_square_root_where_that_is_asked_for(
    global_batch_size: int, expected: float
) -> None:
    config = OptimizerConfig(name="lamb", lr=0.005, lr_scaling="sqrt")
    assert config.scaled_lr(global_batch_size) == pytest.approx(expected)
    groups = build_optimizer(Small(), config, global_batch_size).param_groups
    assert [group["lr"] for group in groups] == pytest.approx([expected] * 2)


def test_the_scaling_by_the_square_root_is_explained() -> None:
    config = OptimizerConfig(name="lamb", lr=0.005, lr_scaling="sqrt")
    assert config.explain_lr(1024) == "lr 0.005 × √(1024/256) = 0.01"
    assert config.explain_lr(256) == "lr 0.005"


def test_the_scaling_is_explained() -> None:
    assert OptimizerConfig(lr=0.1).explain_lr(1024) == "lr 0.1 × 1024/256 = 0.4"
    assert OptimizerConfig(lr=0.1).explain_lr(256) == "lr 0.1"
    assert OptimizerConfig(lr=0.1, lr_batch_size=None).explain_lr(1024) == "lr 0.1"


def test_the_optimizer_is_sgd_with_nesterov_momentum() -> None:
    optimizer = build_optimizer(Small(), OptimizerConfig(weight_decay=0.5), 256)
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
    optimizer = build_optimizer(Small(), config, 512)
    assert type(optimizer) is Lars
    weights, rest = optimizer.param_groups
    assert [p.numel() for p in weights["params"]] == [12]  # the convolution's
    assert sum(p.numel() for p in rest["params"]) == 4 + 8  # its biases and the norm
    assert (weights["adapt"], rest["adapt"]) == (True, False)
    assert (weights["weight_decay"], rest["weight_decay"]) == (0.5, 0.0)
    for group in (weights, rest):
        assert group["lr"] == pytest.approx(4.0)  # 2 · 512/256
        assert (group["momentum"], group["nesterov"]) == (0.9, True)
        assert (group["trust_coefficient"], group["eps"]) == (0.02, 0.1)


def test_norms_that_decay_under_lars_are_still_not_adapted() -> None:
    config = OptimizerConfig(name="lars", weight_decay=0.5, decay_norm_and_bias=True)
    groups = build_optimizer(Small(), config, 256).param_groups
    assert [(group["weight_decay"], group["adapt"]) for group in groups] == [
        (0.5, True),
        (0.5, False),
    ]


def test_lamb_adapts_weights_and_spares_norms_and_biases() -> None:
    config = OptimizerConfig(name="lamb", lr=0.005, weight_decay=0.02, betas=(0.8, 0.99))
    optimizer = build_optimizer(Small(), config, 512)
    assert type(optimizer) is Lamb
    weights, rest = optimizer.param_groups
    assert [p.numel() for p in weights["params"]] == [12]  # the convolution's
    assert sum(p.numel() for p in rest["params"]) == 4 + 8  # its biases and the norm
    assert (weights["adapt"], rest["adapt"]) == (True, False)
    assert (weights["weight_decay"], rest["weight_decay"]) == (0.02, 0.0)
    for group in (weights, rest):
        # lr: 0.005 · 512/256. eps: timm's and NVIDIA's, as the paper has none.
        assert (group["lr"], group["betas"], group["eps"]) == (0.01, (0.8, 0.99), 1e-6)


def test_adamw_is_torchs() -> None:
    config = OptimizerConfig(name="adamw", lr=1e-3, lr_batch_size=None, weight_decay=0.05)
    optimizer = build_optimizer(Small(), config, 512)
    assert type(optimizer) is torch.optim.AdamW
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (1e-3, (0.9, 0.999), 1e-8)


def test_eps_may_be_stated() -> None:
    for name in ("lars", "lamb", "adamw"):
        config = OptimizerConfig(name=name, lr=1e-3, eps=0.25)
        groups = build_optimizer(Small(), config, 256).param_groups
        assert [group["eps"] for group in groups] == [0.25, 0.25]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"name": "larz"},
            "name=larz must be one of sgd, lars, lamb, adamw. Did you mean 'lars'?",
        ),
        ({"lr": -1.0}, "lr=-1.0 must be finite, 0 or more."),
        ({"lr": float("nan")}, "lr=nan must be finite, 0 or more."),
        ({"eps": -1e-8}, "eps=-1e-08 must be finite, 0 or more."),
        ({"name": "lamb", "eps": 0.0}, "eps=0 lets lamb divide 0 by 0 where a gradient is 0"),
        ({"trust_coefficient": 0.0}, "trust_coefficient=0.0 must be above 0: it scales the rate"),
        ({"momentum": 0.0}, "nesterov=true needs momentum above 0; set nesterov to false."),
        (
            {"name": "lamb", "betas": (0.9, 1.0)},
            "betas=[0.9, 1.0] must each be from 0 up to, not including, 1",
        ),
        ({"name": "adamw", "betas": (-0.1, 0.9)}, "betas=[-0.1, 0.9] must each be from 0 up to"),
        ({"lr_batch_size": 0}, "lr_batch_size=0 must be 1 or more"),
        ({"lr_scaling": "sqr"}, "lr_scaling=sqr must be one of linear, sqrt. Did you mean 'sqrt'?"),
        (
            {"lr_scaling": "sqrt", "lr_batch_size": None},
            "lr_scaling=sqrt scales from lr_batch_size, which is null: state the global batch",
        ),
        (
            {"implementation": "fuzed"},
            "implementation=fuzed must be one of auto, fused, foreach, for_loop. Did you mean",
        ),
        (
            {"name": "lamb", "implementation": "fused"},
            "implementation=fused is for sgd and adamw: lamb has only the form foreach; leave",
        ),
        (
            {"name": "lars", "implementation": "for_loop"},
            "implementation=for_loop is for sgd and adamw: lars has only the form foreach",
        ),
        (
            {"name": "adamw", "momentum": 0.8},
            "momentum=0.8 is for sgd, lars, and model.optimizer.name is adamw, which would "
            "ignore it: leave momentum out; its momentum is the first of betas.",
        ),
        (
            {"name": "lamb", "nesterov": False},
            "nesterov=false is for sgd, lars, and model.optimizer.name is lamb",
        ),
        (
            {"name": "sgd", "betas": (0.8, 0.9)},
            "betas=[0.8, 0.9] is for adamw, lamb, and model.optimizer.name is sgd, which would "
            "ignore it: leave betas out.",
        ),
        ({"eps": 1e-3}, "eps=0.001 is for lars, adamw, lamb, and model.optimizer.name is"),
        (
            {"name": "lamb", "trust_coefficient": 0.02},
            "trust_coefficient=0.02 is for lars, and model.optimizer.name is lamb",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_impossible_number_is_refused_with_the_rule(
    options: dict[str, object], said: str
) -> None:
    with pytest.raises(UserInputError) as refused:
        OptimizerConfig(**options)
    assert f"model.optimizer.{said}" in str(refused.value)


def test_options_that_runs_of_before_have_saved_are_taken() -> None:
    # A run's config.yaml has the options of all optimizers, written out.
    OptimizerConfig(name="sgd", trust_coefficient=0.001, eps=1e-8)


@pytest.mark.parametrize(
    ("name", "lr", "said"),
    [
        ("lamb", 0.2, "comes to 0.4: a step of lamb moves each layer by 40% of its norm."),
        ("adamw", 0.05, "comes to 0.1: a step of adamw moves weights by 0.1."),
        ("lamb", 0.04, None),  # at 512 images 0.08
        ("sgd", 0.2, None),
        ("lars", 8.0, None),
    ],
)
def test_a_rate_that_is_meant_for_sgd_is_warned_of(name: str, lr: float, said: str | None) -> None:
    warning = OptimizerConfig(name=name, lr=lr).warn_of_lr(512)
    assert (
        warning is None
        if said is None
        else warning.startswith(f"warning: model.optimizer.lr {said}")
    )


def half_way(name: str = "sgd") -> dict[str, Any]:
    """A checkpoint's part, with the schedule at half of the rate 0.1."""
    optimizer = build_optimizer(Small(), OptimizerConfig(name=name, lr_batch_size=None), 64)
    scheduler = LambdaLR(optimizer, lambda step: 0.5)
    return {
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [scheduler.state_dict()],
    }


def test_going_on_takes_the_numbers_of_now() -> None:
    checkpoint = half_way()
    config = OptimizerConfig(lr=0.02, lr_batch_size=None, momentum=0.8, weight_decay=0.3)
    take_numbers(checkpoint, build_optimizer(Small(), config, 64))
    decayed, spared = checkpoint["optimizer_states"][0]["param_groups"]
    # Half of 0.02, as the schedule stands there.
    assert [group["lr"] for group in (decayed, spared)] == pytest.approx([0.01, 0.01])
    assert [group["initial_lr"] for group in (decayed, spared)] == [0.02, 0.02]
    assert [group["momentum"] for group in (decayed, spared)] == [0.8, 0.8]
    assert [group["weight_decay"] for group in (decayed, spared)] == [0.3, 0.0]
    assert decayed["params"] == [0]
    assert checkpoint["lr_schedulers"][0]["base_lrs"] == [0.02, 0.02]


@pytest.mark.parametrize("name", ["sgd", "lars", "lamb", "adamw"])
def test_going_on_with_the_same_numbers_changes_no_bit(name: str) -> None:
    checkpoint = half_way(name)
    before = copy.deepcopy(checkpoint)
    config = OptimizerConfig(name=name, lr_batch_size=None)
    take_numbers(checkpoint, build_optimizer(Small(), config, 64))
    assert checkpoint == before


def test_going_on_takes_the_betas_of_now_and_leaves_the_kernels_to_the_machine() -> None:
    checkpoint = half_way("adamw")
    options = {"lr_batch_size": None, "betas": (0.8, 0.99), "implementation": "fused"}
    take_numbers(checkpoint, build_optimizer(Small(), OptimizerConfig("adamw", **options), 64))
    for group in checkpoint["optimizer_states"][0]["param_groups"]:
        assert group["betas"] == (0.8, 0.99)
        assert (group["foreach"], group["fused"]) == (True, False)


def test_the_state_of_another_optimizer_is_left_alone() -> None:
    for checkpoint in (half_way("lars"), half_way("adamw"), {}):
        before = copy.deepcopy(checkpoint)
        take_numbers(checkpoint, build_optimizer(Small(), OptimizerConfig(lr=0.02), 64))
        assert checkpoint == before
