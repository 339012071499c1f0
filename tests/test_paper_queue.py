"""The queue of the paper's experiments: its commands are real, it goes on, and it stops when asked.

They lie in `benchmarks/paper.py` and `benchmarks/run_queue.py`, beside the package.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from run_queue import fit_command

from resscale.cli_lightning import TrainCli

pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"
)
ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "paper.py"
TINY = {
    "model": {"mean": [0.3053], "std": [0.3762]},
    "data": {
        "train": "builtin:digits/train",
        "val": "builtin:digits/test",
        "eval_batch_size": 360,
        "num_workers": 0,
    },
    "trainer": {"max_epochs": 1, "limit_train_batches": 2, "check_val_every_n_epoch": 1},
}


def load_queue() -> ModuleType:
    """Import the script, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("paper_queue", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["paper_queue"] = module  # where dataclasses look their types up
    spec.loader.exec_module(module)
    return module


QUEUE = load_queue()


def work_off(folder: Path, **more: object) -> subprocess.Popen[str]:
    """Start the queue on two nets of a tiny setting."""
    overlay = folder / "tiny.yaml"
    config = {**TINY, "trainer": {**TINY["trainer"], **more}}
    overlay.write_text(yaml.safe_dump(config))
    arguments = ["--only", "plain20", "resnet20", "--seeds", "0", "--runs_dir", f"{folder}/runs"]
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments, "--overlay", str(overlay)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def summaries(folder: Path) -> dict[str, dict[str, object]]:
    """The summaries of the runs by the runs' names."""
    files = (folder / "runs").glob("*/summary.json")
    return {file.parent.name: json.loads(file.read_text()) for file in files}


@pytest.mark.parametrize("name", QUEUE.NETS)
def test_every_net_s_command_parses_and_builds(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    words = fit_command(QUEUE.arguments(name, []), 2, tmp_path / "run")
    assert words[1:4] == ["-m", "resscale", "fit"]
    cli = TrainCli("fit", words[4:])
    assert cli.config.seed_everything == 2
    assert cli.parser.instantiate_classes(cli.config).model.num_parameters > 0


def test_other_data_has_a_folder_of_its_own() -> None:
    assert QUEUE.runs_folder([]) == Path("runs/paper")
    overlay = ["configs/paper/data/cifar10.yaml", "short.yaml"]
    assert QUEUE.runs_folder(overlay) == Path("runs/paper-cifar10-short")


def test_no_job_at_a_time_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["paper.py", "--jobs", "0"])
    with pytest.raises(SystemExit, match="2"):
        QUEUE.main()
    assert "--jobs 0 must be at least 1" in capsys.readouterr().err


def test_nets_are_trained_and_what_is_done_is_passed_over(tmp_path: Path) -> None:
    first = work_off(tmp_path)
    said, complaints = first.communicate(timeout=300)
    assert first.returncode == 0, complaints
    assert sorted(line.split(" after")[0] for line in said.splitlines()) == [
        "plain20-s0: done", "resnet20-s0: done"
    ]  # fmt: skip
    found = summaries(tmp_path)
    # 2 steps of 64 images.
    assert {name: facts["samples_seen"] for name, facts in found.items()} == {
        "plain20-s0": 128, "resnet20-s0": 128
    }  # fmt: skip
    again = work_off(tmp_path)
    assert again.communicate(timeout=60)[0] == ""
    assert again.returncode == 0


def test_a_queue_that_is_stopped_goes_on_from_its_checkpoints(tmp_path: Path) -> None:
    queue = work_off(tmp_path, max_epochs=200)
    metrics = [
        tmp_path / "runs" / f"{name}-s0" / "summary.json" for name in ("plain20", "resnet20")
    ]
    deadline = time.monotonic() + 240
    while not all(file.exists() for file in metrics) and time.monotonic() < deadline:
        time.sleep(0.2)
    queue.send_signal(signal.SIGINT)
    queue.communicate(timeout=240)
    assert queue.returncode == 75
    stopped = summaries(tmp_path)
    assert {facts["status"] for facts in stopped.values()} == {"preempted"}
    words = fit_command(QUEUE.arguments("plain20", []), 0, tmp_path / "runs" / "plain20-s0")
    assert "--ckpt_path=auto" in words


def test_a_run_killed_before_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    killed = tmp_path / "runs" / "plain20-s0"
    killed.mkdir(parents=True)
    # `resscale fit` alone would refuse the directory: it holds a run.
    (killed / "summary.json").write_text('{"status": "running"}')
    queue = work_off(tmp_path)
    _, complaints = queue.communicate(timeout=300)
    assert queue.returncode == 0, complaints
    assert summaries(tmp_path)["plain20-s0"]["status"] == "done"


def test_a_net_that_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    blocked = tmp_path / "runs" / "plain20-s0"
    (blocked / "checkpoints").mkdir(parents=True)
    (blocked / "checkpoints" / "torn.ckpt").write_text("torn")
    (blocked / "metrics.csv").mkdir()  # where a file has to be written
    queue = work_off(tmp_path)
    _, complaints = queue.communicate(timeout=300)
    assert queue.returncode == 1
    assert "plain20-s0 left with 1, see" in complaints
    assert "metrics.csv" in (blocked / "fit.log").read_text()
    assert summaries(tmp_path)["resnet20-s0"]["status"] == "done"
