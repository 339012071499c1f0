"""Which parameters decay: by the type of their owner, in every net of the family."""

import pytest
from torch import nn

from resscale import create_model, list_models
from resscale.models.meta import create_on_meta
from resscale.training.decay_groups import adapted_groups, parameter_groups

DEEPEST = {"resnet1202_cifar", "resnetv2_1001_bottleneck_cifar"}


class Odd(nn.Module):
    """Names that mislead: a norm called `weighted`, a convolution called `bn`."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.Conv2d(3, 4, 1)  # 12 weights, 4 biases
        self.weighted = nn.BatchNorm2d(4)  # 4 + 4
        self.group = nn.GroupNorm(2, 4)  # 4 + 4
        self.layer = nn.LayerNorm(4)  # 4 + 4
        self.root_mean_square = nn.RMSNorm(4)  # 4
        self.attention = nn.MultiheadAttention(2, 1)  # 3 × 2 × 2 + 2 × 2 weights, 3 × 2 + 2 biases


def sizes(groups: list[dict[str, list[nn.Parameter]]]) -> dict[float, int]:
    """Numbers by weight decay."""
    return {group["weight_decay"]: sum(p.numel() for p in group["params"]) for group in groups}


def test_each_parameter_of_a_network_is_in_exactly_one_group() -> None:
    model = create_model("resnet20_cifar", 10)
    grouped = [p for group in parameter_groups(model, 1e-4, False) for p in group["params"]]
    assert len(grouped) == len(set(map(id, grouped)))
    assert set(map(id, grouped)) == set(map(id, model.parameters()))


def test_norms_and_biases_are_spared_by_type_not_by_name() -> None:
    # Decay: the convolution's 12 weights, attention's 16. Spared: 4 biases, 3 norms of 4 + 4, one
    # of 4, attention's 8 biases.
    assert sizes(parameter_groups(Odd(), 0.5, False)) == {0.5: 12 + 16, 0.0: 4 + 3 * 8 + 4 + 8}


def test_of_a_resnet_only_convolutions_and_the_last_weight_decay() -> None:
    model = create_model("resnet20_cifar", 10)
    decayed = {id(p) for p in parameter_groups(model, 1e-4, False)[0]["params"]}
    expected = {id(m.weight) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert decayed == expected


def test_everything_decays_where_that_is_asked_for() -> None:
    assert sizes(parameter_groups(Odd(), 0.5, True)) == {0.5: 12 + 16 + 4 + 3 * 8 + 4 + 8}


def test_shared_parameters_are_listed_once_and_frozen_ones_not_at_all() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    second.bias.requires_grad_(False)
    groups = parameter_groups(nn.Sequential(first, second), 0.1, False)
    assert sizes(groups) == {0.1: 9, 0.0: 3}  # 3 × 3 weights once, 3 biases of the first


def test_parameters_that_all_decay_keep_the_modules_order() -> None:
    # Checkpoints number the optimizer's state by it.
    model = create_model("resnet20_cifar", 10)
    (group,) = parameter_groups(model, 1e-4, True)
    assert list(map(id, group["params"])) == list(map(id, model.parameters()))


# Those of a thousand layers take seconds, and have the blocks of those of a hundred.
@pytest.mark.parametrize("name", sorted({*list_models()} - DEEPEST))
def test_of_every_net_only_kernels_and_matrices_decay(name: str) -> None:
    module = create_on_meta(name)
    groups = parameter_groups(module, 1e-4, False)
    decayed, spared = groups
    assert {p.dim() for p in decayed["params"]} <= {2, 4}
    assert {p.dim() for p in spared["params"]} == {1}
    assert sum(len(group["params"]) for group in groups) == len(list(module.parameters()))
    assert (decayed["weight_decay"], spared["weight_decay"]) == (1e-4, 0.0)


def test_squeeze_and_excitations_biases_and_weights_are_told_apart() -> None:
    module = create_on_meta("seresnet50")
    excited = [m for name, m in module.named_modules() if ".se." in name and hasattr(m, "bias")]
    decayed, spared = (set(group["params"]) for group in parameter_groups(module, 1e-4, False))
    layers = [m for m in excited if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 2 * 16  # two in each of 3 + 4 + 6 + 3 blocks
    assert all(layer.weight in decayed and layer.bias in spared for layer in layers)


def test_blur_pools_have_no_parameters_to_decay() -> None:
    blurred = create_model("resnet18", blurpool=True)
    plain = create_model("resnet18")
    counts = [
        [len(group["params"]) for group in parameter_groups(module, 1e-4, False)]
        for module in (blurred, plain)
    ]
    assert counts[0] == counts[1]


def test_the_groups_of_lars_and_lamb_spare_the_same() -> None:
    module = create_model("resnet20_cifar", 10)
    plain, adapted = parameter_groups(module, 0.1, False), adapted_groups(module, 0.1, False)
    assert [group["adapt"] for group in adapted] == [True, False]
    for one, other in zip(plain, adapted, strict=True):
        assert list(map(id, one["params"])) == list(map(id, other["params"]))
        assert one["weight_decay"] == other["weight_decay"]
