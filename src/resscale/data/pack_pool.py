"""Running one function over many tasks in worker processes, or in this one."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from resscale.errors import UserInputError

Task = TypeVar("Task")
Result = TypeVar("Result")

_QUEUED_PER_PROCESS = 2  # a task lists a thousand samples: few of them wait at a time


def run_tasks(
    work: Callable[[Task], Result],
    tasks: Iterable[Task],
    processes: int,
    preload: tuple[str, ...] = (),
) -> Generator[Result, None, None]:
    """Yield `work(task)` of all tasks as they finish, in any order.

    Close it (`contextlib.closing`) to end the workers at once where not all results are taken.

    Args:
        work: a module's function; with several processes its tasks and results are pickled.
        tasks: read as they are needed.
        processes: worker processes; 1 works in this process.
        preload: modules that the workers need and that are slow to import, imported once for all.

    Raises:
        UserInputError: a worker was killed, by lack of memory as a rule.
    """
    if processes == 1:
        yield from map(work, tasks)
        return
    # The fork server imports `preload` once; its children start in milliseconds, and they inherit
    # no locks or threads of this process, as plain forks would.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    executor = ProcessPoolExecutor(processes, context, initializer=_start_worker)
    waiting = iter(tasks)
    running: set[Future[Result]] = set()
    try:
        while True:
            free = processes * _QUEUED_PER_PROCESS - len(running)
            running |= {executor.submit(work, task) for task in islice(waiting, free)}
            if not running:
                break
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                yield future.result()
    except BrokenProcessPool as error:
        raise UserInputError(
            f"A worker process was killed, by lack of memory as a rule. Run the same command again "
            f"with fewer --processes than {processes}: what is finished is kept."
        ) from error
    except BaseException:
        _kill_workers(executor)
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _kill_workers(executor: ProcessPoolExecutor) -> None:
    """End the workers in the middle of their work: they rename only what is whole."""
    for process in list((executor._processes or {}).values()):
        process.terminate()


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent deals with it
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()


def _die_with(sentinel: int) -> None:
    # A killed parent cannot end its workers; they would wait for tasks for ever.
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
