"""One of two real ranks fails: all processes end, and the first to fail is named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lingering import wait_until_none_is_left

from rank_server import RankServer
from resscale.training.failure import EVENT
from resscale.training.rundir import RunDir

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Ended:
    """What a run left: its exit code, what it said, the ledger's line, how long it took to end."""

    code: int
    said: str
    event: dict[str, Any]
    status: dict[str, Any]
    ended_after_s: float


def command(run_dir: Path, kind: str, *options: str) -> list[str]:
    """Train on two ranks, one of which fails."""
    return [
        *(sys.executable, "-m", "resscale", "fit", "--config=configs/demo.yaml"),
        *(f"--run_dir={run_dir}", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"),
        *("--trainer.devices=2", "--trainer.strategy=ddp", "--data.val=null"),
        *("--trainer.callbacks+=injected_faults.Fault", f"--trainer.callbacks.kind={kind}"),
        *options,
    ]


def environment() -> dict[str, str]:
    """Where the faults are found, and one thread a rank."""
    sought = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sought)}


def fail(repository: Path, run_dir: Path, kind: str, *options: str) -> Ended:
    """Train until no process is left."""
    process = subprocess.Popen(
        command(run_dir, kind, *options),
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    try:
        # Until every process that shares the output is gone: both ranks, and rank 0's readers.
        said = process.communicate(timeout=240)[0]
        wait_until_none_is_left(run_dir)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    ended_s = time.time()
    run = RunDir(run_dir)
    events = run.read_events(EVENT)
    assert len(events) == 1, said
    after_s = ended_s - events[0]["time_s"]
    return Ended(process.returncode, said, events[0], run.read_summary(), after_s)


def fail_forked(
    rank_server: RankServer, repository: Path, run_dir: Path, kind: str, *options: str
) -> Ended:
    """Train on ranks of which none has started the other, as srun and torchrun start them."""
    arguments = command(run_dir, kind, *options)[3:]
    ended = rank_server.run(*arguments, cwd=repository, environ=environment())
    ended_s = time.time()
    wait_until_none_is_left(run_dir)
    run = RunDir(run_dir)
    (event,) = run.read_events(EVENT)
    after_s = ended_s - event["time_s"]
    return Ended(ended.codes[0], ended.said, event, run.read_summary(), after_s)


def assert_named(ended: Ended, step: int, phase: str) -> None:
    """The ledger, the summary and the last lines say the same, and nobody lingered."""
    where = (ended.event["rank"], ended.event["step"], ended.event["phase"])
    assert where == (1, step, phase), ended.said
    line = f"rank 1 of 2 failed first, at step {step} in phase {phase} (host "
    assert line in ended.said.splitlines()[-2], ended.said
    assert ended.status["status"] == "failed"
    assert str(ended.status["reason"]).startswith(line)
    assert ended.ended_after_s < 60


def assert_raised(ended: Ended, run_dir: Path) -> None:
    assert ended.code == 1
    assert_named(ended, 3, "forward")
    assert (ended.event["kind"], ended.event["exception"]) == ("exception", "ArithmeticError")
    injected = 'raise ArithmeticError("the injected error")'
    assert injected in ended.event["traceback"]
    assert injected in "\n".join(ended.said.splitlines()[-5:])
    # Told once on the console, and in the rank's own file.
    assert ended.said.count(injected) == 1
    assert injected in RunDir(run_dir).log(1).read_text()


def assert_stuck(ended: Ended) -> None:
    assert ended.code == 70
    assert_named(ended, 3, "data")
    assert ended.event["kind"] == "hang"
    # The line that hangs, in the rank's own process or in the one that reads for it.
    assert "injected_faults.py" in ended.event["traceback"]
    assert "in read" in ended.event["traceback"]
    assert "in read" in ended.said


def test_an_exception_in_one_rank_ends_all(repository: Path, tmp_path: Path) -> None:
    ended = fail(repository, tmp_path / "run", "raise", "--data.num_workers=0")
    assert_raised(ended, tmp_path / "run")


def test_an_exception_under_deepspeed_is_told_alike(
    rank_server: RankServer, repository: Path, tmp_path: Path
) -> None:
    options = ("--data.num_workers=0", "--trainer.strategy=deepspeed_1")
    ended = fail_forked(rank_server, repository, tmp_path / "run", "raise", *options)
    assert_raised(ended, tmp_path / "run")


@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_1"])
def test_a_killed_rank_ends_all(repository: Path, tmp_path: Path, strategy: str) -> None:
    options = ("--data.num_workers=1", f"--trainer.strategy={strategy}")
    ended = fail(repository, tmp_path / "run", "kill", *options)
    assert ended.code == 1
    assert_named(ended, 3, "backward")
    assert (ended.event["kind"], ended.event["traceback"]) == ("gone", "")
    assert ended.event["message"].startswith("killed by SIGKILL")
    assert "no traceback" in ended.said.splitlines()[-2]


def test_a_read_that_never_returns_ends_all(repository: Path, tmp_path: Path) -> None:
    # On a busy machine the first reading process alone takes ten seconds to start.
    options = ("--data.num_workers=1", "--data.worker_kind=processes", "--hang_timeout_s=20")
    assert_stuck(fail(repository, tmp_path / "run", "stuck read", *options))


@pytest.mark.parametrize(
    "readers",
    [("--data.num_workers=0",), ("--data.num_workers=1", "--data.worker_kind=threads")],
    ids=["the main thread", "a reading thread"],
)
def test_a_read_that_never_returns_in_the_ranks_own_process_ends_all(
    rank_server: RankServer, repository: Path, tmp_path: Path, readers: tuple[str, ...]
) -> None:
    options = (*readers, "--hang_timeout_s=10", "--trainer.strategy=deepspeed_1")
    run_dir = tmp_path / "run"
    assert_stuck(fail_forked(rank_server, repository, run_dir, "stuck read", *options))


def test_a_rank_killed_before_training_begins_ends_all(repository: Path, tmp_path: Path) -> None:
    ended = fail(repository, tmp_path / "run", "die early", "--data.num_workers=0")
    assert ended.code == 1
    assert (ended.event["rank"], ended.event["phase"]) == (1, "start")
    assert "rank 1 of 2 failed first, at step 0 in phase start" in ended.said.splitlines()[-2]
    assert ended.ended_after_s < 60


def test_where_another_launcher_started_the_ranks_they_watch_each_other(
    rank_server: RankServer, repository: Path, tmp_path: Path
) -> None:
    options = ("kill", "--data.num_workers=0")
    ended = fail_forked(rank_server, repository, tmp_path / "run", *options)
    assert ended.code == 1
    assert_named(ended, 3, "backward")
    assert ended.event["message"].startswith("its process is gone")


def test_where_rank_0_is_killed_another_rank_tells_it(
    rank_server: RankServer, repository: Path, tmp_path: Path
) -> None:
    options = ("kill", "--data.num_workers=0", "--trainer.callbacks.rank=0")
    ended = fail_forked(rank_server, repository, tmp_path / "run", *options)
    assert ended.code == -signal.SIGKILL
    line = "rank 0 of 2 failed first, at step 3 in phase backward (host "
    assert line in ended.said.splitlines()[-2], ended.said
    assert ended.event["message"].startswith("its process is gone")
    assert ended.status["status"] == "failed"
