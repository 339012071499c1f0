import pytest
import torch
from torch import nn

from resscale.errors import UserInputError
from resscale.models import ResNetOptions
from resscale.models.layers import BlurPool, ZeroPadShortcut
from resscale.models.shortcuts import make_shortcut


def make(in_channels, out_channels, stride, **options):
    return make_shortcut(ResNetOptions(**options), in_channels, out_channels, stride)


def test_option_a_has_no_parameters_and_no_state():
    shortcut = make(16, 32, 2, shortcut="A")

    assert isinstance(shortcut, ZeroPadShortcut)
    assert len(shortcut.state_dict()) == 0
    assert repr(shortcut) == "ZeroPadShortcut(extra_channels=16, stride=2)"


def test_option_a_widens_the_first_bottleneck_without_a_stride():
    # Table 1, conv2_x of ResNet-50: 64 channels become 4 * 64 = 256 at the same size.
    shortcut = make(64, 256, 1, shortcut="A")
    x = torch.randn(2, 64, 3, 3)

    y = shortcut(x)

    assert torch.equal(y[:, :64], x)
    assert y.shape == (2, 256, 3, 3)
    assert y[:, 64:].abs().sum() == 0


def test_option_a_refuses_to_drop_channels():
    with pytest.raises(
        UserInputError,
        match=r"^Option shortcut='A' cannot go from 32 to 16 channels: it only adds channels\. "
        r"Use shortcut='B', or a width of 32 or more\.$",
    ):
        make(32, 16, 1, shortcut="A")
    assert isinstance(make(32, 16, 1, shortcut="B"), nn.Sequential)
    assert isinstance(make(32, 32, 2, shortcut="A"), ZeroPadShortcut)


@pytest.mark.parametrize("preact", [False, True])
@pytest.mark.parametrize("kind", ["A", "B"])
def test_options_a_and_b_are_the_identity_where_sizes_agree(kind, preact):
    assert isinstance(make(8, 8, 1, shortcut=kind, preact=preact), nn.Identity)


@pytest.mark.parametrize(("kind", "out", "stride"), [("B", 8, 2), ("B", 16, 1), ("C", 8, 1)])
def test_a_projection_is_a_strided_1x1_convolution_and_a_bn(kind, out, stride):
    conv, bn = make(8, out, stride, shortcut=kind)

    assert conv.weight.shape == (out, 8, 1, 1)
    assert conv.stride == (stride, stride)
    assert conv.bias is None
    assert bn.num_features == out


def test_the_plain_shortcut_is_none_even_where_sizes_differ():
    assert make(8, 8, 1, shortcut="none") is None
    assert make(8, 16, 2, shortcut="none") is None


# He et al. 2018, ResNet-D: a 2x2 mean before the projection; at the border of an odd map the mean
# of the pixels that are there.
def test_resnet_d_takes_the_mean_of_the_pixels_there_are_on_odd_maps():
    pool = make(1, 2, 2, downsample="avg")[0]
    x = torch.arange(9.0).reshape(1, 1, 3, 3)  # rows 0 1 2 / 3 4 5 / 6 7 8

    # (0 + 1 + 3 + 4) / 4, (2 + 5) / 2, (6 + 7) / 2, 8
    assert pool(x).tolist() == [[[[2.0, 3.5], [6.5, 8.0]]]]


def test_resnet_d_pools_and_the_projection_no_longer_strides():
    pool, conv, bn = make(8, 16, 2, downsample="avg")

    assert isinstance(pool, nn.AvgPool2d)
    assert conv.stride == (1, 1)
    assert conv.weight.shape == (16, 8, 1, 1)
    assert bn.num_features == 16


def test_resnet_d_numbers_its_keys_alike_with_and_without_a_stride():
    bn = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = {"1.weight", *(f"2.{entry}" for entry in bn)}

    assert set(make(8, 16, 1, downsample="avg").state_dict()) == keys
    assert set(make(8, 16, 2, downsample="avg").state_dict()) == keys


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("downsample", ["conv", "avg"])
def test_before_pre_activation_blocks_a_projection_is_the_convolution_alone(downsample, stride):
    shortcut = make(8, 16, stride, preact=True, downsample=downsample)

    assert set(shortcut.state_dict()) == {"conv.weight"}
    assert shortcut.conv.stride == ((stride, stride) if downsample == "conv" else (1, 1))
    assert shortcut(torch.randn(2, 8, 5, 5)).shape == (2, 16, -(-5 // stride), -(-5 // stride))


def test_blurpool_strides_in_the_projections_place():
    blur, conv, _ = make(8, 16, 2, blurpool=True)

    assert isinstance(blur, BlurPool)
    assert (blur.channels, blur.stride) == (8, 2)
    assert conv.stride == (1, 1)
    # Nothing is subsampled at stride 1, so nothing is blurred.
    assert isinstance(make(8, 16, 1, blurpool=True)[0], nn.Conv2d)


def test_blurpool_goes_before_the_zero_padding_of_option_a():
    x = torch.randn(2, 8, 6, 6)

    y = make(8, 16, 2, shortcut="A", blurpool=True)(x)

    assert torch.equal(y[:, :8], BlurPool(8, 2)(x))
    assert torch.equal(y[:, 8:], torch.zeros(2, 8, 3, 3))
    assert isinstance(make(8, 16, 1, shortcut="A", blurpool=True), ZeroPadShortcut)


def test_the_mean_of_resnet_d_is_its_own_low_pass():
    pool = make(8, 16, 2, downsample="avg", blurpool=True)[0]

    assert isinstance(pool, nn.AvgPool2d)


@pytest.mark.parametrize("preact", [False, True])
def test_without_norm_a_projection_has_a_bias_and_nothing_else(preact):
    shortcut = make(8, 16, 2, norm="none", preact=preact)

    assert sorted(tuple(p.shape) for p in shortcut.parameters()) == [(16,), (16, 8, 1, 1)]
    assert not list(shortcut.buffers())
