"""Starts the ranks of this node; all their exit codes count, and none outlives the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from resscale.training.checkpoint_io import wait_for_saves

# How long ranks that fail together may take to write their last words.
GRACE_S = 20.0
# How long a checkpoint that is being written may take, before the process ends all the same.
SAVE_PATIENCE_S = 300.0


class RankLauncher(_SubprocessScriptLauncher):
    """Starts this node's ranks as processes and ends them all when one fails.

    Lightning's own kills the main process with SIGKILL as soon as a child ends with any code but 0:
    a preempted run (75) would lose its exit code, and a failed one its message.
    """

    # Told the local rank, the process id and the exit code of the first rank to end with other
    # than 0, as soon as that is seen.
    on_death: Callable[[int, int, int], None] | None = None

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
        if self.on_death is not None:
            self.on_death(rank, process.pid, code)
        # This rank most likely ends by itself, with a message of its own; it may also be waiting
        # for ever for the one that is gone.
        time.sleep(GRACE_S)
        if wait_for_saves(SAVE_PATIENCE_S):
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


def end_with_launcher(grace_s: float = GRACE_S) -> None:
    """Let this rank end when the process that started it is gone.

    While ranks train, their watchdogs see that sooner and say more; before, a rank would wait half
    an hour for the others to connect.

    Args:
        grace_s: how long the rank may take to end with words of its own.
    """
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        time.sleep(grace_s)
        os._exit(1)

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()


def _share_cores(num_processes: int) -> None:
    """Give each rank no more than its share of the cores."""
    share = max(1, len(os.sched_getaffinity(0)) // num_processes)
    torch.set_num_threads(min(share, torch.get_num_threads()))
