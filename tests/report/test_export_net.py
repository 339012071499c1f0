"""The net that weights belong to, and the weights in it: exactly, or not at all."""

from pathlib import Path
from typing import Any

import pytest
import torch

from resscale.errors import UserInputError
from resscale.models import ResNet, create_model
from resscale.report.export_net import architecture_of, build_net
from resscale.report.export_source import Source
from resscale.training.classifier import ImageClassifier

PATH = Path("weights.ckpt")


def source(**config: Any) -> Source:
    return Source(PATH, raw={}, averaged=None, state={}, config=config, run=None)


def tiny(**options: Any) -> ResNet:
    return create_model("resnet8_cifar", 10, 1, **options)


def test_the_configuration_names_the_net() -> None:
    found = architecture_of(
        source(
            model={"model": "resnet18", "num_classes": 7, "model_options": {"se": 16}},
            data={"channels": 1},
        ),
        stated={},
    )
    assert (found.name, found.num_classes, found.in_channels) == ("resnet18", 7, 1)
    assert found.options == {"se": 16}


@pytest.mark.parametrize(
    ("data", "size", "resize"),
    [
        ({}, 224, 256),  # the defaults: ImageNet's
        ({"image_size": 160, "eval_size": 224, "eval_resize": 232}, 224, 232),
        ({"image_size": 112}, 112, 128),  # 112 × 256/224
        ({"image_size": 32, "train_crop": "pad"}, 32, 32),
    ],
)
def test_images_are_prepared_as_evaluation_prepares_them(
    data: dict[str, Any], size: int, resize: int
) -> None:
    found = architecture_of(source(model={"model": "resnet18"}, data=data), stated={})
    assert found.image_size == size
    assert found.preparation is not None
    assert (found.preparation.crop.size, found.preparation.crop.resize) == (size, resize)


def test_the_normalisation_is_the_configurations_or_imagenets() -> None:
    grey = source(model={"model": "resnet18"}, data={"channels": 1})
    default, own = (
        architecture_of(asked, stated={}).preparation
        for asked in (grey, source(model={"model": "resnet18", "mean": [0.5], "std": [0.25]}))
    )
    assert default is not None
    # One channel: (0.485 + 0.456 + 0.406) / 3 and (0.229 + 0.224 + 0.225) / 3.
    assert default.mean == pytest.approx((0.449,))
    assert default.std == pytest.approx((0.226,))
    assert own is not None
    assert (own.mean, own.std) == ((0.5,), (0.25,))


def test_an_image_size_of_the_users_replaces_the_configurations() -> None:
    asked = source(model={"model": "resnet18"}, data={"image_size": 64})
    assert architecture_of(asked, stated={}, image_size=96).image_size == 96


def test_what_a_file_of_weights_alone_holds_is_stated() -> None:
    found = architecture_of(source(), {"model": "resnet20_cifar", "num_classes": 10})
    assert (found.name, found.num_classes, found.in_channels) == ("resnet20_cifar", 10, 3)
    assert (found.image_size, found.preparation) == (32, None)  # a CIFAR net's own size
    assert architecture_of(source(), {"model": "resnet50"}, image_size=64).image_size == 64


def test_a_file_of_weights_alone_without_a_name_is_refused() -> None:
    with pytest.raises(UserInputError, match=r"does not say which net .* give --model NAME"):
        architecture_of(source(), {"num_classes": 10})


def test_options_beside_a_configuration_are_refused() -> None:
    with pytest.raises(UserInputError, match=r"^--num_classes: .* itself .* \(resnet18\)\. Leave"):
        architecture_of(source(model={"model": "resnet18"}), {"num_classes": 10})


def test_a_class_that_a_file_names_is_not_imported() -> None:
    named = {"class_path": "os.system", "init_args": {"command": "true"}}
    with pytest.raises(UserInputError, match=r"a net of the class os\.system, and only the named"):
        architecture_of(source(model={"model": named}), {})


@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet8_cifar", {}), ("resnetv2_8_cifar", {}), ("resnet8_cifar", {"se": 8})],
)
def test_the_weights_of_a_training_checkpoint_are_put_in_bit_by_bit(
    name: str, options: dict[str, Any]
) -> None:
    trained = ImageClassifier(name, 10, 1, model_options=options)
    config = {"model": {"model": name, "num_classes": 10, "model_options": options}}
    architecture = architecture_of(source(**config, data={"channels": 1, "image_size": 8}), {})
    net = build_net(architecture, trained.state_dict(), PATH)
    expected = trained.model.state_dict()
    assert list(net.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in net.state_dict().items())
    assert not net.training


# What torch itself imports for torch.compile calls what torch deprecates.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_the_keys_of_a_compiled_net_lose_its_wrapper() -> None:
    trained = ImageClassifier("resnet8_cifar", 10, 1)
    eager = trained.model.state_dict()
    trained.model = torch.compile(trained.model)
    state = trained.state_dict()
    assert "model._orig_mod.conv1.weight" in state
    architecture = architecture_of(
        source(), {"model": "resnet8_cifar", "num_classes": 10, "in_channels": 1}
    )
    found = build_net(architecture, state, PATH).state_dict()
    assert list(found) == list(eager)
    assert all(torch.equal(found[key], eager[key]) for key in eager)


def test_half_precision_becomes_float32() -> None:
    state = tiny().bfloat16().state_dict()
    stated = {"model": "resnet8_cifar", "num_classes": 10, "in_channels": 1}
    net = build_net(architecture_of(source(), stated), state, PATH)
    assert net.fc.weight.dtype == torch.float32
    assert torch.equal(net.fc.weight, state["fc.weight"].float())


def test_a_missing_counter_of_batch_norm_is_let_be() -> None:
    state = {k: v for k, v in tiny().state_dict().items() if "num_batches" not in k}
    stated = {"model": "resnet8_cifar", "num_classes": 10, "in_channels": 1}
    net = build_net(architecture_of(source(), stated), state, PATH)
    assert int(net.state_dict()["bn1.num_batches_tracked"]) == 0


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"in_channels": 1}, r"Only the classifier differs: give --num_classes 10\.$"),
        ({"num_classes": 10}, r"takes 1 channels, the model's 3: give --in_channels 1\.$"),
        (
            {"model": "resnet14_cifar", "num_classes": 10, "in_channels": 1},
            r"keys missing \(layer1\.1\.conv1\.weight, ",
        ),
        (
            {"num_classes": 10, "in_channels": 1, "model_options": {"se": 8}},
            r"keys missing \(layer1\.0\.se\.fc1\.weight, .* saved from\.$",
        ),
    ],
)
def test_weights_of_another_net_are_refused_with_the_option_that_helps(
    stated: dict[str, Any], message: str
) -> None:
    architecture = architecture_of(source(), {"model": "resnet8_cifar", **stated})
    with pytest.raises(UserInputError, match=message):
        build_net(architecture, tiny().state_dict(), PATH)


def test_a_net_that_the_file_looks_like_is_named_as_the_option() -> None:
    state = create_model("resnet20_cifar", 10).state_dict()
    architecture = architecture_of(source(), {"model": "resnet32_cifar", "num_classes": 10})
    with pytest.raises(
        UserInputError, match=r"looks like .*'resnet20_cifar': give that name as --"
    ):
        build_net(architecture, state, PATH)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    state = tiny().state_dict()
    state["layer2.0.conv1.weight"][3, 1, 0, 0] = value
    stated = {"model": "resnet8_cifar", "num_classes": 10, "in_channels": 1}
    with pytest.raises(UserInputError, match=r"layer2\.0\.conv1\.weight holds values that are not"):
        build_net(architecture_of(source(), stated), state, PATH)


def test_images_too_small_for_the_net_are_refused() -> None:
    architecture = architecture_of(source(model={"model": "resnet18"}), {}, image_size=16)
    with pytest.raises(UserInputError, match="An input of 16x16 pixels is too small"):
        build_net(architecture, create_model("resnet18").state_dict(), PATH)
