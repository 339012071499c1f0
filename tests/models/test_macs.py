import copy

import pytest
import torch
from torch import nn

from resscale.errors import UserInputError
from resscale.models import ResNet, ResNetOptions, count_macs


def small(block="basic", **options):
    options.setdefault("stem", "cifar")
    return ResNet(block, (2, 1), (8, 16), num_classes=5, options=ResNetOptions(**options))


def cifar(c=3, **options):
    options = ResNetOptions(stem="cifar", **options)
    return ResNet("basic", (1,), (8,), in_channels=c, num_classes=10, options=options)


@pytest.mark.parametrize("c", [1, 3])
def test_macs_are_those_counted_by_hand(c):
    net = ResNet("basic", (1,), (4,), in_channels=c, options=ResNetOptions(stem="cifar"))

    # Stem c -> 4 and two 4 -> 4 convolutions of 3x3 over 8x8 pixels, then fc 4 -> 1000.
    assert count_macs(net, 8, in_channels=c) == (c * 4 + 2 * 4 * 4) * 9 * 8 * 8 + 4 * 1000


def test_what_is_not_a_convolution_or_linear_costs_nothing():
    counted = count_macs(cifar(), 8)

    # A bias is an addition alone; so are BN, ReLU, dropout and the addition of the shortcut.
    assert count_macs(cifar(norm="none"), 8) == counted
    assert count_macs(cifar(drop_path=0.5, dropout=0.5, block_dropout=0.5), 8) == counted
    assert count_macs(cifar(preact=True), 8) == counted


def test_the_gate_of_se_costs_its_two_layers():
    # 8 -> 8 inner -> 8 on one pixel: 2 * 64.
    assert count_macs(cifar(se=16), 8) - count_macs(cifar(), 8) == 2 * 8 * 8


def test_grouped_convolutions_cost_their_share():
    def macs(groups, per_group):
        options = ResNetOptions(stem="cifar", groups=groups, width_per_group=per_group)
        return count_macs(ResNet("bottleneck", (1,), (16,), options=options), 8)

    # Width 16 in 1 group, or 16 in 4 groups of 4: the 3x3 falls from 16 * 16 to 16 * 4 a pixel.
    assert macs(1, 64) - macs(4, 16) == 16 * (16 - 4) * 9 * 8 * 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"preact": True, "drop_path": 0.5}, {"blurpool": True}])
def test_counting_macs_leaves_the_net_as_it_was(dtype, training, options):
    net = small(**options).to(dtype).train(training)
    before = copy.deepcopy(net.state_dict())
    rng = torch.get_rng_state()

    # Two pixels become one behind the only stride: training-mode BN must not object.
    assert count_macs(net, 2) > 0

    assert net.training is training
    assert torch.equal(torch.get_rng_state(), rng)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key
        assert value.device.type == "cpu"
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_any_module_can_be_counted():
    net = nn.Sequential(nn.Conv2d(2, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

    assert count_macs(net, 5, in_channels=2) == 2 * 4 * 25 + 4 * 3


def test_macs_need_an_image():
    with pytest.raises(UserInputError, match=r"image_size=0 must be a whole number of at least 1"):
        count_macs(small(), 0)
    with pytest.raises(UserInputError, match=r"in_channels=0 must be a whole number of at least"):
        count_macs(small(), 8, in_channels=0)
    with pytest.raises(UserInputError, match="1x1 pixels is too small for strides of 2 in all"):
        count_macs(small(), 1)
