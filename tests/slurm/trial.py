"""A run of the real command as a job of the cluster, and what it leaves behind."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from slurm_cluster import SlurmCluster

HERE = Path(__file__).parent
STEPS_PER_EPOCH = 22  # 1437 samples in global batches of 64
EPOCHS = 2
EVERY_N_STEPS = 5
COMMON = (
    "--config=configs/demo.yaml",
    "--model.model=resnet8_cifar",
    # Low, so that a rounding does not grow into another training within 44 steps.
    "--model.optimizer.lr=0.01",
    "--data.log_sample_ids=true",
    "--data.micro_batch_size=16",
    "--data.num_workers=0",
    "--trainer.accelerator=cpu",
    f"--trainer.max_epochs={EPOCHS}",
    f"--checkpoint.every_n_steps={EVERY_N_STEPS}",
)
# What a rank says once it has heard of a request to stop.
HEARD = "stopping at the next step boundary"


def variables(**more: str) -> dict[str, str]:
    """What the batch script and its ranks find in their environment."""
    sought = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "RESSCALE_PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join(sought),
        "OMP_NUM_THREADS": "1",
        **more,
    }


def submit(
    slurm: SlurmCluster,
    repository: Path,
    folder: Path,
    options: tuple[str, ...],
    arguments: tuple[str, ...] = (),
) -> str:
    """Send `slurm/train.sbatch` and return the job's id.

    Args:
        slurm: the cluster.
        repository: the checkout.
        folder: for all that the job writes; "{task}" in its name is an array's task.
        options: of sbatch.
        arguments: of `resscale fit`, beside those of all trials.
    """
    output = str(folder / "output").replace("{task}", "%a")
    return slurm.submit(
        *(f"--output={output}", *options),
        repository / "slurm" / "train.sbatch",
        *(*COMMON, f"--run_dir={folder}/run", *arguments),
        cwd=repository,
        variables=variables(),
    )


def braked(folder: Path) -> tuple[str, ...]:
    """The arguments of a run that can be held."""
    return ("--trainer.callbacks+=brake.Brake", f"--trainer.callbacks.folder={folder}/brakes")


class Trial:
    """One job, or one task of an array.

    Args:
        slurm: the cluster.
        folder: for all that the job writes.
        limit: where its ranks are held first; None: nowhere, ever.
    """

    def __init__(self, slurm: SlurmCluster, folder: Path, limit: float | None = None) -> None:
        self.slurm = slurm
        self.job = ""
        self.run_dir = folder / "run"
        self.brakes = folder / "brakes"
        self.output = folder / "output"
        self.brakes.mkdir(parents=True)
        if limit is not None:
            self.hold_at(limit)

    def hold_at(self, point: float) -> None:
        """Let the ranks go, up to this point."""
        temporary = self.brakes / "limit.tmp"
        temporary.write_text(str(point))
        temporary.replace(self.brakes / "limit")

    def let_go(self) -> None:
        """Let the ranks go to the end."""
        self.hold_at(float("inf"))

    def wait_until_held(self, point: float, ranks: int, restart: int) -> None:
        """Wait until all ranks of one start of the job, or of a later one, stand at a point."""

        def stand() -> bool:
            self._check_under_way()
            files = [self.brakes / f"held-{rank}" for rank in range(ranks)]
            found = [file.read_text().split() for file in files if file.exists()]
            there = [int(start) for held, start in found if float(held) == point]
            return len(there) == ranks and min(there) >= restart and len(set(there)) == 1

        self.slurm.wait_for(stand, f"{ranks} ranks at {point}, restart {restart}", 600)

    def wait_until_heard(self, ranks: int, before: int = 0) -> None:
        """Wait until so many ranks have said that they heard a signal."""
        self.slurm.wait_for(lambda: self.count_heard() >= before + ranks, "word of a signal", 600)

    def count_heard(self) -> int:
        """How often a rank has said so, over all starts."""
        # Rank 0 says it on the job's console, the others in files of their own.
        files = [self.output, *self.run_dir.glob("logs/rank-[1-9]*.log")]
        return sum(file.read_text().count(HEARD) for file in files)

    def wait_for_restart(self, count: int) -> None:
        """Wait until the job runs for the next time."""
        self.slurm.wait_for_restart(self.job, count)

    def finish(self) -> dict[str, str]:
        """Let go and wait for the end; return what SLURM knows of the job."""
        self.let_go()
        return self.slurm.wait_for_end(self.job)

    @property
    def said(self) -> str:
        """The job's output."""
        return self.output.read_text() if self.output.exists() else ""

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The run's ledger, lines of one kind."""
        lines = (self.run_dir / "events.jsonl").read_text().splitlines()
        return [entry for line in lines if (entry := json.loads(line))["event"] == kind]

    def summary(self) -> Mapping[str, Any]:
        """The run's summary."""
        found: dict[str, Any] = json.loads((self.run_dir / "summary.json").read_text())
        return found

    def samples(self) -> dict[tuple[int, int], list[int]]:
        """The ids of each (epoch, step), of all ranks, in the order of the ids."""
        found: dict[tuple[int, int], list[int]] = {}
        for file in sorted((self.run_dir / "samples").glob("rank-*.jsonl")):
            for line in file.read_text().splitlines():
                entry = json.loads(line)
                found.setdefault((entry["epoch"], entry["step"]), []).extend(entry["ids"])
        return {step: sorted(ids) for step, ids in found.items()}

    def validations(self) -> dict[int, int]:
        """How often each epoch was validated."""
        with (self.run_dir / "metrics.csv").open() as file:
            return Counter(int(row["epoch"]) for row in csv.DictReader(file) if row["val/loss"])

    def losses(self) -> list[tuple[int, float]]:
        """The training loss by step, each the mean since the one before it, or since a start."""
        with (self.run_dir / "metrics.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["train/loss"]]
        return [(int(row["step"]), float(row["train/loss"])) for row in rows]

    def checkpoints(self) -> list[str]:
        """The files that are left."""
        return sorted(file.name for file in (self.run_dir / "checkpoints").iterdir())

    def weights(self) -> dict[str, torch.Tensor]:
        """Those of the last checkpoint, BatchNorm's statistics with them."""
        path = self.run_dir / "checkpoints" / "last.ckpt"
        found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
        return found

    def _check_under_way(self) -> None:
        facts = self.slurm.facts(self.job)
        assert facts["JobState"] in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"), (
            f"{facts}\n{self.said[-3000:]}"
        )
