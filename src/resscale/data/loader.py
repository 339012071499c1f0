"""Loaders over batch requests: torch runs the processes, the order decides the rest."""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from resscale.data.batching import BatchPlan, evaluation_slices
from resscale.data.dataset import Batch, BatchRequest, ShardDataset
from resscale.data.reader_choice import WorkerKind
from resscale.data.repeats import TrainOrder, copies_of_rank, rank_batches
from resscale.data.thread_reader import ThreadReader
from resscale.data.worker_stacks import offer_stack
from resscale.errors import ResscaleError

StartMethod = Literal["fork", "forkserver", "spawn"]
_Loader = DataLoader[Batch | ResscaleError] | ThreadReader


@dataclass(frozen=True)
class WorkerOptions:
    """Readers per rank, how processes start, batches that each keeps ready; what readers are."""

    num_workers: int = 0
    start_method: StartMethod = "forkserver"
    prefetch_factor: int = 4
    pin_memory: bool = False
    kind: WorkerKind = "processes"


class Requests(Protocol):
    """Batch requests in order, as often as they are asked for."""

    def __iter__(self) -> Iterator[BatchRequest]:
        """Begin with the first."""
        ...

    def __len__(self) -> int:
        """Return their number."""
        ...


class TrainLoader:
    """Yields this rank's micro-batches, epoch after epoch, from any sample on.

    Args:
        dataset: reads batches.
        order: the run's order, of any epoch.
        plan: micro-batch, world size and accumulation.
        rank: this process's rank.
        options: worker processes.
        samples_seen: global samples already trained on; the first epoch begins behind them.
        steps_per_epoch: steps that training takes of each epoch; None: all of them.
        size_at: side of an epoch's images in pixels; None: that of the dataset's crop.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        order: TrainOrder,
        plan: BatchPlan,
        rank: int,
        options: WorkerOptions,
        samples_seen: int = 0,
        steps_per_epoch: int | None = None,
        size_at: Callable[[int], int] | None = None,
    ) -> None:
        self.dataset = dataset
        self.order = order
        self.plan = plan
        self.rank = rank
        self.samples_seen = samples_seen
        self.steps_per_epoch = steps_per_epoch or order.num_steps
        self.size_at = size_at
        self.wait_s = 0.0
        self.before_wait: Callable[[], None] | None = None
        # Called with (epoch, step) before a step's batches are asked for.
        self.before_step: Callable[[int, int], None] | None = None
        # What batches pass on their way to training, such as a copy to the device ahead of use.
        self.through: Callable[[Iterator[Batch]], Iterator[Batch]] | None = None
        # Lightning tells the epoch to whatever a loader has by the name of sampler.
        self.sampler = _Requests(self)
        self._loader = build_loader(dataset, self.sampler, options)

    def __len__(self) -> int:
        """Micro-batches of this rank in a whole epoch."""
        return self.order.num_steps * self.plan.accumulate

    def __iter__(self) -> Iterator[Batch]:
        # A generator: Lightning calls iter() to probe the loader, and nothing may start by that.
        batches = self._read()
        yield from batches if self.through is None else self.through(batches)

    def _read(self) -> Iterator[Batch]:
        batches = _begin(self._loader)
        while True:
            if self.before_wait is not None:
                self.before_wait()
            started = time.perf_counter()
            batch = _next(batches)
            self.wait_s += time.perf_counter() - started
            if batch is None:
                return
            yield raise_errors(batch)

    def start_of_epoch(self) -> tuple[int, int]:
        """Return (epoch, step) that the next iteration begins with."""
        steps, rest = divmod(self.samples_seen, self.plan.global_batch_size)
        assert rest == 0, "samples_seen is counted in whole global batches"
        return divmod(steps, self.steps_per_epoch)

    def state_dict(self) -> dict[str, int]:
        """Return what a resumed loader needs: one number, the same on every rank."""
        return {"samples_seen": self.samples_seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue behind `state`'s samples."""
        self.samples_seen = state["samples_seen"]


class _Requests:
    """A sampler over one epoch's requests; evaluated here, in the rank's own process."""

    def __init__(self, owner: TrainLoader) -> None:
        # No cycle: collected together with its workers' queues, the loader could not end them.
        self.owner: TrainLoader = weakref.proxy(owner)

    def __iter__(self) -> Iterator[BatchRequest]:
        plan, rank = self.owner.plan, self.owner.rank
        epoch, first_step = self.owner.start_of_epoch()
        order = self.owner.order.at_epoch(epoch)
        side = 0 if self.owner.size_at is None else self.owner.size_at(epoch)
        copies = copies_of_rank(order, rank, plan.world_size)
        shares = rank_batches(order, first_step, rank, plan.world_size)
        for step, share in enumerate(shares, first_step):
            if self.owner.before_step is not None:
                self.owner.before_step(epoch, step)
            for start in range(0, len(share), plan.micro_batch_size):
                part = slice(start, start + plan.micro_batch_size)
                of = None if copies is None else copies[part]
                yield BatchRequest(share[part], epoch=epoch, step=step, copies=of, side=side)

    def __len__(self) -> int:
        return len(self.owner)

    def set_epoch(self, epoch: int) -> None:
        """Begin at an epoch's first sample, unless the owner stands in the middle of that epoch."""
        if self.owner.start_of_epoch()[0] != epoch:
            steps = epoch * self.owner.steps_per_epoch
            self.owner.samples_seen = steps * self.owner.plan.global_batch_size


class EvaluationLoader:
    """Yields a fixed list of requests, in order.

    Args:
        dataset: reads batches.
        requests: this rank's batches.
        options: worker processes.
    """

    def __init__(
        self, dataset: ShardDataset, requests: Sequence[BatchRequest], options: WorkerOptions
    ) -> None:
        self.dataset = dataset
        self.requests = requests
        self.before_wait: Callable[[], None] | None = None
        self._loader = build_loader(dataset, requests, options)

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[Batch]:
        batches = _begin(self._loader)
        while True:
            if self.before_wait is not None:
                self.before_wait()
            batch = _next(batches)
            if batch is None:
                return
            yield raise_errors(batch)


def evaluation_requests(
    num_samples: int, batch_size: int, rank: int, world_size: int
) -> list[BatchRequest]:
    """Return a rank's batches of an evaluation that visits each sample once; see batching."""
    return [
        BatchRequest(np.arange(start, stop, dtype=np.int64), size=batch_size)
        for start, stop in evaluation_slices(num_samples, batch_size, rank, world_size)
    ]


class _ErrorsAsValues(Dataset[Any]):
    """Hands our own errors over as values: torch would bury the message in a worker's traceback."""

    def __init__(self, dataset: ShardDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, request: BatchRequest) -> Batch | ResscaleError:
        try:
            return self.dataset.read_batch(request)
        except ResscaleError as error:
            return error


def raise_errors(batch: Batch | ResscaleError) -> Batch:
    """Raise what a worker handed over as an error; return a batch as it is."""
    if isinstance(batch, ResscaleError):
        raise batch
    return batch


def _begin(loader: _Loader) -> Iterator[Batch | ResscaleError]:
    """Return a loader's batches; its readers start now."""
    context = None if isinstance(loader, ThreadReader) else loader.multiprocessing_context
    if context is not None and context.get_start_method() == "forkserver":
        _start_fork_server()
    return iter(loader)


def _start_fork_server() -> None:
    """Start the process that forks reading processes, deaf to the signals that stop a run.

    They may go to the whole process group. The server would end by them, and reading processes end
    with it, in the middle of the step that the rank wants to finish.
    """
    # Blocked, not ignored: a signal that comes just now reaches this process behind the block.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    try:
        # The server would start it first, and its start unblocks SIGTERM.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _next(batches: Iterator[Batch | ResscaleError]) -> Batch | ResscaleError | None:
    """Return the next batch, None behind the last one.

    Raises:
        ResscaleError: a reading process is gone.
    """
    try:
        return next(batches, None)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = " ".join(str(error).split())
        cause: Exception = error
    except (ConnectionError, EOFError, FileNotFoundError) as error:
        if not hasattr(batches, "_workers"):
            raise  # read in this process
        # Its last batch was announced, and the process was gone before the memory was fetched.
        reason, cause = f"{type(error).__name__} while its last batch was fetched", error
    raise ResscaleError(
        f"a process that reads samples is gone ({reason}): somebody killed it, or the system did "
        f"for lack of memory (its log says so). Lower data.num_workers if it was memory."
    ) from cause


def build_loader(dataset: ShardDataset, requests: Requests, options: WorkerOptions) -> _Loader:
    """Build what reads one request at a time, in their order."""
    if options.num_workers and options.kind == "threads":
        return ThreadReader(
            dataset, requests, options.num_workers, options.prefetch_factor, options.pin_memory
        )
    workers: dict[str, Any] = {}
    if options.num_workers:
        context = multiprocessing.get_context(options.start_method)
        if options.start_method == "forkserver":
            context.set_forkserver_preload(["resscale.data.dataset"])
        workers = {
            "num_workers": options.num_workers,
            "multiprocessing_context": context,
            "prefetch_factor": options.prefetch_factor,
            "persistent_workers": True,
            "worker_init_fn": _belong_to_the_rank,
        }
    return DataLoader(
        _ErrorsAsValues(dataset),
        sampler=cast(Any, requests),
        batch_size=None,
        collate_fn=_as_it_is,
        pin_memory=options.pin_memory,
        # A generator of its own: drawing the workers' seed must not move the global one.
        generator=torch.Generator(),
        **workers,
    )


@atexit.register
def _end_workers() -> None:
    """End reading processes that are still there when this one leaves.

    multiprocessing would send SIGTERM, which they ignore, and wait for them for ever.
    """
    # torch takes a worker that is killed for an accident and raises.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    kill_workers()


def kill_workers() -> None:
    """Kill this process's reading processes, also those that hang or are stopped; any thread may.

    They end with their rank by themselves, if they can still run.
    """
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _as_it_is(batch: Any) -> Any:
    return batch


def _belong_to_the_rank(worker_id: int) -> None:
    """Begin a reading process: it outlives signals, but never its rank.

    SLURM or a terminal signals the whole process group; the rank finishes its step and saves, and
    needs its workers until then. A rank that is killed cannot end them: torch's own watch looks at
    the fork server, which in turn stays as long as its children, so both would stay for ever.
    """
    offer_stack()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_rank, daemon=True).start()


def _end_with_the_rank() -> None:
    rank = multiprocessing.parent_process()
    assert rank is not None
    multiprocessing.connection.wait([rank.sentinel])
    os._exit(1)
