import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resscale.errors import UserInputError
from resscale.models import ResNet, ResNetOptions
from resscale.models.layers import DropPath, ZeroPadShortcut
from resscale.models.resnet import Block


def small(block="basic", depths=(2, 1), widths=(8, 16), **options):
    options.setdefault("stem", "cifar")
    return ResNet(block, depths, widths, num_classes=5, options=ResNetOptions(**options))


def blocks_of(net):
    return [module for module in net.modules() if isinstance(module, Block)]


def randomize(net):
    """Give norms and biases numbers of their own, so that no mistake hides behind 0 or 1."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.1)
    return net


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
    net = randomize(small(block, depths=(1, 1), stem="imagenet").double().eval())
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)

    with torch.no_grad():
        torch.testing.assert_close(net(x), reference(net.state_dict(), x, convs, projected))


def test_a_pre_activation_net_ends_with_norm_relu_mean_and_a_1x1_classifier():
    torch.manual_seed(0)
    net = randomize(small(preact=True).double().eval())
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)

    with torch.no_grad():
        maps = F.conv2d(x, net.stem.conv.weight, padding=1)
        for block in blocks_of(net):
            maps = block(maps)
        norm, fc = net.norm, net.head.fc
        maps = F.batch_norm(maps, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        logits = F.linear(F.relu(maps).mean((2, 3)), fc.weight[:, :, 0, 0], fc.bias)

        torch.testing.assert_close(net.forward_features(x), F.relu(maps))
        torch.testing.assert_close(net(x), logits)


# Section 4.1 and table 1: conv1 halves 64 to 32, the pool to 16, then layer2 to 4 each halve.
@pytest.mark.parametrize("preact", [False, True])
@pytest.mark.parametrize(("block", "expansion"), [("basic", 1), ("bottleneck", 4)])
def test_imagenet_stages_halve_the_map_and_double_the_channels(block, expansion, preact):
    with torch.device("meta"):
        net = ResNet(block, (1, 1, 1, 1), options=ResNetOptions(preact=preact))
        x = torch.empty(2, 3, 64, 64)
        x = net.stem(x) if preact else net.maxpool(net.relu(net.bn1(net.conv1(x))))
        assert x.shape == (2, 64, 16, 16)
        for name, width, size in zip(
            net.stage_names, (64, 128, 256, 512), (16, 8, 4, 2), strict=True
        ):
            x = net.get_submodule(name)(x)
            assert x.shape == (2, width * expansion, size, size)
    assert net.num_features == 512 * expansion
    assert net.total_stride == 32


# Section 4.2: output map sizes 32, 16, 8 with 16, 32, 64 filters.
def test_cifar_stages_are_32_16_and_8_pixels_wide():
    with torch.device("meta"):
        net = ResNet("basic", (1, 1, 1), (16, 32, 64), options=ResNetOptions("A", stem="cifar"))
        x = net.maxpool(net.relu(net.bn1(net.conv1(torch.empty(2, 3, 32, 32)))))
        assert x.shape == (2, 16, 32, 32)
        for name, width, size in zip(net.stage_names, (16, 32, 64), (32, 16, 8), strict=True):
            x = getattr(net, name)(x)
            assert x.shape == (2, width, size, size)
    assert net.total_stride == 4


# The keys of timm's resnetv2: a stem, stages of blocks, a last norm, and a 1x1 classifier.
def test_the_keys_of_a_pre_activation_net_are_timms():
    state = small("bottleneck", preact=True).state_dict()
    bn = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = ["stem.conv.weight"]
    for at, projects in (("0.blocks.0", True), ("0.blocks.1", False), ("1.blocks.0", True)):
        expected += [f"stages.{at}.conv{i}.weight" for i in (1, 2, 3)]
        expected += [f"stages.{at}.norm{i}.{entry}" for i in (1, 2, 3) for entry in bn]
        expected += [f"stages.{at}.downsample.conv.weight"] * projects
    expected += [*(f"norm.{entry}" for entry in bn), "head.fc.weight", "head.fc.bias"]

    assert sorted(state) == sorted(expected)
    assert state["head.fc.weight"].shape == (5, 64, 1, 1)


@pytest.mark.parametrize("preact", [False, True])
def test_stage_names_name_the_stages(preact):
    net = small(preact=preact)
    first, second = (net.get_submodule(name) for name in net.stage_names)

    y = second(first(torch.randn(2, 8, 4, 4)))

    assert y.shape == (2, 16, 2, 2)


# (stem, strides in all, smallest side): the last stage that strides still sees 2 pixels.
@pytest.mark.parametrize(
    ("stem", "depths", "strides", "smallest"),
    [
        ("imagenet", (1, 1, 1, 1), 32, 17),  # 17 -> 9 -> 5 -> 3 -> 2 -> 1
        ("deep", (1, 1, 1, 1), 32, 17),
        ("cifar", (1, 1, 1), 4, 3),  # 3 -> 2 -> 1
        ("cifar", (1,), 1, 1),
    ],
)
@pytest.mark.parametrize("options", [{}, {"preact": True}, {"blurpool": True}])
def test_the_smallest_input_that_the_strides_allow(stem, depths, strides, smallest, options):
    net = ResNet(
        "basic", depths, (8,) * len(depths), options=ResNetOptions(stem=stem, **options)
    ).eval()

    assert net.total_stride == strides
    assert net(torch.randn(1, 3, smallest, smallest)).isfinite().all()
    for size in {(smallest - 1, 64), (64, smallest - 1)}:
        remedy = "" if stem == "cifar" else r", or stem='cifar', which strides less"
        with pytest.raises(
            UserInputError,
            match=rf"^An input of {size[0]}x{size[1]} pixels is too small for strides of {strides} "
            rf"in all: use {smallest}x{smallest} or more{remedy}\.$",
        ):
            net(torch.zeros(1, 3, *size))


@pytest.mark.parametrize("stem", ["imagenet", "cifar", "deep"])
@pytest.mark.parametrize("size", [(5, 33), (32, 32)])
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


def test_option_a_is_refused_where_the_channels_fall():
    with pytest.raises(UserInputError, match="from 16 to 8 channels: it only adds channels"):
        small(widths=(16, 8), shortcut="A")
    with pytest.raises(UserInputError, match=r"from 32 to 8 channels: .* or a width of 32 or more"):
        small(shortcut="A", stem_width=32)


@pytest.mark.parametrize(
    ("shortcut", "expected"), [("B", [False, False, True]), ("C", [True, True, True])]
)
def test_option_b_projects_where_the_size_differs_and_c_everywhere(shortcut, expected):
    blocks = blocks_of(small(shortcut=shortcut))

    assert [isinstance(block.downsample, nn.Sequential) for block in blocks] == expected


@pytest.mark.parametrize("preact", [False, True])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
def test_zero_init_residual_starts_every_block_as_its_shortcut(block, shortcut, preact):
    net = small(block, shortcut=shortcut, preact=preact, zero_init_residual=True).eval()

    x = torch.randn(2, 8, 8, 8)
    for residual in blocks_of(net):
        seen = torch.relu(residual.norm1(x)) if preact and residual.projects else x
        expected = residual.downsample(seen)
        y = residual(x)
        torch.testing.assert_close(y, expected if preact else torch.relu(expected))
        # One layer only: with more of them at 0 no gradient would reach the branch.
        layers = [m for m in residual.modules() if isinstance(m, nn.BatchNorm2d | nn.Conv2d)]
        assert [bool((m.weight == 0).all()) for m in layers].count(True) == 1
        x = y


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("preact", [False, True])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_one_step_of_sgd_wakes_every_zeroed_branch(block, preact, norm):
    torch.manual_seed(0)
    net = small(block, preact=preact, norm=norm, zero_init_residual=True)
    weights = [
        m.weight
        for m in net.modules()
        if isinstance(m, nn.Conv2d | nn.BatchNorm2d) and not m.weight.any()
    ]
    assert len(weights) == len(blocks_of(net)) == 3

    F.cross_entropy(net(torch.randn(8, 3, 8, 8)), torch.arange(8) % 5).backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()

    assert all(bool(weight.any()) for weight in weights)


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


def test_grouped_convolutions_start_as_torchvisions_which_ignores_the_groups():
    torch.manual_seed(0)
    options = ResNetOptions(groups=32, width_per_group=4)
    weight = ResNet("bottleneck", (1,), (256,), options=options).layer1[0].conv2.weight

    # torch counts 512 * 9 outputs of each input, though with 32 groups an input has 512 / 32 * 9:
    # the weights start sqrt(32) times smaller than He et al.'s rule says, and BN makes up for it.
    assert weight.shape == (512, 512 // 32, 3, 3)
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)


def test_biases_start_at_zero_where_there_is_no_norm():
    net = small("bottleneck", norm="none", se=4)
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]

    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert all(not conv.bias.any() and conv.weight.any() for conv in convs)


@pytest.mark.parametrize("preact", [False, True])
def test_the_classifier_starts_as_torchs_linear(preact):
    options = ResNetOptions(preact=preact)
    net = ResNet("basic", (1,), (64,), num_classes=100, options=options)
    fc = net.head.fc if preact else net.fc

    # torch: uniform within 1 / sqrt(in_features) = 1 / sqrt(64) = 0.125.
    assert 0.12 < fc.weight.abs().max().item() <= 0.125
    assert fc.bias.abs().max().item() > 0


# Huang et al. 2016, section 3: block l of L is dropped with l / L of the last block's chance.
@pytest.mark.parametrize("preact", [False, True])
def test_the_chance_to_drop_a_block_grows_linearly_over_all_stages(preact):
    net = small(depths=(3, 2), drop_path=0.5, preact=preact)

    rates = [module.rate for module in net.modules() if isinstance(module, DropPath)]

    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.mark.parametrize("preact", [False, True])
def test_dropout_zeroes_features_before_the_classifier(preact):
    torch.manual_seed(0)
    net = small(dropout=0.5, preact=preact, widths=(8, 256))
    classifier = net.head.fc if preact else net.fc
    seen = []
    classifier.register_forward_pre_hook(lambda _m, x: seen.append(x[0].flatten(1)))
    x = torch.randn(2, 3, 8, 8)

    with torch.no_grad():
        net(x)
        features = net.eval().forward_features(x).mean((2, 3))
        net(x)

    # Of 512 features half are zeroed, within 5 standard errors of sqrt(0.25 / 512) = 0.022.
    assert (seen[0] == 0).double().mean().item() == pytest.approx(0.5, abs=0.11)
    torch.testing.assert_close(seen[1], features)


def test_block_dropout_is_refused_where_there_is_no_place_for_it():
    for preact in (False, True):
        with pytest.raises(
            UserInputError,
            match=r"^Option block_dropout=0\.3 needs basic blocks: it stands between their two "
            r"convolutions\. Use block_dropout=0, and dropout before fc if wanted\.$",
        ):
            small("bottleneck", block_dropout=0.3, preact=preact)


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
