"""Ranks as processes: every exit code counts, and no rank outlives the others."""

import os
import subprocess
import sys
import threading
import time

import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment

from resscale.training import launcher as launcher_module
from resscale.training.checkpoint_io import PendingSave
from resscale.training.launcher import RankLauncher


class Left(BaseException):
    """Stands for the end of the process."""


def launcher(*scripts: str) -> RankLauncher:
    """A launcher whose other ranks are processes that run these scripts."""
    made = RankLauncher(LightningEnvironment(), num_processes=len(scripts) + 1, num_nodes=1)
    made.procs = [subprocess.Popen([sys.executable, "-Sc", script]) for script in scripts]
    return made


@pytest.mark.parametrize(
    ("codes", "expected"), [((0, 0), 0), ((0, 3), 3), ((75, 0), 75), ((75, 3), 75)]
)
def test_waiting_returns_the_first_exit_code_that_is_not_0(
    codes: tuple[int, ...], expected: int
) -> None:
    assert launcher(*(f"raise SystemExit({code})" for code in codes)).wait() == expected


def test_without_other_ranks_there_is_nothing_to_wait_for() -> None:
    assert launcher().wait() == 0


def test_a_rank_that_does_not_end_is_killed() -> None:
    ranks = launcher("import time; time.sleep(600)")
    assert ranks.wait(timeout_s=0.2) == -9  # SIGKILL
    assert ranks.procs[0].poll() is not None


@pytest.mark.parametrize(
    ("script", "code", "meaning"),
    [
        ("raise SystemExit(5)", 5, "exit code 5"),
        ("import os; os.kill(os.getpid(), 9)", 1, "signal SIGKILL"),
    ],
)
def test_when_one_rank_fails_the_others_are_ended_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script: str,
    code: int,
    meaning: str,
) -> None:
    left: list[int] = []

    def leave(status: int) -> None:
        left.append(status)
        raise Left

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(launcher_module, "GRACE_S", 0.0)
    ranks = launcher("import time; time.sleep(600)", script)
    with pytest.raises(Left):
        ranks._watch()
    assert left == [code]
    assert ranks.procs[0].wait(10) == -9
    pid = ranks.procs[1].pid
    said = f"rank 2 (process {pid}) ended with {meaning}; ending the others.\n"
    assert capsys.readouterr().err == said


def test_a_checkpoint_on_its_way_is_not_cut_by_a_rank_that_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    happened: list[str] = []
    begun = threading.Event()

    def leave(status: int) -> None:
        happened.append("left")
        raise Left

    def write() -> None:
        begun.set()
        time.sleep(1.5)  # the launcher looks at its ranks each half second
        happened.append("saved")

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(launcher_module, "GRACE_S", 0.0)
    threading.Thread(target=PendingSave(lambda: None).run, args=(write,)).start()
    assert begun.wait(60)
    with pytest.raises(Left):
        launcher("raise SystemExit(5)")._watch()
    assert happened == ["saved", "left"]


def test_the_watch_ends_quietly_when_all_ranks_are_done(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ranks = launcher("pass", "pass")
    for process in ranks.procs:
        process.wait(30)
    ranks._watch()
    assert capsys.readouterr().err == ""


def test_whoever_asked_hears_of_a_rank_that_ended_before_the_others_are_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[tuple[int, int, int]] = []

    def leave(status: int) -> None:
        raise Left

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(launcher_module, "GRACE_S", 0.0)
    ranks = launcher("pass", "raise SystemExit(5)")
    ranks.on_death = lambda rank, pid, code: heard.append((rank, pid, code))
    with pytest.raises(Left):
        ranks._watch()
    assert heard == [(2, ranks.procs[1].pid, 5)]


def test_a_rank_ends_when_the_process_that_started_it_is_killed() -> None:
    rank = (
        "import sys, time; from resscale.training.launcher import end_with_launcher; "
        "end_with_launcher(grace_s=0.0); print('watching', flush=True); time.sleep(600)"
    )
    main = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    with subprocess.Popen(
        [sys.executable, "-Sc", main, rank], stdout=subprocess.PIPE, text=True
    ) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "watching\n"
        started.kill()
        # The end of the output: no process that shares it is left.
        assert started.stdout.read() == ""


class External(LightningEnvironment):
    """A launcher such as srun, which has started all ranks already."""

    @property
    def creates_processes_externally(self) -> bool:
        return True


def test_ranks_that_another_launcher_started_are_not_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(RankLauncher, "_call_children_scripts", pytest.fail)
    made = RankLauncher(External(), num_processes=2, num_nodes=1)
    assert made.launch(lambda a, b: (a, b), 1, b=2, trainer=object()) == (1, 2)


def test_the_other_ranks_are_started_once_and_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    started: list[int] = []

    def start(self: RankLauncher) -> None:
        started.append(1)
        self.procs = [subprocess.Popen([sys.executable, "-Sc", "pass"])]

    monkeypatch.setattr(RankLauncher, "_call_children_scripts", start)
    made = RankLauncher(LightningEnvironment(), num_processes=2, num_nodes=1)
    assert made.launch(lambda: "fitted") == "fitted"
    assert made.launch(lambda: "tested") == "tested"
    assert started == [1]
    assert made.wait() == 0


@pytest.mark.parametrize(
    ("now", "expected"),
    [(8, 4), (1, 1)],
    ids=["8 threads become 8 cores / 2 ranks", "fewer, asked for by the user, stay"],
)
def test_each_rank_gets_no_more_than_its_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, now: int, expected: int
) -> None:
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: now)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    launcher_module._share_cores(2)
    assert threads == [expected]
