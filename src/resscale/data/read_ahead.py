"""A function over items on a few threads, results in order: requests wait side by side."""

from __future__ import annotations

import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

_AHEAD = 4
Item = TypeVar("Item")
Result = TypeVar("Result")
_Work = queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]


class ReadAhead:
    """Threads that end with this object, and with the process: a stalled read keeps nobody here.

    Args:
        num_threads: calls at once.
    """

    def __init__(self, num_threads: int = 8) -> None:
        self.num_threads = num_threads
        self._work: _Work = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        # Each rebuilt loader has one of its own; its threads know the queue alone.
        weakref.finalize(self, _end, self._work, num_threads).atexit = False

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield `function(item)` in the order of the items; an error is raised in its place."""
        self._start()
        under_way: deque[Future[Result]] = deque()
        for item in items:
            future: Future[Result] = Future()
            self._work.put((future, lambda item=item: function(item)))  # type: ignore[misc]
            under_way.append(future)
            # More than threads: while the first one waits for another try, the others go on.
            if len(under_way) > _AHEAD * self.num_threads:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()

    def _start(self) -> None:
        with self._lock:
            while len(self._threads) < self.num_threads:
                thread = threading.Thread(
                    target=_serve, args=(self._work,), name="read-ahead", daemon=True
                )
                self._threads.append(thread)
                thread.start()


def _serve(work: _Work) -> None:
    while (task := work.get()) is not None:
        future, call = task
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
        del task, future, call


def _end(work: _Work, num_threads: int) -> None:
    for _ in range(num_threads):
        work.put(None)
