"""A checkpoint of another network is refused before anything of it is used."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch

from resscale import ImageClassifier
from resscale.cli_weights import check_network, load_first_weights
from resscale.errors import UserInputError


def classifier(name: str = "resnet20_cifar", num_classes: int = 10) -> ImageClassifier:
    return ImageClassifier(name, num_classes=num_classes, in_channels=1)


def test_a_checkpoint_of_the_same_network_is_taken() -> None:
    check_network({"state_dict": classifier().state_dict()}, classifier(), "last.ckpt")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (("resnet32_cifar", 10), r"last.ckpt does not fit the model: .*unexpected"),
        (("resnet20_cifar", 7), r"of another shape .*--model.num_classes 7"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused(other: tuple[str, int], words: str) -> None:
    with pytest.raises(UserInputError, match=words):
        check_network({"state_dict": classifier(*other).state_dict()}, classifier(), "last.ckpt")


def test_a_checkpoint_comes_before_weights() -> None:
    config = Namespace(weights="no-such-file.pth", skip_classifier=False)
    assert load_first_weights("fit", config, classifier(), Path("last.ckpt")) is None


def test_weights_are_loaded_into_the_network(tmp_path: Path) -> None:
    source, target = classifier(), classifier()
    torch.save(source.model.state_dict(), tmp_path / "weights.pth")
    config = Namespace(weights=str(tmp_path / "weights.pth"), skip_classifier=False)
    loaded = load_first_weights("fit", config, target, None)
    assert loaded is not None
    assert loaded.num_tensors == len(source.model.state_dict())
    assert torch.equal(target.model.conv1.weight, source.model.conv1.weight)


@pytest.mark.parametrize(
    ("stage", "weights", "words"),
    [
        ("fit", None, "says how to read --weights"),
        ("validate", "weights.pth", "leaves the last layer untrained"),
    ],
)
def test_skip_classifier_without_a_use_is_refused(
    stage: str, weights: str | None, words: str
) -> None:
    config = Namespace(weights=weights, skip_classifier=True)
    with pytest.raises(UserInputError, match=words):
        load_first_weights(stage, config, classifier(), None)
