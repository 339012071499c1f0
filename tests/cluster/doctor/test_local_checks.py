"""All checks of one process, on this machine."""

from pathlib import Path

import pytest

from resscale.cluster.doctor.local_checks import Surroundings, look_around
from resscale.cluster.doctor.placement import Placement
from resscale.cluster.doctor.prepared import Prepared
from resscale.cluster.environment import Launch
from resscale.data.datamodule import ShardDataModule
from resscale.data.progressive import ProgressiveConfig
from resscale.training.classifier import ImageClassifier

BY_HAND = Launch(0, None, None)


def surroundings(folder: Path, **data: object) -> Surroundings:
    given = {"train": "builtin:digits/train", "channels": 1, "image_size": 8, "num_workers": 0}
    module = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1)
    prepared = Prepared(
        module,
        ShardDataModule(**{**given, **data}),  # type: ignore[arg-type]
        folder,
        accelerator="cpu",
        digest="abc123",
    )
    return Surroundings(BY_HAND, 1, "localhost", ["resscale", "doctor"], folder, prepared)


def test_each_check_speaks_on_this_machine(tmp_path: Path) -> None:
    result = look_around(surroundings(tmp_path), lambda name: True)
    names = [finding.name for finding in result.findings]
    assert names == [
        "versions",
        "placement",
        "gpus",
        "cpus",
        "shared_memory",
        "open_files",
        "storage",
        "data",
    ]
    assert result.address is not None
    assert result.placement == Placement(1, 1)
    assert set(result.facts) >= {"versions", "config", "data"}
    assert result.data_is_well


def test_without_a_configuration_the_machine_alone_is_looked_at(tmp_path: Path) -> None:
    bare = Surroundings(BY_HAND, 1, "localhost", ["resscale", "doctor"], tmp_path)
    result = look_around(bare, lambda name: True)
    assert "data" not in [finding.name for finding in result.findings]
    assert not result.data_is_well


@pytest.mark.parametrize("wanted", ["cpus", "storage", "data"])
def test_only_what_is_wanted_is_said(tmp_path: Path, wanted: str) -> None:
    result = look_around(surroundings(tmp_path), lambda name: name == wanted)
    assert [finding.name for finding in result.findings] == [wanted]
    assert result.address is None


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": 1},
        {"progressive": ProgressiveConfig(from_size=1, until_epoch=2, multiple=1)},
    ],
)
def test_images_too_small_for_the_net_are_told_once(tmp_path: Path, options: dict) -> None:
    here = surroundings(tmp_path, **options)
    result = look_around(here, lambda name: name == "data")
    assert [(f.name, f.level) for f in result.findings] == [("data", "fail")]
    assert not result.data_is_well
