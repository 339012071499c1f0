"""A function over items on a few threads, results in order: requests wait side by side."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

_AHEAD = 4
Item = TypeVar("Item")
Result = TypeVar("Result")


class ReadAhead:
    """Threads that end with the process: a read that stalls keeps nobody from leaving.

    Args:
        num_threads: calls at once.
    """

    def __init__(self, num_threads: int = 8) -> None:
        self.num_threads = num_threads
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

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
                thread = threading.Thread(target=self._serve, name="read-ahead", daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self) -> None:
        while True:
            future, call = self._work.get()
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
            del future, call
