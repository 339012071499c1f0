import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resscale.models import ResNetOptions
from resscale.models.preact import PreActBasicBlock, PreActBottleneck, has_weights, make_relu
from resscale.models.shortcuts import make_shortcut

BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def make(block, in_channels, planes, stride=1, **options):
    torch.manual_seed(0)
    net = block(in_channels, planes, stride, ResNetOptions(preact=True, **options)).double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias)
    return net


def conv(x, layer, stride=1):
    return F.conv2d(x, layer.weight, layer.bias, stride, layer.kernel_size[0] // 2)


def activated(x, norm):
    """BN by its formula and ReLU, or the ReLU alone."""
    if isinstance(norm, nn.BatchNorm2d):
        mean, var, gamma, beta = (
            t[:, None, None] for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        x = (x - mean) / (var + 1e-5).sqrt() * gamma + beta
    return x.clamp(min=0)


def branch(net, before, strides):
    """Section 4 of He et al. 2016: what follows the first norm and ReLU of the branch."""
    out = conv(before, net.conv1, strides[0])
    out = conv(activated(out, net.norm2), net.conv2, strides[1])
    return conv(activated(out, net.norm3), net.conv3) if len(strides) == 3 else out


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize(
    ("block", "strides"), [(PreActBasicBlock, (1, 1)), (PreActBottleneck, (1, 1, 1))]
)
def test_an_identity_sees_the_input_before_its_activation(block, strides, norm):
    net = make(block, 4 * block.expansion, 4, norm=norm)
    x = torch.randn(2, 4 * block.expansion, 5, 5, dtype=torch.float64)

    expected = x + branch(net, activated(x, net.norm1), strides)

    torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize(
    ("block", "stride_on", "strides"),
    [
        (PreActBasicBlock, "3x3", (2, 1)),
        (PreActBottleneck, "3x3", (1, 2, 1)),
        (PreActBottleneck, "1x1", (2, 1, 1)),
    ],
)
def test_a_projection_sees_the_activated_input(block, stride_on, strides, norm):
    net = make(block, 4, 4, 2, norm=norm, stride_on=stride_on)
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    before = activated(x, net.norm1)

    expected = conv(before, net.downsample.conv, 2) + branch(net, before, strides)

    torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize("block", [PreActBasicBlock, PreActBottleneck])
def test_option_a_zero_pads_the_input_before_its_activation(block):
    net = make(block, 4, 4, 2, shortcut="A")
    net.zero_branch()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)

    y = net(x)

    assert torch.equal(y[:, :4], x[:, :, ::2, ::2])
    assert y[:, 4:].abs().sum() == 0


@pytest.mark.parametrize(
    ("block", "strides"), [(PreActBasicBlock, (2, 1)), (PreActBottleneck, (1, 2, 1))]
)
def test_a_plain_block_is_its_branch(block, strides):
    net = make(block, 4, 4, 2, shortcut="none")
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)

    torch.testing.assert_close(net(x), branch(net, activated(x, net.norm1), strides))


def test_nothing_follows_the_addition():
    net = make(PreActBasicBlock, 4, 4)
    net.zero_branch()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)

    assert (x < 0).any()
    assert torch.equal(net(x), x)


# timm's names: norm1 before conv1; a projection is `downsample.conv`, without a norm.
@pytest.mark.parametrize(
    ("block", "convs", "norms"),
    [(PreActBasicBlock, 2, (4, 8)), (PreActBottleneck, 3, (4, 8, 8))],
)
def test_a_blocks_keys_are_timms(block, convs, norms):
    state = make(block, 4, 8, 2).state_dict()

    expected = {f"conv{i}.weight" for i in range(1, convs + 1)} | {"downsample.conv.weight"}
    expected |= {f"norm{i}.{entry}" for i in range(1, convs + 1) for entry in BN}
    assert set(state) == expected
    # A norm has the channels of what it precedes.
    assert tuple(len(state[f"norm{i}.weight"]) for i in range(1, convs + 1)) == norms


@pytest.mark.parametrize(
    ("kind", "projects"), [("A", False), ("B", True), ("C", True), ("none", False)]
)
def test_a_projection_is_what_has_weights(kind, projects):
    options = ResNetOptions(shortcut=kind, preact=True, blurpool=True)

    assert has_weights(make_shortcut(options, 4, 8, 2)) is projects


def test_a_relu_that_follows_no_norm_does_not_overwrite_the_blocks_input():
    assert make_relu(ResNetOptions(preact=True)).inplace
    assert not make_relu(ResNetOptions(preact=True, norm="none")).inplace
