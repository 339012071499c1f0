"""Nodes, tasks, ranks and GPUs, and a forgotten srun."""

import dataclasses
from typing import Any

import pytest

from resscale.cluster.doctor.finding import Finding
from resscale.cluster.doctor.placement import Placement, check_placement, find_placement
from resscale.cluster.environment import Launch, read_launch

HAND = Launch(0, None, None)
BATCH = {
    "SLURM_NTASKS": "4",
    "SLURM_JOB_ID": "4711",
    "SLURM_TASKS_PER_NODE": "2(x2)",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURMD_NODENAME": "n1",
}
TASK = {**BATCH, "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}


def check(
    launch: Launch, asked: Any = (1, "auto"), gpus: int = 0, accelerator: str = "auto"
) -> Finding:
    world_size = launch.srun.num_tasks if launch.srun else 1
    placement = find_placement(launch, world_size, *asked, gpus)
    (found,) = check_placement(launch, placement, asked, gpus, accelerator, ["resscale", "doctor"])
    return found


def test_a_laptop_has_one_rank() -> None:
    found = check(HAND)
    assert (found.level, found.text) == ("ok", "1 rank: 1 node × 1, on CPUs")


def test_tasks_of_srun_are_the_ranks() -> None:
    found = check(read_launch(TASK))
    assert (found.level, found.text) == ("ok", "4 ranks: 2 nodes × 2, on CPUs")


def test_a_forgotten_srun_fails_with_the_right_command() -> None:
    found = check(read_launch(BATCH))
    assert found.level == "fail"
    assert found.text == (
        "SLURM job 4711 has 4 tasks on 2 nodes, but srun has not started this process"
    )
    assert found.remedy.startswith("write `srun resscale doctor`")


def test_devices_other_than_the_tasks_fail() -> None:
    found = check(read_launch(TASK), asked=(1, 4))
    assert found.level == "fail"
    assert "trainer.devices=4, but srun has started 2 tasks on each node" in found.text


def test_gpus_that_are_more_than_the_tasks_fail() -> None:
    found = check(read_launch(TASK), gpus=8)
    assert found.level == "fail"
    assert "2 tasks and 8 GPUs" in found.text
    assert check(read_launch(TASK), gpus=2).text == "4 ranks: 2 nodes × 2, on GPUs"


def test_gpus_that_slurm_gave_and_torch_does_not_see_fail() -> None:
    found = check(read_launch({**TASK, "SLURM_GPUS_ON_NODE": "2"}))
    assert found.level == "fail"
    assert "SLURM gave this job 2 GPUs" in found.text
    assert check(read_launch({**TASK, "SLURM_GPUS_ON_NODE": "2"}), accelerator="cpu").level == "ok"


def test_idle_gpus_of_a_laptop_are_warned_of() -> None:
    found = check(HAND, asked=(1, 1), gpus=2)
    assert found.level == "warn"
    assert "1 of 2 GPUs here are idle" in found.text
    assert found.remedy == "use them all with --trainer.devices 2"


def test_more_ranks_than_gpus_fail() -> None:
    assert check(HAND, asked=(1, 4), gpus=2).level == "fail"
    # On a login node the GPUs are others' than the job's.
    assert check(HAND, asked=(2, 4), gpus=2).level == "warn"


@pytest.mark.parametrize(
    ("devices", "gpus", "per_node"),
    [("auto", 0, 1), ("auto", 4, 4), ("2", 0, 2), (3, 0, 3), (-1, 4, 4), ([0, 2], 4, 2)],
)
def test_devices_are_counted_as_the_trainer_does(devices: Any, gpus: int, per_node: int) -> None:
    assert find_placement(HAND, 1, 2, devices, gpus) == Placement(2, per_node)


def test_ranks_of_torchrun_are_spread_over_the_nodes() -> None:
    launch = dataclasses.replace(HAND, launcher="torchrun")
    assert find_placement(launch, 8, 2, "auto", 0) == Placement(2, 4)
    assert find_placement(launch, 8, 2, "auto", 0).world_size == 8
