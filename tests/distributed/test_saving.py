"""Two real processes save: what rank 0 alone meets ends both."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from resscale.data.builtin import resolve

LIMIT_BYTES = 1_000_000


def start(repository: Path, run_dir: Path) -> subprocess.Popen[str]:
    """Train on two ranks that save every 4 steps in the background, in files of 1 MB at most."""

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, LIMIT_BYTES))

    options = (
        "--config=configs/demo.yaml",
        "--data.micro_batch_size=32",
        "--data.num_workers=0",
        "--trainer.accelerator=cpu",
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
        "--checkpoint.asynchronous=true",
        "--checkpoint.every_n_steps=4",
    )
    return subprocess.Popen(
        [sys.executable, "-m", "resscale", "fit", f"--run_dir={run_dir}", *options],
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        preexec_fn=limit_files,
    )


def finish(process: subprocess.Popen[str], timeout_s: float = 200) -> tuple[int, str]:
    try:
        said = process.communicate(timeout=timeout_s)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, said


@pytest.fixture(autouse=True, scope="module")
def _packed_before() -> None:
    """Pack the digits before files are limited: a shard of them is larger."""
    resolve("builtin:digits/train")


def test_a_save_that_fails_in_the_background_ends_both_ranks(
    repository: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    # A checkpoint of resnet20_cifar takes 2.3 MB: rank 0 alone meets the limit.
    code, said = finish(start(repository, run_dir))
    assert code == 2, said
    assert "step-00000004.ckpt cannot be written ([Errno 27] File too large)" in said
    assert "another rank ended" not in said
    assert not list((run_dir / "checkpoints").iterdir())
