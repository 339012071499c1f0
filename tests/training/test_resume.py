"""A run that is stopped and goes on is the run that was never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rank_server import RankServer

OPTIONS = (
    "--data.log_sample_ids=true",
    "--trainer.max_epochs=2",
    "--trainer.log_every_n_steps=1",
    "--trainer.accelerator=cpu",
)


def start(repository: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "resscale", "fit", *arguments],
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str], timeout_s: float = 200) -> tuple[int, str]:
    try:
        said = process.communicate(timeout=timeout_s)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, said


def wait_for_batches(process: subprocess.Popen[str], run_dir: Path, count: int) -> None:
    log = run_dir / "samples" / "rank-0.jsonl"
    deadline = time.monotonic() + 150
    while not log.exists() or log.read_text().count("\n") < count:
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline, "the run does not get going"
        time.sleep(0.01)


def summary(run_dir: Path) -> dict[str, object]:
    return json.loads((run_dir / "summary.json").read_text())


def state(run_dir: Path) -> dict[str, object]:
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)


def assert_same_run(one: Path, other: Path) -> None:
    """Sample ids, logged losses, weights and momentum are equal to the last bit."""
    samples = [(run / "samples" / "rank-0.jsonl").read_text() for run in (one, other)]
    assert samples[0] == samples[1]
    # epoch, step, train/loss, train/top1, val/loss, val/top1, val/top5: the rates may differ.
    rows = [
        [line.split(",")[:7] for line in (run / "metrics.csv").read_text().splitlines()]
        for run in (one, other)
    ]
    assert rows[0] == rows[1]
    first, second = state(one), state(other)
    assert first["global_step"] == second["global_step"]
    for name, tensor in first["state_dict"].items():
        assert torch.equal(tensor, second["state_dict"][name]), name
    momenta = [s["optimizer_states"][0]["state"] for s in (first, second)]
    for key, entry in momenta[0].items():
        assert torch.equal(entry["momentum_buffer"], momenta[1][key]["momentum_buffer"])


def fit(rank_server: RankServer, repository: Path, *arguments: str) -> tuple[int, str]:
    """A run that nobody disturbs: its exit code, and what it said."""
    ended = rank_server.run("fit", *arguments, cwd=repository)
    return ended.code, ended.said


@pytest.fixture(scope="module")
def whole(
    rank_server: RankServer, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run of 2 epochs × 22 steps that nobody disturbs."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    options = ("--config=configs/demo.yaml", *OPTIONS, f"--run_dir={run_dir}")
    code, said = fit(rank_server, repository, *options)
    assert code == 0, said
    return run_dir


@pytest.mark.parametrize(
    ("number", "batches"),
    [(signal.SIGTERM, 5), (signal.SIGINT, 30), (signal.SIGUSR2, 12)],
    ids=["TERM in the first epoch", "Ctrl-C in the second", "USR2"],
)
def test_a_stopped_run_goes_on_with_the_very_next_sample(
    rank_server: RankServer,
    repository: Path,
    tmp_path: Path,
    whole: Path,
    number: signal.Signals,
    batches: int,
) -> None:
    run_dir = tmp_path / "run"
    process = start(repository, "--config=configs/demo.yaml", *OPTIONS, f"--run_dir={run_dir}")
    wait_for_batches(process, run_dir, batches)
    process.send_signal(number)
    code, said = finish(process)
    assert code == 75, said
    assert f"resscale fit --run_dir {run_dir} --ckpt_path auto" in said
    stopped = summary(run_dir)
    assert stopped["status"] == "preempted"
    assert stopped["samples_seen"] == stopped["global_step"] * 64

    code, said = fit(rank_server, repository, f"--run_dir={run_dir}", "--ckpt_path=auto")
    assert code == 0, said
    assert summary(run_dir)["status"] == "done"
    assert str(summary(run_dir)["resumed_from"]).endswith(".ckpt")
    assert_same_run(whole, run_dir)


def test_a_killed_run_goes_on_from_its_newest_checkpoint_without_a_trace(
    rank_server: RankServer, repository: Path, tmp_path: Path, whole: Path
) -> None:
    run_dir = tmp_path / "run"
    process = start(
        repository,
        "--config=configs/demo.yaml",
        *OPTIONS,
        "--checkpoint.every_n_steps=5",
        f"--run_dir={run_dir}",
    )
    wait_for_batches(process, run_dir, 13)
    process.kill()
    # Its output ends only when the last process that shares it is gone: no worker lingers.
    assert finish(process, timeout_s=30)[0] == -signal.SIGKILL

    # The newest file is torn, as a dying disk would leave it: the one before must do.
    newest = max((run_dir / "checkpoints").glob("epoch-*.ckpt"))
    newest.write_bytes(newest.read_bytes()[:-1000])
    options = (f"--run_dir={run_dir}", "--ckpt_path=auto", "--checkpoint.every_n_steps=0")
    code, said = fit(rank_server, repository, *options)
    assert code == 0, said
    assert newest.name not in str(summary(run_dir)["resumed_from"])
    assert_same_run(whole, run_dir)


def test_a_finished_run_is_done_at_once_when_it_is_asked_to_go_on(
    rank_server: RankServer, repository: Path, whole: Path
) -> None:
    before = (whole / "metrics.csv").read_text()
    code, said = fit(rank_server, repository, f"--run_dir={whole}", "--ckpt_path=auto")
    assert code == 0, said
    assert (whole / "metrics.csv").read_text() == before
    assert summary(whole)["status"] == "done"


@pytest.mark.parametrize(
    ("option", "rule"),
    [
        ("--data.global_batch_size=32", "global_batch_size=64, now it is 32"),
        ("--seed_everything=1", "seed=0, now it is 1"),
        ("--data.train=builtin:digits/test", "the order of samples would change"),
        ("--model.optimizer.name=lars", "model.optimizer.name=sgd, now it is lars"),
        ("--trainer.max_epochs=1", "trainer.max_epochs=1 lies before the checkpoint"),
    ],
)
def test_a_refused_resume_leaves_the_run_as_it_was(
    rank_server: RankServer, repository: Path, whole: Path, option: str, rule: str
) -> None:
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    code, said = fit(rank_server, repository, f"--run_dir={whole}", "--ckpt_path=auto", option)
    assert code == 2, said
    assert rule in said
    after = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    assert after == before
