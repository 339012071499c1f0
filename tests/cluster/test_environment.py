"""How a process was started: by SLURM, by torchrun, by resscale itself, or by hand."""

import pytest

from resscale.cluster.environment import RUN_DIR_VARIABLE, Launch, read_launch
from resscale.errors import UserInputError


def test_a_process_started_by_hand_is_the_first() -> None:
    launch = read_launch({})
    assert launch == Launch(rank=0, job_id=None, run_dir=None)
    assert launch.is_first


def test_a_task_of_srun_has_its_rank_and_its_job() -> None:
    launch = read_launch({"SLURM_PROCID": "3", "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "4711"})
    assert launch == Launch(rank=3, job_id="job4711", run_dir=None)
    assert not launch.is_first


def test_an_allocation_without_srun_is_no_launch() -> None:
    # Inside `salloc` or a batch script SLURM_JOB_ID is set, but no task was started by srun.
    assert read_launch({"SLURM_JOB_ID": "4711", "SLURM_PROCID": "0"}) == Launch(0, None, None)


def test_a_rank_of_torchrun_has_its_rank_and_run_id() -> None:
    launch = read_launch({"TORCHELASTIC_RUN_ID": "abc", "RANK": "5", "LOCAL_RANK": "1"})
    assert launch == Launch(rank=5, job_id="abc", run_dir=None)


def test_torchrun_without_a_run_id_is_refused_with_the_remedy() -> None:
    with pytest.raises(UserInputError, match=r"add --rdzv-id NAME or --standalone to torchrun"):
        read_launch({"TORCHELASTIC_RUN_ID": "none", "RANK": "0"})


def test_torchrun_without_a_run_id_takes_a_given_directory() -> None:
    environ = {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", RUN_DIR_VARIABLE: "/runs/x"}
    assert read_launch(environ) == Launch(rank=1, job_id="none", run_dir="/runs/x")


def test_a_rank_that_resscale_started_takes_rank_0_s_directory() -> None:
    launch = read_launch({"LOCAL_RANK": "1", RUN_DIR_VARIABLE: "/runs/x"})
    assert launch == Launch(rank=1, job_id=None, run_dir="/runs/x")


def test_rank_0_chooses_a_directory_of_its_own() -> None:
    # The variable may be left over from an earlier run in the same process.
    assert read_launch({RUN_DIR_VARIABLE: "/runs/old"}).run_dir is None
    assert read_launch({"LOCAL_RANK": "0", RUN_DIR_VARIABLE: "/runs/old"}).run_dir is None


def test_several_nodes_need_a_launcher() -> None:
    with pytest.raises(UserInputError, match=r"num_nodes=2 needs .* `srun` .* --nnodes 2"):
        read_launch({}).check_nodes(2)
    read_launch({}).check_nodes(1)
    read_launch({"SLURM_PROCID": "0", "SLURM_STEP_ID": "0"}).check_nodes(2)
    read_launch({"TORCHELASTIC_RUN_ID": "abc"}).check_nodes(2)


def test_the_process_s_own_environment_is_read_by_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("SLURM_PROCID", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert read_launch().rank == 2
