"""Tasks, devices, nodes and GPUs that do not fit are refused before ranks meet."""

import dataclasses
from collections.abc import Sequence

import pytest

from resscale.cluster.environment import SlurmJob, read_slurm
from resscale.cluster.shape import check_gpus, check_sees_gpus, check_shape, ranks_of
from resscale.errors import UserInputError


def job(*tasks_per_node: int, gpus_on_node: int = 0) -> SlurmJob:
    found = read_slurm({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURMD_NODENAME": "n1"})
    assert found is not None
    return dataclasses.replace(found, tasks_per_node=tasks_per_node, gpus_on_node=gpus_on_node)


def test_nodes_and_ranks_follow_from_the_tasks() -> None:
    assert ranks_of(job(8, 8)) == (2, 8)


def test_nodes_with_different_numbers_of_tasks_are_refused() -> None:
    with pytest.raises(UserInputError, match=r"has 8, 4 tasks .* --ntasks-per-node in place"):
        ranks_of(job(8, 4))


@pytest.mark.parametrize("devices", ["auto", -1, 8, "8", [0, 1, 2, 3, 4, 5, 6, 7]])
def test_what_says_nothing_or_the_same_takes_slurm_s_numbers(
    devices: int | str | Sequence[int],
) -> None:
    assert check_shape(job(8, 8), 1, devices) == (2, 8)
    assert check_shape(job(8, 8), 2, devices) == (2, 8)


def test_another_number_of_nodes_is_refused() -> None:
    with pytest.raises(UserInputError, match=r"num_nodes=4, but SLURM job 7 runs on 2"):
        check_shape(job(8, 8), 4, "auto")


def test_another_number_of_devices_is_refused_with_the_flag() -> None:
    # The mistake of issue threads: 8 devices, and one task on each node.
    with pytest.raises(UserInputError, match=r"devices=8, but .* 1 task on .* set it to 8"):
        check_shape(job(1, 1), 2, 8)


def test_gpus_without_a_task_are_refused() -> None:
    with pytest.raises(UserInputError, match=r"1 task and 8 GPUs on n1: .* --ntasks-per-node=8"):
        check_gpus(job(1, 1), 1, 8, "auto")
    check_gpus(job(8, 8), 8, 8, "auto")


def test_tasks_that_see_one_gpu_each_are_refused() -> None:
    with pytest.raises(UserInputError, match="each of the 8 tasks on n1 sees one GPU alone"):
        check_gpus(job(8), 8, 1, "gpu")


def test_tasks_on_cpus_need_no_gpus() -> None:
    check_gpus(job(4), 4, 8, "cpu")
    check_gpus(job(4), 4, 0, "auto")


def test_a_gpu_node_whose_gpus_torch_does_not_see_is_refused() -> None:
    with pytest.raises(UserInputError, match=r"gave this job 8 GPUs on n1, and torch sees none"):
        check_sees_gpus(job(8, gpus_on_node=8), 0, "auto")
    check_sees_gpus(job(8, gpus_on_node=8), 0, "cpu")
    check_sees_gpus(job(8, gpus_on_node=8), 8, "auto")
    check_sees_gpus(job(8), 0, "auto")
