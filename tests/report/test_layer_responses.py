"""Layer responses: which layers, whose output, and the arithmetic of their standard deviation."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from resscale.models import create_model
from resscale.report.layer_responses import LayerResponse, layer_responses, write_responses


def test_the_response_of_a_layer_is_the_deviation_of_what_its_bn_gives() -> None:
    torch.manual_seed(0)
    net = create_model("resnet8_cifar", num_classes=10).eval()
    images = torch.randn(6, 3, 16, 16)
    found = {response.name: response.std for response in layer_responses(net, [images])}
    stem = net.bn1(net.conv1(images))
    assert found["conv1"] == pytest.approx(stem.std(unbiased=False).item(), rel=1e-5)
    block = net.layer1[0]
    first = block.bn1(block.conv1(torch.relu(stem)))
    # Before the ReLU, which would halve it, and before the shortcut is added.
    expected = block.bn2(block.conv2(torch.relu(first)))
    assert found["layer1.0.conv2"] == pytest.approx(expected.std(unbiased=False).item(), rel=1e-5)


def test_a_shift_of_the_responses_changes_nothing() -> None:
    net = create_model("resnet8_cifar", num_classes=10)
    images = torch.randn(4, 3, 16, 16)
    before = layer_responses(net, [images])[-1]
    nn.init.constant_(net.layer3[0].bn2.bias, 1000.0)
    after = layer_responses(net, [images])[-1]
    assert before.name == "layer3.0.conv2"
    assert after.std == pytest.approx(before.std, rel=1e-3)


def test_several_batches_count_as_one() -> None:
    net = create_model("resnet8_cifar", num_classes=10)
    images = torch.randn(6, 3, 16, 16)
    whole = layer_responses(net, [images])
    parts = layer_responses(net, [images[:1], images[1:]])
    assert [r.name for r in parts] == [r.name for r in whole]
    assert [r.std for r in parts] == pytest.approx([r.std for r in whole], rel=1e-5)


# 6n + 2 layers: the stem and 6n in blocks; fc is no convolution, projections are beside the path.
@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("plain20_cifar", 19),
        ("resnet20_cifar", 19),
        ("resnet29_bottleneck_cifar", 28),
        ("resnetv2_110_cifar", 109),
        ("resnet50d", 51),  # three of the deep stem, 48 in blocks
        ("seresnet18", 17),
    ],
)
def test_every_layer_of_the_main_path_is_there_once(name: str, layers: int) -> None:
    net = create_model(name, num_classes=10)
    found = [response.name for response in layer_responses(net, [torch.randn(1, 3, 33, 33)])]
    assert len(found) == len(set(found)) == layers


def test_the_net_is_left_as_it_was() -> None:
    net = create_model("resnet8_cifar", num_classes=10).train()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    layer_responses(net, [torch.randn(4, 3, 16, 16)])
    assert net.training
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


def test_no_images_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        layer_responses(create_model("resnet8_cifar"), [])


def test_responses_are_written_where_the_report_finds_them(tmp_path: Path) -> None:
    path = write_responses([LayerResponse("conv1", 0.5)], tmp_path, num_images=7, global_step=9)
    assert path == tmp_path / "layer_responses.json"
    written = json.loads(path.read_text())
    assert written == {"num_images": 7, "global_step": 9, "layers": [{"name": "conv1", "std": 0.5}]}
