from dataclasses import replace

import pytest
import torch
from torch import nn

from resscale.errors import UserInputError
from resscale.models import ResNetOptions, count_macs, create_model, list_models
from resscale.models.variants import _VARIANTS

CIFAR_DEPTHS = (20, 32, 44, 56, 110)
# He et al. 2015, table 1: blocks in conv2_x to conv5_x.
DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}


def build(name, **arguments):
    with torch.device("meta"):
        return create_model(name, **arguments)


def parameters(net):
    return sum(p.numel() for p in net.parameters())


def bn_shapes(prefix, channels):
    entries = ("weight", "bias", "running_mean", "running_var")
    return {f"{prefix}.{e}": (channels,) for e in entries} | {f"{prefix}.num_batches_tracked": ()}


def torchvision_shapes(depths, bottleneck):
    """Every state-dict key and shape that table 1 and torchvision's naming imply."""
    expansion = 4 if bottleneck else 1
    shapes = {"conv1.weight": (64, 3, 7, 7)} | bn_shapes("bn1", 64)
    channels = 64
    for stage, depth in enumerate(depths, start=1):
        width = 64 * 2 ** (stage - 1)
        out = width * expansion
        for index in range(depth):
            at = f"layer{stage}.{index}"
            convs = [(width, channels, 3, 3), (width, width, 3, 3)]
            if bottleneck:
                convs = [(width, channels, 1, 1), (width, width, 3, 3), (out, width, 1, 1)]
            for number, shape in enumerate(convs, start=1):
                shapes[f"{at}.conv{number}.weight"] = shape
                shapes |= bn_shapes(f"{at}.bn{number}", shape[0])
            if channels != out:
                shapes[f"{at}.downsample.0.weight"] = (out, channels, 1, 1)
                shapes |= bn_shapes(f"{at}.downsample.1", out)
            channels = out
    return shapes | {"fc.weight": (1000, channels), "fc.bias": (1000,)}


def cifar_parameters(depth):
    """Section 4.2's net with option A and 10 classes, layer by layer."""
    n = (depth - 2) // 6
    stem = 3 * 16 * 9 + 2 * 16
    first = 2 * n * (16 * 16 * 9 + 2 * 16)
    second = 16 * 32 * 9 + (2 * n - 1) * 32 * 32 * 9 + 2 * n * (2 * 32)
    third = 32 * 64 * 9 + (2 * n - 1) * 64 * 64 * 9 + 2 * n * (2 * 64)
    return stem + first + second + third + 64 * 10 + 10


# The counts that torchvision's model pages print (num_params).
def test_resnet18_has_torchvisions_11689512_parameters():
    assert parameters(build("resnet18")) == 11_689_512


def test_resnet34_has_torchvisions_21797672_parameters():
    assert parameters(build("resnet34")) == 21_797_672


def test_resnet50_has_torchvisions_25557032_parameters():
    assert parameters(build("resnet50")) == 25_557_032


def test_resnet101_has_torchvisions_44549160_parameters():
    assert parameters(build("resnet101")) == 44_549_160


def test_resnet152_has_torchvisions_60192808_parameters():
    assert parameters(build("resnet152")) == 60_192_808


@pytest.mark.parametrize("name", DEPTHS)
def test_torchvisions_state_dict_keys_and_shapes_are_ours(name):
    expected = torchvision_shapes(DEPTHS[name], bottleneck=name not in ("resnet18", "resnet34"))

    shapes = {key: tuple(value.shape) for key, value in build(name).state_dict().items()}

    assert shapes == expected


def test_resnet50_v1_differs_from_resnet50_only_in_the_place_of_the_stride():
    v15, v1 = build("resnet50"), build("resnet50_v1")

    # v1.5: stride on the 3x3 (torchvision); v1: on the 1x1 (the paper's released Caffe nets).
    for stage in ("layer2", "layer3", "layer4"):
        first15, first1 = getattr(v15, stage)[0], getattr(v1, stage)[0]
        assert (first15.conv1.stride, first15.conv2.stride) == ((1, 1), (2, 2))
        assert (first1.conv1.stride, first1.conv2.stride) == ((2, 2), (1, 1))
    strided = [n for n, m in v1.named_modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    assert strided == ["conv1"] + [
        f"layer{i}.0.{conv}" for i in (2, 3, 4) for conv in ("conv1", "downsample.0")
    ]
    shapes15 = {key: value.shape for key, value in v15.state_dict().items()}
    assert {key: value.shape for key, value in v1.state_dict().items()} == shapes15


@pytest.mark.parametrize("depth", CIFAR_DEPTHS)
def test_cifar_nets_have_the_parameters_of_section_4_2(depth):
    for family in ("resnet", "plain"):
        net = build(f"{family}{depth}_cifar", num_classes=10)

        assert parameters(net) == cifar_parameters(depth)


# He et al. 2015, table 6, "# params".
@pytest.mark.parametrize(
    ("depth", "millions", "digits"),
    [(20, 0.27, 2), (32, 0.46, 2), (44, 0.66, 2), (56, 0.85, 2), (110, 1.7, 1)],
)
def test_cifar_parameters_round_to_table_6(depth, millions, digits):
    net = build(f"resnet{depth}_cifar", num_classes=10)

    assert round(parameters(net) / 1e6, digits) == millions


@pytest.mark.parametrize("depth", CIFAR_DEPTHS)
def test_cifar_nets_have_as_many_weighted_layers_as_their_name_says(depth):
    for family in ("resnet", "plain"):
        net = build(f"{family}{depth}_cifar")

        assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules()) == depth
        assert net.conv1.weight.shape == (16, 3, 3, 3)
        assert {key.split(".")[0] for key in net.state_dict()} == {
            "conv1", "bn1", "layer1", "layer2", "layer3", "fc"
        }  # fmt: skip


@pytest.mark.parametrize("depth", [18, 34])
def test_plain_nets_are_the_residual_ones_without_shortcuts(depth):
    plain, residual = build(f"plain{depth}"), build(f"resnet{depth}")

    assert all(m.downsample is None for m in plain.modules() if hasattr(m, "downsample"))
    kept = {key for key in residual.state_dict() if "downsample" not in key}
    assert set(plain.state_dict()) == kept
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in plain.modules()) == depth


# torchvision's published GFLOPS (multiply-adds, v1.5 at 224).
@pytest.mark.parametrize(
    ("name", "gmacs"),
    [
        ("resnet18", 1.81),
        ("resnet34", 3.66),
        ("resnet50", 4.09),
        ("resnet101", 7.80),
        ("resnet152", 11.51),
    ],
)
def test_macs_at_224_are_torchvisions(name, gmacs):
    assert round(count_macs(build(name), 224) / 1e9, 2) == gmacs


def test_resnet50_v1_costs_the_papers_3_8_billion():
    # Table 1 says 3.8e9 for 50 layers; ours counts fc and projections: 3.86.
    assert count_macs(build("resnet50_v1"), 224) / 1e9 == pytest.approx(3.8, abs=0.1)


@pytest.mark.parametrize(("shortcut", "projections"), [("A", 0), ("B", 131_072 * 2)])
def test_resnet20_cifar_costs_about_40_million_macs(shortcut, projections):
    net = build("resnet20_cifar", num_classes=10, shortcut=shortcut)

    stem = 3 * 16 * 9 * 32 * 32
    same = 16 * 16 * 9 * 32 * 32  # any 3x3 within a stage: 4x channels, 1/4 of the pixels
    # 6 + 5 + 5 within stages; the two that halve the map have half the input channels.
    # B adds 16 * 32 * 16 * 16 = 32 * 64 * 8 * 8 = 131,072 per projection: 40.81M, A: 40.55M.
    assert count_macs(net, 32) == stem + 16 * same + 2 * same // 2 + 640 + projections


@pytest.mark.parametrize("name", list_models())
def test_every_name_builds_with_its_own_classes_and_channels(name):
    with torch.device("meta"):
        net = create_model(name, num_classes=7, in_channels=1)
        logits = net(torch.empty(2, 1, 64, 64))

    assert logits.shape == (2, 7)


def test_an_option_replaces_the_names_own_and_leaves_the_others():
    net = build("resnet20_cifar", shortcut="C")

    assert net.options == ResNetOptions(shortcut="C", stem="cifar")
    assert _VARIANTS["resnet20_cifar"].options.shortcut == "A"
    assert build("resnet50", stride_on="1x1").options == replace(
        ResNetOptions(), stride_on="1x1"
    ), "resnet50_v1 by its option"


def test_the_names_are_sorted_and_complete():
    cifar = [f"{family}{d}_cifar" for family in ("plain", "resnet") for d in CIFAR_DEPTHS]
    assert list_models() == sorted([*DEPTHS, "resnet50_v1", "plain18", "plain34", *cifar])


def test_a_pattern_selects_names():
    assert list_models("plain??") == ["plain18", "plain34"]
    assert list_models("resnet50*") == ["resnet50", "resnet50_v1"]
    assert list_models("RESNET*") == []


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(
        UserInputError,
        match=r"Model 'resnet-50' must be one of the \d+ names that resscale\.list_models\(\) "
        r"returns\. Did you mean 'resnet50'\?$",
    ):
        create_model("resnet-50")


def test_an_unknown_option_is_answered_with_the_valid_ones_and_the_nearest():
    with pytest.raises(
        UserInputError,
        match=r"Model option 'shortcuts' must be one of 'shortcut', 'stride_on', 'stem', "
        r"'zero_init_residual'\. Did you mean 'shortcut'\?$",
    ):
        create_model("resnet18", shortcuts="A")


def test_a_bad_option_value_is_refused_by_name():
    with pytest.raises(UserInputError, match=r"stem='cifar10' must be one of .* mean 'cifar'\?$"):
        create_model("resnet18", stem="cifar10")


def test_the_papers_stride_is_refused_for_basic_blocks():
    with pytest.raises(UserInputError, match="stride_on='1x1' needs bottleneck blocks"):
        create_model("resnet18", stride_on="1x1")


def test_zero_init_residual_is_refused_for_plain_nets():
    with pytest.raises(UserInputError, match="needs shortcuts, and shortcut='none' has none"):
        create_model("plain18", zero_init_residual=True)
