"""A rank's loaders: images that grow and samples that are repeated, alike however they are read."""

import gc
import hashlib
import multiprocessing
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from resscale.data import ShardDataModule
from resscale.data.caching import RankPlace
from resscale.data.dataset import Batch
from resscale.data.index_shards import expand_shards, index_shards
from resscale.data.loaders import place_of
from resscale.data.progressive import ProgressiveConfig

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)
GLOBAL, REPEATS, STEPS = 6, 3, 2  # 12 samples: 2 steps of 2 different samples, in 3 epochs all
SIZES = (8, 12, 16, 16)  # by epoch


class Seen(NamedTuple):
    """What a micro-batch was."""

    epoch: int
    step: int
    ids: tuple[int, ...]
    copies: tuple[int, ...]
    side: int
    digest: str


@pytest.fixture
def shards(foreign_shards: Path) -> str:
    """Twelve photographs of three classes in three shards, indexed."""
    index_shards(expand_shards([str(foreign_shards)]), classes=("cat", "dog", "newt"))
    return str(foreign_shards)


@pytest.fixture(autouse=True)
def _no_worker_outlives_its_test() -> Iterator[None]:
    before = set(multiprocessing.active_children())
    yield
    assert set(multiprocessing.active_children()) <= before


def growing(shards: str, rank: int = 0, world_size: int = 1, **options: Any) -> ShardDataModule:
    """Data that is repeated and grows, of one rank."""
    asked: dict[str, Any] = {
        "global_batch_size": GLOBAL,
        "micro_batch_size": 2,
        "repeats": REPEATS,
        "image_size": 16,
        "progressive": ProgressiveConfig(from_size=8, until_epoch=2, multiple=4),
        "num_workers": 0,
        "seed": 4,
    }
    data = ShardDataModule(train=shards, val=shards, **(asked | options))
    data.trainer = SimpleNamespace(
        global_rank=rank,
        world_size=world_size,
        num_devices=world_size,
        limit_train_batches=1.0,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    return data


def look(batch: Batch) -> Seen:
    image = batch["image"]
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert image.shape[2] == image.shape[3]
    raw = [batch[name].numpy().tobytes() for name in ("image", "flip", "label")]
    return Seen(
        batch["epoch"],
        batch["step"],
        tuple(batch["id"].tolist()),
        tuple(batch["copy"].tolist()),
        image.shape[2],
        hashlib.sha256(b"".join(raw)).hexdigest(),
    )


def history(data: ShardDataModule, epochs: range = range(4)) -> list[Seen]:
    """All micro-batches of some epochs, from one loader."""
    loader, found = data.train_dataloader(), []
    for epoch in epochs:
        loader.sampler.set_epoch(epoch)
        found += [look(batch) for batch in loader]
    iterator = getattr(loader._loader, "_iterator", None)
    if iterator is not None:  # reading processes end now, not when memory is collected
        iterator._shutdown_workers()
    return found


def test_each_epoch_has_its_size_and_each_sample_its_copies(shards: str) -> None:
    seen = history(growing(shards))
    assert len(seen) == 4 * STEPS * GLOBAL // 2
    assert all(batch.side == SIZES[batch.epoch] for batch in seen)
    rows: Counter[int] = Counter()
    for epoch in range(REPEATS):
        for step in range(STEPS):
            parts = [batch for batch in seen if (batch.epoch, batch.step) == (epoch, step)]
            # [D D D]: each micro-batch of 2 is a copy of the 2 different samples.
            assert len({batch.ids for batch in parts}) == 1
            assert [batch.copies for batch in parts] == [(0, 0), (1, 1), (2, 2)]
            # And no copy is augmented as another.
            assert len({batch.digest for batch in parts}) == 3
            rows.update(i for batch in parts for i in batch.ids)
    # Three epochs: each of the 12 samples three times.
    assert rows == dict.fromkeys(range(12), 3)


@pytest.mark.parametrize("kind", ["threads", "forkserver"])
def test_batches_are_the_same_for_other_readers_and_ranks(shards: str, kind: str) -> None:
    """Readers run ahead of training, also where the size of images changes."""
    alone = history(growing(shards))
    options: dict[str, Any] = {"worker_kind": "threads"}
    if kind == "forkserver":
        options = {"worker_kind": "processes", "start_method": "forkserver"}
    ranks = [
        history(growing(shards, rank, 3, num_workers=2 - rank % 2, **options)) for rank in range(3)
    ]
    # A rank has one micro-batch of a step: the ranks take turns in what one process reads.
    assert [batch for batches in zip(*ranks, strict=True) for batch in batches] == alone


def test_a_run_goes_on_in_mid_epoch_with_the_size_and_the_copies_of_that_epoch(shards: str) -> None:
    whole = history(growing(shards))
    data = growing(shards)
    data.samples_seen = GLOBAL * (STEPS * 1 + 1)  # one step of epoch 1
    rest = [look(batch) for batch in data.train_dataloader()]
    assert rest == [batch for batch in whole if (batch.epoch, batch.step) == (1, 1)]
    assert {batch.side for batch in rest} == {12}


def test_without_growth_and_repeats_batches_are_what_they_were(shards: str) -> None:
    plain = growing(shards, repeats=1, progressive=ProgressiveConfig())
    seen = history(plain, range(1))
    order = plain.order()
    assert [i for batch in seen for i in batch.ids] == [
        i for step in range(2) for i in order.global_batch(step).tolist()
    ]
    assert {batch.copies for batch in seen} == {(0, 0)}
    assert {batch.side for batch in seen} == {16}


@pytest.mark.parametrize(("options", "side"), [({}, 16), ({"eval_size": 20}, 20)])
def test_evaluation_has_one_size_and_no_repeats(shards: str, options: dict, side: int) -> None:
    data = growing(shards, eval_batch_size=5, **options)
    data.samples_seen = GLOBAL
    batches = [look(batch) for batch in data.val_dataloader()]
    assert {batch.side for batch in batches} == {side}
    assert [i for batch in batches for i in batch.ids if i >= 0] == list(range(12))
    assert {copy for batch in batches for copy in batch.copies} == {0}


def test_where_a_process_stands_among_the_ranks() -> None:
    trainer: Any = SimpleNamespace(global_rank=5, world_size=8, num_devices=4)
    assert place_of(trainer) == RankPlace(5, 8, 2)
    assert place_of(None) == RankPlace(0, 1, 1)


def test_a_loader_goes_with_its_data_and_needs_no_collection_of_garbage(shards: str) -> None:
    """Collected in a cycle, together with its queues, it could not end its reading processes."""
    data = growing(shards)
    loader = weakref.ref(data.train_dataloader())
    gc.collect()
    gc.disable()
    try:
        assert loader() is not None
        del data
        assert loader() is None
    finally:
        gc.enable()
