"""`resscale doctor`: on this machine alone, and on two real ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from resscale.cli_doctor import CHECKS, doctor_parser, run_doctor
from resscale.errors import UserInputError

pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",
)
CALL = "import sys; from resscale.cli_doctor import run_doctor; sys.exit(run_doctor(sys.argv[1:]))"
CONFIG: dict[str, Any] = {
    "model": {"model": "resnet8_cifar", "num_classes": 10, "mean": [0.3053], "std": [0.3762]},
    "data": {
        "train": "builtin:digits/train",
        "val": "builtin:digits/test",
        "channels": 1,
        "image_size": 8,
        "train_crop": "center",
        "global_batch_size": 64,
        "num_workers": 0,
    },
    "trainer": {"accelerator": "cpu"},
}


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("SLURM_"):
            monkeypatch.delenv(name)


@pytest.fixture
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(yaml.safe_dump(CONFIG))
    return str(file)


def levels(told: dict[str, Any]) -> dict[str, str]:
    return {finding["name"]: finding["level"] for finding in told["findings"]}


def test_a_machine_is_looked_at_without_a_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_doctor([]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[1] for line in lines]
    assert names == [
        "versions", "placement", "gpus", "cpus", "shared_memory", "open_files", "storage", "address"
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_is_measured_without_a_run_directory(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_doctor(["--config", config, "--seconds", "0.2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = levels(told)
    assert set(found) >= {"config", "data", "rates"}
    assert "fail" not in found.values()
    assert told["level"] in ("ok", "warn")  # a busy machine may be data-bound
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_option_of_fit_is_a_finding_beside_the_others(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_doctor(["--config", config, "--data.num_wrkers", "2", "--skip", "versions"]) == 2
    lines = capsys.readouterr().out.splitlines()
    said = "'data.num_wrkers' is not an option; did you mean 'data.num_workers'?"
    assert lines[0].split() == ["fail", "config", *said.split()]
    assert len(lines) > 1


def test_data_that_are_not_there_fail_and_nothing_is_measured(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", config, "--data.train", str(tmp_path / "no"), "--only", "data", "--json"]
    assert run_doctor([*words, "--only", "rates"]) == 2
    assert levels(json.loads(capsys.readouterr().out)) == {"data": "fail"}


def test_a_forgotten_srun_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_TASKS_PER_NODE", "2(x2)")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert run_doctor(["--only", "placement"]) == 2
    assert "write `srun resscale doctor --only placement`" in capsys.readouterr().out


def test_checks_can_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_doctor(["--only", "cpus", "--only", "open_files", "--skip", "cpus"]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["open_files"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "gpu"], "Did you mean 'gpus'"),
        (["--seconds", "0"], "--seconds 0 must be above 0"),
        (["--timeout_s", "-1"], "--timeout_s -1 must be above 0"),
    ],
)
def test_wrong_options_of_its_own_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(UserInputError, match=said):
        run_doctor(words)


def test_every_check_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_doctor(["--help"]) == 0
    said = capsys.readouterr().out
    for name, what in CHECKS.items():
        assert f"  {name:<14} {what}" in said
    assert doctor_parser().parse_args(["--config", "a", "--config", "b"]).config == ["a", "b"]


def start_rank(rank: int, folder: Path, *words: str, tasks: int = 2) -> subprocess.Popen[str]:
    """Start a rank as srun does on a node of its own."""
    job = {
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": str(rank),
        "SLURM_STEP_TASKS_PER_NODE": f"1(x{tasks})",
        "SLURMD_NODENAME": f"n{rank + 1}",
        "MASTER_ADDR": "127.0.0.1",
    }
    return subprocess.Popen(
        [sys.executable, "-c", CALL, *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **job, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def test_two_ranks_look_together_and_rank_0_speaks(config: str, tmp_path: Path) -> None:
    words = ["--config", config, "--seconds", "0.2", "--timeout_s", "100", "--json"]
    ranks = [start_rank(rank, tmp_path, *words) for rank in (0, 1)]
    (code, out, err), (other_code, other_out, other_err) = [finish(rank) for rank in ranks]
    assert (code, other_code, other_out) == (0, 0, ""), err + other_err
    told = json.loads(out)
    assert told["world_size"] == 2
    found = levels(told)
    assert set(found) >= {"meeting", "alike", "clock", "links", "rates", "data", "placement"}
    assert "fail" not in found.values()
    by_name = {finding["name"]: finding for finding in told["findings"]}
    assert by_name["placement"]["text"] == "2 ranks: 2 nodes × 1, on CPUs"
    assert by_name["meeting"]["hosts"] == ["n1", "n2"]
    # 64 samples over 2 ranks.
    assert "32/rank × 2 ranks" in by_name["data"]["text"]
    assert list(tmp_path.iterdir()) == []


def test_a_fault_of_one_rank_names_it_and_fails(config: str, tmp_path: Path) -> None:
    other = tmp_path / "n2"
    other.mkdir()
    words = ["--config", config, "--only", "data", "--runs_dir", str(tmp_path / "runs")]
    ranks = [
        start_rank(0, tmp_path, *words, "--timeout_s", "100"),
        start_rank(1, tmp_path, *words, "--timeout_s", "100", "--data.train", str(other / "no")),
    ]
    (code, out, err), (other_code, _, other_err) = [finish(rank) for rank in ranks]
    assert (code, other_code) == (2, 0), err + other_err
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["ok", "fail"]
    assert lines[1].endswith("[rank 1 on n2]")


def test_a_rank_that_does_not_come_is_named_and_nobody_hangs(tmp_path: Path) -> None:
    rank = start_rank(0, tmp_path, "--only", "meeting", "--timeout_s", "1")
    code, out, err = finish(rank)
    assert code == 2, err
    assert out.startswith("fail  meeting  rank 1 of 2 has not come in 1 s; ")
