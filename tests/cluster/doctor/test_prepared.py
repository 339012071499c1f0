"""What a configuration asks of a machine."""

from pathlib import Path

import pytest

from resscale.cluster.doctor.limits import Batches
from resscale.cluster.doctor.placement import Placement
from resscale.cluster.doctor.prepared import Prepared
from resscale.cluster.doctor.rates import Images
from resscale.data.datamodule import ShardDataModule
from resscale.training.classifier import ImageClassifier


@pytest.fixture
def prepared() -> Prepared:
    data = ShardDataModule(
        train="builtin:digits/train",
        global_batch_size=64,
        micro_batch_size=8,
        channels=1,
        image_size=8,
    )
    module = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1)
    return Prepared(module, data, Path("runs"))


def test_batches_are_as_large_as_their_pixels(prepared: Prepared) -> None:
    # 8 images of 8 × 8 pixels, one byte each; 4 are waiting for each worker.
    prepared.data.worker_kind = "processes"
    assert prepared.batches(Placement(2, 4), 3) == Batches(4, 3, 4, 8 * 64, 8)


def test_threads_need_no_shared_memory(prepared: Prepared) -> None:
    prepared.data.worker_kind = "threads"
    assert prepared.batches(Placement(2, 4), 3) == Batches(4, 0, 4, 8 * 64, 8)


def test_a_batch_that_does_not_divide_needs_no_memory(prepared: Prepared) -> None:
    assert prepared.batches(Placement(1, 3), 3) is None


def test_a_checkpoint_holds_weights_and_momentum_and_an_average(prepared: Prepared) -> None:
    weights = sum(p.numel() for p in prepared.module.parameters()) * 4
    plain = prepared.checkpoint_bytes()
    assert 2 * weights < plain < 2 * weights + 2**20 + 10_000  # and the buffers
    averaged = Prepared(prepared.module, prepared.data, Path("runs"), is_averaged=True)
    assert averaged.checkpoint_bytes() - plain > weights


def test_splits_without_shards_are_not_looked_at(prepared: Prepared) -> None:
    assert prepared.splits == ("train",)
    prepared.data.locations["val"] = "builtin:digits/test"
    assert prepared.splits == ("train", "val")


def test_images_are_stored_as_they_were_packed(prepared: Prepared) -> None:
    assert prepared.images() == Images(trained=8, stored=None)


def test_workers_follow_from_the_cpus_unless_they_are_said(prepared: Prepared) -> None:
    assert prepared.num_workers(cpus=8) == 7  # less the rank itself
    assert prepared.num_workers(cpus=0) == 0
    prepared.data.num_workers = 5
    assert prepared.num_workers(cpus=2) == 5
