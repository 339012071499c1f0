"""On a GPU: training waits for the device at the ends of intervals, not at each step."""

import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch

from resscale.cli import main
from resscale.training.rundir import RunDir

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
       global_batch_size: 32, micro_batch_size: 16, num_workers: 1, log_sample_ids: true}
trainer: {accelerator: gpu, devices: 1, max_epochs: 1, log_every_n_steps: 1000,
          gradient_clip_val: 1.0}
ema: {decay: 0.9}
"""
# Everything that changes images and targets on the device.
AUGMENTED = (
    *("--model.policy.name=rand-m7-mstd0.5-inc1", "--model.policy.interpolation=bilinear"),
    *("--model.erasing.probability=0.5", "--model.erasing.value=noise"),
    *("--model.mixing.mixup_alpha=0.2", "--model.mixing.cutmix_alpha=1"),
    *("--model.loss=bce", "--model.target_threshold=0.2"),
)


def waits_of_a_run(folder: Path, steps: int, precision: str, *more: str) -> Counter[str]:
    """Train so many optimizer steps of two micro-batches; return the waits, by place in the code.

    torch says of each operation that waits for the device where it was called from.
    """
    (folder / "tiny.yaml").write_text(CONFIG)
    arguments = ["--config", f"{folder}/tiny.yaml", "--run_dir", f"{folder}/run-{steps}"]
    arguments += ["--trainer.limit_train_batches", str(2 * steps)]
    arguments += ["--trainer.precision", precision, *more]
    with warnings.catch_warnings(record=True) as caught, pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("always")
        patch.setenv("RESSCALE_RUN_DIR", "")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            assert main(["fit", *arguments]) == 0
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return Counter(
        f"{Path(warning.filename).name}:{warning.lineno}"
        for warning in caught
        if "synchronizing CUDA operation" in str(warning.message)
    )


# Not 16-mixed: its gradient scaler decides about each step on the host.
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_more_steps_of_an_interval_wait_no_more(tmp_path: Path, precision: str) -> None:
    few, many = (waits_of_a_run(tmp_path, steps, precision) for steps in (3, 13))
    assert few, "the interval's end waits for its sums"
    assert many - few == Counter()


def test_augmentation_does_not_wait(tmp_path: Path) -> None:
    few, many = (waits_of_a_run(tmp_path, steps, "bf16-mixed", *AUGMENTED) for steps in (3, 13))
    assert many - few == Counter()


def test_step_times_and_own_times_are_the_devices(tmp_path: Path) -> None:
    waits_of_a_run(tmp_path, 3, "bf16-mixed")
    summary = RunDir(tmp_path / "run-3").read_summary()
    assert 0 < summary["step_time_s"]["p50"] < 60
    assert 0 < summary["memory_bytes"] < torch.cuda.get_device_properties(0).total_memory
