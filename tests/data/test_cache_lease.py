"""Leases: they hold as long as their process lives, however it ends."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from resscale.data.cache_lease import Lease, leased_keys


def test_what_living_processes_need_is_known(tmp_path: Path) -> None:
    first, second = Lease(tmp_path), Lease(tmp_path)
    assert leased_keys(tmp_path) == set()
    first.publish(["a", "b"])
    second.publish(["b", "c"])
    assert leased_keys(tmp_path) == {"a", "b", "c"}
    first.publish(["d"])
    assert leased_keys(tmp_path) == {"b", "c", "d"}
    first.close()
    first.close()
    assert leased_keys(tmp_path) == {"b", "c"}
    second.close()
    assert leased_keys(tmp_path) == set()
    assert list(tmp_path.iterdir()) == []


def hold(folder: Path, ready: Any) -> None:
    lease = Lease(folder)
    lease.publish(["a"])
    ready.set()
    signal.pause()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_lease_dies_with_its_process(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    child = context.Process(target=hold, args=(tmp_path, ready))
    child.start()
    assert ready.wait(60)
    assert leased_keys(tmp_path) == {"a"}
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join(60)
    assert leased_keys(tmp_path) == set()
    assert list(tmp_path.iterdir()) == []  # and nothing of it stays


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_lease_that_is_closed_is_not_kept_by_a_forked_child(tmp_path: Path) -> None:
    lease = Lease(tmp_path)
    lease.publish(["a"])
    child = multiprocessing.get_context("fork").Process(target=signal.pause)
    child.start()
    lease.close()
    assert leased_keys(tmp_path) == set()
    child.kill()
    child.join(60)
