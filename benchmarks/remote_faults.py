"""Throughput and retries over a server that fails: `python benchmarks/remote_faults.py`.

A server in a process of its own serves shards of random bytes and drops, stalls, truncates or
refuses a share of its answers. Shards are downloaded into a cache, and samples are read by range,
8 at once. Everything that came is compared with what was served.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from fault_server import serve

from resscale.data.cache import Fetched, ShardCache
from resscale.data.read_ahead import ReadAhead
from resscale.data.remote_counts import counts
from resscale.data.remote_options import RemoteOptions
from resscale.data.store import ShardStore

MIXES: dict[str, dict[Any, float]] = {
    "no faults": {},
    "5% dropped": {"drop": 0.05},
    "5% dropped, 5% 503, 2% truncated, 1% stalled": {
        "drop": 0.05,
        "busy": 0.05,
        "truncate": 0.02,
        "stall": 0.01,
    },
}


def serve_for_ever(folder: Path, rates: dict[Any, float], address: Any) -> None:
    """Serve a folder, in a process of its own."""
    with serve(folder) as server:
        server.rates = rates
        address.put(server.url)
        time.sleep(1e6)


def measure(folder: Path, rates: dict[Any, float], num_reads: int) -> str:
    """Return a row of the table: MB/s and retries of downloads, then of ranges."""
    context = multiprocessing.get_context("spawn")
    address = context.Queue()
    server = context.Process(target=serve_for_ever, args=(folder, rates, address), daemon=True)
    server.start()
    url = address.get()
    remote = RemoteOptions(read_timeout_s=2.0)
    contents = {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}
    cells = []
    with tempfile.TemporaryDirectory() as cache_folder:
        cache = ShardCache(Path(cache_folder), 10**12, remote)
        store = ShardStore(remote=remote)
        sources = {
            name: store.source(f"{url}/{name}", len(raw), hashlib.sha256(raw).hexdigest())
            for name, raw in contents.items()
        }

        def fetch(name: str) -> int:
            assert cache.fetch(sources[name]) is Fetched.THERE
            return len(contents[name])

        def read(draw: random.Random) -> int:
            name = draw.choice(sorted(contents))
            start = draw.randrange(len(contents[name]) - 110_000)
            got = store.read(sources[name].url, start, 110_000, sources[name])
            assert got == contents[name][start : start + 110_000]
            return len(got)

        jobs = ((fetch, list(contents)), (read, [random.Random(n) for n in range(num_reads)]))
        for function, items in jobs:
            before, started = counts(), time.perf_counter()
            moved = sum(ReadAhead(8).map(function, items))  # type: ignore[arg-type, type-var]
            spent, read_counts = time.perf_counter() - started, counts() - before
            cells.append(
                f"{moved / spent / 1e6:,.0f} MB/s, {read_counts.requests} requests, "
                f"{read_counts.retries} retries, {read_counts.bytes / moved:.3f} bytes per byte"
            )
    server.kill()
    return " | ".join(cells)


def main() -> None:
    """Measure each mix of faults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--megabytes", type=int, default=20)
    parser.add_argument("--reads", type=int, default=2000)
    arguments = parser.parse_args()
    print("| faults | whole shards | samples of 110 kB by range |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.shards):
            path = Path(folder) / f"{number:06d}.tar"
            path.write_bytes(os.urandom(arguments.megabytes * 1_000_000))
        for name, rates in MIXES.items():
            print(f"| {name} | {measure(Path(folder), rates, arguments.reads)} |", flush=True)


if __name__ == "__main__":
    main()
