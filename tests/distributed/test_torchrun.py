"""Under torchrun a request to stop, and a rank that is lost, end as under every other launcher."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

OPTIONS = (
    "--config=configs/demo.yaml",
    "--model.model=resnet8_cifar",
    "--data.log_sample_ids=true",
    "--data.micro_batch_size=32",
    "--data.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.devices=2",
    "--trainer.max_epochs=3",
    "--checkpoint.every_n_steps=4",
)


def start(repository: Path, run_dir: Path, *more: str) -> subprocess.Popen[str]:
    command = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    return subprocess.Popen(
        [
            *command,
            "--nproc-per-node=2",
            *("-m", "resscale", "fit", *OPTIONS, f"--run_dir={run_dir}", *more),
        ],
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], run_dir: Path) -> str:
    try:
        said = process.communicate(timeout=240)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    deadline = time.monotonic() + 60
    while rank_processes(run_dir):
        assert time.monotonic() < deadline, "a rank has outlived torchrun"
        time.sleep(0.1)
    return said


def wait_for_steps(process: subprocess.Popen[str], run_dir: Path, count: int) -> None:
    log = run_dir / "samples" / "rank-1.jsonl"
    deadline = time.monotonic() + 200
    while not log.exists() or log.read_text().count("\n") < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the run does not get going"
        time.sleep(0.02)


def rank_processes(run_dir: Path) -> dict[int, int]:
    """The ranks' processes by rank, as torchrun told them."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0")
            variables = (entry / "environ").read_bytes().decode().split("\0")
        except OSError:
            continue
        if f"--run_dir={run_dir}" in words and "torch.distributed.run" not in words:
            ranks = [v.partition("=")[2] for v in variables if v.startswith("RANK=")]
            found.update({int(rank): int(entry.name) for rank in ranks})
    return found


def facts(run_dir: Path) -> dict[str, object]:
    return json.loads((run_dir / "summary.json").read_text())


def samples(run_dir: Path) -> dict[tuple[int, int], list[int]]:
    found: dict[tuple[int, int], list[int]] = {}
    for file in sorted((run_dir / "samples").glob("rank-*.jsonl")):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            found.setdefault((entry["epoch"], entry["step"]), []).extend(entry["ids"])
    return found


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_torchrun_stops_and_goes_on_whatever_ended_it(repository: Path, tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    undisturbed = start(repository, whole)
    said = finish(undisturbed, whole)
    assert undisturbed.returncode == 0, said

    # One rank is asked to stop: all save at the same step, and leave with 75.
    first = start(repository, run)
    wait_for_steps(first, run, 6)
    os.kill(rank_processes(run)[1], signal.SIGTERM)
    said = finish(first, run)
    assert first.returncode != 0
    assert "exitcode  : 75" in said
    assert facts(run)["status"] == "preempted"
    stopped_at = facts(run)["global_step"]

    # torchrun itself is asked to stop: it passes that on to its ranks.
    second = start(repository, run, "--ckpt_path=auto")
    wait_for_steps(second, run, int(str(stopped_at)) + 8)
    second.send_signal(signal.SIGTERM)
    finish(second, run)
    assert facts(run)["status"] == "preempted"

    # A rank is lost: all end, and whoever started them starts them again, as Kubernetes does.
    third = start(repository, run, "--ckpt_path=auto")
    wait_for_steps(third, run, int(str(facts(run)["global_step"])) + 6)
    os.kill(rank_processes(run)[0], signal.SIGKILL)
    finish(third, run)
    assert third.returncode != 0
    last = start(repository, run, "--ckpt_path=auto")
    said = finish(last, run)
    assert last.returncode == 0, said
    assert facts(run)["status"] == "done"
    assert samples(run) == samples(whole)
    first_weights, last_weights = weights(whole), weights(run)
    for name, tensor in first_weights.items():
        assert torch.equal(tensor, last_weights[name]), name
