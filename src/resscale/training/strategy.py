"""Distributed strategies: Lightning's, with ranks whose exit codes all count."""

from __future__ import annotations

import inspect
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch.nn.parallel import DistributedDataParallel as TorchDDP

from resscale.training.launcher import RankLauncher


class DistributedDataParallel(DDPStrategy):
    """DDP whose ranks keep BatchNorm buffers of their own until they are averaged.

    Args:
        kwargs: options of Lightning's DDPStrategy.
    """

    def __init__(self, **kwargs: Any) -> None:
        # Broadcasting rank 0's buffers at each forward costs a collective a step and throws the
        # other ranks' statistics away; `average_batchnorm_statistics` keeps them all.
        kwargs.setdefault(_buffers_option(), False)
        kwargs.setdefault("gradient_as_bucket_view", True)
        super().__init__(**kwargs)

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = RankLauncher(self.cluster_environment, self.num_processes, self.num_nodes)


def register_strategies() -> None:
    """Make `strategy: ddp` (and `auto` on several devices) mean ours."""
    StrategyRegistry.register(
        "ddp", DistributedDataParallel, "DDP with ranks whose exit codes count", override=True
    )


def _buffers_option() -> str:
    """Return DDP's name for the broadcast: torch 2.13 renamed it and warns of the old one."""
    known = inspect.signature(TorchDDP.__init__).parameters
    return "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
