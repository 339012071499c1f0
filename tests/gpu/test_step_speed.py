"""On a GPU: compiled modes lose what eager training loses; profile and bench see the device."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from resscale.cli import main
from resscale.cli_bench import run_bench

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch sees none here"),
    pytest.mark.filterwarnings(
        "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",
        r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
    ),
    pytest.mark.timeout(900),
]
CONFIG = """
model: {model: resnet8_cifar, num_classes: 10, mean: [0.3], std: [0.4], optimizer: {lr: 0.01}}
data: {train: builtin:digits/train, channels: 1, image_size: 8, train_crop: pad, pad: 1, flip: true,
       global_batch_size: 64, num_workers: 1}
trainer: {accelerator: gpu, devices: 1, max_epochs: 1, limit_train_batches: 15,
          log_every_n_steps: 1}
float32_precision: highest
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    return str(tmp_path / "tiny.yaml")


def losses(folder: Path) -> list[float]:
    header, *rows = (folder / "metrics.csv").read_text().splitlines()
    column = header.split(",").index("train/loss")
    return [float(row.split(",")[column]) for row in rows]


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_mode_trains_as_eagerly(tmp_path: Path, config: str, mode: str) -> None:
    compiled = ("--model.compile", "inductor", "--model.compile_mode", mode)
    for name, more in (("eager", ()), ("compiled", compiled)):
        assert main(["fit", "--config", config, "--run_dir", f"{tmp_path}/{name}", *more]) == 0
    eager, fused = losses(tmp_path / "eager"), losses(tmp_path / "compiled")
    assert len(eager) == 15
    assert fused == pytest.approx(eager, rel=1e-3)


def test_a_profile_tells_of_kernels(tmp_path: Path, config: str) -> None:
    words = ("--profile.after", "3", "--profile.steps", "2")
    assert main(["fit", "--config", config, "--run_dir", f"{tmp_path}/run", *words]) == 0
    table = (tmp_path / "run" / "profile" / "rank-0-step-4.txt").read_text()
    assert "GPU ms/step" in table
    assert float(table.splitlines()[1].split()[-2]) > 0


def test_a_step_on_a_gpu_has_a_copy_from_the_host(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--rounds", "2", "--steps", "5", "--trainer.precision", "bf16-mixed", "--json")
    assert run_bench(["step", "--config", config, *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["floors"]) == {"host to device", "forward", "backward", "optimizer"}
    assert found["peaks"]["transfer_bytes_per_s"] > 1e8
    assert 0 < found["memory_bytes"] < torch.cuda.get_device_properties(0).total_memory
    assert all(found["seconds"][part] > 0 for part in ("forward", "backward", "optimizer"))
