"""Work on many shards: each once, in processes or threads; an error ends it."""

import os
import threading
from contextlib import closing
from itertools import count

import pytest

from resscale.data.shard_pool import IN_THREADS, NUM_THREADS, run_on_shards


def square(number: int) -> tuple[int, int]:
    if number == 13:
        raise ValueError("thirteen")
    return number * number, os.getpid()


@pytest.mark.parametrize("processes", [IN_THREADS, 1, 2])
def test_each_task_is_done_once(processes: int) -> None:
    results = list(run_on_shards(square, range(12), processes))
    assert sorted(result for result, _ in results) == [number**2 for number in range(12)]
    assert (os.getpid() in {process for _, process in results}) == (processes != 2)


@pytest.mark.parametrize("processes", [IN_THREADS, 1])
def test_an_error_is_raised_here(processes: int) -> None:
    with pytest.raises(ValueError, match="thirteen"):
        list(run_on_shards(square, range(10, 20), processes))


def test_threads_work_at_the_same_time() -> None:
    together = threading.Barrier(NUM_THREADS)
    # Each waits for all others; one after the other, the barrier would break.
    waited = run_on_shards(lambda _: together.wait(timeout=60), range(NUM_THREADS), IN_THREADS)
    assert sorted(waited) == list(range(NUM_THREADS))


def test_no_more_is_begun_than_is_taken_for() -> None:
    begun = []
    with closing(run_on_shards(begun.append, count(), IN_THREADS)) as results:
        next(results)
    assert len(begun) <= 4 * NUM_THREADS  # an endless list of tasks is not read to its end
