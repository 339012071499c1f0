import pytest
import torch

from resscale.errors import UserInputError
from resscale.models import count_macs, create_model
from resscale.models.meta import create_on_meta


@pytest.mark.parametrize("name", ["resnet18", "resnetv2_50", "resnet20_cifar", "seresnet18"])
def test_a_net_on_meta_has_the_shapes_and_cost_of_the_real_one(name):
    real, meta = create_model(name, 7, 1), create_on_meta(name, 7, 1)

    assert all(p.is_meta for p in [*meta.parameters(), *meta.buffers()])
    assert [(k, v.shape) for k, v in meta.state_dict().items()] == [
        (k, v.shape) for k, v in real.state_dict().items()
    ]
    assert count_macs(meta, 64, 1) == count_macs(real, 64, 1)


def test_nets_made_afterwards_have_values_again():
    create_on_meta("resnet8_cifar")

    weight = create_model("resnet8_cifar").conv1.weight
    assert weight.device == torch.device("cpu")
    assert weight.std() > 0


def test_an_unknown_name_is_refused():
    with pytest.raises(UserInputError, match="Did you mean 'resnet50'"):
        create_on_meta("resnet-50")
