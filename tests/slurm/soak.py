"""Stops jobs at random moments until it has been done so often, and proves that nothing is lost.

    python tests/slurm/soak.py --signals 100

It starts a SLURM cluster of its own (as root; see slurm_cluster.py) and jobs of two nodes that
train the digits by slurm/train.sbatch. Each is signalled at a random moment of each of its starts,
requeues itself and goes on. What it leaves is compared with an undisturbed run: the samples of each
step, the validations of each epoch, the last weights, bit by bit.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import processes
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from slurm_cluster import ENDED, SlurmCluster, missing

from resscale.training.phase import read_record_file

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
RANKS = 2
ARGUMENTS = (
    "--config=configs/demo.yaml",
    "--model.model=resnet8_cifar",
    "--data.log_sample_ids=true",
    "--data.micro_batch_size=32",
    "--data.eval_batch_size=30",
    "--data.num_workers=1",
    "--trainer.accelerator=cpu",
    "--checkpoint.every_n_steps=5",
)
# Where a signal goes to, and how often: SLURM tells all ranks, or the batch script alone, and
# people and machines tell one process. What follows a second later is a second signal.
KINDS = ("all", "all", "all", "rank", "rank", "batch", "twice")
# SLURM kills what is left a minute behind the first rank that has gone (train.sbatch).
LONGEST_END_S = 90.0


class Slow(Callback):
    """Makes training last, and each of its phases long enough to be hit.

    Args:
        pace_file: holds the seconds to sleep in each phase of a step; without it none.
    """

    def __init__(self, pace_file: str) -> None:
        self.pace_file = Path(pace_file)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule
        before = data.before_wait

        def wait() -> None:
            before()
            self._sleep()

        data.before_wait = wait

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._sleep()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *arguments: Any
    ) -> None:
        self._sleep()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._sleep(4)

    def _sleep(self, times: int = 1) -> None:
        try:
            time.sleep(times * float(self.pace_file.read_text()))
        except FileNotFoundError:
            return


@dataclass
class Stop:
    """One signal and what came of it.

    Args:
        kind: of `KINDS`.
        name: of the signal.
        phases: what each rank did, "?" where it had not said yet.
        end_s: until all ranks were gone; None: they were not.
        next_step_s: until the first step behind the next start.
    """

    kind: str
    name: str
    phases: list[str]
    end_s: float | None = None
    next_step_s: float | None = None


@dataclass
class Job:
    """One job, stopped again and again.

    Args:
        name: of its folder.
        stops: what was done to it.
        faults: what is not as it should be, in words.
    """

    name: str
    stops: list[Stop] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class Soak:
    """The jobs on one cluster.

    Args:
        slurm: the cluster.
        folder: for all that they write.
        epochs: of each job.
        pace_s: seconds to sleep in each phase of a step.
        window_s: each start is signalled within so many seconds of its first step.
        seed: of the moments.
    """

    def __init__(
        self,
        slurm: SlurmCluster,
        folder: Path,
        epochs: int,
        pace_s: float,
        window_s: float,
        seed: int,
    ) -> None:
        self.slurm = slurm
        self.folder = folder
        self.epochs = epochs
        self.pace_s = pace_s
        self.window_s = window_s
        self.random = random.Random(seed)
        self.left = 0
        self.lock = threading.Lock()

    def undisturbed(self) -> Path:
        """Train without a stop; return the run directory."""
        job = self.submit("undisturbed", None)
        facts = self.slurm.wait_for_end(job, 1200)
        assert facts["JobState"] == "COMPLETED", facts
        return self.folder / "undisturbed" / "run"

    def disturbed(self, name: str, reference: Path) -> Job:
        """Train, and stop at each start while there are signals left; compare what is left."""
        record = Job(name)
        run_dir = self.folder / name / "run"
        job = self.submit(name, self.pace_s)
        restarts = 0
        while self.wait_for_start(job, restarts) and self._take_one():
            stop = self._stop(job, restarts)
            record.stops.append(stop)
            said = f"{name} {restarts}: {stop.kind} {stop.name} in {', '.join(stop.phases)}"
            print(f"{said}: gone after {stop.end_s} s", flush=True)
            if stop.end_s is None:
                record.faults.append(f"hang: {stop}")
                self.slurm.run("scancel", job)
                return record
            restarts += 1
            began_s = time.monotonic()
            if self.wait_for_start(job, restarts):
                self.wait_for_step(job)
                stop.next_step_s = round(time.monotonic() - began_s, 1)
        (self.folder / name / "pace").unlink(missing_ok=True)
        facts = self.slurm.wait_for_end(job, 1200)
        if facts["JobState"] != "COMPLETED":
            record.faults.append(f"ended as {facts['JobState']}")
        record.faults += compare(reference, run_dir, self.epochs)
        return record

    def submit(self, name: str, pace_s: float | None, options: tuple[str, ...] = ()) -> str:
        """Send a job; return its id.

        Args:
            name: of its folder.
            pace_s: seconds to sleep in each phase of a step; None: none.
            options: more of sbatch.
        """
        place = self.folder / name
        place.mkdir()
        if pace_s is not None:
            (place / "pace").write_text(str(pace_s))
        found = os.environ.get("PYTHONPATH")
        return self.slurm.submit(
            *(f"--job-name={name}", f"--output={place}/output"),
            *("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", *options),
            REPOSITORY / "slurm" / "train.sbatch",
            *ARGUMENTS,
            f"--trainer.max_epochs={self.epochs}",
            f"--run_dir={place}/run",
            "--trainer.callbacks+=soak.Slow",
            f"--trainer.callbacks.pace_file={place}/pace",
            cwd=REPOSITORY,
            variables={
                "RESSCALE_PYTHON": sys.executable,
                "PYTHONPATH": os.pathsep.join([str(HERE), *([found] if found else [])]),
                "OMP_NUM_THREADS": "1",
            },
        )

    def _take_one(self) -> bool:
        with self.lock:
            self.left -= 1
            return self.left >= 0

    def wait_for_start(self, job: str, restarts: int) -> bool:
        """Wait until the job runs for the next time; False where it has ended."""

        def is_there() -> bool:
            facts = self.slurm.facts(job)
            state = facts["JobState"]
            return state in ENDED or (state == "RUNNING" and int(facts["Restarts"]) >= restarts)

        self.slurm.wait_for(is_there, f"start {restarts} of {job}", 300)
        return self.slurm.state(job) not in ENDED

    def wait_for_step(self, job: str) -> None:
        """Wait until all ranks train, or the job is over."""

        def trains() -> bool:
            if self.slurm.state(job) in ENDED:
                return True
            found = self._phases(job)
            return len(found) == RANKS and not set(found) & {"?", "start"}

        self.slurm.wait_for(trains, f"a step of job {job}", 300)

    def when(self, is_true: Callable[[], bool]) -> Callable[[float], float]:
        """Begin to wait for something beside all else; what is returned tells when it came.

        It takes the time to count from, and waits for the end.
        """
        came: list[float] = []

        def look() -> None:
            while not is_true():
                time.sleep(0.1)
            came.append(time.monotonic())

        thread = threading.Thread(target=look, daemon=True)
        thread.start()

        def told(began_s: float) -> float:
            thread.join(LONGEST_END_S)
            return came[0] - began_s if came else float("inf")

        return told

    def _phases(self, job: str) -> list[str]:
        """What each rank does just now; "?" where it has not said yet."""
        found = []
        for rank, pid in self.slurm.ranks(job).items():
            # A node has shared memory of its own.
            shared = Path(f"/proc/{pid}/root/dev/shm")
            records = [read_record_file(path) for path in shared.glob(f"resscale-*-rank-{rank}")]
            own = [record for record in records if record is not None and record.rank == rank]
            newest = max(own, key=lambda record: record.entered_s, default=None)
            is_new = newest is not None and newest.entered_s >= started_s(pid)
            found.append(str(newest.phase) if newest is not None and is_new else "?")
        return found

    def _stop(self, job: str, restarts: int) -> Stop:
        """Send a signal at a random moment; wait until the ranks are gone."""
        if self.random.random() < 0.1:
            time.sleep(self.random.uniform(0, 6))  # while it starts
        else:
            self.wait_for_step(job)
            time.sleep(self.random.uniform(0, self.window_s))
        ranks = self.slurm.ranks(job)
        kind = self.random.choice(KINDS)
        number = self.random.choice([signal.SIGTERM, signal.SIGUSR2])
        stop = Stop(kind, number.name, self._phases(job))
        began_s = time.monotonic()
        self._send(job, kind, number, list(ranks.values()))
        while time.monotonic() < began_s + LONGEST_END_S:
            # Started since, where the signal came before srun.
            if not self.slurm.ranks(job) and self._has_left(job, restarts):
                stop.end_s = round(time.monotonic() - began_s, 1)
                break
            time.sleep(0.1)
        return stop

    def _has_left(self, job: str, restarts: int) -> bool:
        facts = self.slurm.facts(job)
        return facts["JobState"] != "RUNNING" or int(facts["Restarts"]) > restarts

    def _send(self, job: str, kind: str, number: signal.Signals, pids: list[int]) -> None:
        name = number.name.removeprefix("SIG")
        # At SLURM's TERM srun kills its tasks at once; that is what a preemption is.
        if kind == "rank" and pids:
            processes.kill([self.random.choice(pids)], number)
        elif kind == "batch" or not pids:
            self.slurm.run("scancel", f"--signal={name}", "--batch", job)
        else:
            self.slurm.run("scancel", "--signal=USR2", job)
            if kind == "twice":
                time.sleep(self.random.uniform(0, 1))
                processes.kill(pids, number)


def started_s(pid: int) -> float:
    """When a process began, seconds since 1970; infinite where it is gone."""
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        boot_s = next(
            float(line.split()[1])
            for line in Path("/proc/stat").read_text().splitlines()
            if line.startswith("btime")
        )
    except OSError:
        return float("inf")
    return boot_s + ticks / os.sysconf("SC_CLK_TCK") - 1.0


def compare(reference: Path, run_dir: Path, epochs: int) -> list[str]:
    """Return in which ways a run differs from the undisturbed one; empty where in none."""
    faults = []
    one, other = samples(reference), samples(run_dir)
    if one != other:
        differing = sorted(
            step for step in one.keys() | other.keys() if one.get(step) != other.get(step)
        )
        faults.append(f"samples differ at {len(differing)} steps, first {differing[:3]}")
    for epoch in range(epochs):
        ids = [i for (e, _), found in other.items() if e == epoch for i in found]
        if len(ids) != len(set(ids)):
            faults.append(f"a sample was seen twice in epoch {epoch}")
    counts = validations(run_dir)
    if counts != dict.fromkeys(range(epochs), 1):
        faults.append(f"validations of the epochs: {counts}")
    first, second = weights(reference), weights(run_dir)
    unlike = [name for name in first if not torch.equal(first[name], second[name])]
    if unlike:
        faults.append(f"{len(unlike)} of {len(first)} tensors differ")
    boards = list((run_dir / "tensorboard").glob("events*"))
    if len({board.parent for board in boards}) > 1:
        faults.append("more than one TensorBoard run")
    return faults


def samples(run_dir: Path) -> dict[tuple[int, int], list[int]]:
    """Return the ids of each (epoch, step) over all ranks, sorted."""
    found: dict[tuple[int, int], list[int]] = {}
    for file in sorted((run_dir / "samples").glob("rank-*.jsonl")):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            found.setdefault((entry["epoch"], entry["step"]), []).extend(entry["ids"])
    return {step: sorted(ids) for step, ids in found.items()}


def validations(run_dir: Path) -> dict[int, int]:
    """Return how often each epoch was validated."""
    with (run_dir / "metrics.csv").open() as file:
        return dict(Counter(int(row["epoch"]) for row in csv.DictReader(file) if row["val/loss"]))


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """Return the last weights."""
    path = run_dir / "checkpoints" / "last.ckpt"
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return found


def report(jobs: list[Job]) -> str:
    """Return what was done and what came of it."""
    stops = [stop for job in jobs for stop in job.stops]
    ends = [stop.end_s for stop in stops if stop.end_s is not None]
    phases = Counter(phase for stop in stops for phase in stop.phases)
    nexts = [stop.next_step_s for stop in stops if stop.next_step_s is not None]
    lines = [
        f"{len(stops)} signals to {len(jobs)} jobs of {RANKS} ranks on {RANKS} nodes",
        "kinds: " + ", ".join(f"{k} {n}" for k, n in Counter(s.kind for s in stops).most_common()),
        "phases of the ranks: " + ", ".join(f"{p} {n}" for p, n in phases.most_common()),
        f"hangs: {len(stops) - len(ends)}",
        f"jobs equal to the undisturbed run: {sum(not job.faults for job in jobs)} of {len(jobs)}",
    ]
    if ends:
        lines.append(
            f"signal to the last rank's end: median {median(ends):.1f} s, most {max(ends)} s"
        )
    if nexts:
        lines.append(
            f"next start to its first step: median {median(nexts):.1f} s, most {max(nexts)} s"
        )
    lines += [f"FAULT {job.name}: {fault}" for job in jobs for fault in job.faults]
    return "\n".join(lines)


def main() -> int:
    """Run; return 1 where anything was lost, or hung."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--signals", type=int, default=100, help="how many in all")
    parser.add_argument("--jobs_at_once", type=int, default=2, help="jobs side by side")
    parser.add_argument("--epochs", type=int, default=6, help="of each job")
    parser.add_argument("--pace_s", type=float, default=0.08, help="sleep in each phase of a step")
    parser.add_argument("--window_s", type=float, default=4.0, help="signal within, after a step")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--keep", type=Path, default=None, help="folder for what the jobs write")
    options = parser.parse_args()
    reason = missing()
    if reason is not None:
        print(reason)
        return 2
    folder = options.keep or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    jobs: list[Job] = []
    began_s = time.monotonic()
    with SlurmCluster(num_nodes=2 * options.jobs_at_once) as slurm:
        soak = Soak(slurm, folder, options.epochs, options.pace_s, options.window_s, options.seed)
        reference = soak.undisturbed()
        soak.left = options.signals

        def work(number: int) -> None:
            count = 0
            while soak.left > 0:
                jobs.append(soak.disturbed(f"job-{number}-{count}", reference))
                count += 1

        with ThreadPoolExecutor(options.jobs_at_once) as pool:
            list(pool.map(work, range(options.jobs_at_once)))
    (folder / "soak.json").write_text(json.dumps([asdict(job) for job in jobs], indent=1))
    print(f"{report(jobs)}\n{time.monotonic() - began_s:.0f} s in all; {folder}")
    return int(any(job.faults for job in jobs))


if __name__ == "__main__":
    sys.exit(main())
