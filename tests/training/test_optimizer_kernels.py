"""Fused, in lists or one by one: the same training, the same state, on any machine's checkpoint."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from resscale import create_model
from resscale.training.optim import OptimizerConfig, build_optimizer
from resscale.training.optimizer_kernels import choose_optimizer_kernels
from resscale.training.precision import CountingGradScaler

OPTIMIZERS = ("sgd", "adamw")
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
LR = {"sgd": 0.05, "adamw": 0.002, "lars": 1.0, "lamb": 0.01}


def a_net(channels_last: bool = True) -> nn.Module:
    torch.manual_seed(0)
    net = create_model("resnet8_cifar", 10, 3)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return net.to(memory_format=layout)


def optimizer_of(net: nn.Module, name: str, implementation: str = "auto") -> Any:
    options: dict[str, Any] = {"implementation": implementation, "weight_decay": 0.01}
    config = OptimizerConfig(name=name, lr=LR[name], lr_batch_size=None, **options)
    return build_optimizer(net, config, 64)


def train(net: nn.Module, optimizer: Any, steps: int, first: int = 0) -> None:
    for number in range(first, first + steps):
        generator = torch.Generator().manual_seed(number)
        images = torch.randn(4, 3, 8, 8, generator=generator)
        optimizer.zero_grad()
        functional.cross_entropy(net(images), torch.arange(4)).backward()
        optimizer.step()


def trained(name: str, implementation: str) -> list[Tensor]:
    net = a_net()
    train(net, optimizer_of(net, name, implementation), 3)
    return [p.detach() for p in net.parameters()]


@pytest.mark.parametrize(
    ("implementation", "device", "foreach", "fused"),
    [
        ("auto", "cpu", True, False),
        ("auto", "cuda", False, True),
        ("auto", "mps", True, False),
        ("fused", "cpu", False, True),
        ("foreach", "cuda", True, False),
        ("for_loop", "cuda", False, False),
    ],
)
def test_the_kernels_follow_what_is_asked_and_the_device(
    implementation: Any, device: str, foreach: bool, fused: bool
) -> None:
    found = choose_optimizer_kernels(implementation, torch.device(device))
    assert found == {"foreach": foreach, "fused": fused}


@every_optimizer
def test_the_optimizer_is_told_for_the_device_it_will_step_on(name: str) -> None:
    config = OptimizerConfig(name=name, lr=LR[name])
    # Under ZeRO the parameters still lie on the host when the optimizer is built.
    optimizer = build_optimizer(nn.Linear(2, 2), config, 64, torch.device("cuda"))
    assert [(g["foreach"], g["fused"]) for g in optimizer.param_groups] == [(False, True)] * 2
    optimizer = build_optimizer(nn.Linear(2, 2), config, 64)
    assert [(g["foreach"], g["fused"]) for g in optimizer.param_groups] == [(True, False)] * 2


@every_optimizer
def test_lists_step_bitwise_as_one_parameter_after_the_other_does(name: str) -> None:
    for one, other in zip(trained(name, "foreach"), trained(name, "for_loop"), strict=True):
        assert torch.equal(one, other)


@every_optimizer
def test_fused_kernels_step_as_the_others_do(name: str) -> None:
    fused, plain = trained(name, "fused"), trained(name, "for_loop")
    for one, other in zip(fused, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    before = [p.detach() for p in a_net().parameters()]
    # They have moved by far more than that.
    assert max((b - f).abs().max() for b, f in zip(before, fused, strict=True)) > 1e-3


def saved_state(name: str, implementation: str, channels_last: bool) -> tuple[nn.Module, Any]:
    """A net behind two steps, and its optimizer's state as read from a file."""
    net = a_net(channels_last)
    optimizer = optimizer_of(net, name, implementation)
    train(net, optimizer, 2)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return net, torch.load(file, weights_only=True)


@every_optimizer
@pytest.mark.parametrize(("before", "behind"), [("fused", "for_loop"), ("for_loop", "fused")])
def test_a_state_goes_on_with_the_kernels_of_the_optimizer_that_takes_it(
    name: str, before: str, behind: str
) -> None:
    net, state = saved_state(name, before, channels_last=True)
    resumed = optimizer_of(net, name, behind)
    resumed.load_state_dict(state)
    assert [g["fused"] for g in resumed.param_groups] == [behind == "fused"] * 2
    train(net, resumed, 1, first=2)
    for one, other in zip(net.parameters(), trained(name, "for_loop"), strict=True):
        torch.testing.assert_close(one.detach(), other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LR)
@pytest.mark.parametrize("channels_last", [True, False])
def test_a_state_is_laid_out_like_the_parameters_that_it_meets(
    name: str, channels_last: bool
) -> None:
    # ZeRO's states are contiguous: a fused kernel would take one element for another.
    _, state = saved_state(name, "auto", channels_last)
    net = a_net(not channels_last)
    resumed = optimizer_of(net, name)
    resumed.load_state_dict(state)
    for index, parameter in enumerate(p for g in resumed.param_groups for p in g["params"]):
        for key, value in state["state"][index].items():
            found = resumed.state[parameter][key]
            assert torch.equal(found, value)
            if value.dim():
                assert found.stride() == parameter.stride()


@every_optimizer
def test_fused_kernels_of_another_layout_train_the_same(name: str) -> None:
    net, state = saved_state(name, "fused", channels_last=False)
    net = net.to(memory_format=torch.channels_last)
    resumed = optimizer_of(net, name, "fused")
    resumed.load_state_dict(state)
    train(net, resumed, 1, first=2)
    for one, other in zip(net.parameters(), trained(name, "for_loop"), strict=True):
        torch.testing.assert_close(one.detach(), other, rtol=1e-4, atol=1e-4)


def test_a_state_of_other_groups_is_refused_by_torch() -> None:
    net, state = saved_state("sgd", "auto", channels_last=True)
    config = OptimizerConfig(lr_batch_size=None, decay_norm_and_bias=True)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        build_optimizer(net, config, 64).load_state_dict(state)


@every_optimizer
def test_float16s_scaler_unscales_for_fused_kernels_and_skips_a_step_that_overflows(
    name: str,
) -> None:
    layer = nn.Linear(2, 2)
    begun = [p.detach().clone() for p in layer.parameters()]
    optimizer = optimizer_of(layer, name, "fused")
    scaler = CountingGradScaler("cpu", init_scale=4.0)
    scaler.scale(layer(torch.ones(1, 2)).sum()).backward()
    scaler.unscale_(optimizer)
    # d(sum)/d(weight) is the input: 1; scaled it was 4.
    assert layer.weight.grad.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    layer.weight.grad[0, 0] = torch.inf
    optimizer.zero_grad()
    scaler.update()
    scaler.scale(layer(torch.ones(1, 2)).sum() * torch.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.skipped_steps == 1
    assert all(torch.equal(a, b) for a, b in zip(begun, layer.parameters(), strict=True))
