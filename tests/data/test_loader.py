"""The real loaders: one order and the same pixels for any ranks, workers and start method."""

import gc
import hashlib
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from resscale.data import EpochOrder, Manifest, ShardDataset
from resscale.data.augment import CenterCrop, RandomResizedCrop
from resscale.data.batching import BatchPlan, evaluation_slices, plan_batches
from resscale.data.dataset import Batch, BatchRequest
from resscale.data.index_shards import expand_shards, index_shards
from resscale.data.loader import EvaluationLoader, StartMethod, TrainLoader, WorkerOptions
from resscale.data.shard_index import ShardIndex
from resscale.errors import DataFormatError, ResscaleError

pytestmark = [
    # Workers are forked here on purpose: it is one of the start methods that must give the same.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    # Four workers on a machine of two cores are meant: their number must not change the batches.
    pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker:UserWarning"),
]

SHARD_SIZES = (60, 1, 97, 40, 43)  # 241 samples
GLOBAL, MICRO = 24, 2  # 24 = 2 × 12: 1, 2, 3 and 4 ranks take 12, 6, 4 and 3 micro-batches
STEPS = 10  # 241 // 24, one sample is dropped
WINDOW = 100
HERE = WorkerOptions()
BUILT: list[TrainLoader | EvaluationLoader] = []  # by this test, to be ended behind it


class Seen(NamedTuple):
    """What a micro-batch was: where it belongs, which samples, and a digest of its tensors."""

    epoch: int
    step: int
    ids: tuple[int, ...]
    digest: str


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """241 JPEGs of 24 to 39 pixels, in five shards of very different sizes; label = id % 10."""
    folder = tmp_path_factory.mktemp("shards")
    photos = load_sample_images().images
    number = 0
    for shard, samples in enumerate(SHARD_SIZES):
        with webdataset.TarWriter(str(folder / f"s-{shard}.tar")) as tar:
            for _ in range(samples):
                left, top, side = 2 * number, number, 24 + number % 16
                patch = photos[number % 2][top : top + side, left : left + 30]
                buffer = io.BytesIO()
                Image.fromarray(patch).save(buffer, "JPEG", quality=90)
                key = f"k{number:04d}"
                tar.write({"__key__": key, "jpg": buffer.getvalue(), "cls": number % 10})
                number += 1
    return index_shards(expand_shards([str(folder)]))


def order_of(manifest: Manifest) -> EpochOrder:
    return EpochOrder(manifest.shard_sizes, global_batch_size=GLOBAL, seed=3, window=WINDOW)


def loader_of(
    manifest: Manifest,
    world_size: int = 1,
    rank: int = 0,
    options: WorkerOptions = HERE,
    samples_seen: int = 0,
    steps_per_epoch: int | None = None,
) -> TrainLoader:
    dataset = ShardDataset(manifest, RandomResizedCrop(16), seed=3, flip=True, replace_bad=True)
    loader = TrainLoader(
        dataset,
        order_of(manifest),
        plan_batches(GLOBAL, MICRO, world_size),
        rank,
        options,
        samples_seen,
        steps_per_epoch,
    )
    BUILT.append(loader)
    return loader


def seen(batches: Iterable[Batch]) -> list[Seen]:
    found = []
    for batch in batches:
        assert batch["image"].is_contiguous(memory_format=torch.channels_last)
        assert batch["bad"] == []
        assert batch["label"].tolist() == (batch["id"] % 10).tolist()
        raw = [batch[name].numpy().tobytes() for name in ("image", "flip", "label")]
        digest = hashlib.sha256(b"".join(raw)).hexdigest()
        found.append(Seen(batch["epoch"], batch["step"], tuple(batch["id"].tolist()), digest))
    return found


def together(ranks: list[list[Seen]], world_size: int) -> list[Seen]:
    """Put the ranks' micro-batches of each step one behind the other, as the global batch is."""
    accumulate = GLOBAL // MICRO // world_size
    steps = range(len(ranks[0]) // accumulate)
    assert len({len(batches) for batches in ranks}) == 1
    return [
        batch
        for step in steps
        for batches in ranks
        for batch in batches[step * accumulate : (step + 1) * accumulate]
    ]


@pytest.fixture(scope="module")
def reference(manifest: Manifest) -> list[list[Seen]]:
    """The micro-batches of epochs 0 and 1, read by one rank in its own process."""
    loader = loader_of(manifest)
    first = seen(loader)
    loader.samples_seen = STEPS * GLOBAL
    return [first, seen(loader)]


def end(*loaders: TrainLoader | EvaluationLoader) -> None:
    """End the worker processes of loaders now, not when their memory is collected."""
    for loader in loaders:
        iterator = getattr(loader._loader, "_iterator", None)
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            iterator._shutdown_workers()


@pytest.fixture(autouse=True)
def _no_worker_outlives_its_test() -> Iterator[None]:
    yield
    end(*BUILT)
    BUILT.clear()
    assert multiprocessing.active_children() == []


# One order


def test_an_epoch_has_every_sample_once_but_the_dropped(
    manifest: Manifest, reference: list[list[Seen]]
) -> None:
    assert manifest.shard_sizes.tolist() == list(SHARD_SIZES)
    for epoch, batches in enumerate(reference):
        assert len(batches) == STEPS * GLOBAL // MICRO  # 120
        assert [batch.step for batch in batches] == [n // 12 for n in range(120)]
        assert {batch.epoch for batch in batches} == {epoch}
        ids = [i for batch in batches for i in batch.ids]
        assert len(ids) == len(set(ids)) == 240  # 241 - 1 dropped
    first, second = ([batch.ids for batch in batches] for batches in reference)
    assert sum(one == other for one, other in zip(first, second, strict=True)) <= 1


def test_the_micro_batches_are_the_order_cut_in_a_row(
    manifest: Manifest, reference: list[list[Seen]]
) -> None:
    order = order_of(manifest).at_epoch(1)
    for step in range(STEPS):
        ids = [i for batch in reference[1] if batch.step == step for i in batch.ids]
        assert ids == order.global_batch(step).tolist()


def test_the_next_epoch_crops_the_same_image_elsewhere(manifest: Manifest) -> None:
    dataset = loader_of(manifest).dataset
    ids = np.arange(20)
    one, two = (dataset.read_batch(BatchRequest(ids, epoch=e))["image"] for e in (0, 1))
    assert not any(torch.equal(a, b) for a, b in zip(one, two, strict=True))


# Each world size with each number of workers but (2, 4), and both numbers with each start method.
COVERING: list[tuple[int, int, StartMethod | Literal["threads"]]] = [
    (1, 4, "threads"),
    (2, 1, "threads"),
    (3, 4, "threads"),
    (2, 0, "fork"),
    (3, 0, "fork"),
    (4, 0, "fork"),
    (1, 1, "fork"),
    (3, 4, "fork"),
    (4, 1, "fork"),
    (1, 4, "forkserver"),
    (2, 1, "forkserver"),
    (3, 1, "forkserver"),
    (4, 4, "forkserver"),
    (1, 4, "spawn"),
    (1, 1, "spawn"),
]


@pytest.mark.parametrize(("world_size", "workers", "start_method"), COVERING)
def test_any_ranks_workers_and_start_method_give_the_same_batches(
    manifest: Manifest,
    reference: list[list[Seen]],
    world_size: int,
    workers: int,
    start_method: StartMethod | Literal["threads"],
) -> None:
    """Ids, order, pixels, flips and labels; over two epochs with the same worker processes."""
    if start_method == "threads":
        options = WorkerOptions(workers, kind="threads")
    else:
        options = WorkerOptions(workers, start_method)
    epochs: list[list[list[Seen]]] = [[], []]
    for rank in range(world_size):
        loader = loader_of(manifest, world_size, rank, options)
        for epoch, ranks in enumerate(epochs):
            loader.samples_seen = epoch * STEPS * GLOBAL
            ranks.append(seen(loader))
            assert len(ranks[-1]) == len(loader)
        end(loader)
    assert [together(ranks, world_size) for ranks in epochs] == reference


# Going on


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("steps_done", [1, 7, 9, 10, 13])
def test_a_resumed_run_reads_exactly_what_remains(
    manifest: Manifest, reference: list[list[Seen]], world_size: int, steps_done: int
) -> None:
    epoch, step = divmod(steps_done, STEPS)
    remaining = [batch for batch in reference[epoch] if batch.step >= step]
    ranks = []
    for rank in range(world_size):
        loader = loader_of(manifest, world_size, rank, samples_seen=steps_done * GLOBAL)
        assert loader.start_of_epoch() == (epoch, step)
        ranks.append(seen(loader))
    assert together(ranks, world_size) == remaining


def test_a_run_on_two_ranks_goes_on_with_three_by_its_state(
    manifest: Manifest, reference: list[list[Seen]]
) -> None:
    before = [loader_of(manifest, 2, rank) for rank in range(2)]
    # 4 of 10 steps: 6 micro-batches of a rank make one.
    begun = [[b for b, _ in zip(loader, range(24), strict=False)] for loader in before]
    states = []
    for loader in before:
        loader.samples_seen = 4 * GLOBAL
        states.append(loader.state_dict())
    assert states == [{"samples_seen": 96}] * 2
    after = [loader_of(manifest, 3, rank) for rank in range(3)]
    for loader in after:
        loader.load_state_dict(states[0])
    rest = together([seen(loader) for loader in after], 3)
    assert together([seen(batches) for batches in begun], 2) + rest == reference[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_left_early_is_gone_on_with_by_the_same_workers(
    manifest: Manifest, reference: list[list[Seen]], workers: int
) -> None:
    loader = loader_of(manifest, options=WorkerOptions(workers, "fork"))
    batches = iter(loader)
    for _ in range(12):  # one step; the workers have read further already
        next(batches)
    batches.close()
    loader.samples_seen = GLOBAL
    assert seen(loader) == [batch for batch in reference[0] if batch.step >= 1]


def test_a_shortened_epoch_is_followed_by_the_beginning_of_the_next(manifest: Manifest) -> None:
    # 3 steps of each epoch: after 4 steps, step 1 of epoch 1 comes next.
    loader = loader_of(manifest, samples_seen=4 * GLOBAL, steps_per_epoch=3)
    assert loader.start_of_epoch() == (1, 1)
    first = next(iter(loader))
    assert (first["epoch"], first["step"]) == (1, 1)


def test_an_epoch_that_the_trainer_announces_begins_at_its_first_sample(manifest: Manifest) -> None:
    loader = loader_of(manifest, samples_seen=3 * GLOBAL)
    loader.sampler.set_epoch(0)  # the one it stands in: it goes on from there
    assert loader.start_of_epoch() == (0, 3)
    loader.sampler.set_epoch(1)
    assert loader.start_of_epoch() == (1, 0)
    assert loader.samples_seen == STEPS * GLOBAL
    first = next(iter(loader))
    assert (first["epoch"], first["step"]) == (1, 0)


def test_samples_seen_that_end_within_a_step_are_refused(manifest: Manifest) -> None:
    loader = loader_of(manifest, samples_seen=GLOBAL + 1)
    with pytest.raises(AssertionError, match="counted in whole global batches"):
        loader.start_of_epoch()


# Evaluation


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (2, 0), (3, 2), (4, 0), (7, 0)])
def test_evaluation_reads_each_sample_once_on_any_number_of_ranks(
    manifest: Manifest, world_size: int, workers: int
) -> None:
    dataset = ShardDataset(manifest, CenterCrop(8, 8))
    ids: list[int] = []
    counts = []
    for rank in range(world_size):
        requests = [
            BatchRequest(np.arange(start, stop), size=32)
            for start, stop in evaluation_slices(241, 32, rank, world_size)
        ]
        loader = EvaluationLoader(dataset, requests, WorkerOptions(workers, "fork"))
        BUILT.append(loader)
        batches = list(loader)
        counts.append(len(batches))
        assert len(loader) == len(batches)
        for batch in batches:
            assert batch["image"].shape == (32, 3, 8, 8)
            real = batch["id"] >= 0
            assert batch["label"][real].tolist() == (batch["id"][real] % 10).tolist()
            assert (batch["label"][~real] == -1).all()
            ids += batch["id"][real].tolist()
    assert ids == list(range(241))
    assert set(counts) == {-(-241 // (32 * world_size))}  # each rank ceil(241 / 32 ranks)


# Errors and signals


@pytest.mark.parametrize(
    "options", [HERE, WorkerOptions(1, "fork"), WorkerOptions(1, "forkserver")]
)
def test_a_workers_error_arrives_as_itself(
    tmp_path: Path, jpegs: tuple[bytes, ...], options: WorkerOptions
) -> None:
    with webdataset.TarWriter(str(tmp_path / "s.tar")) as tar:
        for number in range(4):
            tar.write({"__key__": str(number), "jpg": jpegs[number], "cls": number})
    manifest = index_shards([tmp_path / "s.tar"])
    end_of_file = int(ShardIndex.load(manifest.index_path(0)).offsets[0]) + 100
    os.truncate(tmp_path / "s.tar", end_of_file)  # within the first image
    order = EpochOrder([4], global_batch_size=4, shuffle="none")
    dataset = ShardDataset(manifest, CenterCrop(8, 8), replace_bad=True)
    train = TrainLoader(dataset, order, BatchPlan(4, 4, 1, 1), 0, options)
    evaluation = EvaluationLoader(dataset, [BatchRequest(np.arange(4))], options)
    BUILT.extend((train, evaluation))
    for loader in (train, evaluation):
        with pytest.raises(DataFormatError) as error:
            list(loader)
        assert type(error.value) is DataFormatError
        message = str(error.value)  # its own text, not a worker's traceback
        assert message.startswith(f"{tmp_path}/s.tar ends at byte {end_of_file}, its index says ")
        assert message.endswith(": truncated or changed while in use.")


@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
def test_workers_leave_signals_to_the_rank(
    manifest: Manifest, reference: list[list[Seen]], start_method: StartMethod
) -> None:
    """SLURM and terminals signal the whole group; the rank needs its workers to finish a step."""
    loader = loader_of(manifest, options=WorkerOptions(2, start_method, prefetch_factor=1))
    batches = iter(loader)
    found = seen([next(batches)])
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    found += seen([next(batches)])  # both have begun: their handlers are set
    pids = [worker.pid for worker in workers]
    if start_method == "forkserver":
        # Reading processes end with the server that forked them.
        pids.append(forkserver._forkserver._forkserver_pid)
    for pid in pids:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            os.kill(pid, number)
    assert found + seen(batches) == reference[0]
    assert all(worker.is_alive() for worker in workers)


LEAVES_EARLY = """
import multiprocessing
import os
import signal
import sys
from resscale.data import EpochOrder, Manifest, ShardDataset
from resscale.data.augment import CenterCrop
from resscale.data.batching import BatchPlan
from resscale.data.loader import TrainLoader, WorkerOptions

if __name__ == "__main__":
    manifest = Manifest.load(sys.argv[1])
    order = EpochOrder(manifest.shard_sizes, global_batch_size=8)
    dataset = ShardDataset(manifest, CenterCrop(8, 8))
    loader = TrainLoader(dataset, order, BatchPlan(8, 8, 1, 1), 0, WorkerOptions(2, sys.argv[2]))
    batches = iter(loader)
    next(batches)
    sys.modules["kept"] = [loader, batches]  # alive when the interpreter leaves
    if sys.argv[3] == "leave":
        sys.exit(75)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    "start_method",
    [
        "fork",
        "forkserver",
    ],
)
def test_a_process_that_leaves_in_mid_epoch_does_not_wait_for_its_workers(
    manifest: Manifest, tmp_path: Path, start_method: StartMethod
) -> None:
    script = tmp_path / "leaves.py"
    script.write_text(LEAVES_EARLY)
    ended = subprocess.run(
        [sys.executable, str(script), manifest.root, start_method, "leave"],
        capture_output=True,
        text=True,
        timeout=100,  # it would wait for ever
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (75, "")
    assert "Traceback" not in ended.stderr


def test_a_loader_that_nobody_holds_ends_its_workers(manifest: Manifest) -> None:
    loader = loader_of(manifest, options=WorkerOptions(1, "fork"))
    seen(loader)
    (worker,) = multiprocessing.active_children()
    try:
        BUILT.clear()
        del loader
        gc.collect()
        worker.join(timeout=4)
        assert worker.exitcode == 0
    finally:
        if worker.is_alive():
            worker.kill()
            worker.join()


@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
def test_workers_end_with_a_rank_that_is_killed(
    manifest: Manifest, tmp_path: Path, start_method: StartMethod
) -> None:
    script = tmp_path / "killed.py"
    script.write_text(LEAVES_EARLY)
    # Not to a pipe: reading to its end would wait for the workers, which hold it too.
    with (tmp_path / "out").open("w") as out:
        ended = subprocess.run(
            [sys.executable, str(script), manifest.root, start_method, "kill"],
            stdout=out,
            stderr=subprocess.DEVNULL,
            timeout=100,
            check=False,
        )
    assert ended.returncode == -signal.SIGKILL
    workers = [Path("/proc", number) for number in (tmp_path / "out").read_text().split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 30
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers))


def is_running(process: Path) -> bool:
    """Whether a process is there and is no zombie: its new parent may never ask for its status."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# Side effects


def test_asking_for_an_iterator_starts_nothing(manifest: Manifest) -> None:
    """Lightning does, to probe the loader."""
    loader = loader_of(manifest, options=WorkerOptions(2, "fork"))
    iter(loader)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_does_not_move_the_global_random_state(manifest: Manifest, workers: int) -> None:
    """Else dropout would depend on the number of epochs begun, and resuming would not be exact."""
    before = torch.random.get_rng_state()
    seen(loader_of(manifest, 4, 0, WorkerOptions(workers, "fork")))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_time_waited_for_batches_is_counted(manifest: Manifest) -> None:
    loader = loader_of(manifest)
    assert loader.wait_s == 0.0
    next(iter(loader))
    first = loader.wait_s
    assert first > 0.0
    seen(loader)
    assert loader.wait_s > first


@pytest.mark.parametrize("kind", ["training", "evaluation"])
def test_each_wait_for_a_batch_is_announced(manifest: Manifest, kind: str) -> None:
    """So that it is known what a rank does that never gets one."""
    loader: TrainLoader | EvaluationLoader = loader_of(manifest, 4)
    if kind == "evaluation":
        requests = [BatchRequest(np.arange(start, start + 2)) for start in (0, 2)]
        loader = EvaluationLoader(ShardDataset(manifest, CenterCrop(16, 16)), requests, HERE)
    waits: list[int] = []
    loader.before_wait = lambda: waits.append(1)
    batches = iter(loader)
    assert waits == []
    next(batches)
    assert len(waits) == 1
    count = 1 + sum(1 for _ in batches)
    assert len(waits) == count + 1  # and the one that finds no more


@pytest.mark.parametrize("kind", ["training", "evaluation"])
def test_a_killed_reading_process_is_one_clear_error(manifest: Manifest, kind: str) -> None:
    options = WorkerOptions(1, "forkserver", prefetch_factor=1)
    loader: TrainLoader | EvaluationLoader = loader_of(manifest, options=options)
    if kind == "evaluation":
        requests = [BatchRequest(np.arange(2))] * 9
        loader = EvaluationLoader(ShardDataset(manifest, CenterCrop(16, 16)), requests, options)
        BUILT.append(loader)
    batches = iter(loader)
    next(batches)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    with pytest.raises(ResscaleError, match=r"a process that reads samples is gone .*num_workers"):
        list(batches)
