"""Names and shapes of a file against those of a model, and the remedies that are offered."""

from __future__ import annotations

import pytest
import torch

from resscale.errors import UserInputError
from resscale.models import create_model
from resscale.models.weights_fit import (
    Fit,
    Shapes,
    by_short_name,
    compare,
    explain,
    is_classifier,
    short_name,
)


def shapes(name: str, **arguments: int) -> Shapes:
    with torch.device("meta"):
        state = create_model(name, **arguments).state_dict()
    return {key: tuple(value.shape) for key, value in state.items()}


def message(model: Shapes, file: Shapes, *, strict: bool = True) -> str:
    return explain(compare(model, file), model, file, "F", strict=strict)


@pytest.mark.parametrize(
    ("key", "short"),
    [
        ("fc.weight", "fc.weight"),
        ("module.fc.weight", "fc.weight"),
        ("_forward_module.model._orig_mod.module.fc.weight", "fc.weight"),
        ("layer1._orig_mod.0.conv1.weight", "layer1.0.conv1.weight"),  # a stage was compiled
        ("layer1.module.conv1.weight", "layer1.module.conv1.weight"),  # not leading: a real name
        ("module", "module"),
        ("modules.fc.weight", "modules.fc.weight"),
    ],
)
def test_short_names_are_without_wrappers(key: str, short: str) -> None:
    assert short_name(key) == short


def test_two_keys_of_one_weight_are_refused() -> None:
    with pytest.raises(UserInputError, match=r"F has both 'model\.w' and 'module\.w'.*keep one"):
        by_short_name({"model.w": torch.ones(1), "module.w": torch.ones(1)}, "F")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("fc.weight", True), ("head.fc.bias", True), ("layer1.0.se.fc1.weight", False),
     ("layer1.0.fc.weight", False), ("fc", False)],
)  # fmt: skip
def test_the_classifier_is_the_last_layer_only(name: str, expected: bool) -> None:
    assert is_classifier(name) is expected


def test_comparing_sorts_the_names_and_lets_missing_counters_be() -> None:
    model = {"a": (1,), "b": (2,), "c": (3,), "bn.num_batches_tracked": ()}
    file = {"a": (1,), "b": (3,), "d": (4,)}

    assert compare(model, file) == Fit(
        matched=("a",), missing=("c",), unexpected=("d",), misshapen=("b",)
    )


def test_a_classifier_of_another_size_names_the_option_that_skips_it() -> None:
    text = message(shapes("resnet18", num_classes=10), shapes("resnet18"))

    assert text == (
        "F does not fit the model: 2 keys of another shape (fc.weight: 1000×512, model 10×512; "
        "fc.bias: 1000, model 10). Only the classifier differs: skip_classifier=True loads "
        "everything else and leaves the classifier fresh; or create it with num_classes=1000."
    )


def test_other_input_channels_are_said() -> None:
    text = message(shapes("resnet18", in_channels=1), shapes("resnet18"))

    assert "first convolution conv1.weight takes 3 channels, the model's 1" in text
    assert text.endswith("create the model with in_channels=3.")


def test_channels_and_classifier_are_both_said() -> None:
    text = message(shapes("resnet18", in_channels=1, num_classes=10), shapes("resnet18"))

    assert "in_channels=3" in text
    assert "skip_classifier=True" in text


@pytest.mark.parametrize(
    ("model", "file", "names"),
    [
        ("resnet50", "resnet101", "'resnet101'"),
        ("resnet34", "resnet18", "'resnet18'"),
        ("resnet18", "resnet20_cifar", "'plain20_cifar' or 'resnet20_cifar'"),  # A has no weights
        ("resnet20_cifar", "plain34", "'plain34'"),
        ("resnet18", "seresnet18", "'seresnet18'"),  # gates are no layers of the depth
        ("resnet18", "wrn16_8_cifar", "'wrn16_8_cifar'"),  # 14 layers and 3 projections
    ],
)
def test_the_net_that_a_file_is_of_is_named(model: str, file: str, names: str) -> None:
    # Classes and channels do not hide what net it is.
    text = message(shapes(model), shapes(file, num_classes=7, in_channels=1))

    assert f"The file looks like {names}" in text
    assert "skip_classifier" not in text


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_the_order_of_the_keys_in_a_file_does_not_matter(name: str) -> None:
    file = shapes(name, in_channels=1)

    assert f"looks like '{name}'" in message(shapes("resnet50"), dict(sorted(file.items())))
    assert f"looks like '{name}'" in message(shapes("resnet50"), dict(reversed(file.items())))


def test_looking_for_the_net_takes_no_random_numbers() -> None:
    file = shapes("resnet18")
    before = torch.get_rng_state()

    assert "'resnet18'" in message({"conv1.weight": (1, 1, 1, 1)}, file)

    assert torch.equal(torch.get_rng_state(), before)


def test_an_unknown_net_gets_the_general_remedy() -> None:
    text = message({"a": (1,), "b": (2,)}, {"a": (1,), "x": (2,)})

    assert text == (
        "F does not fit the model: 1 key missing (b), 1 key unexpected (x). Load it into a model "
        "of the kind that it was saved from. strict=False accepts missing and unexpected keys."
    )


@pytest.mark.parametrize(
    ("file", "strict"),
    [({"a": (9,)}, True), ({"x": (2,)}, True), ({"a": (1,), "b": (9,)}, False)],
)
def test_strict_is_not_offered_where_it_would_not_help(file: Shapes, strict: bool) -> None:
    assert "strict=False" not in message({"a": (1,), "b": (2,)}, file, strict=strict)


def test_a_file_of_something_else_has_no_key_in_common() -> None:
    assert message({"a": (1,)}, {"x": ()}).startswith(
        "F does not fit the model: no key in common, 1 key missing (a), 1 key unexpected (x)."
    )


def test_a_classifier_without_a_size_does_not_hinder_the_message() -> None:
    text = message({"a": (1,), "fc.bias": (10,)}, {"a": (1,), "fc.bias": ()})

    assert "(fc.bias: scalar, model 10)" in text
    assert text.endswith("leaves the classifier fresh.")


def test_three_keys_are_shown_without_more() -> None:
    text = message({"a": (1,)}, {"a": (1,), **{f"k{i}": (1,) for i in range(3)}})

    assert "3 keys unexpected (k0, k1, k2)." in text


def test_many_keys_are_counted_and_the_first_are_shown() -> None:
    text = message({"a": (1,)}, {"a": (1,), **{f"k{i}": (1,) for i in range(5)}})

    assert "5 keys unexpected (k0, k1, k2 and 2 more)" in text
