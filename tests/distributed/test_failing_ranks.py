"""One of two real ranks fails: all processes end, and the first to fail is named."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lingering import wait_until_none_is_left

from resscale.training.failure import EVENT
from resscale.training.rundir import RunDir

HERE = Path(__file__).parent
STRATEGIES = ("ddp", "deepspeed_1")


@dataclass(frozen=True)
class Ended:
    """What a run left: its exit code, what it said, the ledger's line, how long it took to end."""

    code: int
    said: str
    event: dict[str, Any]
    status: dict[str, Any]
    ended_after_s: float


def command(run_dir: Path, kind: str, strategy: str, *options: str) -> list[str]:
    """Train on two ranks, one of which fails."""
    return [
        *(sys.executable, "-m", "resscale", "fit", "--config=configs/demo.yaml"),
        *(f"--run_dir={run_dir}", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"),
        *("--trainer.devices=2", f"--trainer.strategy={strategy}", "--data.val=null"),
        *("--trainer.callbacks+=injected_faults.Fault", f"--trainer.callbacks.kind={kind}"),
        *options,
    ]


def environment() -> dict[str, str]:
    """Where the faults are found, and one thread a rank."""
    sought = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sought)}


def fail(repository: Path, run_dir: Path, kind: str, strategy: str, *options: str) -> Ended:
    """Train until no process is left."""
    process = subprocess.Popen(
        command(run_dir, kind, strategy, *options),
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


def start_by_hand(repository: Path, run_dir: Path, kind: str) -> list[subprocess.Popen[str]]:
    """Start two ranks as srun or torchrun do: none of them is the other's parent."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    job = {"TORCHELASTIC_RUN_ID": "job", "RESSCALE_RUN_DIR": str(run_dir), "WORLD_SIZE": "2"}
    here = {"LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    return [
        subprocess.Popen(
            command(run_dir, kind, "ddp", "--data.num_workers=0"),
            cwd=repository,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                **environment(),
                **job,
                **here,
                **{"MASTER_PORT": port, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            },
        )
        for rank in (0, 1)
    ]


def assert_named(ended: Ended, step: int, phase: str) -> None:
    """The ledger, the summary and the last lines say the same, and nobody lingered."""
    where = (ended.event["rank"], ended.event["step"], ended.event["phase"])
    assert where == (1, step, phase), ended.said
    line = f"rank 1 of 2 failed first, at step {step} in phase {phase} (host "
    assert line in ended.said.splitlines()[-2], ended.said
    assert ended.status["status"] == "failed"
    assert str(ended.status["reason"]).startswith(line)
    assert ended.ended_after_s < 60


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_exception_in_one_rank_ends_all(repository: Path, tmp_path: Path, strategy: str) -> None:
    ended = fail(repository, tmp_path / "run", "raise", strategy, "--data.num_workers=0")
    assert ended.code == 1
    assert_named(ended, 3, "forward")
    assert (ended.event["kind"], ended.event["exception"]) == ("exception", "ArithmeticError")
    injected = 'raise ArithmeticError("the injected error")'
    assert injected in ended.event["traceback"]
    assert injected in "\n".join(ended.said.splitlines()[-5:])
    # Told once on the console, and in the rank's own file.
    assert ended.said.count(injected) == 1
    assert injected in RunDir(tmp_path / "run").log(1).read_text()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_killed_rank_ends_all(repository: Path, tmp_path: Path, strategy: str) -> None:
    ended = fail(repository, tmp_path / "run", "kill", strategy, "--data.num_workers=1")
    assert ended.code == 1
    assert_named(ended, 3, "backward")
    assert (ended.event["kind"], ended.event["traceback"]) == ("gone", "")
    assert ended.event["message"].startswith("killed by SIGKILL")
    assert "no traceback" in ended.said.splitlines()[-2]


@pytest.mark.parametrize(("strategy", "workers"), [("ddp", 1), ("deepspeed_1", 0)])
def test_a_read_that_never_returns_ends_all(
    repository: Path, tmp_path: Path, strategy: str, workers: int
) -> None:
    options = (f"--data.num_workers={workers}", "--hang_timeout_s=10")
    ended = fail(repository, tmp_path / "run", "stuck read", strategy, *options)
    assert ended.code == 70
    assert_named(ended, 3, "data")
    assert ended.event["kind"] == "hang"
    # The line that hangs, in the rank's own process or in the one that reads for it.
    assert "injected_faults.py" in ended.event["traceback"]
    assert "in read_batch" in ended.event["traceback"]
    assert "in read_batch" in ended.said


def test_a_rank_killed_before_training_begins_ends_all(repository: Path, tmp_path: Path) -> None:
    ended = fail(repository, tmp_path / "run", "die early", "ddp", "--data.num_workers=0")
    assert ended.code == 1
    assert (ended.event["rank"], ended.event["phase"]) == (1, "start")
    assert "rank 1 of 2 failed first, at step 0 in phase start" in ended.said.splitlines()[-2]
    assert ended.ended_after_s < 60


def test_where_another_launcher_started_the_ranks_they_watch_each_other(
    repository: Path, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    first, second = start_by_hand(repository, run.path, "kill")
    try:
        said = first.communicate(timeout=240)[0]
        assert first.returncode == 1, said
        line = "rank 1 of 2 failed first, at step 3 in phase backward (host "
        assert line in said.splitlines()[-2], said
        (event,) = run.read_events(EVENT)
        assert (event["rank"], event["pid"]) == (1, second.pid)
        assert event["message"].startswith("its process is gone")
        assert second.wait(60) == -signal.SIGKILL
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()
