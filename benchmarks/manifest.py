"""What a manifest of many shards costs to load, and a shard of many samples to index."""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

_LOAD = "import sys, manifest; manifest.report_load(sys.argv[1])"


def main(argv: list[str] | None = None) -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, nargs="+", default=[1_281, 1_000_000])
    parser.add_argument("--samples", type=int, default=10_000, help="of the shard to index")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        for count in options.shards:
            write_manifest(Path(folder), count)
            # A process of its own: memory is counted from its beginning.
            environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
            command = [sys.executable, "-c", _LOAD, folder]
            subprocess.run(command, env=environment, check=True)
        print(describe_index(Path(folder), options.samples))


def write_manifest(folder: Path, num_shards: int) -> None:
    """Write a manifest of so many shards of 1,000 samples and 110 MB."""
    import hashlib

    from resscale.data.manifest import Manifest, ShardInfo

    shards = [
        ShardInfo(f"train-{n:07d}.tar", 1000, 110_000_000, hashlib.sha256(b"%d" % n).hexdigest())
        for n in range(num_shards)
    ]
    classes = tuple(f"class {number}" for number in range(1000))
    Manifest(classes, shards, (num_shards,) * 1000).save(folder)


def report_load(folder: str) -> None:
    """Load the manifest of a folder in this process, and print time and memory."""
    from resscale.data.manifest import Manifest

    before_kb = most_memory_kb()
    started = time.process_time()
    manifest = Manifest.load(folder)
    loaded = time.process_time()
    fingerprint = manifest.fingerprint
    ended = time.process_time()
    print(
        f"{len(manifest.shards):,} shards: loaded in {1e3 * (loaded - started):,.1f} CPU ms, "
        f"fingerprint {fingerprint} in {1e3 * (ended - loaded):,.1f} CPU ms, "
        f"{(most_memory_kb() - before_kb) / 1024:,.0f} MiB at most",
        flush=True,
    )


def most_memory_kb() -> int:
    """Return the most memory that this process has had resident, in KiB."""
    # Not getrusage: its figure includes the parent's, from before the program was loaded.
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))


def describe_index(folder: Path, num_samples: int) -> str:
    """Index a local shard of so many samples of 10 kB, and say how long it took."""
    from resscale.data.shard_index import build_shard_index

    path = folder / "a.tar"
    with tarfile.open(path, "w") as archive:
        for number in range(num_samples):
            for name, raw in ((f"{number:08d}.cls", b"7"), (f"{number:08d}.jpg", bytes(10_000))):
                info = tarfile.TarInfo(name)
                info.size = len(raw)
                archive.addfile(info, io.BytesIO(raw))
    started = time.process_time()
    count = len(build_shard_index(path))
    elapsed = time.process_time() - started
    return f"index of {count:,} samples: {1e6 * elapsed / count:,.1f} CPU µs a sample"


if __name__ == "__main__":
    main()
