"""Distributed strategies: Lightning's, with ranks whose exit codes all count."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch.nn.parallel import DistributedDataParallel as TorchDDP

# How long ranks that fail together may take to write their last words.
GRACE_S = 20.0


class RankLauncher(_SubprocessScriptLauncher):
    """Starts this node's ranks as processes and ends them all when one fails.

    Lightning's own kills the main process with SIGKILL as soon as a child ends with any code but 0:
    a preempted run (75) would lose its exit code, and a failed one its message.
    """

    def launch(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Start the other ranks, then run `function` as rank 0 of this node."""
        kwargs.pop("trainer", None)
        external = self.cluster_environment.creates_processes_externally
        self.cluster_environment.validate_settings(
            num_devices=self.num_processes, num_nodes=self.num_nodes
        )
        if external:
            return function(*args, **kwargs)
        if not self.procs:
            self._call_children_scripts()
            threading.Thread(target=self._watch, name="rank-watch", daemon=True).start()
        _share_cores(self.num_processes)
        return function(*args, **kwargs)

    def wait(self, timeout_s: float = 60.0) -> int:
        """Wait for the other ranks, kill stragglers; return the first exit code that is not 0."""
        deadline = time.monotonic() + timeout_s
        codes = []
        for process in self.procs:
            try:
                codes.append(process.wait(max(0.1, deadline - time.monotonic())))
            except subprocess.TimeoutExpired:
                process.kill()
                codes.append(process.wait())
        return next((code for code in codes if code), 0)

    def _watch(self) -> None:
        while True:
            time.sleep(0.5)
            failed = [
                (number + 1, process) for number, process in enumerate(self.procs) if process.poll()
            ]
            if failed:
                break
            if all(process.poll() == 0 for process in self.procs):
                return
        rank, process = failed[0]
        code = process.returncode
        # This rank most likely ends by itself, with a message of its own; it may also be waiting
        # for ever for the one that is gone.
        time.sleep(GRACE_S)
        meaning = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        print(
            f"rank {rank} (process {process.pid}) ended with {meaning}; ending the others.",
            file=sys.stderr,
            flush=True,
        )
        for other in self.procs:
            if other.poll() is None:
                other.kill()
        os._exit(code if code > 0 else 1)


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


def _share_cores(num_processes: int) -> None:
    """Give each rank no more than its share of the cores."""
    share = max(1, len(os.sched_getaffinity(0)) // num_processes)
    torch.set_num_threads(min(share, torch.get_num_threads()))
