"""What rank 0 refuses ends all ranks of srun; a start that got nowhere leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Two tasks of one srun, as SLURM tells them; SLURM itself is in tests/slurm.
JOB = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "2",
    "SLURM_NODEID": "0",
    "SLURMD_NODENAME": "localhost",
    "OMP_NUM_THREADS": "1",
}
FIT = (
    "fit",
    "--config=configs/demo.yaml",
    "--model.model=resnet8_cifar",
    "--trainer.accelerator=cpu",
    "--data.num_workers=0",
    "--data.log_sample_ids=true",
    "--trainer.max_epochs=1",
)


def start(repository: Path, rank: int, *words: str, **more: str) -> subprocess.Popen[str]:
    variables = {**JOB, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), **more}
    return subprocess.Popen(
        [sys.executable, "-m", "resscale", *words],
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "holds a run already; add --ckpt_path auto"),
        (("--ckpt_path=nowhere.ckpt",), "--ckpt_path nowhere.ckpt: there is no such file"),
    ],
    ids=["a used directory", "no such checkpoint"],
)
def test_what_rank_0_refuses_ends_all_ranks_with_its_code(
    words: tuple[str, ...], said: str, repository: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    if not words:
        run_dir.mkdir()
        (run_dir / "summary.json").write_text(json.dumps({"status": "done"}))
    before = sorted(path.name for path in tmp_path.glob("run/*") if path.name != "ranks")
    ranks = [start(repository, rank, *FIT, f"--run_dir={run_dir}", *words) for rank in (0, 1)]
    told = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2]
    assert said in told[0]
    assert told[1] == ""
    # The run that lies there is as it was.
    assert sorted(path.name for path in run_dir.glob("*") if path.name != "ranks") == before


def test_a_rank_that_alone_cannot_begin_says_so_and_ends_all(
    repository: Path, tmp_path: Path
) -> None:
    run_dir = f"--run_dir={tmp_path}/run"
    first = start(repository, 0, *FIT, run_dir)
    # Its node does not see the data.
    second = start(repository, 1, *FIT, run_dir, "--data.val=/nowhere/val")
    told = [rank.communicate(timeout=120)[1] for rank in (first, second)]
    assert [first.returncode, second.returncode] == [2, 2]
    assert "rank 1 on" in told[1]
    assert "/nowhere/val" in told[1]


def test_a_start_killed_before_its_first_checkpoint_leaves_no_sample_twice(
    repository: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    log = run_dir / "samples" / "rank-0.jsonl"
    log.parent.mkdir(parents=True)
    # What a start has logged that was killed behind its third step.
    log.write_text("".join(f'{{"epoch": 0, "step": {k}, "ids": [{k}]}}\n' for k in range(3)))
    (run_dir / "summary.json").write_text(json.dumps({"status": "running"}))
    alone = {"SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_RESTART_COUNT": "1"}
    process = start(repository, 0, *FIT, f"--run_dir={run_dir}", **alone)
    told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(22))  # 1,437 digits in batches of 64


def test_a_run_killed_behind_its_last_checkpoint_is_done_by_the_next_start(
    repository: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    alone = {"SLURM_STEP_TASKS_PER_NODE": "1"}
    first = start(repository, 0, *FIT, f"--run_dir={run_dir}", **alone)
    assert first.wait(120) == 0
    first.communicate()
    summary = json.loads((run_dir / "summary.json").read_text())
    (run_dir / "summary.json").write_text(json.dumps({**summary, "status": "running"}))
    (run_dir / "checkpoints" / "last.ckpt").unlink()
    (run_dir / "checkpoints" / "best.ckpt").unlink()
    again = start(repository, 0, *FIT, f"--run_dir={run_dir}", SLURM_RESTART_COUNT="1", **alone)
    told = again.communicate(timeout=120)
    assert again.returncode == 0, told
    assert json.loads((run_dir / "summary.json").read_text())["status"] == "done"
    for name in ("last.ckpt", "best.ckpt"):
        assert (run_dir / "checkpoints" / name).exists(), name
