"""Reads batches with threads of the rank's own process: nothing is pickled or copied between.

A decoder that lets Python's lock go works as well on several threads as on several processes.
"""

from __future__ import annotations

import atexit
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator

from resscale.data.buffers import PixelBuffers
from resscale.data.dataset import Batch, BatchRequest, OpenBatch, ShardDataset
from resscale.errors import ResscaleError

THREAD_NAME = "reader"
# A thread's piece of work: long enough to make handing it over cheap, short enough for a batch to
# be ready soon.
_ROWS = 16
_END_S = 5.0


class ThreadReader:
    """Batches in the order of their requests; each iteration has threads of its own.

    Args:
        dataset: reads and decodes rows; its parts must bear several threads.
        requests: what to read.
        num_threads: that read at once.
        prefetch_factor: least number of batches that are being read or ready.
        pin_memory: for a GPU.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        requests: Iterable[BatchRequest],
        num_threads: int,
        prefetch_factor: int = 4,
        pin_memory: bool = False,
    ) -> None:
        self.dataset = dataset
        self.requests = requests
        self.num_threads = num_threads
        self.prefetch_factor = prefetch_factor
        self._buffers = PixelBuffers(pin_memory)

    def __iter__(self) -> Iterator[Batch | ResscaleError]:
        crew = _Crew(self.num_threads)
        try:
            yield from self._batches(crew.work)
        finally:
            crew.end()

    def _batches(self, work: queue.SimpleQueue[_Piece | None]) -> Iterator[Batch | ResscaleError]:
        requests = iter(self.requests)
        under_way: deque[_Pending] = deque()
        while True:
            while (request := next(requests, None)) is not None:
                under_way.append(self._begin(request, work))
                if len(under_way) >= self._most_under_way(request):
                    break
            if not under_way:
                return
            yield under_way.popleft().result()

    def _begin(self, request: BatchRequest, work: queue.SimpleQueue[_Piece | None]) -> _Pending:
        batch = self.dataset.open_batch(request, self._buffers)
        count = len(request.ids)
        starts = range(0, count, _ROWS) if count else (0,)
        pending = _Pending(batch, len(starts))
        for start in starts:
            work.put(_Piece(pending, start, min(start + _ROWS, count)))
        return pending

    def _most_under_way(self, request: BatchRequest) -> int:
        """Return how many batches are read ahead: enough for two pieces of work for each thread."""
        pieces = max(1, -(-len(request.ids) // _ROWS))
        return max(self.prefetch_factor, -(-2 * self.num_threads // pieces))


class _Pending:
    """A batch that threads are reading."""

    def __init__(self, batch: OpenBatch, pieces: int) -> None:
        self.batch = batch
        self._left = pieces
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._error: BaseException | None = None

    def read(self, start: int, stop: int) -> None:
        """Read some rows, in any thread."""
        try:
            if self._error is None:
                self.batch.read(start, stop)
        except BaseException as error:
            self._error = error
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self._done.set()

    def result(self) -> Batch | ResscaleError:
        """Wait for all rows; our own errors are handed over as values."""
        self._done.wait()
        if self._error is None:
            try:
                return self.batch.close()
            except ResscaleError as error:
                return error
        if isinstance(self._error, ResscaleError):
            return self._error
        raise self._error


class _Crew:
    """The threads of one iteration, and the queue that they take their work from."""

    def __init__(self, num_threads: int) -> None:
        self.work: queue.SimpleQueue[_Piece | None] = queue.SimpleQueue()
        # A read that never returns must not keep the process from its end.
        self._threads = [
            threading.Thread(
                target=_read_pieces, args=(self.work,), name=f"{THREAD_NAME}-{n}", daemon=True
            )
            for n in range(num_threads)
        ]
        _CREWS.add(self)
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Let the threads finish what they are at, and no more; wait `_END_S` for all of them."""
        while not self.work.empty():
            _drop_one(self.work)
        for _ in self._threads:
            self.work.put(None)
        stop = time.monotonic() + _END_S
        for thread in self._threads:
            thread.join(max(0.0, stop - time.monotonic()))


_CREWS: weakref.WeakSet[_Crew] = weakref.WeakSet()


@atexit.register
def _end_crews() -> None:
    """End the threads of iterations that nobody has closed, as when a run leaves by an exception.

    The interpreter unwinds a thread that comes back to it at its end; through a library in C++ that
    is an abort, and the process would lose its exit code.
    """
    for crew in list(_CREWS):
        crew.end()


class _Piece:
    """Some rows of a batch."""

    def __init__(self, pending: _Pending, start: int, stop: int) -> None:
        self.pending = pending
        self.start = start
        self.stop = stop


def _read_pieces(work: queue.SimpleQueue[_Piece | None]) -> None:
    while (piece := work.get()) is not None:
        piece.pending.read(piece.start, piece.stop)
        # Nothing may hold the batch's memory while the thread waits.
        del piece


def _drop_one(work: queue.SimpleQueue[_Piece | None]) -> None:
    try:
        work.get_nowait()
    except queue.Empty:  # a thread was faster
        return
