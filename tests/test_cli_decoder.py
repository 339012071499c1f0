"""A run says what its images were decoded with, and goes on with that."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from resscale.cli import main
from resscale.data.decoders import why_not
from resscale.training.checkpoint import STATE_KEY, load_checkpoint

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",
        r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
        "ignore:.*callbacks used to create the checkpoint need to be provided:UserWarning",
    ),
    pytest.mark.usefixtures("_clean_environment"),
]
CONFIG: dict[str, Any] = {
    "model": {"model": "resnet8_cifar", "num_classes": 10, "mean": [0.3053], "std": [0.3762]},
    "data": {
        "train": "builtin:digits/train",
        "channels": 1,
        "image_size": 8,
        "train_crop": "center",
        "global_batch_size": 64,
        "num_workers": 0,
        "decoder": "pillow",
    },
    "trainer": {"limit_train_batches": 2, "max_epochs": 1, "accelerator": "cpu"},
}


@pytest.fixture(scope="module")
def _clean_environment() -> Any:
    """Take back what a run leaves in the environment for its ranks."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run of one epoch that was decoded with Pillow."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    arguments = ["--config", str(tmp_path / "tiny.yaml"), "--run_dir", str(tmp_path / "run")]
    assert main(["fit", *arguments]) == 0
    return tmp_path / "run"


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero:UserWarning")
def test_a_run_keeps_its_decoder_and_tells_of_another(
    capsys: pytest.CaptureFixture[str], run_dir: Path
) -> None:
    assert "decoder: pillow (" in capsys.readouterr().out
    newest = run_dir / "checkpoints" / "last.ckpt"
    assert load_checkpoint(newest)[STATE_KEY]["decoder"] == "pillow"
    assert json.loads((run_dir / "summary.json").read_text())["decoder"] == "pillow"

    resume = ["fit", "--run_dir", str(run_dir), "--ckpt_path", "auto"]
    assert main([*resume, "--trainer.max_epochs", "2", "--data.decoder", "auto"]) == 0
    said = capsys.readouterr().out
    assert "decoder: pillow (" in said
    assert "has decoded with" not in said

    if reason := why_not("simplejpeg"):
        pytest.skip(reason)
    assert main([*resume, "--trainer.max_epochs", "3", "--data.decoder", "simplejpeg"]) == 0
    said = capsys.readouterr().out
    assert "this run has decoded with pillow so far and goes on with simplejpeg" in said
    assert load_checkpoint(newest)[STATE_KEY]["decoder"] == "simplejpeg"
