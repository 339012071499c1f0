import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from resscale.errors import UserInputError
from resscale.models import ResNetOptions, count_macs, create_model, list_models
from resscale.models.variants import _VARIANTS, find_variant

CIFAR_DEPTHS = (20, 32, 44, 56, 110)
# Above this many blocks a forward on shapes alone takes seconds, and adds nothing to the others.
MANY_BLOCKS = 20


@cache
def build(name, num_classes=1000, **options):
    """A net without memory for its weights; tests only look at it."""
    with torch.device("meta"):
        return create_model(name, num_classes, **options)


def parameters(net):
    return sum(p.numel() for p in net.parameters())


def bn_parameters(net):
    bns = (m for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    return sum(p.numel() for bn in bns for p in bn.parameters())


def convolutions(net, projections):
    """Convolutions but for a 1x1 classifier, with or without those of shortcuts."""
    return [
        m
        for name, m in net.named_modules()
        if isinstance(m, nn.Conv2d)
        and name != "head.fc"
        and (projections or ".downsample." not in name)
    ]


def cifar_parameters(depth):
    """Section 4.2's net with option A and 10 classes, layer by layer."""
    n = (depth - 2) // 6
    stem = 3 * 16 * 9 + 2 * 16
    first = 2 * n * (16 * 16 * 9 + 2 * 16)
    second = 16 * 32 * 9 + (2 * n - 1) * 32 * 32 * 9 + 2 * n * (2 * 32)
    third = 32 * 64 * 9 + (2 * n - 1) * 64 * 64 * 9 + 2 * n * (2 * 64)
    return stem + first + second + third + 64 * 10 + 10


# He et al. 2015, table 1, "FLOPs" in billions of multiply-adds. The paper's nets of 50 and more
# layers stride on the 1x1. 34 layers: 3.6 is the plain net (section 3.3) and option A; projections
# make it 3.66.
@pytest.mark.parametrize(
    ("name", "shortcut", "gmacs"),
    [
        ("plain18", "none", 1.8),
        ("plain34", "none", 3.6),
        ("resnet18", "B", 1.8),
        ("resnet34", "A", 3.6),
        ("resnet101_v1", "B", 7.6),
        ("resnet152_v1", "B", 11.3),
    ],
)
def test_macs_at_224_round_to_table_1(name, shortcut, gmacs):
    assert round(count_macs(build(name, shortcut=shortcut), 224) / 1e9, 1) == gmacs


def test_table_1_cuts_off_the_3_86_billion_of_50_layers():
    counted = count_macs(build("resnet50_v1"), 224) / 1e9

    # Rounded this is 3.9, and the paper says 3.8. Leaving out the classifier (0.002), the stem
    # (0.118) or the projections (0.360) does not give 3.8, 7.6 and 11.3 together: those need
    # between 0.008 and 0.020 less. So the paper has counted all of it, and cut the digit off.
    assert round(counted, 2) == 3.86
    assert math.floor(counted * 10) / 10 == 3.8
    assert round(count_macs(build("resnet50_v1", shortcut="A"), 224) / 1e9, 2) == 3.50


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


# torchvision's published parameters, in millions; tests/models/peer_facts.json has every digit.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("resnet18", 11.69),
        ("resnet34", 21.80),
        ("resnet50_v1", 25.56),
        ("resnet101_v1", 44.55),
        ("resnet152_v1", 60.19),
    ],
)
def test_parameters_are_torchvisions_wherever_the_stride_is(name, millions):
    assert round(parameters(build(name)) / 1e6, 2) == millions


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_a_v1_differs_from_its_v15_only_in_the_place_of_the_stride(depth):
    v15, v1 = build(f"resnet{depth}"), build(f"resnet{depth}_v1")

    assert replace(v15.options, stride_on="1x1") == v1.options
    strided = [n for n, m in v1.named_modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    assert strided == ["conv1"] + [
        f"layer{i}.0.{conv}" for i in (2, 3, 4) for conv in ("conv1", "downsample.0")
    ]
    shapes15 = {key: value.shape for key, value in v15.state_dict().items()}
    assert {key: value.shape for key, value in v1.state_dict().items()} == shapes15


@pytest.mark.parametrize("depth", CIFAR_DEPTHS)
def test_cifar_nets_have_the_parameters_of_section_4_2(depth):
    for family in ("resnet", "plain"):
        assert parameters(build(f"{family}{depth}_cifar", 10)) == cifar_parameters(depth)


# He et al. 2015, table 6, "# params".
@pytest.mark.parametrize(
    ("depth", "millions", "digits"),
    [(20, 0.27, 2), (32, 0.46, 2), (44, 0.66, 2), (56, 0.85, 2), (110, 1.7, 1), (1202, 19.4, 1)],
)
def test_cifar_parameters_round_to_table_6(depth, millions, digits):
    assert round(parameters(build(f"resnet{depth}_cifar", 10)) / 1e6, digits) == millions


# He et al. 2016, table 4. It gives ResNet-1001 10.2 million: 10.33 with the 149,216 gammas and
# betas, 10.18 without. Table 6 of 2015 counts them: 1202 layers have 19.42, without them 19.33.
def test_the_v2_nets_have_the_parameters_of_the_paper_which_leaves_bn_out():
    deep, less_deep = (build(f"resnetv2_{d}_bottleneck_cifar", 10) for d in (1001, 164))

    assert (parameters(deep), bn_parameters(deep)) == (10_327_706, 149_216)
    assert round((parameters(deep) - bn_parameters(deep)) / 1e6, 1) == 10.2
    assert round((parameters(less_deep) - bn_parameters(less_deep)) / 1e6, 1) == 1.7
    assert round(parameters(less_deep) / 1e6, 1) == 1.7


def test_cifar_bottlenecks_stride_on_the_1x1_as_their_authors_do():
    # github.com/KaimingHe/resnet-1k-layers, resnet-pre-act.lua
    net = build("resnetv2_164_bottleneck_cifar", 10)

    first = net.stages[1].blocks[0]

    assert [conv.stride[0] for conv in (first.conv1, first.conv2, first.conv3)] == [2, 1, 1]


# Zagoruyko and Komodakis 2016, table 5, "# params".
@pytest.mark.parametrize(
    ("name", "millions"), [("wrn28_10", 36.5), ("wrn16_8", 11.0), ("wrn40_4", 8.9)]
)
def test_wide_cifar_nets_have_the_parameters_of_the_paper(name, millions):
    assert round(parameters(build(f"{name}_cifar", 10)) / 1e6, 1) == millions


# Bello et al. 2021, appendix: parameters in millions, and FLOPs in billions at the net's own
# resolution, where a multiply-add counts as 2.
@pytest.mark.parametrize(
    ("name", "millions", "gflops"),
    [("resnetrs50", 36, 4.6), ("resnetrs101", 64, 12), ("resnetrs152", 87, 31)],
)
def test_resnet_rs_costs_what_the_paper_says(name, millions, gflops):
    macs = count_macs(build(name), find_variant(name).image_size)

    assert round(parameters(build(name)) / 1e6) == millions
    assert round(2 * macs / 1e9, 1 if gflops < 10 else 0) == gflops


# Section 4.1 and figure 5: two 3x3 of 64 channels against 1x1, 3x3, 1x1 of 256, 64, 64, 256.
def test_a_bottleneck_costs_about_what_two_3x3_of_a_quarter_of_the_channels_cost():
    basic = build("resnet18").layer1[1]
    bottleneck = build("resnet50").layer1[1]

    def weights(block):
        return sum(m.weight.numel() for m in block.modules() if isinstance(m, nn.Conv2d))

    assert weights(basic) == 2 * 64 * 64 * 9 == 73_728
    assert weights(bottleneck) == 2 * 256 * 64 + 64 * 64 * 9 == 69_632  # 5.6% less
    # All at 56 x 56 pixels, so multiply-adds stand in the same ratio.


@pytest.mark.parametrize(
    ("basic", "bottleneck", "params", "macs"), [(110, 164, 0.02, 0.04), (20, 29, 0.17, 0.09)]
)
def test_cifar_nets_of_as_many_blocks_cost_about_the_same(basic, bottleneck, params, macs):
    one = build(f"resnet{basic}_cifar", 10)
    other = build(f"resnet{bottleneck}_bottleneck_cifar", 10)

    # n = 18: 1.728 and 1.704 million, 252.9 and 244.5 million multiply-adds. n = 3: 0.270 and
    # 0.313, 40.6 and 44.0, because three projections weigh more where blocks are few.
    assert parameters(other) == pytest.approx(parameters(one), rel=params)
    assert count_macs(other, 32) == pytest.approx(count_macs(one, 32), rel=macs)


@pytest.mark.parametrize(("shortcut", "projections"), [("A", 0), ("B", 131_072 * 2)])
def test_resnet20_cifar_costs_about_40_million_macs(shortcut, projections):
    net = build("resnet20_cifar", 10, shortcut=shortcut)

    stem = 3 * 16 * 9 * 32 * 32
    same = 16 * 16 * 9 * 32 * 32  # any 3x3 within a stage: 4x channels, 1/4 of the pixels
    # 6 + 5 + 5 within stages; the two that halve the map have half the input channels.
    # B adds 16 * 32 * 16 * 16 = 32 * 64 * 8 * 8 = 131,072 per projection: 40.81M, A: 40.55M.
    assert count_macs(net, 32) == stem + 16 * same + 2 * same // 2 + 640 + projections


# Convolutions and the classifier, as the papers count layers; projections are not counted.
@pytest.mark.parametrize(
    "name",
    [
        *(f"{family}{d}_cifar" for family in ("plain", "resnet") for d in CIFAR_DEPTHS),
        *("resnetv2_110_cifar", "resnet164_bottleneck_cifar", "resnetv2_164_bottleneck_cifar"),
        *("resnet1202_cifar", "plain18", "plain34"),
        *(f"resnet{d}" for d in (18, 26, 34, 50, 101, 152, 200)),
        *(f"resnetv2_{d}" for d in (18, 34, 50, 101, 152)),
        *("wide_resnet50_2", "resnext101_64x4d"),
    ],
)
def test_a_net_has_as_many_layers_as_its_name_says(name):
    depth = int("".join(c if c.isdigit() else " " for c in name.replace("v2", "")).split()[0])
    net = build(name, 10) if name.endswith("_cifar") else build(name)

    assert len(convolutions(net, projections=False)) + 1 == depth


def test_a_wide_net_counts_its_projections_and_not_its_classifier():
    # Zagoruyko and Komodakis 2016, table 1: 6n + 4 is 3 * 2n, the stem and three projections.
    for depth, k in ((16, 8), (28, 10), (40, 4)):
        net = build(f"wrn{depth}_{k}_cifar", 10)
        assert len(convolutions(net, projections=True)) == depth
        assert net.num_features == 64 * k


@pytest.mark.parametrize("depth", [18, 34])
def test_plain_nets_are_the_residual_ones_without_shortcuts(depth):
    plain, residual = build(f"plain{depth}"), build(f"resnet{depth}")

    assert all(m.downsample is None for m in plain.modules() if hasattr(m, "downsample"))
    kept = {key for key in residual.state_dict() if "downsample" not in key}
    assert set(plain.state_dict()) == kept


@pytest.mark.parametrize("name", list_models())
def test_every_name_builds_with_its_own_classes_and_channels(name):
    variant = find_variant(name)
    assert variant.source

    with torch.device("meta"):
        net = create_model(name, num_classes=7, in_channels=1)
        if sum(variant.depths) <= MANY_BLOCKS:
            assert net(torch.empty(2, 1, 64, 64)).shape == (2, 7)

    assert net.options == variant.options
    assert net.total_stride // 2 + 1 <= variant.image_size


def test_an_option_replaces_the_names_own_and_leaves_the_others():
    net = build("resnet20_cifar", shortcut="C")

    assert net.options == ResNetOptions(shortcut="C", stem="cifar")
    assert _VARIANTS["resnet20_cifar"].options.shortcut == "A"


def test_the_names_of_the_papers_are_there():
    names = list_models()

    assert names == sorted(set(names))
    assert {
        *(f"{family}{d}_cifar" for family in ("plain", "resnet") for d in CIFAR_DEPTHS),
        *("resnet1202_cifar", "plain18", "plain34", "wrn28_10_cifar", "wrn16_8_cifar"),
        *(f"resnet{d}" for d in (18, 34, 50, 101, 152)),
        *("resnet50_v1", "resnet101_v1", "resnet152_v1"),
        *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
        *("wide_resnet50_2", "wide_resnet101_2"),
        *("resnetv2_50", "resnet50d", "seresnet50", "resnetrs50"),
    } <= set(names)


def test_a_pattern_selects_names():
    assert list_models("plain??") == ["plain18", "plain34"]
    assert list_models("resnet50_*") == ["resnet50_v1"]
    assert list_models("RESNET*") == []


@pytest.mark.parametrize(
    ("name", "depths", "options"),
    [
        ("resnet14_cifar", (2, 2, 2), {"shortcut": "A"}),
        ("plain1202_cifar", (200, 200, 200), {"shortcut": "none"}),
        ("resnetv2_8_cifar", (1, 1, 1), {"shortcut": "A", "preact": True}),
        ("resnet11_bottleneck_cifar", (1, 1, 1), {"stride_on": "1x1"}),
        ("plain29_bottleneck_cifar", (3, 3, 3), {"shortcut": "none", "stride_on": "1x1"}),
        ("resnetv2_29_bottleneck_cifar", (3, 3, 3), {"preact": True, "stride_on": "1x1"}),
    ],
)
def test_cifar_nets_of_any_depth_follow_from_their_rule(name, depths, options):
    variant = find_variant(name)

    assert name not in list_models()
    assert (variant.depths, variant.widths) == (depths, (16, 32, 64))
    assert variant.options == ResNetOptions(stem="cifar", **options)


@pytest.mark.parametrize(
    ("before", "depth", "after", "rule", "valid"),
    [
        ("resnet", 21, "_cifar", "basic blocks have 6n + 2", 20),
        ("plain", 100, "_cifar", "basic blocks have 6n + 2", 98),
        ("resnetv2_", 109, "_cifar", "basic blocks have 6n + 2", 110),
        ("resnet", 2, "_cifar", "basic blocks have 6n + 2", 8),  # n is at least 1
        ("resnet", 0, "_cifar", "basic blocks have 6n + 2", 8),
        ("resnet", 100, "_bottleneck_cifar", "bottleneck blocks have 9n + 2", 101),
        ("resnetv2_", 1000, "_bottleneck_cifar", "bottleneck blocks have 9n + 2", 1001),
        ("plain", 3, "_bottleneck_cifar", "bottleneck blocks have 9n + 2", 11),
    ],
)
def test_a_depth_against_the_rule_is_answered_with_the_nearest(before, depth, after, rule, valid):
    with pytest.raises(UserInputError) as refused:
        create_model(f"{before}{depth}{after}")

    assert str(refused.value) == (
        f"Model '{before}{depth}{after}' has {depth} layers, and CIFAR nets of {rule}: use "
        f"'{before}{valid}{after}'."
    )
    assert find_variant(f"{before}{valid}{after}")


@pytest.mark.parametrize("name", ["resnet-50", "resnet020_cifar", None, 50])
def test_an_unknown_name_is_answered_with_the_nearest(name):
    near = {"resnet-50": "resnet50", "resnet020_cifar": "resnet20_cifar"}.get(name)
    hint = rf" Did you mean '{near}'\?" if near else ""
    with pytest.raises(
        UserInputError,
        match=rf"^Model {name!r} must be one of the \d+ names that resscale\.list_models\(\) "
        rf"returns\.{hint}$",
    ):
        create_model(name)


def test_an_unknown_option_is_answered_with_the_valid_ones_and_the_nearest():
    with pytest.raises(
        UserInputError,
        match=r"^Model option 'shortcuts' must be one of 'shortcut', 'stride_on', .*, "
        r"'block_dropout'\. Did you mean 'shortcut'\?$",
    ):
        create_model("resnet18", shortcuts="A")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {"stem": "cifar10"}, r"stem='cifar10' must be one of .* mean 'cifar'\?$"),
        ("resnet18", {"stride_on": "1x1"}, "stride_on='1x1' needs bottleneck blocks"),
        ("wrn28_10_cifar", {"groups": 2}, "groups=2 needs bottleneck blocks"),
        ("plain18", {"zero_init_residual": True}, "needs shortcuts, and shortcut='none' has none"),
        ("resnet50d", {"shortcut": "A"}, "downsample='avg' pools before a projection"),
        ("resnet50", {"groups": 5}, "does not divide the 64 channels of a stage: use groups=4"),
        ("resnet50", {"block_dropout": 0.3}, "block_dropout=0.3 needs basic blocks"),
    ],
)
def test_an_option_that_does_not_fit_the_name_is_refused(name, options, message):
    with pytest.raises(UserInputError, match=message):
        create_model(name, **options)
