"""LARS: the paper's arithmetic, and what it keeps."""

import copy
import io

import pytest
import torch
from optim_step import LarsLoop
from torch import nn

from resscale.training.lars import Lars

RATE = 2.0


def step(weight: list[float], gradient: list[float], **options: object) -> list[float]:
    """One step on one layer, with lr 2 and trust coefficient 0.01."""
    parameter = nn.Parameter(torch.tensor(weight))
    parameter.grad = torch.tensor(gradient)
    facts = {"weight_decay": 0.1, "trust_coefficient": 0.01, "eps": 0.0, **options}
    Lars([parameter], lr=RATE, **facts).step()
    return parameter.detach().tolist()


def test_a_step_is_the_papers_arithmetic() -> None:
    # |w| = 5, |g| = 1: ratio = 0.01 · 5 / (1 + 0.1 · 5) = 1/30
    # g + 0.1 w = (0.9, 1.2); v = (0.03, 0.04); w - 2 v = (2.94, 3.92)
    assert step([3.0, 4.0], [0.6, 0.8]) == pytest.approx([2.94, 3.92])


def test_nesterov_looks_one_step_ahead() -> None:
    # As above, d = v = (0.03, 0.04); d + 0.5 v = (0.045, 0.06); w - 2 · that = (2.91, 3.88)
    assert step([3.0, 4.0], [0.6, 0.8], momentum=0.5, nesterov=True) == pytest.approx([2.91, 3.88])


def test_eps_bounds_the_ratio() -> None:
    # ratio = 0.01 · 5 / (1 + 0.5 + 1) = 0.02; (0.9, 1.2) · 0.02 · 2 = (0.036, 0.048)
    assert step([3.0, 4.0], [0.6, 0.8], eps=1.0) == pytest.approx([2.964, 3.952])


def test_the_second_step_carries_the_first_one_on() -> None:
    parameter = nn.Parameter(torch.tensor([5.0]))
    optimizer = Lars([parameter], lr=1.0, momentum=0.5, trust_coefficient=0.1, eps=0.0)
    for _ in range(2):
        parameter.grad = torch.tensor([2.0])
        optimizer.step()
    # d = 0.1 · 5/2 · 2 = 0.5, v = 0.5, w = 5 - 0.5 = 4.5
    # d = 0.1 · 4.5/2 · 2 = 0.45, v = 0.25 + 0.45 = 0.7, w = 4.5 - 0.7 = 3.8
    assert parameter.item() == pytest.approx(3.8)
    assert optimizer.state[parameter]["momentum_buffer"].item() == pytest.approx(0.7)


def test_three_steps_end_where_timms_do() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    bias = nn.Parameter(torch.tensor([0.5]))
    groups = [{"params": [weight], "weight_decay": 0.02}, {"params": [bias], "adapt": False}]
    optimizer = Lars(groups, lr=2.0, nesterov=True, trust_coefficient=0.01)
    steps = (([0.3, -0.1, 0.2], 0.4), ([-0.2, 0.6, 0.1], -0.3), ([0.5, 0.05, -0.4], 0.2))
    for of_weight, of_bias in steps:
        weight.grad, bias.grad = torch.tensor(of_weight), torch.tensor([of_bias])
        optimizer.step()
    # timm 1.0.31's Lars, 2026-11-24: benchmarks/optim_equality.py
    assert weight.tolist() == pytest.approx([0.7670788, -2.0761302, 2.8733485])
    assert bias.item() == pytest.approx(-1.3851998)


def test_the_lists_step_as_one_tensor_after_the_other() -> None:
    ends = []
    for kind in (Lars, LarsLoop):
        generator = torch.Generator().manual_seed(0)
        shapes = ((16, 3, 3, 3), (7, 16), (5,))
        parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
        groups = [{"params": parameters[:2]}, {"params": parameters[2:], "adapt": False}]
        optimizer = kind(groups, lr=0.1, weight_decay=0.02, nesterov=True, trust_coefficient=0.02)
        for _ in range(5):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        ends.append([parameter.detach() for parameter in parameters])
    for found, expected in zip(*ends, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("weight", "gradient", "expected"),
    [
        ([0.0, 0.0], [0.5, 0.25], [-1.0, -0.5]),  # 0 - 2 · g
        ([3.0, 4.0], [0.0, 0.0], [2.4, 3.2]),  # w - 2 · 0.1 w: the decay alone, not scaled
        ([0.0, 0.0], [0.0, 0.0], [0.0, 0.0]),
    ],
    ids=["weights of 0", "gradients of 0", "both"],
)
def test_the_ratio_of_a_layer_of_zeros_is_one(
    weight: list[float], gradient: list[float], expected: list[float]
) -> None:
    assert step(weight, gradient) == pytest.approx(expected)


def test_each_layer_has_a_ratio_of_its_own() -> None:
    layers = [nn.Parameter(torch.tensor([value])) for value in (1.0, 10.0)]
    for layer in layers:
        layer.grad = torch.tensor([1.0])
    Lars(layers, lr=1.0, trust_coefficient=0.1, eps=0.0).step()
    # 1 - 0.1 · 1/1 and 10 - 0.1 · 10/1
    assert [layer.item() for layer in layers] == pytest.approx([0.9, 9.0])


def test_the_norm_of_millions_of_weights_is_not_a_sum_of_rounding_errors() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(2_359_296, generator=generator))  # resnet50's largest layer
    weight.grad = torch.zeros_like(weight)
    weight.grad[0] = 1.0
    before = weight[0].item()
    Lars([weight], lr=1.0, momentum=0.0, trust_coefficient=0.001, eps=0.0).step()
    moved = before - weight[0].item()
    # ratio · g = 0.001 · |w|; adding in float32 the norm would be wrong by 4e-5.
    expected = 0.001 * weight.detach().double()[1:].norm().item()
    assert moved == pytest.approx(expected, rel=2e-6)


def test_a_group_that_is_not_adapted_moves_as_under_sgd() -> None:
    options = {"lr": 0.5, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}
    ends = []
    for kind, adapt in ((torch.optim.SGD, {}), (Lars, {"adapt": False})):
        parameter = nn.Parameter(torch.tensor([1.0, -2.0]))
        optimizer = kind([{"params": [parameter], **adapt}], **options)
        for number in range(3):
            parameter.grad = torch.tensor([0.5, float(number)])
            optimizer.step()
        ends.append(parameter.detach())
    torch.testing.assert_close(ends[0], ends[1])


def test_a_parameter_without_gradient_stays_and_has_no_state() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    used.grad = torch.ones(2)
    optimizer = Lars([used, unused], lr=0.1)
    optimizer.step()
    assert torch.equal(unused, torch.ones(2))
    assert list(optimizer.state) == [used]


def test_without_momentum_there_is_no_state() -> None:
    parameter = nn.Parameter(torch.tensor([3.0, 4.0]))
    parameter.grad = torch.tensor([0.6, 0.8])
    optimizer = Lars([parameter], lr=1.0, momentum=0.0)
    optimizer.step()
    assert not optimizer.state


def test_gradients_are_left_as_they_are() -> None:
    parameter = nn.Parameter(torch.tensor([3.0, 4.0]))
    parameter.grad = torch.tensor([0.6, 0.8])
    Lars([parameter], lr=1.0, weight_decay=0.1).step()
    assert torch.equal(parameter.grad, torch.tensor([0.6, 0.8]))


def test_the_closures_loss_is_returned_and_its_gradient_is_used() -> None:
    parameter = nn.Parameter(torch.tensor([3.0]))
    optimizer = Lars([parameter], lr=1.0, momentum=0.0, trust_coefficient=0.5, eps=0.0)

    def closure() -> float:
        loss = (parameter * 2).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 6.0
    assert parameter.item() == pytest.approx(1.5)  # 3 - 0.5 · 3/2 · 2


def a_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))


def groups_of(net: nn.Module) -> list[dict[str, object]]:
    weights = [p for p in net.parameters() if p.dim() > 1]
    rest = [p for p in net.parameters() if p.dim() == 1]
    return [{"params": weights, "weight_decay": 1e-4}, {"params": rest, "adapt": False}]


def train(net: nn.Module, optimizer: Lars, steps: int, first: int = 0) -> float:
    """Train to tell whether a point lies in a ring; return the last loss."""
    for number in range(first, first + steps):
        points = torch.randn(64, 4, generator=torch.Generator().manual_seed(number))
        labels = (points.norm(dim=1) > 1.8).long()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(points), labels)
        loss.backward()
        optimizer.step()
    return loss.item()


def test_it_learns_a_small_problem() -> None:
    net = a_net()
    optimizer = Lars(groups_of(net), lr=1.0, nesterov=True, trust_coefficient=0.02)
    before = train(net, optimizer, 1)
    after = train(net, optimizer, 300, first=1)
    # Guessing costs ln 2 = 0.69; a net that learned the ring a fraction of it.
    assert before > 0.6
    assert after < 0.25


def test_a_saved_state_goes_on_as_if_never_stopped() -> None:
    options = {"lr": 0.5, "nesterov": True, "trust_coefficient": 0.02}
    whole, first = a_net(), a_net()
    train(whole, Lars(groups_of(whole), **options), 6)
    optimizer = Lars(groups_of(first), **options)
    train(first, optimizer, 3)
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    saved.seek(0)
    second = copy.deepcopy(first)
    resumed = Lars(groups_of(second), lr=9.0)
    resumed.load_state_dict(torch.load(saved, weights_only=True))
    train(second, resumed, 3, first=3)
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_state_is_that_of_torchs_sgd() -> None:
    net = a_net()
    optimizer = Lars(groups_of(net), lr=0.1)
    train(net, optimizer, 1)
    assert {tuple(entry) for entry in optimizer.state_dict()["state"].values()} == {
        ("momentum_buffer",)
    }
    for parameter, entry in optimizer.state.items():
        assert entry["momentum_buffer"].shape == parameter.shape
