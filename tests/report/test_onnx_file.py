"""ONNX files compute what torch computes: onnxruntime against torch, numerically."""

import copy
import functools
import sys
import warnings

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from resscale.data.augment import CenterCrop
from resscale.errors import ResscaleError, UserInputError
from resscale.models import ResNet, create_model
from resscale.report.export_net import Architecture, Preparation
from resscale.report.onnx_file import OnnxFile, _compare, check_packages, encode_onnx

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NETS = {
    "shortcut A, one channel": Architecture("resnet20_cifar", 10, 1, {}, 8),
    "ImageNet stem": Architecture("resnet18", 10, 3, {}, 32),
    "SE": Architecture("resnet8_cifar", 10, 3, {"se": 8}, 8),
    "blur-pool and shortcut A": Architecture("resnet8_cifar", 10, 1, {"blurpool": True}, 16),
    "pre-activation": Architecture("resnetv2_8_cifar", 10, 3, {}, 8),
}


def trained(architecture: Architecture) -> ResNet:
    """A net whose BatchNorm has statistics and gains that are not those of a fresh one."""
    a = architecture
    net = create_model(a.name, a.num_classes, a.in_channels, **a.options).eval()
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
    return net


@functools.cache
def exported(kind: str) -> tuple[ResNet, OnnxFile]:
    """A net and its file; each takes seconds, and several tests look at one."""
    net = trained(NETS[kind])
    return net, encode_onnx(net, NETS[kind], with_preprocessing=False)


def answer(content: bytes, images: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


@pytest.mark.parametrize("kind", NETS)
def test_onnxruntime_gives_torchs_logits_for_any_batch(kind: str) -> None:
    a = NETS[kind]
    net, file = exported(kind)
    for batch in (1, 3):
        images = torch.randn(batch, a.in_channels, a.image_size, a.image_size)
        with torch.no_grad():
            expected = net(images)
        assert float(expected.std()) > 0.05  # a net that answers the same to all would pass
        torch.testing.assert_close(answer(file.content, images), expected, rtol=1e-4, atol=1e-5)
    assert file.comparison is not None
    assert file.comparison.largest_difference < 1e-4
    assert file.comparison.largest_logit > 0.05


def test_pixels_are_normalised_inside_where_that_is_asked_for() -> None:
    preparation = Preparation(CenterCrop(8, 8), MEAN, STD)
    a = Architecture("resnet8_cifar", 10, 3, {}, 8, preparation)
    net = trained(a)
    file = encode_onnx(net, a, with_preprocessing=True)
    pixels = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    # The definition, independent of the classifier's one multiply and one add.
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        expected = net((pixels / 255 - mean) / std)
    torch.testing.assert_close(answer(file.content, pixels), expected, rtol=1e-4, atol=1e-5)
    assert file.takes == "`images` uint8, 0 to 255, (batch, 3, 8, 8)"


def test_the_file_says_its_opset_input_and_output_and_nothing_of_this_machine() -> None:
    file = exported("pre-activation")[1]
    model = onnx.load_from_string(file.content)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    (taken,), (given,) = model.graph.input, model.graph.output
    assert [d.dim_param or d.dim_value for d in taken.type.tensor_type.shape.dim] == [
        "batch", 3, 8, 8
    ]  # fmt: skip
    assert [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim] == ["batch", 10]
    assert (taken.name, given.name) == ("images", "logits")
    assert b"site-packages" not in file.content
    assert b".py" not in file.content
    assert file.takes == "`images` float32, normalised, (batch, 3, 8, 8)"


def test_the_exporters_remarks_do_not_reach_the_user(
    capfd: pytest.CaptureFixture[str],
) -> None:
    a = Architecture("resnet8_cifar", 10, 1, {}, 8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        encode_onnx(trained(a), a, with_preprocessing=False)
    assert [str(warning.message) for warning in caught] == []
    assert capfd.readouterr() == ("", "")


def test_a_file_that_computes_something_else_is_not_handed_out() -> None:
    a = NETS["SE"]
    net, file = exported("SE")
    content, other = file.content, copy.deepcopy(net)
    other.fc.bias.data[3] += 0.25
    with pytest.raises(ResscaleError, match=r"differ by 0\.25 in logits of .* not written\.$"):
        _compare(content, other, a, with_preprocessing=False)
    other.fc.bias.data[3] = float("nan")
    with pytest.raises(ResscaleError, match="differ by nan"):
        _compare(content, other, a, with_preprocessing=False)


def test_preprocessing_without_known_mean_and_std_is_refused() -> None:
    a = Architecture("resnet8_cifar", 10, 1, {}, 8, preparation=None)
    with pytest.raises(UserInputError, match=r"needs the mean and std .* export a checkpoint of"):
        encode_onnx(trained(a), a, with_preprocessing=True)


@pytest.mark.parametrize(
    ("missing", "named"),
    [(["onnx"], "package onnx:"), (["onnx", "onnxscript"], "packages onnx and onnxscript:")],
)
def test_a_missing_package_is_one_sentence_with_the_command(
    monkeypatch: pytest.MonkeyPatch, missing: list[str], named: str
) -> None:
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)  # what an import finds that is not there
    with pytest.raises(UserInputError) as refused:
        check_packages()
    assert str(refused.value) == f'an .onnx file needs the {named} pip install -e ".[onnx]"'


def test_without_onnxruntime_the_file_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    net, file = exported("SE")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert _compare(file.content, net, NETS["SE"], with_preprocessing=False) is None
