"""Tasks in worker processes: all of them done, errors passed on, nobody left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resscale.data.pack_pool import run_tasks
from resscale.errors import UserInputError


def square(number: int) -> int:
    return number * number


def fail_on_three(number: int) -> int:
    if number == 3:
        raise UserInputError("three")
    return number


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("processes", [1, 2])
def test_all_tasks_are_done(processes: int) -> None:
    assert sorted(run_tasks(square, range(20), processes)) == [n * n for n in range(20)]
    assert list(run_tasks(square, [], processes)) == []


def test_tasks_are_read_as_they_are_needed() -> None:
    taken: list[int] = []

    def tasks():
        for number in range(100):
            taken.append(number)
            yield number

    results = run_tasks(square, tasks(), 2)
    next(results)
    assert len(taken) < 20
    results.close()


@pytest.mark.parametrize("processes", [1, 2])
def test_error_of_a_task_is_raised(processes: int) -> None:
    with pytest.raises(UserInputError, match="three"):
        list(run_tasks(fail_on_three, range(50), processes))


def test_killed_worker() -> None:
    with pytest.raises(UserInputError, match="fewer --processes than 2"):
        list(run_tasks(die, range(4), 2))


ENDLESS = """
import os, sys, time
from pathlib import Path
from resscale.data.pack_pool import run_tasks

def work(number):
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(60)

if __name__ == "__main__":
    list(run_tasks(work, range(2), 2))
"""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(tmp_path: Path, signum: int) -> None:
    (tmp_path / "pids").mkdir()
    (tmp_path / "endless.py").write_text(ENDLESS)
    command = [sys.executable, str(tmp_path / "endless.py"), str(tmp_path / "pids")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while len(workers := list((tmp_path / "pids").iterdir())) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signum)
    process.wait(timeout=20)
    end_at = time.monotonic() + 20
    while any(is_running(int(worker.name)) for worker in workers):
        assert time.monotonic() < end_at, "a worker outlived its parent"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
