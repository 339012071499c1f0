"""Measures the real loader and the real step for a few seconds, each by itself."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from resscale.data.datamodule import ShardDataModule
from resscale.data.dataset import Batch, ShardDataset
from resscale.data.loader import TrainLoader, kill_workers
from resscale.errors import ResscaleError
from resscale.training.classifier import ImageClassifier
from resscale.training.optim import build_optimizer

# Reading processes import torch first, which takes long over a network file system.
PATIENCE_S = 90.0
# Images of the first, small pass, which says what a whole one will take.
_FEW = 8


@dataclass(frozen=True)
class Share:
    """Which part of a run one process stands for.

    Args:
        rank: its number.
        world_size: ranks of the run, of which this process may be the only one here.
        num_workers: reading processes.
    """

    rank: int
    world_size: int
    num_workers: int


def build_probe_loader(data: ShardDataModule, share: Share, *, on_gpu: bool) -> TrainLoader:
    """Return the training loader of a rank, outside of a trainer.

    Args:
        data: the user's options.
        share: the rank.
        on_gpu: batches go to a GPU.
    """
    dataset = ShardDataset(
        data.samples("train"),
        data.train_crop,
        data.build_decoder(),
        channels=data.channels,
        seed=data.seed,
        flip=data.flip,
        replace_bad=True,
    )
    options = data.worker_options(share.num_workers, on_gpu=on_gpu)
    return TrainLoader(dataset, data.order(), data.plan(share.world_size), share.rank, options)


def measure_loader(
    loader: TrainLoader, num_workers: int, seconds: float, patience_s: float = PATIENCE_S
) -> tuple[float, Batch]:
    """Return images per second that a loader gives to somebody who does nothing else, and a batch.

    Args:
        loader: of this rank.
        num_workers: its reading processes.
        seconds: how long to count.
        patience_s: how long to wait for a batch to count.

    Raises:
        ResscaleError: what the loader raised, or that nothing came.
    """
    arrivals: queue.Queue[tuple[float, Batch] | Exception] = queue.Queue()
    ended = threading.Event()
    # A thread of its own: a file system that hangs must not hang this process.
    pump = threading.Thread(target=_pump, args=(loader, arrivals, ended), daemon=True)
    pump.start()
    # All processes bring their first batch at about the same time: it is counted from there on.
    try:
        return _count(arrivals, seconds, patience_s, max(1, num_workers))
    finally:
        ended.set()
        pump.join(timeout=5.0)
        if pump.is_alive():
            kill_workers()


def rate_of(arrivals: list[tuple[float, int]], unready: int) -> float | None:
    """Return images per second of batches that have arrived; None where too few have.

    Args:
        arrivals: `(time in s, images)` of each.
        unready: the first so many start the clock.
    """
    if len(arrivals) <= unready:
        return None
    started = arrivals[unready - 1][0]
    elapsed = arrivals[-1][0] - started
    return sum(count for _, count in arrivals[unready:]) / max(elapsed, 1e-9)


@dataclass(frozen=True)
class StepRate:
    """What a step takes.

    Args:
        images_per_s: through forward, backward and the optimizer.
        rows: images of a pass; fewer than the micro-batch where that would have taken too long.
        peak_bytes: the most memory that was held on a GPU; 0 elsewhere.
    """

    images_per_s: float
    rows: int
    peak_bytes: int


def measure_step(
    module: ImageClassifier,
    batch: Batch,
    device: torch.device,
    dtype: torch.dtype | None,
    seconds: float,
) -> StepRate:
    """Return how fast a network trains on one batch, again and again.

    Args:
        module: it is trained, and so spoilt.
        batch: a micro-batch.
        device: where.
        dtype: of autocast; None: float32.
        seconds: how long, but at least one pass; on a CPU a batch that takes longer is cut.

    Raises:
        torch.cuda.OutOfMemoryError: the micro-batch does not fit.
    """
    module = module.to(device).train()
    optimizer = build_optimizer(module.model, module.optimizer_config, module.global_batch_size)
    rows = len(batch["label"])
    step = _stepper(module, optimizer, device, dtype)
    few = min(_FEW, rows)
    step(_rows(batch, few, device))
    small_s = _timed(step, _rows(batch, few, device))
    if device.type == "cpu":
        fitting = int(few * seconds / 2 / max(small_s, 1e-9))
        rows = min(rows, max(few, fitting))
    moved = _rows(batch, rows, device)
    if rows > few:
        # The first pass of a size makes plans and takes memory.
        step(moved)
    count, started = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - started < seconds:
        step(moved)
        count += 1
    elapsed = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return StepRate(count * rows / elapsed, rows, peak)


def _pump(
    loader: TrainLoader,
    arrivals: queue.Queue[tuple[float, Batch] | Exception],
    ended: threading.Event,
) -> None:
    try:
        while not ended.is_set():
            for batch in loader:
                arrivals.put((time.perf_counter(), batch))
                if ended.is_set():
                    return
    except Exception as error:
        arrivals.put(error)


def _count(
    arrivals: queue.Queue[tuple[float, Batch] | Exception],
    seconds: float,
    patience_s: float,
    unready: int,
) -> tuple[float, Batch]:
    come: list[tuple[float, int]] = []
    batch: Batch | None = None
    give_up = time.perf_counter() + patience_s + seconds
    while True:
        now = time.perf_counter()
        rate = rate_of(come, unready)
        if rate is not None and batch is not None and now - come[unready - 1][0] >= seconds:
            return rate, batch
        with contextlib.suppress(queue.Empty):
            found = arrivals.get(timeout=0.1)
            if isinstance(found, Exception):
                raise found
            arrived, batch = found
            come.append((arrived, len(batch["label"])))
        if now > give_up:
            raise ResscaleError(
                f"{len(come)} batches have come in {patience_s + seconds:g} s: see whether the "
                f"file system of the shards answers."
            )


def _stepper(
    module: ImageClassifier,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Callable[[Batch], None]:
    def step(batch: Batch) -> None:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss = module.training_step(batch, 0)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def _timed(step: Callable[[Batch], None], batch: Batch) -> float:
    started = time.perf_counter()
    step(batch)
    return time.perf_counter() - started


def _rows(batch: Batch, count: int, device: torch.device) -> Batch:
    cut = batch.copy()
    for name in ("image", "label", "flip", "id"):
        cut[name] = batch[name][:count].to(device)
    return cut
