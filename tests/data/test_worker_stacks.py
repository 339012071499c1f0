"""A process that reads says where it stands, also while it hangs in a system call."""

import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import pytest

from resscale.data.worker_stacks import offer_stack, worker_stacks

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)

BEFORE: set[int] = set()


def a_read_that_never_returns(ready: Connection, offers: bool) -> None:
    if offers:
        offer_stack()
    ready.send(True)
    time.sleep(600)


@pytest.fixture
def start() -> Iterator[list[BaseProcess]]:
    """Processes to end behind the test."""
    started: list[BaseProcess] = []
    yield started
    for process in started:
        process.kill()
        process.join()


def stacks_of_this_test() -> dict[int, str]:
    """Other tests' loaders may still hold reading processes."""
    return {pid: text for pid, text in worker_stacks().items() if pid not in BEFORE}


@pytest.fixture(autouse=True)
def _others() -> None:
    BEFORE.clear()
    BEFORE.update(child.pid for child in multiprocessing.active_children() if child.pid)


def begin(started: list[BaseProcess], offers: bool) -> int:
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("fork")
    process = context.Process(target=a_read_that_never_returns, args=(there, offers), daemon=True)
    process.start()
    started.append(process)
    assert here.recv()
    assert process.pid is not None
    return process.pid


def test_the_stack_of_a_process_that_hangs_names_the_function(start: list[BaseProcess]) -> None:
    pid = begin(start, offers=True)
    stacks = stacks_of_this_test()
    assert list(stacks) == [pid]
    assert "in a_read_that_never_returns" in stacks[pid]
    assert __file__ in stacks[pid]
    assert start[0].is_alive()


def test_a_process_that_offers_none_is_left_alone(start: list[BaseProcess]) -> None:
    begin(start, offers=False)
    assert stacks_of_this_test() == {}
    assert start[0].is_alive()


def test_without_reading_processes_there_are_no_stacks() -> None:
    assert stacks_of_this_test() == {}
