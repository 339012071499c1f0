import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resscale.errors import UserInputError
from resscale.models import ResNet, ResNetOptions, count_macs
from resscale.models.layers import ZeroPadShortcut


def small(block="basic", depths=(2, 1), widths=(8, 16), **options):
    options.setdefault("stem", "cifar")
    return ResNet(block, depths, widths, num_classes=5, options=ResNetOptions(**options))


def blocks_of(net):
    return [block for name in net.stage_names for block in getattr(net, name)]


def reference(state, x, convs, projected):
    """Table 1 for two stages of one block, in functions: an independent forward of `state`."""

    def conv_bn(x, conv, bn, stride=1):
        weight = state[f"{conv}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        affine = (state[f"{bn}.{e}"] for e in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *affine)

    x = F.max_pool2d(F.relu(conv_bn(x, "conv1", "bn1", 2)), 3, 2, 1)
    for stage, at in ((1, "layer1.0"), (2, "layer2.0")):
        y = x
        strided = 1 if convs == 2 else 2  # v1.5: the bottleneck's 3x3
        for i in range(1, convs + 1):
            y = conv_bn(y, f"{at}.conv{i}", f"{at}.bn{i}", stage if i == strided else 1)
            y = F.relu(y) if i < convs else y
        if stage in projected:
            x = conv_bn(x, f"{at}.downsample.0", f"{at}.downsample.1", stage)
        x = F.relu(x + y)
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


@pytest.mark.parametrize(
    ("block", "convs", "projected"), [("basic", 2, (2,)), ("bottleneck", 3, (1, 2))]
)
def test_the_logits_are_those_of_an_independent_forward(block, convs, projected):
    torch.manual_seed(0)
    net = small(block, depths=(1, 1), stem="imagenet").double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)

    with torch.no_grad():
        torch.testing.assert_close(net(x), reference(net.state_dict(), x, convs, projected))


# Section 4.1 and table 1: conv1 halves 64 to 32, the pool to 16, then layer2 to 4 each halve.
@pytest.mark.parametrize(("block", "expansion"), [("basic", 1), ("bottleneck", 4)])
def test_imagenet_stages_halve_the_map_and_double_the_channels(block, expansion):
    with torch.device("meta"):
        net = ResNet(block, (1, 1, 1, 1))
        x = net.maxpool(net.relu(net.bn1(net.conv1(torch.empty(2, 3, 64, 64)))))
        assert x.shape == (2, 64, 16, 16)
        for name, width, size in zip(
            net.stage_names, (64, 128, 256, 512), (16, 8, 4, 2), strict=True
        ):
            x = getattr(net, name)(x)
            assert x.shape == (2, width * expansion, size, size)
    assert net.num_features == 512 * expansion


# Section 4.2: output map sizes 32, 16, 8 with 16, 32, 64 filters.
def test_cifar_stages_are_32_16_and_8_pixels_wide():
    with torch.device("meta"):
        net = ResNet("basic", (1, 1, 1), (16, 32, 64), options=ResNetOptions("A", stem="cifar"))
        x = net.maxpool(net.relu(net.bn1(net.conv1(torch.empty(2, 3, 32, 32)))))
        assert x.shape == (2, 16, 32, 32)
        for name, width, size in zip(net.stage_names, (16, 32, 64), (32, 16, 8), strict=True):
            x = getattr(net, name)(x)
            assert x.shape == (2, width, size, size)


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
@pytest.mark.parametrize("size", [(1, 1), (7, 33), (32, 32)])
def test_any_image_size_gives_one_row_of_logits_per_image(stem, size):
    net = small(stem=stem).eval()

    x = torch.randn(2, 3, *size)
    assert net(x).shape == (2, 5)
    assert net.forward_features(x).shape[:2] == (2, net.num_features)


def test_one_input_channel_is_enough():
    net = ResNet("basic", (1,), (8,), in_channels=1, num_classes=10)

    assert net.conv1.weight.shape == (8, 1, 7, 7)
    assert net(torch.randn(2, 1, 28, 28)).shape == (2, 10)


def test_option_a_leaves_no_projection_in_a_bottleneck_net():
    net = small("bottleneck", shortcut="A")
    kinds = [type(block.downsample) for block in blocks_of(net)]

    # 8 -> 32 channels at stride 1, an identity, 32 -> 64 channels at stride 2.
    assert kinds == [ZeroPadShortcut, nn.Identity, ZeroPadShortcut]
    assert not [key for key in net.state_dict() if "downsample" in key]
    assert net(torch.randn(2, 3, 8, 8)).shape == (2, 5)


def test_option_b_projects_only_where_the_size_differs():
    projected = [isinstance(b.downsample, nn.Sequential) for b in blocks_of(small(shortcut="B"))]

    assert projected == [False, False, True]


def test_option_c_projects_everywhere():
    projected = [isinstance(b.downsample, nn.Sequential) for b in blocks_of(small(shortcut="C"))]

    assert projected == [True, True, True]


@pytest.mark.parametrize(("shortcut", "depends"), [("none", False), ("A", True), ("B", True)])
def test_only_a_plain_net_forgets_its_input_when_a_block_is_zeroed(shortcut, depends):
    net = small(shortcut=shortcut).eval()
    for name in ("conv1", "conv2"):
        nn.init.zeros_(getattr(net.layer1[1], name).weight)
    x, y = torch.randn(2, 2, 3, 8, 8)

    assert torch.equal(net(x), net(y)) is not depends


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
def test_zero_init_residual_starts_every_block_as_relu_of_its_shortcut(block, shortcut):
    net = small(block, shortcut=shortcut, zero_init_residual=True).eval()

    x = torch.randn(2, 8, 8, 8)
    for residual in blocks_of(net):
        torch.testing.assert_close(residual(x), torch.relu(residual.downsample(x)))
        x = residual(x)
        # Only the last gamma: with the others at 0 too, no gradient would reach the branch.
        gammas = [m.weight for m in residual.modules() if isinstance(m, nn.BatchNorm2d)]
        assert [int(gamma.sum()) == 0 for gamma in gammas].count(True) == 1
        assert residual.last_bn.weight.sum() == 0


def test_without_zero_init_residual_every_gamma_starts_at_one():
    gammas = [m.weight for m in small().modules() if isinstance(m, nn.BatchNorm2d)]

    # Stem, 2 * 3 in the blocks, 1 projection.
    assert len(gammas) == 8
    assert all(bool((gamma == 1).all()) for gamma in gammas)


def test_convolutions_start_he_normal_over_fan_out():
    torch.manual_seed(0)
    net = ResNet("basic", (1, 1), (64, 128), options=ResNetOptions(stem="cifar"))
    weight = net.layer2[0].conv1.weight

    # He et al. 2015b: std = sqrt(2 / fan_out), fan_out = 128 * 3 * 3 (fan_in would be 64 * 9).
    # 73,728 draws: the sample's std is within 1% of it (its own error is 1 / sqrt(2n) = 0.26%).
    assert weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.01)
    assert abs(weight.mean().item()) < 0.001
    # A normal has tails that a uniform of the same std, bounded at sqrt(3) std, has not.
    assert (weight.abs() > 2.5 * weight.std()).any()


def test_fc_starts_as_torchs_linear():
    net = ResNet("basic", (1,), (64,), num_classes=100)

    # torch: uniform within 1 / sqrt(in_features) = 1 / sqrt(64) = 0.125.
    assert 0.12 < net.fc.weight.abs().max().item() <= 0.125
    assert net.fc.bias.abs().max().item() > 0


@pytest.mark.parametrize("shortcut", ["A", "B", "C", "none"])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_gradients_reach_every_parameter_and_the_first_layer(block, shortcut):
    torch.manual_seed(0)
    net = small(block, shortcut=shortcut)

    net(torch.randn(4, 3, 8, 8)).square().sum().backward()

    assert net.conv1.weight.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_channels_last_gives_the_same_logits():
    net = small(shortcut="A").eval()
    x = torch.randn(2, 3, 8, 8)
    expected = net(x)

    net = net.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)

    assert net.forward_features(x).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block": "bottelneck"}, r"block='bottelneck' must be one of 'basic', 'bottleneck'\. Did"),
        ({"depths": (1, 1)}, r"depths=\(1, 1\) and widths=\(8,\) must be equally long"),
        ({"depths": (), "widths": ()}, r"must be equally long and not empty"),
        ({"depths": (0,)}, r"depths\[0\]=0 must be a whole number of at least 1\."),
        ({"widths": (8.5,)}, r"widths\[0\]=8\.5 must be a whole number of at least 1\."),
        ({"num_classes": 0}, r"num_classes=0 must be a whole number of at least 1\."),
        ({"in_channels": True}, r"in_channels=True must be a whole number of at least 1\."),
    ],
)
def test_a_net_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(UserInputError, match=message):
        ResNet(**{"block": "basic", "depths": (1,), "widths": (8,)} | arguments)


@pytest.mark.parametrize("c", [1, 3])
def test_macs_are_those_counted_by_hand(c):
    net = ResNet("basic", (1,), (4,), in_channels=c, options=ResNetOptions(stem="cifar"))

    # Stem c -> 4 and two 4 -> 4 convolutions of 3x3 over 8x8 pixels, then fc 4 -> 1000.
    assert count_macs(net, 8, in_channels=c) == (c * 4 + 2 * 4 * 4) * 9 * 8 * 8 + 4 * 1000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_counting_macs_leaves_the_net_as_it_was(dtype, training):
    net = small().to(dtype).train(training)
    before = copy.deepcopy(net.state_dict())
    rng = torch.get_rng_state()

    # One pixel after the stem's and the stage's strides: training-mode BN must not object.
    assert count_macs(net, 1) > 0

    assert net.training is training
    assert torch.equal(torch.get_rng_state(), rng)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key
        assert value.device.type == "cpu"
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_macs_need_an_image():
    with pytest.raises(UserInputError, match=r"image_size=0 must be a whole number of at least 1"):
        count_macs(small(), 0)
