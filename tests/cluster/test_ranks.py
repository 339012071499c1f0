"""Ranks under srun meet where rank 0 says."""

import dataclasses
import socket
import threading
from pathlib import Path

import pytest

from resscale.cluster.environment import SlurmJob, read_slurm
from resscale.cluster.ranks import (
    HeldPort,
    Meeting,
    SlurmRanks,
    call_meeting,
    join_meeting,
    main_address,
    meeting_file,
)
from resscale.errors import UserInputError


@pytest.fixture
def job() -> SlurmJob:
    found = read_slurm(
        {
            "SLURM_JOB_ID": "4711",
            "SLURM_STEP_ID": "0",
            "SLURM_PROCID": "3",
            "SLURM_LOCALID": "1",
            "SLURM_NODEID": "1",
            "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
            "SLURMD_NODENAME": "n2",
        }
    )
    assert found is not None
    return found


def test_a_rank_waits_until_rank_0_has_spoken(tmp_path: Path, job: SlurmJob) -> None:
    said = Meeting("n1", 40123, "runs/x/checkpoints/a.ckpt")
    threading.Timer(0.3, call_meeting, (tmp_path, job, said)).start()
    assert join_meeting(tmp_path, job, timeout_s=30) == said


def test_what_an_earlier_start_was_told_is_not_taken(tmp_path: Path, job: SlurmJob) -> None:
    call_meeting(tmp_path, job, Meeting("n1", 1))
    requeued = dataclasses.replace(job, restart_count=1)
    with pytest.raises(UserInputError, match=r"rank 3 on n2 has waited 0.2 s .* share"):
        join_meeting(tmp_path, requeued, timeout_s=0.2)


def test_what_was_told_to_starts_that_were_killed_does_not_pile_up(
    tmp_path: Path, job: SlurmJob
) -> None:
    other = dataclasses.replace(job, job_id="47", restart_count=0)
    call_meeting(tmp_path, job, Meeting("n1", 1))
    call_meeting(tmp_path, other, Meeting("n1", 2))
    requeued = dataclasses.replace(job, restart_count=1)
    call_meeting(tmp_path, requeued, Meeting("n1", 3))
    left = set((tmp_path / "ranks").iterdir())
    assert left == {meeting_file(tmp_path, other), meeting_file(tmp_path, requeued)}


def test_tasks_of_an_array_do_not_hear_each_other(tmp_path: Path, job: SlurmJob) -> None:
    other = dataclasses.replace(job, job_id="4700_2")
    assert meeting_file(tmp_path, job) != meeting_file(tmp_path, other)


def test_a_torn_word_is_waited_for(tmp_path: Path, job: SlurmJob) -> None:
    target = meeting_file(tmp_path, job)
    target.parent.mkdir()
    target.write_text('{"address": "n')
    said = Meeting("n1", 40123)
    threading.Timer(0.3, call_meeting, (tmp_path, job, said)).start()
    assert join_meeting(tmp_path, job, timeout_s=30) == said


def test_the_node_s_name_is_the_address_unless_the_user_knows_better(
    job: SlurmJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert main_address(job) == "n2"
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.2")
    assert main_address(job) == "10.0.0.2"


def test_a_held_port_is_given_to_nobody_else_and_can_be_listened_on() -> None:
    held = [HeldPort() for _ in range(50)]
    try:
        assert len({port.number for port in held}) == 50
        with socket.socket() as listener:
            # As torch's store does.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("", held[0].number))
            listener.listen()
            socket.create_connection(("127.0.0.1", held[0].number), timeout=5).close()
    finally:
        for port in held:
            port.close()


def test_lightning_is_told_what_srun_has_fixed(job: SlurmJob) -> None:
    ranks = SlurmRanks(job, Meeting("n1", 40123))
    assert ranks.creates_processes_externally
    assert (ranks.main_address, ranks.main_port) == ("n1", 40123)
    assert (ranks.world_size(), ranks.global_rank()) == (4, 3)
    assert (ranks.local_rank(), ranks.node_rank()) == (1, 1)
    ranks.set_world_size(9)
    ranks.set_global_rank(9)
    assert (ranks.world_size(), ranks.global_rank()) == (4, 3)
    assert not SlurmRanks.detect()
