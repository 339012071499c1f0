"""ZeRO as a strategy object; what it trains is tests/distributed/test_zero.py's."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from resscale.errors import UserInputError

pytest.importorskip("deepspeed", reason="the extra [deepspeed] is not installed")

# In a process of its own: it joins a process group. `max_steps=0`: set up, and train nothing.
SYNC_BATCHNORM = """
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn
from resscale.training.classifier import ImageClassifier
from resscale.training.zero import ZeRO

class Look(Callback):
    def on_fit_start(self, trainer, pl_module):
        modules = list(trainer.strategy.deepspeed_engine.module.modules())
        print(sum(isinstance(m, nn.SyncBatchNorm) for m in modules),
              sum(isinstance(m, nn.BatchNorm2d) for m in modules), flush=True)

for stage in (1, 3):
    module = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1)
    trainer = Trainer(
        accelerator="cpu", strategy=ZeRO(stage), sync_batchnorm=True, max_steps=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[Look()],
    )
    trainer.fit(module, torch.utils.data.DataLoader(range(2)))
"""


def test_synchronised_batchnorm_is_not_ignored() -> None:
    # The command refuses it without GPUs, and torch cannot compute it there: only the set-up runs.
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SYNC_BATCHNORM],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # 1 + 3 stages × 1 block × 2 = 7 norms, at stage 1 and at stage 3; none was left as it was.
    assert [line for line in done.stdout.splitlines() if line[0].isdigit()] == ["7 0", "7 0"]


def test_deepspeed_loaded_for_other_devices_is_refused_before_ranks_connect() -> None:
    from lightning.fabric.plugins.environments import LightningEnvironment
    from lightning.pytorch.accelerators import CUDAAccelerator

    from resscale.training.zero import ZeRO

    strategy = ZeRO(
        accelerator=CUDAAccelerator(),
        parallel_devices=[torch.device("cuda", 0)],
        cluster_environment=LightningEnvironment(),
    )
    from deepspeed.accelerator import get_accelerator

    if get_accelerator().device_name() != "cpu":
        pytest.skip("on a machine with a GPU, DeepSpeed is loaded for it")
    with pytest.raises(UserInputError, match="DeepSpeed was loaded for cpu"):
        strategy.setup_environment()


def test_a_cpu_has_the_index_that_deepspeed_compares() -> None:
    from resscale.training.zero import ZeRO

    assert ZeRO(parallel_devices=[torch.device("cpu")]).root_device == torch.device("cpu", 0)
