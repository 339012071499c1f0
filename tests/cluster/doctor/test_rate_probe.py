"""The real loader and the real step, for a moment; how fast they are is not judged here."""

import threading

import pytest
import torch

from resscale.cluster.doctor.rate_probe import (
    Share,
    build_probe_loader,
    measure_loader,
    measure_step,
    rate_of,
)
from resscale.data.datamodule import ShardDataModule
from resscale.errors import DataFormatError, ResscaleError
from resscale.training.classifier import ImageClassifier


@pytest.fixture
def data() -> ShardDataModule:
    return ShardDataModule(
        train="builtin:digits/train",
        global_batch_size=64,
        micro_batch_size=16,
        channels=1,
        image_size=8,
        train_crop="pad",
    )


@pytest.fixture
def module() -> ImageClassifier:
    return ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1, global_batch_size=64)


def test_the_clock_starts_when_every_worker_has_brought_a_batch() -> None:
    # Two workers: the third and the fourth batch, 64 images, came in 4 s after the second.
    arrivals = [(10.0, 32), (11.0, 32), (13.0, 32), (15.0, 32)]
    assert rate_of(arrivals, unready=2) == 64 / 4
    assert rate_of(arrivals[:2], unready=2) is None
    assert rate_of(arrivals, unready=1) == 96 / 5


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_loader_of_a_rank_is_measured(data: ShardDataModule, num_workers: int) -> None:
    share = Share(1, 2, num_workers)
    loader = build_probe_loader(data, share, on_gpu=False)
    # 64 / 2 ranks in micro-batches of 16: 2 of them in each of 22 steps.
    assert len(loader) == 44
    rate, batch = measure_loader(loader, num_workers, seconds=0.2)
    assert rate > 0
    assert batch["image"].shape == (16, 1, 8, 8)


def test_a_loader_with_fewer_batches_than_time_begins_anew(data: ShardDataModule) -> None:
    data.global_batch_size = data.micro_batch_size = 1024  # one batch an epoch
    loader = build_probe_loader(data, Share(0, 1, 0), on_gpu=False)
    assert measure_loader(loader, 0, seconds=0.1)[0] > 0


def test_what_the_loader_raises_is_raised(data: ShardDataModule) -> None:
    loader = build_probe_loader(data, Share(0, 1, 0), on_gpu=False)

    def refuse() -> None:
        raise DataFormatError("a.tar is damaged")

    loader.before_wait = refuse
    with pytest.raises(DataFormatError, match="damaged"):
        measure_loader(loader, 0, seconds=1)


def test_a_loader_that_gives_nothing_is_not_waited_for_for_ever(data: ShardDataModule) -> None:
    loader = build_probe_loader(data, Share(0, 1, 0), on_gpu=False)
    released = threading.Event()
    loader.before_wait = lambda: (released.wait(), None)[1]
    threading.Timer(1, released.set).start()
    with pytest.raises(ResscaleError, match=r"^0 batches have come in 0\.3 s"):
        measure_loader(loader, 0, seconds=0.1, patience_s=0.2)


def test_a_step_is_measured_on_the_rank_s_own_micro_batch(
    data: ShardDataModule, module: ImageClassifier
) -> None:
    batch = next(iter(build_probe_loader(data, Share(1, 2, 0), on_gpu=False)))
    assert batch["id"].tolist() == data.order().rank_batch(0, 1, 2)[:16].tolist()
    before = [parameter.detach().clone() for parameter in module.model.parameters()]
    found = measure_step(module, batch, torch.device("cpu"), torch.bfloat16, seconds=0.1)
    assert (found.rows, found.peak_bytes) == (16, 0)
    assert found.images_per_s > 0
    # The optimizer is part of it.
    after = list(module.model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_batch_that_would_take_too_long_on_a_cpu_is_cut(
    data: ShardDataModule, module: ImageClassifier
) -> None:
    data.global_batch_size = data.micro_batch_size = 1024
    batch = next(iter(build_probe_loader(data, Share(0, 1, 0), on_gpu=False)))
    found = measure_step(module, batch, torch.device("cpu"), None, seconds=1e-6)
    assert found.rows == 8  # the fewest
