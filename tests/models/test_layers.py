import numpy as np
import pytest
import torch
from torch import nn

from resscale.models.layers import (
    BlurPool,
    DropPath,
    SqueezeExcitation,
    ZeroPadShortcut,
    make_conv,
    make_norm,
    round_half_up,
)


@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("size", [8, 9])
def test_convolutions_round_the_halved_size_up(kernel, size):
    y = make_conv(1, 2, kernel, stride=2)(torch.zeros(1, 1, size, size))

    assert y.shape[2:] == ((size + 1) // 2, (size + 1) // 2)


def test_a_convolution_has_a_bias_only_where_no_bn_follows():
    assert make_conv(4, 8, 3).bias is None
    assert make_conv(4, 8, 3, norm="none").bias.shape == (8,)


def test_groups_divide_the_inputs_of_each_output():
    assert make_conv(8, 8, 3, groups=4).weight.shape == (8, 8 // 4, 3, 3)


def test_no_norm_is_the_identity_and_has_no_state():
    assert isinstance(make_norm(4), nn.BatchNorm2d)
    assert isinstance(make_norm(4, "none"), nn.Identity)
    assert not make_norm(4, "none").state_dict()


def test_option_a_keeps_every_second_pixel_and_appends_zero_channels():
    x = torch.arange(9.0).reshape(1, 1, 3, 3)  # rows 0 1 2 / 3 4 5 / 6 7 8

    y = ZeroPadShortcut(extra_channels=2, stride=2)(x)

    # Rows 0 and 2, columns 0 and 2: the corners.
    assert y.tolist() == [[[[0, 2], [6, 8]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]]]


def test_option_a_keeps_channels_last():
    x = torch.randn(2, 4, 6, 6).to(memory_format=torch.channels_last)

    y = ZeroPadShortcut(extra_channels=4, stride=2)(x)

    assert y.is_contiguous(memory_format=torch.channels_last)


def blur_by_loops(image, stride):
    """The weighted mean of each pixel's 3x3 neighbourhood, borders mirrored without the edge."""
    height, width = image.shape
    weights = (1, 2, 1)

    def mirrored(i, size):
        return abs(i) if i < size else 2 * (size - 1) - i

    rows = []
    for i in range(0, height, stride):
        row = []
        for j in range(0, width, stride):
            total = 0.0
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    pixel = image[mirrored(i + di, height), mirrored(j + dj, width)]
                    total += weights[di + 1] * weights[dj + 1] * pixel
            row.append(total / 16)
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("size", [(2, 2), (4, 6), (5, 7)])
@pytest.mark.parametrize("stride", [1, 2])
def test_blurpool_is_the_binomial_mean_of_each_kept_pixels_neighbourhood(size, stride):
    x = torch.randn(2, 3, *size, dtype=torch.float64)

    y = BlurPool(3, stride)(x)

    expected = [[blur_by_loops(channel.numpy(), stride) for channel in image] for image in x]
    np.testing.assert_allclose(y.numpy(), np.array(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blurpool_leaves_a_constant_exactly_as_it_was_up_to_the_border(dtype):
    # Weights 1, 2, 1 / 2, 4, 2 / 1, 2, 1 over 16 are exact in binary and add up to 1.
    y = BlurPool(2)(torch.full((1, 2, 7, 8), 3.0, dtype=dtype))

    assert y.dtype == dtype
    assert torch.equal(y, torch.full((1, 2, 4, 4), 3.0, dtype=dtype))


def test_blurpool_removes_the_finest_checkerboard_that_plain_subsampling_keeps():
    i, j = torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij")
    x = (1 - 2 * ((i + j) % 2)).float()[None, None]  # 1 and -1 in turn

    # 4 - 4 * 2 + 4 * 1 = 0 of 16; without the blur every second pixel is 1.
    assert BlurPool(1)(x).abs().max() == 0
    assert torch.equal(x[:, :, ::2, ::2], torch.ones(1, 1, 3, 3))


def test_blurpool_has_nothing_in_the_state_dict_and_moves_with_the_net():
    pool = BlurPool(4)

    assert len(pool.state_dict()) == 0
    assert pool.to("meta").kernel.device.type == "meta"
    assert repr(pool) == "BlurPool(channels=4, stride=2)"


# Channels over the reduction, to the nearest multiple of 8, halves up, at least 8 (timm's rule).
@pytest.mark.parametrize(
    ("channels", "reduction", "inner"),
    [
        (64, 16, 8),  # 4 -> at least 8
        (128, 16, 8),  # exactly 8
        (192, 16, 16),  # 12 lies between 8 and 16 -> up
        (176, 16, 8),  # 11 -> 8
        (256, 16, 16),
        (2048, 16, 128),
        (256, 4, 64),  # ResNet-RS
        (8, 100, 8),
    ],
)
def test_se_rounds_its_inner_width(channels, reduction, inner):
    se = SqueezeExcitation(channels, reduction)

    assert se.fc1.weight.shape == (inner, channels, 1, 1)
    assert se.fc2.weight.shape == (channels, inner, 1, 1)
    assert set(se.state_dict()) == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}


@pytest.mark.parametrize(
    ("value", "nearest"), [(0, 0), (3.9, 0), (4, 8), (11.9, 8), (12, 16), (16, 16), (20, 24)]
)
def test_halves_are_rounded_up_unlike_pythons_round(value, nearest):
    assert round_half_up(value, 8) == nearest


def test_se_scales_each_channel_by_a_gate_of_all_means():
    se = SqueezeExcitation(16, 2).double()
    x = torch.randn(3, 16, 5, 4, dtype=torch.float64)
    w1, b1, w2, b2 = (p.detach().numpy() for p in se.parameters())

    means = x.numpy().mean(axis=(2, 3))
    hidden = np.maximum(means @ w1[:, :, 0, 0].T + b1, 0)
    gate = 1 / (1 + np.exp(-(hidden @ w2[:, :, 0, 0].T + b2)))

    expected = x.numpy() * gate[:, :, None, None]
    np.testing.assert_allclose(se(x).detach().numpy(), expected, rtol=1e-12)


def test_drop_path_zeroes_whole_images_and_scales_the_others():
    torch.manual_seed(0)
    x = torch.rand(64, 3, 4, 4) + 1  # nowhere 0

    y = DropPath(0.25)(x)

    kept = y.flatten(1).ne(0).all(1)
    assert torch.equal(y[kept], x[kept] * (1 / 0.75))
    assert torch.equal(y[~kept], torch.zeros_like(x[~kept]))
    assert 0 < int(kept.sum()) < 64


def test_drop_path_drops_its_rate_and_keeps_the_mean():
    torch.manual_seed(0)
    y = DropPath(0.25)(torch.ones(4000, 1, 1, 1))

    # The share kept has a standard error of sqrt(0.25 * 0.75 / 4000) = 0.0068; 4 of them.
    assert (y != 0).double().mean().item() == pytest.approx(0.75, abs=0.028)
    assert y.double().mean().item() == pytest.approx(1, abs=0.028 / 0.75)


def test_drop_path_does_nothing_in_evaluation_or_at_rate_0():
    x = torch.randn(8, 2, 3, 3)
    rng = torch.get_rng_state()

    assert DropPath(0.9).eval()(x) is x
    assert DropPath(0.0)(x) is x
    # No random number is drawn: a net without drop_path repeats older runs.
    assert torch.equal(torch.get_rng_state(), rng)
    assert repr(DropPath(0.1)) == "DropPath(rate=0.1)"


def test_the_gradient_of_a_dropped_image_is_zero_and_of_a_kept_one_scaled():
    torch.manual_seed(0)
    x = torch.ones(32, 1, 1, 1, requires_grad=True)

    y = DropPath(0.5)(x)
    y.sum().backward()

    assert torch.equal(x.grad, y.detach())  # 0, or 1 / 0.5 of ones
    assert set(x.grad.flatten().tolist()) == {0.0, 2.0}


def test_drop_path_keeps_bfloat16():
    assert DropPath(0.5)(torch.ones(4, 1, 1, 1, dtype=torch.bfloat16)).dtype == torch.bfloat16
