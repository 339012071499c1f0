"""Several `resscale fit` at a time, gone on with where they were stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PREEMPTED = 75


def status(run: Path) -> str:
    """Return the status that a run's summary states, or "new"."""
    try:
        return str(json.loads((run / "summary.json").read_text())["status"])
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return "new"


def fit_command(arguments: Sequence[str], seed: int, run: Path) -> list[str]:
    """Return the `resscale fit` of a run, which goes on where the run has a checkpoint."""
    words = [*arguments, f"--seed_everything={seed}", f"--run_dir={run}"]
    if any((run / "checkpoints").glob("*.ckpt")):
        words.append("--ckpt_path=auto")
    return [sys.executable, "-m", "resscale", "fit", *words]


class Queue:
    """Trains runs, `jobs` at a time, and passes a stop on to them."""

    def __init__(self) -> None:
        self.stopping = False
        self.running: set[subprocess.Popen[bytes]] = set()
        self.failed: list[str] = []

    def stop(self, *_: object) -> None:
        """Ask the running nets to save and leave; start no other."""
        self.stopping = True
        for process in list(self.running):
            process.send_signal(signal.SIGTERM)

    def train(self, arguments: Sequence[str], seed: int, run: Path) -> None:
        """Train one net, unless it is done or the queue is stopping.

        Args:
            arguments: of `resscale fit`, without seed and run directory.
            seed: of everything random.
            run: its directory.
        """
        if self.stopping or status(run) == "done":
            return
        if not any((run / "checkpoints").glob("*.ckpt")):
            # Killed before its first checkpoint: nothing to go on with, and `fit` would refuse it.
            shutil.rmtree(run, ignore_errors=True)
        run.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        # One thread each: two nets on two cores are faster than one net on both.
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with (run / "fit.log").open("ab") as log:
            process = subprocess.Popen(
                fit_command(arguments, seed, run),
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                # Ctrl-C reaches the queue alone, which asks each net once.
                start_new_session=True,
            )
            self.running.add(process)
            if self.stopping:  # asked between the test above and here
                process.send_signal(signal.SIGTERM)
            code = process.wait()
            self.running.discard(process)
        minutes = (time.monotonic() - started) / 60
        print(f"{run.name}: {status(run)} after {minutes:.1f} min", flush=True)
        if code not in (0, PREEMPTED):
            self.failed.append(f"{run.name} left with {code}, see {run}/fit.log")


def work_off(runs: Iterable[tuple[Sequence[str], int, Path]], jobs: int) -> int:
    """Train runs in order, `jobs` at a time; return the exit code.

    Args:
        runs: the arguments of `resscale fit`, the seed and the directory of each.
        jobs: runs at a time.
    """
    queue = Queue()
    for request in (signal.SIGINT, signal.SIGTERM):
        signal.signal(request, queue.stop)
    with ThreadPoolExecutor(jobs) as pool:
        for run in runs:
            pool.submit(queue.train, *run)
    print(*queue.failed, sep="\n", end="\n" if queue.failed else "", file=sys.stderr)
    return 1 if queue.failed else PREEMPTED if queue.stopping else 0
