import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resscale.errors import UserInputError
from resscale.models import ResNetOptions
from resscale.models.blocks import BasicBlock, Bottleneck, check_basic, inner_width
from resscale.models.layers import BlurPool, DropPath
from resscale.models.preact import PreActBasicBlock, PreActBottleneck

BLOCKS = [BasicBlock, Bottleneck, PreActBasicBlock, PreActBottleneck]
POST = BLOCKS[:2]


def make(block, in_channels, planes, stride=1, drop_path=0.0, **options):
    options["preact"] = block in BLOCKS[2:]
    return block(in_channels, planes, stride, ResNetOptions(**options), drop_path)


def randomize(net):
    """Give norms and biases numbers of their own, so that no mistake hides behind 0 or 1."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias)
    return net


@pytest.mark.parametrize("shortcut", ["A", "B", "C", "none"])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("blurpool", [False, True])
def test_a_block_maps_odd_sizes_as_documented(block, shortcut, stride, blurpool):
    net = make(block, 4, 8, stride, shortcut=shortcut, blurpool=blurpool)

    y = net(torch.randn(2, 4, 7, 5))

    assert y.shape == (2, 8 * block.expansion, -(-7 // stride), -(-5 // stride))


def conv(x, layer, stride=1):
    return F.conv2d(x, layer.weight, layer.bias, stride, layer.kernel_size[0] // 2)


def norm(x, bn):
    return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias)


def gated(x, se):
    hidden = F.relu(conv(x.mean((2, 3), keepdim=True), se.fc1))
    return x * torch.sigmoid(conv(hidden, se.fc2))


@pytest.mark.parametrize("se", [0, 4])
def test_a_basic_block_is_an_independent_forward_of_figure_5(se):
    net = randomize(make(BasicBlock, 4, 8, 2, se=se).double().eval())
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)

    out = norm(conv(F.relu(norm(conv(x, net.conv1, 2), net.bn1)), net.conv2), net.bn2)
    out = gated(out, net.se) if se else out
    projected = norm(conv(x, net.downsample[0], 2), net.downsample[1])

    torch.testing.assert_close(net(x), F.relu(out + projected))


@pytest.mark.parametrize("stride_on", ["1x1", "3x3"])
@pytest.mark.parametrize("se", [0, 4])
def test_a_bottleneck_is_an_independent_forward_of_figure_5(se, stride_on):
    net = randomize(make(Bottleneck, 4, 8, 2, se=se, stride_on=stride_on).double().eval())
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    on_1x1, on_3x3 = (2, 1) if stride_on == "1x1" else (1, 2)

    out = F.relu(norm(conv(x, net.conv1, on_1x1), net.bn1))
    out = F.relu(norm(conv(out, net.conv2, on_3x3), net.bn2))
    out = norm(conv(out, net.conv3), net.bn3)
    out = gated(out, net.se) if se else out
    projected = norm(conv(x, net.downsample[0], 2), net.downsample[1])

    torch.testing.assert_close(net(x), F.relu(out + projected))


# Zhang 2019, section 3.3: the strided convolution, its norm and its ReLU at stride 1, then the
# blur; the shortcut blurs before its projection.
@pytest.mark.parametrize(
    ("block", "stride_on"), [(BasicBlock, "3x3"), (Bottleneck, "3x3"), (Bottleneck, "1x1")]
)
def test_blurpool_stands_behind_the_relu_of_the_convolution_that_strode(block, stride_on):
    net = make(block, 4, 8, 2, blurpool=True, stride_on=stride_on).double()
    net = randomize(net.eval())
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    blur = BlurPool(8).double()

    out = F.relu(norm(conv(x, net.conv1), net.bn1))
    if block is BasicBlock:
        out = norm(conv(blur(out), net.conv2), net.bn2)
    else:
        out = blur(out) if stride_on == "1x1" else out
        out = F.relu(norm(conv(out, net.conv2), net.bn2))
        out = norm(conv(out if stride_on == "1x1" else blur(out), net.conv3), net.bn3)
    projected = norm(conv(BlurPool(4).double()(x), net.downsample[1]), net.downsample[2])

    torch.testing.assert_close(net(x), F.relu(out + projected))


@pytest.mark.parametrize(("block", "last"), [(BasicBlock, "bn2"), (Bottleneck, "bn3")])
def test_a_block_adds_its_shortcut_before_the_last_relu(block, last):
    net = make(block, 4 * block.expansion, 4).eval()
    nn.init.zeros_(getattr(net, last).weight)
    nn.init.constant_(getattr(net, last).bias, 0.5)
    x = torch.randn(2, 4 * block.expansion, 3, 3)
    before = x.clone()

    # The residual branch is the constant 0.5, so the block is relu(0.5 + x), and x is untouched.
    torch.testing.assert_close(net(x), (0.5 + before).clamp(min=0), rtol=0, atol=0)
    assert torch.equal(x, before)


@pytest.mark.parametrize(("stride_on", "strides"), [("1x1", (2, 1)), ("3x3", (1, 2))])
@pytest.mark.parametrize("block", [Bottleneck, PreActBottleneck])
def test_the_bottleneck_strides_where_it_is_told(block, stride_on, strides):
    net = make(block, 16, 8, 2, stride_on=stride_on)

    assert (net.conv1.stride[0], net.conv2.stride[0], net.conv3.stride[0]) == (*strides, 1)


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
@pytest.mark.parametrize("block", BLOCKS)
def test_zero_branch_leaves_the_shortcut_alone_whatever_the_weights_were(block, shortcut, norm):
    net = randomize(make(block, 4 * block.expansion, 4, shortcut=shortcut, norm=norm, se=2))
    x = torch.randn(3, 4 * block.expansion, 5, 5)

    net.zero_branch()

    for mode in (True, False):
        net.train(mode)
        expected = x
        if shortcut == "C":
            seen = F.relu(net.norm1(x)) if block in BLOCKS[2:] else x
            expected = net.downsample(seen)
        expected = F.relu(expected) if block in POST else expected
        torch.testing.assert_close(net(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("block", BLOCKS)
def test_one_step_of_sgd_moves_a_zeroed_branch_away_from_zero(block, norm):
    torch.manual_seed(0)
    net = make(block, 4 * block.expansion, 4, norm=norm)
    net.zero_branch()
    x = torch.randn(3, 4 * block.expansion, 5, 5)
    before = net(x)

    net(x).square().sum().backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()

    assert not torch.equal(net(x), before)


@pytest.mark.parametrize("block", BLOCKS)
def test_drop_path_drops_the_branch_and_never_the_shortcut(block):
    torch.manual_seed(0)
    net = make(block, 4 * block.expansion, 4, drop_path=0.5)
    x = torch.rand(16, 4 * block.expansion, 5, 5)

    # The input is not negative, so the ReLU behind the addition leaves a bare shortcut as it is.
    same = (net(x) == x).flatten(1).all(1)

    assert 0 < int(same.sum()) < 16
    assert not (net.eval()(x) == x).flatten(1).all(1).any()


def test_a_plain_block_has_no_branch_to_drop():
    net = make(BasicBlock, 4, 4, shortcut="none", drop_path=0.5)
    drops = [m for m in net.modules() if isinstance(m, DropPath)]
    torch.manual_seed(0)

    y = net(torch.rand(16, 4, 5, 5))

    assert len(drops) == 1
    assert y.flatten(1).abs().sum(1).gt(0).all()


@pytest.mark.parametrize("block", [BasicBlock, PreActBasicBlock])
def test_block_dropout_stands_between_the_convolutions(block):
    seen = []
    net = make(block, 4, 4, block_dropout=0.999999)
    net.conv1.register_forward_hook(lambda _m, _x, y: seen.append(y))
    net.conv2.register_forward_pre_hook(lambda _m, x: seen.append(x[0]))
    x = torch.randn(2, 4, 5, 5)

    net(x)
    net.eval()(x)

    assert seen[0].abs().sum() > 0
    assert seen[1].abs().sum() == 0  # of 200 numbers one is kept with a chance of 2e-4
    assert seen[3].abs().sum() > 0


# Xie et al. 2016, table 1 and 2: 32x4d has 128, 256, 512, 1024 channels in its 3x3 convolutions.
@pytest.mark.parametrize(
    ("planes", "groups", "per_group", "width"),
    [
        (64, 1, 64, 64),
        (64, 32, 4, 128),
        (512, 32, 4, 1024),
        (256, 32, 8, 1024),  # 256 * 8 / 64 * 32
        (64, 1, 128, 128),  # wide: twice the channels
        (16, 1, 64, 16),
        (16, 4, 8, 8),
    ],
)
def test_the_3x3_convolution_has_the_channels_of_cardinality_times_width(
    planes, groups, per_group, width
):
    options = ResNetOptions(groups=groups, width_per_group=per_group)

    assert inner_width(planes, options) == width
    assert Bottleneck(8, planes, 1, options).conv2.weight.shape == (
        width, width // groups, 3, 3
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"groups": 48},
            "Option groups=48 does not divide the 64 channels of a stage: use groups=32.",
        ),
        (
            {"groups": 100},
            "Option groups=100 does not divide the 64 channels of a stage: use groups=64.",
        ),
    ],
)
@pytest.mark.parametrize("block", [Bottleneck, PreActBottleneck])
def test_groups_that_do_not_divide_are_refused_with_the_nearest(block, options, message):
    with pytest.raises(UserInputError) as refused:
        make(block, 64, 64, **options)

    assert str(refused.value) == message


def test_a_width_per_group_that_gives_a_fraction_of_a_channel_is_refused():
    with pytest.raises(UserInputError) as refused:
        inner_width(16, ResNetOptions(width_per_group=6))

    # 16 * 6 / 64 = 1.5; multiples of 64 / 16 = 4 give whole numbers; 8 as near to 6 as 4.
    assert str(refused.value) == (
        "Option width_per_group=6 makes 1.5 channels per group in a stage of 16 (times "
        "width_per_group / 64), and that must be a whole number: use width_per_group=8."
    )
    assert inner_width(16, ResNetOptions(width_per_group=8)) == 2


def test_the_remedy_for_a_tiny_width_per_group_is_at_least_one_channel():
    with pytest.raises(UserInputError, match="use width_per_group=4"):
        inner_width(16, ResNetOptions(width_per_group=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"stride_on": "1x1"},
            "Option stride_on='1x1' needs bottleneck blocks (50 layers and more): basic blocks "
            "have no 1x1 convolution. Use stride_on='3x3'.",
        ),
        (
            {"groups": 2},
            "Option groups=2 needs bottleneck blocks (50 layers and more): use groups=1.",
        ),
        (
            {"width_per_group": 128},
            "Option width_per_group=128 needs bottleneck blocks (50 layers and more): use "
            "width_per_group=64.",
        ),
    ],
)
@pytest.mark.parametrize("block", [BasicBlock, PreActBasicBlock])
def test_a_basic_block_refuses_what_only_a_bottleneck_has(block, options, message):
    with pytest.raises(UserInputError) as refused:
        make(block, 8, 8, **options)

    assert str(refused.value) == message
    with pytest.raises(UserInputError):
        check_basic(ResNetOptions(**options))


# In place on the wrong tensor, a ReLU would give wrong gradients, or an error, where no BN made a
# tensor of its own.
@pytest.mark.parametrize("options", [{}, {"se": 2}, {"blurpool": True}, {"shortcut": "none"}])
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("block", BLOCKS)
def test_gradients_are_those_of_finite_differences(block, norm, options):
    torch.manual_seed(0)
    net = randomize(make(block, 2, 2, 2, norm=norm, **options).double().eval())
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(net, (x,), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_leaves_its_input_as_it_was(block, norm):
    x = torch.randn(2, 8, 5, 5)
    before = x.clone()

    make(block, 8, 8, 2, norm=norm)(x)

    assert torch.equal(x, before)
