"""Counts of reading: added up over threads and processes, each counted once."""

import multiprocessing
import pickle

import pytest

from resscale.data.remote_counts import ReadCounts, WorkerCounts, add_up, count, counts


def test_counts_are_added_and_compared() -> None:
    before = counts()
    count(requests=2, bytes=100)
    count(retries=1, seconds=0.5)
    assert counts() - before == ReadCounts(requests=2, retries=1, bytes=100, seconds=0.5)
    assert add_up([ReadCounts(hits=1), ReadCounts(hits=2, direct=3)]) == ReadCounts(
        hits=3, direct=3
    )


def publish(rows: WorkerCounts, worker: int) -> None:
    # What the parent has read is not this process's, whatever way it started.
    count(requests=worker + 1, hits=10)
    rows.note(worker)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_reading_processes_tell_their_rank(method: str) -> None:
    count(requests=1000)
    rows = WorkerCounts(2)
    context = multiprocessing.get_context(method)
    children = [context.Process(target=publish, args=(rows, worker)) for worker in (0, 1)]
    for child in children:
        child.start()
    for child in children:
        child.join(timeout=120)
    # 1 + 2 requests and 10 + 10 hits
    assert rows.total() == ReadCounts(requests=3, hits=20)


def test_a_copy_that_goes_to_no_new_process_counts_nowhere() -> None:
    copy = pickle.loads(pickle.dumps(WorkerCounts(1)))
    copy.note(0)
    assert copy.total() == ReadCounts()
