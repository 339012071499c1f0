"""From a folder of shards to the first batch, at an epoch's beginning and in its middle. Measured.

    python benchmarks/first_batch.py
    python benchmarks/first_batch.py --shards 1281 --global_batch_size 1024 --keep shards

The shards are real tars of 1,000 small JPEGs with real indices, each index a file of its own. All
tars are links to one, as only the number of samples matters here. Each row is a fresh process, and
indices and manifest are dropped from the system's memory before it.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

SAMPLES_PER_SHARD = 1000
PARTS = ("import", "manifest", "check", "order", "shuffle", "loader", "first batch")


def make_shards(folder: Path, num_shards: int) -> None:
    """Write a folder of shards with manifest and indices, unless it is there already."""
    import webdataset
    from PIL import Image

    from resscale.data.manifest import MANIFEST_NAME, Manifest, ShardInfo, sha256_of
    from resscale.data.shard_index import build_shard_index

    if (folder / MANIFEST_NAME).is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    first = folder / "train-000000.tar"
    with webdataset.TarWriter(str(first)) as tar:
        for number in range(SAMPLES_PER_SHARD):
            buffer = io.BytesIO()
            pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(buffer, "JPEG")
            tar.write({"__key__": f"{number:06d}", "jpg": buffer.getvalue(), "cls": number % 1000})
    index, size, digest = build_shard_index(first), first.stat().st_size, sha256_of(first)
    shards = []
    for number in range(num_shards):
        shard = ShardInfo(f"train-{number:06d}.tar", SAMPLES_PER_SHARD, size, digest)
        if number:
            os.link(first, folder / shard.name)
        index.save(folder / shard.index_name)
        shards.append(shard)
    Manifest((), shards, (num_shards,) * SAMPLES_PER_SHARD).save(folder)


def forget(folder: Path) -> None:
    """Drop the folder's small files from the system's memory."""
    for file in [*folder.glob("*.npz"), *folder.glob("*.json")]:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(folder: str, step: int, global_batch_size: int, micro_batch_size: int) -> None:
    """Measure in this fresh process and print seconds by part, and of CPU time, as JSON.

    Args:
        folder: the shards.
        step: step of the epoch that is begun with; -1: the middle one.
        global_batch_size: samples per step.
        micro_batch_size: samples of the first batch that is waited for.
    """
    times = [time.perf_counter()]
    from resscale.data.augment import RandomResizedCrop
    from resscale.data.batching import plan_batches
    from resscale.data.dataset import ShardDataset
    from resscale.data.loader import TrainLoader, WorkerOptions
    from resscale.data.manifest import Manifest
    from resscale.data.order import EpochOrder
    from resscale.data.shuffle_quality import describe_shuffle

    times.append(time.perf_counter())
    cpu_s = time.process_time()
    manifest = Manifest.load(folder)
    times.append(time.perf_counter())
    manifest.check_sizes()
    times.append(time.perf_counter())
    order = EpochOrder(manifest.shard_sizes, global_batch_size=global_batch_size)
    step = order.num_steps // 2 if step < 0 else step
    order.global_batch(step)
    times.append(time.perf_counter())
    describe_shuffle(order, manifest, micro_batch_size)
    times.append(time.perf_counter())
    loader = TrainLoader(
        ShardDataset(manifest, RandomResizedCrop(64), replace_bad=True),
        order,
        plan_batches(global_batch_size, micro_batch_size, 1),
        rank=0,
        options=WorkerOptions(),
        samples_seen=step * global_batch_size,
    )
    times.append(time.perf_counter())
    batch = next(iter(loader))
    times.append(time.perf_counter())
    assert batch["step"] == step
    print(json.dumps([*np.diff(times).tolist(), time.process_time() - cpu_s]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description="From a folder of shards to the first batch.")
    parser.add_argument("--shards", type=int, nargs="*", default=[1281, 12_810])
    parser.add_argument("--global_batch_size", type=int, default=1024)
    parser.add_argument("--micro_batch_size", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3, help="processes; the fastest counts")
    parser.add_argument("--keep", type=Path, help="folder for the shards; else a temporary one")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    sizes = (options.global_batch_size, options.micro_batch_size)
    if options.measure is not None:
        measure(options.measure[0], int(options.measure[1]), *sizes)
        return
    print(f"{datetime.date.today()}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.")
    print(f"Milliseconds; the fastest of {options.repeat} processes.\n")
    print(f"| samples | begun at | {' | '.join(PARTS)} | all but import | of that CPU |")
    print("| --- | --- |" + " --- |" * (len(PARTS) + 2))
    root = options.keep or Path(tempfile.mkdtemp())
    for shards in options.shards:
        folder = root / str(shards)
        make_shards(folder, shards)
        for name, step in (("step 0", "0"), ("mid-epoch", "-1")):
            rows = []
            for _ in range(options.repeat):
                forget(folder)
                command = [sys.executable, __file__, "--measure", str(folder), step]
                command += ["--global_batch_size", str(sizes[0])]
                command += ["--micro_batch_size", str(sizes[1])]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                rows.append(json.loads(done.stdout))
            best = min(rows, key=lambda row: sum(row[1:-1]))
            cells = [f"{1e3 * s:.0f}" for s in (*best[:-1], sum(best[1:-1]), best[-1])]
            samples = shards * SAMPLES_PER_SHARD
            print(f"| {samples:,} | {name} | {' | '.join(cells)} |", flush=True)
    if options.keep is None:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
