"""`slurm/pack.sbatch`: what a task of an array packs, and what it refuses.

SLURM itself is in tests/slurm; here its variables are set by hand. Where `echo` stands for Python,
the script shows the command that it would run.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from resscale.data.manifest import Manifest

SCRIPT = Path(__file__).resolve().parents[1] / "slurm" / "pack.sbatch"
Script = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Run the script as a batch shell would, with these arguments and variables."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        outside = {name: value for name, value in os.environ.items() if "SLURM" not in name}
        return subprocess.run(
            ["bash", str(SCRIPT), *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env={**outside, "RESSCALE_PYTHON": "echo", **variables},
        )

    return run


def array(task: int, first: int, last: int, count: int) -> dict[str, str]:
    """What SLURM tells a task of an array."""
    numbers = {"ID": task, "MIN": first, "MAX": last, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(number) for name, number in numbers.items()}


def test_without_an_array_the_whole_is_packed(script: Script) -> None:
    done = script("imagenet", "/data/in", "out", "--resize", "512", SLURM_CPUS_PER_TASK="8")
    assert done.stdout == "-m resscale pack imagenet --processes 8 /data/in out --resize 512\n"


@pytest.mark.parametrize(
    ("variables", "part"),
    [
        (array(0, 0, 15, 16), "0/16"),
        (array(15, 0, 15, 16), "15/16"),
        (array(16, 1, 16, 16), "15/16"),  # --array=1-16 is as good
        ({**array(7, 3, 7, 2), "RESSCALE_PACK_PARTS": "16"}, "7/16"),  # --array=3,7 once more
        (array(4, 4, 4, 1), "0/1"),
    ],
)
def test_a_task_of_an_array_packs_its_part(
    script: Script, variables: dict[str, str], part: str
) -> None:
    done = script("digits", "out", **variables)
    assert done.stdout == f"-m resscale pack digits --processes 1 --part {part} out\n"


def test_an_array_with_gaps_is_refused(script: Script) -> None:
    done = script("digits", "out", **array(7, 3, 7, 2))
    assert done.returncode == 2
    assert done.stdout == ""
    assert "the array of 2 tasks from 3 to 7 has gaps" in done.stderr
    assert "set RESSCALE_PACK_PARTS=16" in done.stderr


def test_missing_arguments_are_named(script: Script) -> None:
    done = script("digits")
    assert (done.returncode, done.stdout) == (2, "")
    assert "give it the arguments of `resscale pack`" in done.stderr


def test_a_setup_that_fails_ends_the_task(script: Script) -> None:
    done = script("digits", "out", RESSCALE_SETUP="cd nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert "RESSCALE_SETUP failed: cd nowhere" in done.stderr


def test_setup_and_wrapper_of_the_site_stand_around_the_command(script: Script) -> None:
    done = script(
        "digits", "out", RESSCALE_SETUP="export WHERE=here", RESSCALE_WRAPPER="env A=1 bash -c",
        RESSCALE_PYTHON="echo $A $WHERE",
    )  # fmt: skip
    assert done.stdout == "1 here\n"


def test_nothing_of_a_site_stands_in_the_script() -> None:
    options = [
        line.split()[1].partition("=")[0]
        for line in SCRIPT.read_text().splitlines()
        if line.startswith("#SBATCH")
    ]
    assert set(options) == {
        "--job-name", "--export", "--nodes", "--ntasks", "--cpus-per-task", "--requeue",
        "--open-mode", "--signal",
    }  # fmt: skip


def test_the_tasks_of_an_array_pack_a_data_set(script: Script, tmp_path: Path) -> None:
    line = ("digits", "out", "--limit", "20", "--samples_per_shard", "8", "--processes", "1")
    python = {"RESSCALE_PYTHON": sys.executable}
    first = script(*line, **array(1, 0, 1, 2), **python)
    assert first.returncode == 0, first.stderr
    assert "part 1/2, 8 samples in 1 shard, is done" in first.stdout  # 8 + 8 + 4, the second
    assert not (tmp_path / "out" / "train" / "manifest.json").exists()
    last = script(*line, **array(0, 0, 1, 2), **python)
    assert last.returncode == 0, last.stderr
    assert "all parts are there, 0/2 ended last" in last.stdout
    for split in ("train", "test"):
        assert Manifest.load(tmp_path / "out" / split).num_samples == 20


def test_the_exit_code_is_that_of_pack(script: Script) -> None:
    done = script("digits", "out", "--limt", "3", RESSCALE_PYTHON=sys.executable)
    assert done.returncode == 2
    assert "Did you mean '--limit'?" in done.stderr
