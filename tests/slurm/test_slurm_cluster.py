"""The cluster that the other tests stand on: its nodes fail as real ones do, and it leaves nothing.

The faults themselves (power, daemon, cable) are shown in test_slurm_runs.py, by what becomes of a
job.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import processes
import pytest
from slurm_cluster import SlurmCluster

pytestmark = pytest.mark.usefixtures("slurm_is_possible")
HERE = Path(__file__).parent
# Starts a cluster, says what it is, and waits to be killed.
OWNER = """
import time
from slurm_cluster import SlurmCluster

with SlurmCluster(num_nodes=1) as running:
    job = running.submit("--ntasks=2", "--wrap", "srun sleep 600", cwd=running.folder)
    running.wait_for(lambda: len(running.ranks(job)) == 2, "ranks")
    print(running.conf, job, flush=True)
    time.sleep(600)
"""


def test_a_job_runs_on_nodes_of_their_own(slurm: SlurmCluster, tmp_path: Path) -> None:
    look = "hostname; ls /dev/shm; touch /dev/shm/$SLURM_PROCID; echo $CUDA_VISIBLE_DEVICES"
    options = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=2")
    job = slurm.submit(
        *options, f"--output={tmp_path}/said", "--wrap", f"srun sh -c '{look}'", cwd=tmp_path
    )
    assert slurm.wait_for_end(job)["JobState"] == "COMPLETED"
    words = sorted((tmp_path / "said").read_text().split())
    hosts = [word for word in words if word.startswith("n")]
    assert len(set(hosts)) == 2
    # Beside the hosts: the fake GPUs of each. Neither sees the other's file in shared memory.
    assert words == sorted(["0,1", "0,1", *hosts])


def test_two_clusters_run_at_once(slurm: SlurmCluster, tmp_path: Path) -> None:
    with SlurmCluster(num_nodes=1) as other:
        assert other.folder != slurm.folder
        options = (f"--output={tmp_path}/said", "--wrap", "srun hostname")
        job = other.submit(*options, cwd=tmp_path)
        assert other.wait_for_end(job)["JobState"] == "COMPLETED"
        assert (tmp_path / "said").read_text() == "n1\n"
        assert slurm.facts(job) == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_cluster_ends_with_the_process_that_started_it(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HERE)},
    ) as owner:
        try:
            assert owner.stdout is not None
            conf = owner.stdout.readline().split()[0]
            mine = processes.with_environment(SLURM_CONF=conf)
            names = {Path(processes.arguments_of(pid)[0]).name for pid in mine}
            assert {"munged", "slurmctld", "slurmd", "sleep"} <= names
            owner.send_signal(number)
            owner.wait(60)
            processes.wait_gone(mine)
        finally:
            owner.kill()
            shutil.rmtree(Path(conf).parent, ignore_errors=True)
