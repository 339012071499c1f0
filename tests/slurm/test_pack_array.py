"""`slurm/pack.sbatch` on a real cluster: requeued tasks pack what one process does."""

from __future__ import annotations

import sys
from pathlib import Path

from slurm_cluster import SlurmCluster

from resscale.data.digits import digits_splits
from resscale.data.pack import pack_splits
from resscale.data.pack_plan import PackOptions

SCRIPT = Path(__file__).resolve().parents[2] / "slurm" / "pack.sbatch"


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_an_array_that_is_requeued_and_runs_out_of_time_packs_the_bytes_of_one_process(
    slurm: SlurmCluster, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    job = slurm.submit(
        "--array=0-2", "--cpus-per-task=1", f"--export=ALL,RESSCALE_PYTHON={sys.executable}",
        f"--output={tmp_path}/%a.log",
        SCRIPT, "digits", out, "--samples_per_shard", "1", "--format", "png",
        cwd=tmp_path,
    )  # fmt: skip
    # 1,437 shards of train, 479 for each: the first is in the middle when it is disturbed.
    progress = out / "train" / ".pack-0-of-3.jsonl"
    slurm.wait_for(lambda: progress.exists() and progress.read_text().count("\n") > 3, "shards")
    slurm.signal(f"{job}_0", "USR2", to="batch")  # what SLURM sends before the time limit
    slurm.run("scontrol", "requeue", f"{job}_1")
    restarts = []
    for task in range(3):
        facts = slurm.wait_for_end(f"{job}_{task}")
        assert facts["JobState"] == "COMPLETED", (tmp_path / f"{task}.log").read_text()
        restarts.append(int(facts["Restarts"]))
    assert restarts == [1, 1, 0]
    logs = [(tmp_path / f"{task}.log").read_text() for task in range(3)]
    assert "out of time" in logs[0]
    for split in ("train", "test"):
        ended = [log for log in logs if f"{split}: " in log and "ended last" in log]
        assert ended  # each split by the part that saw all of its shards
    options = PackOptions(samples_per_shard=1, format="png", quality=100)
    pack_splits(digits_splits(), tmp_path / "whole", options, "resscale pack digits")
    assert files_of(out) == files_of(tmp_path / "whole")
