import pytest
import torch
from torch import nn

from resscale.models import ResNetOptions
from resscale.models.layers import BlurPool
from resscale.models.stem import (
    make_preact_stem,
    make_stem_conv,
    make_stem_pool,
    stem_channels,
    stem_stride,
)

DEEP = ("deep", "max"), ("deep", "conv")
STEMS = [("imagenet", "max"), ("imagenet", "conv"), ("cifar", "max"), *DEEP]


def shapes(net):
    return {key: tuple(p.shape) for key, p in net.named_parameters()}


@pytest.mark.parametrize("blurpool", [False, True])
@pytest.mark.parametrize(("stem", "pool"), STEMS)
@pytest.mark.parametrize("size", [16, 17])
def test_a_stem_shrinks_as_it_says_and_rounds_up(stem, pool, blurpool, size):
    options = ResNetOptions(stem=stem, stem_pool=pool, blurpool=blurpool)
    x = torch.randn(2, 3, size, size + 2)

    y = make_stem_pool(options, 8)(make_stem_conv(options, 3, 8)(x))

    stride = stem_stride(options)
    assert stride == (1 if stem == "cifar" else 4)
    assert y.shape == (2, 8, -(-size // stride), -(-(size + 2) // stride))
    assert make_preact_stem(options, 3, 8)(x).shape == y.shape


def test_the_imagenet_stem_is_the_7x7_of_table_1():
    conv = make_stem_conv(ResNetOptions(), 3, 64)

    assert (conv.weight.shape, conv.stride, conv.padding) == ((64, 3, 7, 7), (2, 2), (3, 3))
    pool = make_stem_pool(ResNetOptions(), 64)
    assert (pool.kernel_size, pool.stride, pool.padding) == (3, 2, 1)


def test_the_cifar_stem_is_the_3x3_of_section_4_2_without_a_pool():
    options = ResNetOptions(stem="cifar")
    conv = make_stem_conv(options, 3, 16)

    assert (conv.weight.shape, conv.stride) == ((16, 3, 3, 3), (1, 1))
    assert isinstance(make_stem_pool(options, 16), nn.Identity)


# He et al. 2018, section 4.1, ResNet-C: 3x3 of stride 2 with 32 channels, 32, then 64.
@pytest.mark.parametrize(("stem_width", "inner"), [(None, 32), (24, 24)])
def test_a_deep_stem_is_three_3x3_of_which_the_first_strides(stem_width, inner):
    stem = make_stem_conv(ResNetOptions(stem="deep", stem_width=stem_width), 3, 64)

    convs = [m for m in stem if isinstance(m, nn.Conv2d)]
    assert [tuple(c.weight.shape) for c in convs] == [
        (inner, 3, 3, 3), (inner, inner, 3, 3), (64, inner, 3, 3)
    ]  # fmt: skip
    assert [c.stride[0] for c in convs] == [2, 1, 1]
    assert [type(m) for m in stem] == [
        *(nn.Conv2d, nn.BatchNorm2d, nn.ReLU),
        *(nn.Conv2d, nn.BatchNorm2d, nn.ReLU),
        nn.Conv2d,
    ]


def test_a_deep_stem_of_one_channel_has_one_inside():
    stem = make_stem_conv(ResNetOptions(stem="deep"), 3, 1)

    assert stem[0].weight.shape == (1, 3, 3, 3)  # max(1, 1 // 2)


@pytest.mark.parametrize(
    ("options", "channels"),
    [
        ({}, 64),
        ({"stem_width": 16}, 16),
        ({"stem": "cifar", "stem_width": 16}, 16),
        ({"stem": "deep", "stem_width": 16}, 64),  # the inner width, not the last
    ],
)
def test_the_stem_ends_with_its_width_or_the_first_stages(options, channels):
    assert stem_channels(ResNetOptions(**options), 64) == channels


def test_a_convolution_takes_the_max_pools_place_with_norm_and_relu():
    conv, bn, relu = make_stem_pool(ResNetOptions(stem_pool="conv"), 64)

    assert (conv.weight.shape, conv.stride) == ((64, 64, 3, 3), (2, 2))
    assert bn.num_features == 64
    assert isinstance(relu, nn.ReLU)


# Zhang 2019, section 3.3: max at stride 1, then the blur at stride 2; a strided convolution alike.
def test_blurpool_subsamples_in_the_pools_place():
    pool, blur = make_stem_pool(ResNetOptions(blurpool=True), 8)
    assert pool.stride == 1
    assert (blur.channels, blur.stride) == (8, 2)

    conv, blur, _, _ = make_stem_pool(ResNetOptions(blurpool=True, stem_pool="conv"), 8)
    assert conv.stride == (1, 1)
    assert isinstance(blur, BlurPool)


def test_blurpool_leaves_the_stems_own_convolution_alone():
    # Zhang 2019, section 4.1: the first convolution is not blurred, for its cost at full size.
    assert make_stem_conv(ResNetOptions(blurpool=True), 3, 8).stride == (2, 2)


def test_a_pre_activation_stem_ends_without_a_norm():
    assert shapes(make_preact_stem(ResNetOptions(preact=True), 3, 64)) == {
        "conv.weight": (64, 3, 7, 7)
    }


def test_the_keys_of_a_deep_pre_activation_stem_are_timms():
    assert shapes(make_preact_stem(ResNetOptions(preact=True, stem="deep"), 3, 64)) == {
        "conv1.weight": (32, 3, 3, 3),
        "norm1.weight": (32,),
        "norm1.bias": (32,),
        "conv2.weight": (32, 32, 3, 3),
        "norm2.weight": (32,),
        "norm2.bias": (32,),
        "conv3.weight": (64, 32, 3, 3),
    }


@pytest.mark.parametrize(("stem", "pool"), STEMS)
@pytest.mark.parametrize("preact", [False, True])
def test_without_norm_every_convolution_of_the_stem_has_a_bias(stem, pool, preact):
    options = ResNetOptions(stem=stem, stem_pool=pool, norm="none", preact=preact)
    parts = [make_stem_conv(options, 3, 8), make_stem_pool(options, 8)]
    net = make_preact_stem(options, 3, 8) if preact else nn.Sequential(*parts)

    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert all(c.bias is not None for c in convs)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
