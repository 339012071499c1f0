"""Two real processes (gloo): the same training as one, and no process left when one fails."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lingering import wait_until_none_is_left

from rank_server import RankServer

COMMON = (
    "--config=configs/demo.yaml",
    "--data.log_sample_ids=true",
    "--data.micro_batch_size=32",
    "--trainer.max_epochs=2",
    "--trainer.limit_train_batches=1.0",
    "--trainer.log_every_n_steps=1",
    "--trainer.accelerator=cpu",
)
TWO = ("--trainer.devices=2", "--trainer.strategy=ddp")


def start(repository: Path, run_dir: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "resscale", "fit", f"--run_dir={run_dir}", *arguments],
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout_s: float = 240) -> tuple[int, str]:
    """Wait until every process that shares the output is gone: ranks and workers too."""
    try:
        said = process.communicate(timeout=timeout_s)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, said


def rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def samples(run_dir: Path) -> dict[tuple[int, int], list[int]]:
    """The ids of each (epoch, step), ranks one behind the other."""
    found: dict[tuple[int, int], list[int]] = {}
    for file in sorted((run_dir / "samples").glob("rank-*.jsonl")):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            found.setdefault((entry["epoch"], entry["step"]), []).extend(entry["ids"])
    return found


def wait_for_batches(process: subprocess.Popen[str], run_dir: Path, count: int) -> None:
    log = run_dir / "samples" / "rank-1.jsonl"
    deadline = time.monotonic() + 200
    while not log.exists() or log.read_text().count("\n") < count:
        assert process.poll() is None, "the run ended before it could be disturbed"
        assert time.monotonic() < deadline, "the run does not get going"
        time.sleep(0.01)


def other_rank(process: subprocess.Popen[str]) -> int:
    """Process id of rank 1: the child that runs the same command."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        if b"RESSCALE_RUN_DIR" in Path(f"/proc/{child}/environ").read_bytes():
            command = Path(f"/proc/{child}/cmdline").read_bytes()
            if b"multiprocessing" not in command:
                return int(child)
    raise AssertionError("rank 1 is not there")


@pytest.fixture(scope="module")
def one(
    rank_server: RankServer, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """One process that accumulates 2 micro-batches of 32."""
    run_dir = tmp_path_factory.mktemp("one") / "run"
    ended = rank_server.run("fit", f"--run_dir={run_dir}", *COMMON, cwd=repository)
    assert ended.code == 0, ended.said
    assert "32/rank × 1 rank × 2 accum = 64 global" in ended.said
    return run_dir


@pytest.fixture(scope="module")
def two(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks with one micro-batch of 32 each."""
    run_dir = tmp_path_factory.mktemp("two") / "run"
    code, said = finish(start(repository, run_dir, *COMMON, *TWO))
    assert code == 0, said
    assert "32/rank × 2 ranks × 1 accum = 64 global" in said
    (run_dir.parent / "said").write_text(said)
    return run_dir


def test_two_ranks_lose_what_one_process_loses(one: Path, two: Path) -> None:
    losses = [
        [(row["step"], float(row["train/loss"])) for row in rows(run) if row["train/loss"]]
        for run in (one, two)
    ]
    assert len(losses[0]) == 44  # 2 epochs × 22 steps
    for (step, alone), (same, together) in zip(*losses, strict=True):
        assert step == same
        # The same micro-batches, so the same BatchNorm batches: only the order of sums differs.
        assert together == pytest.approx(alone, rel=1e-5), f"step {step}"


def test_each_rank_has_a_log_and_the_console_is_that_of_rank_0(two: Path) -> None:
    first, *copied = (two / "logs" / "rank-0.log").read_text().splitlines()
    assert "  rank 0 of 2 on " in first
    said = (two.parent / "said").read_text().splitlines()
    assert f"run directory: {two}" in copied
    assert copied[-1].startswith("next:  resscale validate ")
    assert set(copied) <= set(said)
    # At thousands of ranks the others must have next to nothing to say.
    (line,) = (two / "logs" / "rank-1.log").read_text().splitlines()
    assert "  rank 1 of 2 on " in line
    assert line not in said


def test_two_ranks_see_the_samples_that_one_process_sees(one: Path, two: Path) -> None:
    assert samples(one) == samples(two)
    for epoch in (0, 1):
        ids = [i for (e, _), batch in samples(two).items() if e == epoch for i in batch]
        assert len(ids) == len(set(ids)) == 22 * 64
    assert samples(two)[0, 0] != samples(two)[1, 0]


def test_two_ranks_end_with_the_weights_of_one_process(one: Path, two: Path) -> None:
    first, second = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in (one, two)
    )
    for name, tensor in first.items():
        # BatchNorm's statistics too: a step's micro-batches count as if each had its own rank.
        torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=1e-4)


def test_two_ranks_validate_each_sample_once(
    rank_server: RankServer, repository: Path, two: Path, resscale: Any
) -> None:
    options = ("validate", f"--run_dir={two}", "--ckpt_path=auto")
    alone = rank_server.run(*options, "--trainer.devices=1", cwd=repository)
    both = resscale(*options, *TWO, cwd=repository)
    assert alone.code == both.returncode == 0, alone.said + both.stderr
    assert "360 of 360 unique" in alone.said
    assert "360 of 360 unique" in both.stdout
    assert alone.said.split("loss")[0] == both.stdout.split("loss")[0]
    expected = float(json.loads((two / "summary.json").read_text())["val_top1"])
    assert f"top-1 {expected:.2%}" in alone.said


def test_a_signal_to_one_rank_stops_both_and_both_go_on_as_one(
    rank_server: RankServer, repository: Path, tmp_path: Path, two: Path
) -> None:
    run_dir = tmp_path / "run"
    process = start(repository, run_dir, *COMMON, *TWO)
    wait_for_batches(process, run_dir, 8)
    os.kill(other_rank(process), signal.SIGTERM)
    code, said = finish(process)
    assert code == 75, said
    assert json.loads((run_dir / "summary.json").read_text())["status"] == "preempted"

    # On one process now: the samples and losses are those of the undisturbed two.
    options = (f"--run_dir={run_dir}", "--ckpt_path=auto", "--trainer.devices=1")
    ended = rank_server.run("fit", *options, cwd=repository)
    assert ended.code == 0, ended.said
    assert samples(run_dir) == samples(two)
    pairs = zip(rows(run_dir), rows(two), strict=True)
    for here, there in pairs:
        assert here["step"] == there["step"]
        if here["train/loss"]:
            assert float(here["train/loss"]) == pytest.approx(float(there["train/loss"]), rel=1e-3)


def test_a_killed_main_process_leaves_no_rank_behind(repository: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = start(repository, run_dir, *COMMON, *TWO)
    wait_for_batches(process, run_dir, 3)
    process.kill()
    # `communicate` returns when rank 1 has closed the output that it shares.
    code, _ = finish(process, timeout_s=100)
    assert code == -signal.SIGKILL
    wait_until_none_is_left(run_dir)
