"""Work on many shards at once: in processes where it computes, in threads where it waits."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

from resscale.data.pack_pool import run_tasks

Task = TypeVar("Task")
Result = TypeVar("Result")

IN_THREADS = 0
"""In place of a number of processes."""
NUM_THREADS = 16
"""Remote shards read at a time: each waits for its server most of the time."""


def run_on_shards(
    work: Callable[[Task], Result], tasks: Iterable[Task], processes: int
) -> Generator[Result, None, None]:
    """Yield `work(task)` of all tasks as they finish, in any order.

    Close it (`contextlib.closing`) to begin no more tasks where not all results are taken.

    Args:
        work: a module's function.
        tasks: read as they are needed.
        processes: worker processes; 1 works in this process, `IN_THREADS` in threads of it.
    """
    if processes != IN_THREADS:
        yield from run_tasks(work, tasks, processes)
        return
    waiting = iter(tasks)
    running: set[Future[Result]] = set()
    threads = ThreadPoolExecutor(NUM_THREADS)
    try:
        while True:
            free = 2 * NUM_THREADS - len(running)
            running |= {threads.submit(work, task) for task in islice(waiting, free)}
            if not running:
                return
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                yield future.result()
    finally:
        threads.shutdown(cancel_futures=True)
