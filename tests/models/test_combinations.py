"""Options together: one net of each kind in full, then every combination for one step."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from resscale.errors import UserInputError
from resscale.models import ResNet, ResNetOptions

# One net of each kind: every block, norm and stem, and what changes the course of the data.
KINDS = {
    "basic": ("basic", {}),
    "bottleneck": ("bottleneck", {}),
    "plain": ("basic", {"shortcut": "none"}),
    "padded": ("basic", {"shortcut": "A"}),
    "preact": ("basic", {"preact": True}),
    "preact bottleneck": ("bottleneck", {"preact": True, "stem": "deep"}),
    "resnext": ("bottleneck", {"groups": 4, "width_per_group": 32}),
    "se": ("bottleneck", {"se": 4, "drop_path": 0.2, "dropout": 0.2}),
    "resnet-d": ("bottleneck", {"stem": "deep", "downsample": "avg"}),
    "resnet-rs": (
        "bottleneck", {"stem": "deep", "downsample": "avg", "stem_pool": "conv", "se": 4}
    ),
    "blurpool": ("basic", {"stem": "imagenet", "blurpool": True}),
    "no norm": ("bottleneck", {"norm": "none"}),
    "preact no norm": ("basic", {"preact": True, "norm": "none", "block_dropout": 0.2}),
}  # fmt: skip


def small(block, depths=(2, 1), **options):
    options.setdefault("stem", "cifar")
    return ResNet(block, depths, (8, 16), num_classes=5, options=ResNetOptions(**options))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter(kind):
    torch.manual_seed(0)
    block, options = KINDS[kind]
    net = small(block, **options)

    F.cross_entropy(net(torch.randn(8, 3, 16, 16)), torch.arange(8) % 5).backward()

    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_gives_the_same_logits_in_channels_last(kind):
    torch.manual_seed(0)
    block, options = KINDS[kind]
    net = small(block, **options).double().eval()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    expected = net(x)

    net = net.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)

    assert net.forward_features(x).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_compiles_to_one_graph(kind):
    block, options = KINDS[kind]
    net = small(block, depths=(1, 1), **options).eval()
    x = torch.randn(2, 3, 16, 16)
    torch.compiler.reset()

    compiled = torch.compile(net, backend="eager", fullgraph=True)

    torch.testing.assert_close(compiled(x), net(x))


# What the options cannot say by themselves: basic blocks have no groups, projections no option A.
CHOICES = {
    "block": ("basic", "bottleneck"),
    "preact": (False, True),
    "shortcut": ("A", "B", "C", "none"),
    "stem": ("imagenet", "cifar", "deep"),
    "stem_pool": ("max", "conv"),
    "downsample": ("conv", "avg"),
    "blurpool": (False, True),
    "se": (0, 4),
}


def test_every_combination_trains_a_step_or_is_refused():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, 10)
    built, refused = 0, 0
    for values in itertools.product(*CHOICES.values()):
        options = dict(zip(CHOICES, values, strict=True))
        block = options.pop("block")
        try:
            net = ResNet(block, (1, 1), (4, 8), num_classes=3, options=ResNetOptions(**options))
        except UserInputError:
            refused += 1
            continue
        built += 1
        net(x).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    # Of 2 * 2 * (4 * 2) * (3 * 2) * 2 * 2 = 768 nets, avg is refused with A and none: of the 8
    # pairs (shortcut, downsample) 6 are left; and conv with cifar: of the 6 pairs of stems 5.
    assert built == 2 * 2 * 6 * 5 * 2 * 2 == 480
    assert refused == 768 - 480
