"""From nodes and GPUs to tasks, CPUs and sbatch's words; and the batch script itself."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from resscale.cluster.site import Site
from resscale.cluster.submission import (
    NodeKind,
    Shape,
    batch_script,
    check_time,
    derive_shape,
    find_node_kinds,
    parse_nodes,
    sbatch_command,
)
from resscale.errors import UserInputError

ROOT = Path(__file__).resolve().parents[2]
SINFO = """\
main*|1-00:00:00|64|gpu:a100:4(S:0-1),gpu:v100:2,nvme:1
main*|1-00:00:00|32|gpu:8
low|infinite|16|(null)
low|infinite|48+|gpu:3090:4
"""
HOUR = 3600


def test_one_task_for_each_gpu_and_a_fair_share_of_the_cpus() -> None:
    shape = derive_shape(4, 2, None, None, [NodeKind(64, 8)] * 4)
    assert shape == Shape(4, 2, 2, 8)  # 64 CPUs × 2 of 8 GPUs / 2 tasks
    assert shape.num_ranks == 8
    assert str(shape) == "4 nodes × 2 GPUs = 8 ranks, 8 CPUs each"


def test_the_smallest_node_decides_the_share() -> None:
    assert derive_shape(1, 4, None, None, [NodeKind(64, 8), NodeKind(24, 4)]).cpus_per_task == 6


def test_nodes_that_lack_the_gpus_do_not_count() -> None:
    assert derive_shape(1, 4, None, None, [NodeKind(64, 8), NodeKind(4, 0)]).cpus_per_task == 8


def test_without_gpus_the_ranks_share_the_node() -> None:
    assert derive_shape(2, 0, 4, None, [NodeKind(18, 0)] * 2) == Shape(2, 4, 0, 4)  # 18 // 4
    assert derive_shape(1, 0, None, None, [NodeKind(18, 0)]) == Shape(1, 1, 0, 18)


def test_what_the_user_says_of_cpus_holds() -> None:
    assert derive_shape(1, 8, None, 3, [NodeKind(64, 8)]).cpus_per_task == 3


def test_without_slurm_nothing_is_known_of_cpus() -> None:
    shape = derive_shape(1, 1, None, None, [])
    assert shape.cpus_per_task is None
    assert str(shape) == "1 node × 1 GPU = 1 rank"


def test_tasks_that_are_not_the_gpus_are_refused() -> None:
    with pytest.raises(UserInputError, match=r"--tasks-per-node=4 with --gpus-per-node=8.*Leave"):
        derive_shape(1, 8, 4, None, [])
    assert derive_shape(1, 8, 8, None, []).tasks_per_node == 8


def test_more_than_the_nodes_have_is_refused() -> None:
    with pytest.raises(UserInputError, match=r"0 of the 2 nodes .* largest has 8 and 64"):
        derive_shape(1, 16, None, None, [NodeKind(64, 8)] * 2)
    with pytest.raises(UserInputError, match="--nodes=3: 2 of the 3 nodes"):
        derive_shape(3, 8, None, None, [NodeKind(64, 8), NodeKind(64, 8), NodeKind(64, 4)])
    with pytest.raises(UserInputError, match="have 0 GPUs and 32 CPUs or more"):
        derive_shape(1, 0, 32, None, [NodeKind(16, 0)])


def test_the_nodes_of_a_partition_are_read_with_their_gpus_and_limits() -> None:
    assert parse_nodes(SINFO, None, None) == [
        NodeKind(64, 6, 24 * HOUR), NodeKind(32, 8, 24 * HOUR)  # 4 a100 + 2 v100
    ]  # fmt: skip
    assert parse_nodes(SINFO, "main", "a100") == [
        NodeKind(64, 4, 24 * HOUR), NodeKind(32, 0, 24 * HOUR)
    ]  # fmt: skip
    assert parse_nodes(SINFO, "low", "3090") == [NodeKind(16, 0), NodeKind(48, 4)]
    assert parse_nodes(SINFO, "none", None) == []


def test_a_time_limit_is_a_time() -> None:
    check_time("12:00:00", [])
    with pytest.raises(UserInputError, match="--time=soon must read hours:minutes:seconds"):
        check_time("soon", [])


def test_a_time_limit_leaves_time_to_train() -> None:
    check_time("5", [])
    with pytest.raises(UserInputError, match="--time=4:59 is too short"):
        check_time("4:59", [])


def test_a_time_limit_that_no_node_allows_is_refused() -> None:
    kinds = [NodeKind(1, 0, HOUR), NodeKind(1, 0, 2 * HOUR)]
    check_time("2:00:00", kinds)
    with pytest.raises(UserInputError, match="beyond the 120 minutes of this partition"):
        check_time("2:00:01", kinds)
    check_time("9-0", [*kinds, NodeKind(1, 0, None)])


def test_slurm_is_asked_where_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserInputError, match="there is no sinfo"):
        find_node_kinds(None, None)


def command(shape: Shape, site: Site, num_tasks: int = 0, running: int | None = None) -> list[str]:
    return sbatch_command(
        shape,
        site,
        name="demo",
        log="runs/a/slurm-%j.out",
        script=Path("runs/a/train.sbatch"),
        arguments=["--config", "c.yaml"],
        time_limit="12:00:00",
        num_tasks=num_tasks,
        max_running=running,
    )


def test_sbatch_is_told_everything_once() -> None:
    assert command(Shape(4, 8, 8, 12), Site(partition="gpu", gpu_type="a100")) == [
        "sbatch", "--parsable", "--export=ALL", "--job-name=demo", "--nodes=4",
        "--gpus-per-node=a100:8", "--ntasks-per-node=8", "--cpus-per-task=12", "--time=12:00:00",
        "--output=runs/a/slurm-%j.out", "--partition=gpu", "runs/a/train.sbatch",
        "--config", "c.yaml",
    ]  # fmt: skip


def test_without_gpus_none_are_asked_for() -> None:
    words = command(Shape(1, 2, 0, None), Site())
    assert not [word for word in words if "gpu" in word or "cpus" in word]


def test_a_sweep_is_an_array() -> None:
    assert "--array=0-5" in command(Shape(1, 1, 0, None), Site(), num_tasks=6)
    assert "--array=0-5%2" in command(Shape(1, 1, 0, None), Site(), num_tasks=6, running=2)


def test_the_script_in_the_checkout_is_the_one_that_submit_sends() -> None:
    link = ROOT / "slurm" / "train.sbatch"
    assert not os.path.isabs(os.readlink(link))  # noqa: PTH115, PTH117 - the link's own text
    assert link.read_text() == batch_script()


def test_the_script_is_bash() -> None:
    checked = subprocess.run(
        ["bash", "-n"], input=batch_script(), text=True, capture_output=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_script_holds_nothing_of_a_recipe_or_of_a_site() -> None:
    options = re.findall(r"^#SBATCH --([a-z-]+)", batch_script(), re.M)
    assert sorted(options) == ["export", "job-name", "open-mode", "requeue", "signal"]
    code = "\n".join(line for line in batch_script().splitlines() if not line.startswith("#"))
    assert not re.search(r"--(config|data|model|trainer|partition|account)", code)
