"""How a process was started: by SLURM, by torchrun, by resscale itself, or by hand."""

import pytest

from resscale.cluster.environment import (
    RUN_DIR_VARIABLE,
    Launch,
    expand_counts,
    read_launch,
    read_slurm,
)
from resscale.errors import UserInputError

# What SLURM 22.05 gives task 3 of `srun` in a job of 2 nodes with 2 tasks each.
TASK = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURMD_NODENAME": "n2",
}
# The batch script of the same job.
BATCH = {
    "SLURM_JOB_ID": "4711",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_TASKS_PER_NODE": "2(x2)",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURMD_NODENAME": "n1",
}


TORCHRUN = {"TORCHELASTIC_RUN_ID": "night", "RANK": "9"}


@pytest.mark.parametrize(
    ("environ", "is_first_on_node"),
    [
        ({}, True),
        (TASK, False),
        ({**TASK, "SLURM_LOCALID": "0"}, True),
        ({**TORCHRUN, "LOCAL_RANK": "1"}, False),
        ({**TORCHRUN, "LOCAL_RANK": "0"}, True),
        ({"LOCAL_RANK": "1", RUN_DIR_VARIABLE: "runs/one"}, False),
    ],
    ids=["alone", "srun", "srun, first", "torchrun", "torchrun, first", "our launcher"],
)
def test_one_rank_of_a_node_is_its_first(environ: dict[str, str], is_first_on_node: bool) -> None:
    assert read_launch(environ).is_first_on_node is is_first_on_node


def test_a_process_started_by_hand_is_the_first() -> None:
    launch = read_launch({})
    assert launch == Launch(rank=0, job_id=None, run_dir=None)
    assert launch.is_first
    assert not launch.is_restart


def test_a_task_of_srun_has_its_rank_and_its_job() -> None:
    launch = read_launch(TASK)
    assert (launch.rank, launch.job_id, launch.launcher) == (3, "job4711", "srun")
    assert not launch.is_first
    job = launch.srun
    assert job is not None
    assert (job.num_tasks, job.num_nodes, job.local_rank, job.node_rank) == (4, 2, 1, 1)
    assert (job.node_list, job.node_name, job.step_id) == ("n[1-2]", "n2", "0")


def test_the_only_task_of_a_job_starts_the_ranks_of_its_machine() -> None:
    # `srun --pty bash`, and a command in it: one task, whatever the job was given.
    alone = {**TASK, "SLURM_PROCID": "0", "SLURM_STEP_TASKS_PER_NODE": "1"}
    launch = read_launch(alone)
    assert (launch.rank, launch.job_id, launch.launcher) == (0, "job4711", None)
    assert launch.srun is None


def test_a_batch_script_without_srun_is_refused_where_the_job_has_tasks() -> None:
    launch = read_launch(BATCH)
    assert launch.launcher is None
    with pytest.raises(UserInputError, match=r"4 tasks on 2 nodes.*`srun resscale fit --x 'a b'`"):
        launch.check_started(["resscale", "fit", "--x", "a b"])


def test_a_job_that_asked_for_no_tasks_has_one_on_each_node() -> None:
    # `sbatch --nodes=1 --exclusive`: SLURM says how many tasks the CPUs would be enough for.
    exclusive = {
        "SLURM_JOB_ID": "4711",
        "SLURM_TASKS_PER_NODE": "64",
        "SLURM_JOB_NUM_NODES": "1",
    }
    read_launch(exclusive).check_started(["resscale", "fit"])
    two = {**exclusive, "SLURM_JOB_NUM_NODES": "2", "SLURM_TASKS_PER_NODE": "64(x2)"}
    with pytest.raises(UserInputError, match="has 2 tasks on 2 nodes"):
        read_launch(two).check_started(["resscale", "fit"])


def test_the_shell_of_salloc_is_no_step_of_srun() -> None:
    # SLURM numbers its own steps from the top: 0xfffffffa is the interactive one.
    launch = read_launch({**BATCH, "SLURM_STEP_ID": str(0xFFFFFFFA)})
    assert launch.slurm is not None
    assert launch.slurm.step_id is None
    with pytest.raises(UserInputError, match="srun has not started this process"):
        launch.check_started(["resscale", "fit"])


@pytest.mark.parametrize(
    "environ", [{}, TASK, {**BATCH, "SLURM_TASKS_PER_NODE": "1"}], ids=["hand", "srun", "one task"]
)
def test_what_is_started_well_is_not_refused(environ: dict[str, str]) -> None:
    read_launch(environ).check_started(["resscale", "fit"])


def test_a_requeued_job_is_a_restart() -> None:
    assert not read_launch(TASK).is_restart
    assert read_launch({**TASK, "SLURM_RESTART_COUNT": "2"}).is_restart


def test_a_task_of_an_array_has_a_name_of_its_own() -> None:
    array = {**TASK, "SLURM_ARRAY_JOB_ID": "4700", "SLURM_ARRAY_TASK_ID": "11"}
    job = read_slurm(array)
    assert job is not None
    # scontrol takes the job's own number.
    assert (job.job_id, job.raw_id) == ("4700_11", "4711")
    assert read_launch(array).job_id == "job4700_11"


def test_counts_of_tasks_are_written_short() -> None:
    assert expand_counts("2(x3),1") == (2, 2, 2, 1)
    assert expand_counts("8") == (8,)


def test_what_slurm_gave_is_read() -> None:
    given = {
        **TASK,
        "SLURM_CPUS_PER_TASK": "7",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_JOB_END_TIME": "1795000000",
    }
    job = read_slurm(given)
    assert job is not None
    assert (job.cpus_per_task, job.gpus_on_node, job.end_time_s) == (7, 8, 1795000000.0)
    plain = read_slurm(TASK)
    assert plain is not None
    assert (plain.cpus_per_task, plain.gpus_on_node, plain.end_time_s) == (None, 0, None)


def test_outside_slurm_there_is_no_job() -> None:
    assert read_slurm({"SLURM_CONF": "/etc/slurm/slurm.conf"}) is None


def test_a_rank_of_torchrun_has_its_rank_and_run_id() -> None:
    launch = read_launch({"TORCHELASTIC_RUN_ID": "abc", "RANK": "5", "LOCAL_RANK": "1"})
    assert launch == Launch(rank=5, job_id="abc", run_dir=None, launcher="torchrun", local_rank=1)


def test_torchrun_in_a_job_of_slurm_is_torchrun() -> None:
    # One task per node runs torchrun, which starts the ranks.
    launch = read_launch({**TASK, "TORCHELASTIC_RUN_ID": "abc", "RANK": "5"})
    assert (launch.rank, launch.launcher, launch.srun) == (5, "torchrun", None)
    assert launch.slurm is not None


def test_ranks_that_torchrun_starts_anew_are_a_restart() -> None:
    environ = {"TORCHELASTIC_RUN_ID": "abc", "RANK": "0", "TORCHELASTIC_RESTART_COUNT": "1"}
    assert read_launch(environ).is_restart
    assert not read_launch({**environ, "TORCHELASTIC_RESTART_COUNT": "0"}).is_restart


def test_torchrun_without_a_run_id_is_refused_with_the_remedy() -> None:
    with pytest.raises(UserInputError, match=r"add --rdzv-id NAME or --standalone to torchrun"):
        read_launch({"TORCHELASTIC_RUN_ID": "none", "RANK": "0"})


def test_torchrun_without_a_run_id_takes_a_given_directory() -> None:
    environ = {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", RUN_DIR_VARIABLE: "/runs/x"}
    expected = Launch(rank=1, job_id="none", run_dir="/runs/x", launcher="torchrun")
    assert read_launch(environ) == expected


def test_a_rank_that_resscale_started_takes_rank_0_s_directory() -> None:
    launch = read_launch({"LOCAL_RANK": "1", RUN_DIR_VARIABLE: "/runs/x"})
    assert launch == Launch(rank=1, job_id=None, run_dir="/runs/x", local_rank=1)


def test_rank_0_chooses_a_directory_of_its_own() -> None:
    # The variable may be left over from an earlier run in the same process.
    assert read_launch({RUN_DIR_VARIABLE: "/runs/old"}).run_dir is None
    assert read_launch({"LOCAL_RANK": "0", RUN_DIR_VARIABLE: "/runs/old"}).run_dir is None


def test_several_nodes_need_a_launcher() -> None:
    with pytest.raises(UserInputError, match=r"num_nodes=2 needs .* `srun` .* --nnodes 2"):
        read_launch({}).check_nodes(2)
    read_launch({}).check_nodes(1)
    read_launch(TASK).check_nodes(2)
    read_launch({"TORCHELASTIC_RUN_ID": "abc"}).check_nodes(2)


def test_the_process_s_own_environment_is_read_by_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert read_launch().rank == 2
