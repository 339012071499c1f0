"""`resscale submit` and `resscale runs` on a real cluster: sent, followed, refused, left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import processes
from slurm_cluster import SlurmCluster

# Several commands in one process: torch takes seconds to import.
ON_HEAD = """
import json, sys
from resscale.cli_runs import run_runs
from resscale.cli_submit import run_submit
from resscale.errors import UserInputError

for name, *words in json.loads(sys.argv[1]):
    try:
        code = {"submit": run_submit, "runs": run_runs}[name](words)
    except UserInputError as error:
        print(error, flush=True)
        code = 2
    print(name, "ended with", code, flush=True)
"""
TINY = (
    "--model.model=resnet8_cifar",
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=2",
    "--data.num_workers=0",
)


def words_on_head(*commands: list[str]) -> list[str]:
    """The words that run some commands of ours in one process."""
    return [sys.executable, "-c", ON_HEAD, json.dumps(commands)]


def rows(table: str) -> dict[str, list[str]]:
    """The table of `resscale runs` by its first column."""
    return {line.split()[0]: line.split()[1:] for line in table.splitlines()[1:-1]}


def test_a_sweep_is_sent_followed_to_its_end_and_listed(
    slurm: SlurmCluster, repository: Path, tmp_path: Path
) -> None:
    config = f"--config={repository}/configs/demo.yaml"
    sweep = ["--sweep", "seed_everything=0,1", "--time", "30:00", "--watch"]
    done = slurm.run(*words_on_head(["submit", config, *TINY, *sweep], ["runs"]), cwd=tmp_path)
    said, _, table = done.stdout.partition("submit ended with 0\n")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    first, second = (folder / f"{number}-seed_everything={number}" for number in (0, 1))
    job = json.loads((first / "job.json").read_text())
    array = job["job_id"].removesuffix("_0")
    assert f"submitted job {array}\n" in said
    for number in (0, 1):
        assert f"job {array}_{number}: COMPLETED, exit code 0\n" in said
        assert f"{number}-seed_everything={number}: epoch 1 of 1, top-1" in said
    # A fair share of a node without other ranks: all of its CPUs.
    assert (job["nodes"], job["tasks_per_node"], job["cpus_per_task"]) == (1, 1, slurm.cpus)
    assert "the run is done" in (tmp_path / job["log"]).read_text()
    listed = rows(table)
    for run, number in ((first, 0), (second, 1)):
        state, epoch, _, _, job_id, restarts = listed[f"{folder.name}/{run.name}"]
        assert (state, epoch, job_id, restarts) == ("done", "1/1", f"{array}_{number}", "0")
        assert f"seed_everything: {number}\n" in (run / "config.yaml").read_text()


def test_a_job_in_the_queue_is_left_alone_by_ctrl_c_and_by_a_second_submission(
    slurm: SlurmCluster, repository: Path, tmp_path: Path
) -> None:
    (tmp_path / "held.yaml").write_text("sbatch_options: [--hold]\n")
    submit = ["submit", f"--config={repository}/configs/demo.yaml", "--cluster=held.yaml"]
    words = words_on_head(
        [*submit, "--run_dir=runs/a"],
        [*submit, "--run_dir=runs/a"],
        [*submit, "--run_dir=runs/b", "--constraint=nosuch"],
        [*submit, "--run_dir=runs/c", "--watch"],
    )
    with subprocess.Popen(
        [*slurm._enter("head"), f"--wd={tmp_path}", "--", *words],
        env=slurm.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as watching:
        assert watching.stdout is not None
        said = ""
        while "(JobHeldUser)" not in said:
            line = watching.stdout.readline()
            assert line, said
            said += line
        ours = [pid for pid in processes.running(*words[1:]) if pid != watching.pid]
        processes.kill(ours, signal.SIGINT)
        said += watching.stdout.read()
    first, second = (
        json.loads((tmp_path / f"runs/{name}/job.json").read_text())["job_id"] for name in "ac"
    )
    assert f"job {first} (PENDING) is there for runs/a already" in said
    # Nothing is left of what SLURM has refused.
    assert (
        "sbatch refuses: Batch job submission failed: Invalid feature specification. `sinfo" in said
    )
    assert sorted(os.listdir(tmp_path / "runs")) == ["a", "c"]  # noqa: PTH208 - names are enough
    assert f"job {second} goes on; cancel it with:  scancel {second}" in said
    assert said.endswith("submit ended with 130\n")

    assert slurm.state(second) == "PENDING"
    listed = rows(slurm.run(*words_on_head(["runs"]), cwd=tmp_path).stdout)
    assert listed["c"] == ["waits", "(JobHeldUser)", "0", "-", "-", second, "0"]
    slurm.run("scancel", first, second)
    listed = rows(slurm.run(*words_on_head(["runs"]), cwd=tmp_path).stdout)
    assert listed["a"] == ["never", "began", "(job", "CANCELLED)", "0", "-", "-", first, "0"]
