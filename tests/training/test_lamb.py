"""LAMB: the paper's algorithm 2 by hand, a plain loop as reference, and what it keeps."""

import copy
import io
import math

import pytest
import torch
from optim_step import LambLoop
from torch import Tensor, nn

from resscale.training.lamb import Lamb


def step(weight: list[float], gradient: list[float], **options: object) -> list[float]:
    """The first step on one layer, with lr 0.1."""
    parameter = nn.Parameter(torch.tensor(weight))
    parameter.grad = torch.tensor(gradient)
    facts = {"eps": 1e-12, **options}
    Lamb([parameter], lr=0.1, **facts).step()
    return parameter.detach().tolist()


def test_the_first_step_is_the_papers_arithmetic() -> None:
    # m / (1 - beta1) = g and v / (1 - beta2) = g², so u = g / |g| = (1, -1) without decay.
    # |w| = 5, |u| = √2: w - 0.1 · 5/√2 · (1, -1) = (3 - 0.353553, 4 + 0.353553)
    assert step([3.0, 4.0], [0.6, -0.02]) == pytest.approx([2.6464466, 4.3535534])


def test_decay_is_in_the_direction_and_in_its_norm() -> None:
    # u = (1, 1) + 0.1 · (3, 4) = (1.3, 1.4), |u| = √3.65; ratio = 5/√3.65 = 2.617120
    # w - 0.1 · 2.617120 · u = (3 - 0.340226, 4 - 0.366397)
    found = step([3.0, 4.0], [0.6, 0.8], weight_decay=0.1)
    assert found == pytest.approx([2.6597744, 3.6336032])


def test_a_step_is_as_long_as_the_rate_times_the_norm_of_the_weights() -> None:
    found = torch.tensor(step([3.0, 4.0, 12.0], [0.1, -7.0, 0.002], weight_decay=0.3))
    # 0.1 · |(3, 4, 12)| = 0.1 · 13
    assert (found - torch.tensor([3.0, 4.0, 12.0])).norm().item() == pytest.approx(1.3)


def test_eps_stands_behind_the_root() -> None:
    # u = 0.5 / (0.5 + 0.5) = 0.5 and 1.5 / (1.5 + 0.5) = 0.75; |u| = √0.8125; |w| = 5
    ratio = 5 / math.sqrt(0.8125)
    expected = [3 - 0.1 * ratio * 0.5, 4 - 0.1 * ratio * 0.75]
    assert step([3.0, 4.0], [0.5, 1.5], eps=0.5) == pytest.approx(expected)


def test_the_second_step_has_both_moments_corrected_for_their_start() -> None:
    parameter = nn.Parameter(torch.tensor([2.0]))
    optimizer = Lamb([parameter], lr=0.5, betas=(0.5, 0.75), eps=1e-12, weight_decay=0.25)
    for gradient in (4.0, -1.0):
        parameter.grad = torch.tensor([gradient])
        optimizer.step()
    # 1: u = 4/√16 + 0.25·2 = 1.5, ratio = 2/1.5: w = 2 - 0.5 · 2 = 1
    # 2: m = 0.5·2 - 0.5·1 = 0.5, / (1 - 0.25) = 2/3; v = 0.75·4 + 0.25·1 = 3.25, / (1 - 0.5625)
    #    u = 0.666667/√7.428571 + 0.25·1 = 0.494600 > 0, ratio = 1/u: w = 1 - 0.5 · 1 = 0.5
    assert parameter.item() == pytest.approx(0.5)
    state = optimizer.state[parameter]
    assert state["exp_avg"].item() == pytest.approx(0.5)
    assert state["exp_avg_sq"].item() == pytest.approx(3.25)
    assert state["step"].item() == 2


def test_the_directions_of_two_steps_are_adamws() -> None:
    """With the ratio 1 it is Adam with decoupled decay, as torch has it."""
    ends = []
    for kind, adapt in ((torch.optim.AdamW, {}), (Lamb, {"adapt": False})):
        parameter = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
        optimizer = kind([{"params": [parameter], **adapt}], lr=0.1, eps=1e-3, weight_decay=0.2)
        for number in range(4):
            parameter.grad = torch.tensor([0.5, float(number), -0.1])
            optimizer.step()
        ends.append(parameter.detach())
    torch.testing.assert_close(ends[0], ends[1])


@pytest.mark.parametrize(
    ("weight", "gradient", "expected"),
    [
        ([0.0, 0.0], [0.5, -0.25], [-0.1, 0.1]),  # 0 - 0.1 · u, u = (1, -1)
        ([3.0, 4.0], [0.0, 0.0], [3.0, 4.0]),  # u = 0: nothing moves
        ([0.0, 0.0], [0.0, 0.0], [0.0, 0.0]),
    ],
    ids=["weights of 0", "gradients of 0", "both"],
)
def test_the_ratio_of_a_layer_of_zeros_is_one(
    weight: list[float], gradient: list[float], expected: list[float]
) -> None:
    assert step(weight, gradient) == pytest.approx(expected)


def test_gradients_of_0_leave_the_decay_at_the_ratio_of_norms() -> None:
    # u = 0.1 · (3, 4), |u| = 0.5, ratio = 5/0.5 = 10: w - 0.1 · 10 · u = 0.9 w
    assert step([3.0, 4.0], [0.0, 0.0], weight_decay=0.1) == pytest.approx([2.7, 3.6])


def test_each_layer_has_a_ratio_of_its_own() -> None:
    layers = [nn.Parameter(torch.tensor([value])) for value in (1.0, 10.0)]
    for layer in layers:
        layer.grad = torch.tensor([1.0])
    Lamb(layers, lr=0.1).step()
    # 1 - 0.1 · 1 and 10 - 0.1 · 10
    assert [layer.item() for layer in layers] == pytest.approx([0.9, 9.0])


def test_three_steps_end_where_timms_do() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    bias = nn.Parameter(torch.tensor([0.5]))
    groups = [{"params": [weight], "weight_decay": 0.02}, {"params": [bias], "adapt": False}]
    optimizer = Lamb(groups, lr=0.01)
    steps = (([0.3, -0.1, 0.2], 0.4), ([-0.2, 0.6, 0.1], -0.3), ([0.5, 0.05, -0.4], 0.2))
    for of_weight, of_bias in steps:
        weight.grad, bias.grad = torch.tensor(of_weight), torch.tensor([of_bias])
        optimizer.step()
    # timm 1.0.31's Lamb(max_grad_norm=None), 2026-11-24: benchmarks/optim_equality.py
    assert weight.tolist() == pytest.approx([0.9455144, -2.01998, 2.9532299])
    assert bias.item() == pytest.approx(0.4860916)


def test_the_lists_step_as_one_tensor_after_the_other() -> None:
    ends = []
    for kind in (Lamb, LambLoop):
        generator = torch.Generator().manual_seed(0)
        shapes = ((16, 3, 3, 3), (7, 16), (5,))
        parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
        groups = [{"params": parameters[:2]}, {"params": parameters[2:], "adapt": False}]
        optimizer = kind(groups, lr=0.01, weight_decay=0.02, eps=1e-6)
        for _ in range(5):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        ends.append([parameter.detach() for parameter in parameters])
    for found, expected in zip(*ends, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def a_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))


def groups_of(net: nn.Module) -> list[dict[str, object]]:
    weights = [p for p in net.parameters() if p.dim() > 1]
    rest = [p for p in net.parameters() if p.dim() == 1]
    return [{"params": weights, "weight_decay": 1e-2}, {"params": rest, "adapt": False}]


def train(net: nn.Module, optimizer: Lamb, steps: int, first: int = 0) -> float:
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
    optimizer = Lamb(groups_of(net), lr=0.02)
    before = train(net, optimizer, 1)
    after = train(net, optimizer, 300, first=1)
    # Guessing costs ln 2 = 0.69; a net that learned the ring a fraction of it.
    assert before > 0.6
    assert after < 0.25


def test_a_saved_state_goes_on_as_if_never_stopped() -> None:
    whole, first = a_net(), a_net()
    train(whole, Lamb(groups_of(whole), lr=0.02), 6)
    optimizer = Lamb(groups_of(first), lr=0.02)
    train(first, optimizer, 3)
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    saved.seek(0)
    second = copy.deepcopy(first)
    resumed = Lamb(groups_of(second), lr=9.0)
    resumed.load_state_dict(torch.load(saved, weights_only=True))
    train(second, resumed, 3, first=3)
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_state_is_that_of_torchs_adam() -> None:
    net = a_net()
    adam = torch.optim.AdamW(net.parameters())
    states: list[dict[str, Tensor]] = []
    for optimizer in (adam, Lamb(groups_of(net), lr=0.01)):
        train(net, optimizer, 2)
        states.append(optimizer.state[next(net.parameters())])
    one, other = states
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert (value.shape, value.dtype) == (other[name].shape, other[name].dtype)
    assert other["step"].item() == 2
