"""On a GPU: batches that are copied ahead are those that were read, and training is the same."""

from pathlib import Path

import pytest
import torch

from resscale.cli import main
from resscale.data.dataset import Batch
from resscale.training.device_prefetch import StreamSender, send_ahead

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch sees none here"),
    pytest.mark.filterwarnings(
        "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",
        r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
    ),
]
CONFIG = """
model: {model: resnet8_cifar, num_classes: 10, mean: [0.3], std: [0.4]}
data: {train: builtin:digits/train, channels: 1, image_size: 8, train_crop: pad, pad: 1, flip: true,
       global_batch_size: 32, num_workers: 1}
trainer: {accelerator: gpu, devices: 1, max_epochs: 1, limit_train_batches: 20,
          log_every_n_steps: 1, deterministic: true}
float32_precision: highest
"""


def numbered(number: int) -> Batch:
    """A batch of page-locked memory, full of one number."""
    image = torch.full((64, 3, 64, 64), number, dtype=torch.uint8).pin_memory()
    label = torch.full((64,), number).pin_memory()
    flip = torch.zeros(64, dtype=torch.bool).pin_memory()
    ids = torch.arange(64)
    batch = {"image": image, "label": label, "flip": flip, "id": ids}
    return {**batch, "epoch": 0, "step": number, "bad": []}  # type: ignore[typeddict-item, return-value]


def moved(batch: Batch) -> Batch:
    gone = batch.copy()
    for name in ("image", "label", "flip"):
        gone[name] = batch[name].to("cuda", non_blocking=True)  # type: ignore[literal-required]
    return gone


def test_kernels_see_whole_batches_however_long_they_take() -> None:
    sender = StreamSender(moved, torch.device("cuda", torch.cuda.current_device()))
    big = torch.randn(4096, 4096, device="cuda")
    sums = []
    for batch in send_ahead((numbered(number) for number in range(50)), sender):
        # Slow kernels in front, so that copies run well ahead and memory is wanted again.
        big = (big @ big).clamp_(-1, 1)
        sums.append((batch["image"].double().mean(), batch["label"].double().mean()))
        assert not batch["id"].is_cuda
    assert [float(image) for image, _ in sums] == [float(number) for number in range(50)]
    assert [float(label) for _, label in sums] == [float(number) for number in range(50)]


def test_training_is_the_same_with_and_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    for ahead in ("true", "false"):
        arguments = ["--config", f"{tmp_path}/tiny.yaml", "--run_dir", f"{tmp_path}/{ahead}"]
        assert main(["fit", *arguments, "--device_prefetch", ahead]) == 0
    tables = [(tmp_path / ahead / "metrics.csv").read_text() for ahead in ("true", "false")]
    losses = [[line.split(",")[2] for line in table.splitlines()] for table in tables]
    assert losses[0] == losses[1]
    assert len(losses[0]) > 20
