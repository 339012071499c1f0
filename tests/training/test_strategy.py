"""Strategies by name, and the options that legal ones get."""

import inspect
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import StrategyRegistry

from resscale.training import strategy
from resscale.training.launcher import RankLauncher
from resscale.training.strategy import DistributedDataParallel, register_strategies


def test_ddp_means_ours() -> None:
    register_strategies()
    assert StrategyRegistry.get("ddp").__class__ is DistributedDataParallel


class DdpOfTorch212:
    def __init__(self, module: Any, broadcast_buffers: bool = True) -> None: ...


class DdpOfTorch213:
    def __init__(self, module: Any, forward_sync_buffers: bool = True) -> None: ...


@pytest.mark.parametrize(
    ("torchs_own", "name"),
    [(DdpOfTorch212, "broadcast_buffers"), (DdpOfTorch213, "forward_sync_buffers")],
)
def test_ddp_keeps_each_ranks_buffers_by_whichever_name_torch_knows(
    monkeypatch: pytest.MonkeyPatch, torchs_own: type, name: str
) -> None:
    monkeypatch.setattr(strategy, "TorchDDP", torchs_own)
    expected = {name: False, "gradient_as_bucket_view": True}
    assert DistributedDataParallel()._ddp_kwargs == expected


def test_ddp_takes_only_options_that_this_torch_knows() -> None:
    known = inspect.signature(torch.nn.parallel.DistributedDataParallel).parameters
    options = DistributedDataParallel()._ddp_kwargs
    assert set(options) <= set(known)
    buffers = [name for name in options if name.endswith("_buffers")]
    assert [options[name] for name in buffers] == [False]
    assert DistributedDataParallel(**{buffers[0]: True})._ddp_kwargs[buffers[0]]


def test_ddp_launches_its_ranks_with_our_launcher() -> None:
    ddp = DistributedDataParallel(
        cluster_environment=LightningEnvironment(), parallel_devices=[torch.device("cpu")] * 2
    )
    ddp._configure_launcher()
    assert isinstance(ddp.launcher, RankLauncher)
    assert ddp.launcher.num_processes == 2
