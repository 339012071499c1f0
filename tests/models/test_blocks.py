import pytest
import torch
from torch import nn

from resscale.errors import UserInputError
from resscale.models.blocks import BasicBlock, Bottleneck
from resscale.models.layers import ZeroPadShortcut, make_conv
from resscale.models.options import ResNetOptions
from resscale.models.shortcuts import make_shortcut


def test_option_a_keeps_every_second_pixel_and_appends_zero_channels():
    x = torch.arange(9.0).reshape(1, 1, 3, 3)  # rows 0 1 2 / 3 4 5 / 6 7 8

    y = ZeroPadShortcut(extra_channels=2, stride=2)(x)

    # Rows 0 and 2, columns 0 and 2: the corners.
    assert y.tolist() == [[[[0, 2], [6, 8]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]]]


def test_option_a_has_no_parameters_and_no_state():
    shortcut = make_shortcut(ResNetOptions(shortcut="A"), 16, 32, stride=2)

    assert isinstance(shortcut, ZeroPadShortcut)
    assert len(shortcut.state_dict()) == 0
    assert repr(shortcut) == "ZeroPadShortcut(extra_channels=16, stride=2)"


def test_option_a_widens_the_first_bottleneck_without_a_stride():
    # Table 1, conv2_x of ResNet-50: 64 channels become 4 * 64 = 256 at the same size.
    shortcut = make_shortcut(ResNetOptions(shortcut="A"), 64, 256, stride=1)
    x = torch.randn(2, 64, 3, 3)

    y = shortcut(x)

    assert torch.equal(y[:, :64], x)
    assert y.shape == (2, 256, 3, 3)
    assert y[:, 64:].abs().sum() == 0


def test_option_a_keeps_channels_last():
    x = torch.randn(2, 4, 6, 6).to(memory_format=torch.channels_last)

    y = ZeroPadShortcut(extra_channels=4, stride=2)(x)

    assert y.is_contiguous(memory_format=torch.channels_last)


def test_option_a_refuses_to_drop_channels():
    with pytest.raises(UserInputError, match="from 32 to 16 channels: it only adds channels"):
        make_shortcut(ResNetOptions(shortcut="A"), 32, 16, stride=1)


@pytest.mark.parametrize("kind", ["A", "B"])
def test_options_a_and_b_are_the_identity_where_sizes_agree(kind):
    assert isinstance(make_shortcut(ResNetOptions(shortcut=kind), 8, 8, stride=1), nn.Identity)


@pytest.mark.parametrize(("kind", "out", "stride"), [("B", 8, 2), ("B", 16, 1), ("C", 8, 1)])
def test_a_projection_is_a_strided_1x1_convolution_and_a_bn(kind, out, stride):
    conv, bn = make_shortcut(ResNetOptions(shortcut=kind), 8, out, stride)

    assert conv.weight.shape == (out, 8, 1, 1)
    assert conv.stride == (stride, stride)
    assert conv.bias is None
    assert bn.num_features == out


def test_the_plain_shortcut_is_none_even_where_sizes_differ():
    assert make_shortcut(ResNetOptions(shortcut="none"), 8, 8, stride=1) is None
    assert make_shortcut(ResNetOptions(shortcut="none"), 8, 16, stride=2) is None


@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("size", [8, 9])
def test_convolutions_round_the_halved_size_up(kernel, size):
    y = make_conv(1, 2, kernel, stride=2)(torch.zeros(1, 1, size, size))

    assert y.shape[2:] == ((size + 1) // 2, (size + 1) // 2)


@pytest.mark.parametrize("shortcut", ["A", "B", "C", "none"])
@pytest.mark.parametrize(("block", "expansion"), [(BasicBlock, 1), (Bottleneck, 4)])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_maps_odd_sizes_as_documented(block, expansion, shortcut, stride):
    net = block(4, 8, stride, ResNetOptions(shortcut=shortcut))

    y = net(torch.randn(2, 4, 7, 5))

    assert y.shape == (2, 8 * expansion, -(-7 // stride), -(-5 // stride))


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_a_block_adds_its_shortcut_before_the_last_relu(block):
    net = block(4 * block.expansion, 4, 1, ResNetOptions()).eval()
    nn.init.zeros_(net.last_bn.weight)
    nn.init.constant_(net.last_bn.bias, 0.5)
    x = torch.randn(2, 4 * block.expansion, 3, 3)

    # The residual branch is the constant 0.5, so the block is relu(0.5 + x), and x is untouched.
    torch.testing.assert_close(net(x), (0.5 + x).clamp(min=0), rtol=0, atol=0)


@pytest.mark.parametrize(("block", "last"), [(BasicBlock, "bn2"), (Bottleneck, "bn3")])
def test_the_last_bn_is_the_one_before_the_addition(block, last):
    net = block(4, 4, 1, ResNetOptions())

    assert net.last_bn is getattr(net, last)


@pytest.mark.parametrize(("stride_on", "strides"), [("1x1", (2, 1)), ("3x3", (1, 2))])
def test_the_bottleneck_strides_where_it_is_told(stride_on, strides):
    net = Bottleneck(16, 8, 2, ResNetOptions(stride_on=stride_on))

    assert (net.conv1.stride[0], net.conv2.stride[0], net.conv3.stride[0]) == (*strides, 1)


def test_a_basic_block_refuses_to_stride_on_a_1x1_it_has_not():
    with pytest.raises(UserInputError, match=r"stride_on='1x1' needs bottleneck blocks"):
        BasicBlock(8, 8, 1, ResNetOptions(stride_on="1x1"))


@pytest.mark.parametrize("shortcut", ["A", "B", "none"])
def test_a_block_compiles_to_one_graph(shortcut):
    net = BasicBlock(4, 8, 2, ResNetOptions(shortcut=shortcut)).eval()
    x = torch.randn(1, 4, 6, 6)

    compiled = torch.compile(net, backend="eager", fullgraph=True)

    torch.testing.assert_close(compiled(x), net(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"shortcut": "a"},
            r"shortcut='a' must be one of 'A', 'B', 'C', 'none'\.$",
        ),
        (
            {"shortcut": None},
            r"shortcut=None must be one of 'A', 'B', 'C', 'none'\. Did you mean 'none'\?$",
        ),
        (
            {"stride_on": "3"},
            r"stride_on='3' must be one of '1x1', '3x3'\.",
        ),
        (
            {"stem": "imagnet"},
            r"stem='imagnet' must be one of 'imagenet', 'cifar'\. Did you mean 'imagenet'\?$",
        ),
        (
            {"zero_init_residual": "yes"},
            r"zero_init_residual='yes' must be True or False\.",
        ),
        (
            {"zero_init_residual": True, "shortcut": "none"},
            r"zero_init_residual=True needs shortcuts, and shortcut='none' has none: use",
        ),
    ],
)
def test_a_bad_option_value_is_refused_with_the_valid_ones(options, message):
    with pytest.raises(UserInputError, match=message):
        ResNetOptions(**options)
