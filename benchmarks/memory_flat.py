"""Memory of the loader over epochs: it must not grow. Linux.

    python benchmarks/memory_flat.py SHARDS
    python benchmarks/memory_flat.py SHARDS --figure docs/loader-memory.svg --epochs 5 --workers 2

A process per case reads SHARDS epoch after epoch as training does, with readers that stay. In the
middle and at the end of each epoch the memory of the process and of all below it is summed, by the
proportional set size (PSS): what several share counts once. Files that are mapped, such as
libraries, are left out: how much of them counts depends on who else on the machine has them open.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MB = 1_000_000
MOST_GROWTH = 0.05
# Kind of reader, decoder.
CASES = (
    ("threads", "native"),
    ("processes", "native"),
    ("threads", "nvimgcodec"),
    ("processes", "nvimgcodec"),
    ("threads", "pillow"),
    ("processes", "pillow"),
)


@dataclass(frozen=True)
class Usage:
    """Bytes of a process tree and its number of processes.

    Args:
        pss: proportional set size of memory that is no file: heaps, stacks, shared memory.
        rss: resident set size of all, what several share counted for each.
        processes: number.
    """

    pss: int
    rss: int
    processes: int


def parse_rollup(text: str) -> dict[str, int]:
    """Return the bytes of each line of a `smaps_rollup`."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if len(words) == 2 and words[1] == "kB":
            found[name] = 1024 * int(words[0])
    return found


def tree_usage(root: int) -> Usage:
    """Return the memory of a process and all below it; those that end meanwhile do not count."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(folder.name)] = int(fields[1])
    tree = {root}
    while new := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= new
    pss, rss, processes = 0, 0, 0
    for pid in tree:
        try:
            sizes = parse_rollup(Path(f"/proc/{pid}/smaps_rollup").read_text())
        except OSError:
            continue
        pss += sizes["Pss_Anon"] + sizes["Pss_Shmem"]
        rss, processes = rss + sizes["Rss"], processes + 1
    return Usage(pss, rss, processes)


def growth(values: Sequence[float]) -> float:
    """Return by what share the largest of the later values exceeds the first."""
    return max(values[1:]) / values[0] - 1


def table(ends: Mapping[str, Sequence[Usage]]) -> str:
    """Return the Markdown table: PSS in MB at the end of each epoch, and its growth."""
    epochs = len(next(iter(ends.values())))
    head = " | ".join(f"epoch {number + 1}" for number in range(epochs))
    lines = [f"| readers | processes | {head} | growth |", "| --- " * (epochs + 3) + "|"]
    for name, usages in ends.items():
        cells = [f"{usage.pss / MB:.1f}" for usage in usages]
        grown = growth([usage.pss for usage in usages])
        flat = "" if grown <= MOST_GROWTH else ": not flat"
        lines.append(
            f"| {name} | {usages[-1].processes} | {' | '.join(cells)} | {grown:+.1%}{flat} |"
        )
    return "\n".join(lines)


def read_epochs(options: argparse.Namespace, kind: str, decoder: str) -> list[list[Usage]]:
    """Read epochs in this process; return the memory in the middle and at the end of each."""
    import torch

    from resscale.data import EpochOrder, Manifest, ShardDataset
    from resscale.data.augment import RandomResizedCrop
    from resscale.data.batching import plan_batches
    from resscale.data.decoders import build_decoder
    from resscale.data.loader import TrainLoader, WorkerOptions

    torch.set_num_threads(1)
    manifest = Manifest.load(options.shards)
    batch = options.batch_size
    dataset = ShardDataset(
        manifest, RandomResizedCrop(options.size), build_decoder(decoder), replace_bad=True
    )
    order = EpochOrder(manifest.shard_sizes, global_batch_size=batch)
    workers = WorkerOptions(options.workers, kind=kind)  # type: ignore[arg-type]
    loader = TrainLoader(dataset, order, plan_batches(batch, batch, 1), 0, workers)
    found = []
    for epoch in range(options.epochs):
        usages = []
        loader.sampler.set_epoch(epoch)
        for number, _ in enumerate(loader):
            if number == order.num_steps // 2:
                usages.append(tree_usage(os.getpid()))
        usages.append(tree_usage(os.getpid()))
        found.append(usages)
    return found


def draw(cases: Mapping[str, Sequence[Sequence[Usage]]], figure: Path) -> None:
    """Draw PSS over epochs, a line per case."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    picture, axes = plt.subplots(figsize=(7, 3.6))
    for name, epochs in cases.items():
        values = [usage.pss / MB for usages in epochs for usage in usages]
        places = [
            number + (place + 1) / len(usages)
            for number, usages in enumerate(epochs)
            for place in range(len(usages))
        ]
        axes.plot(places, values, "o-", markersize=3, linewidth=1.2, label=name)
    axes.set(xlabel="epochs read", ylabel="memory of all processes, MB", ylim=(0, None))
    axes.legend(fontsize=8, ncol=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    picture.tight_layout()
    picture.savefig(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all cases; return 1 where one of them is not flat."""
    parser = argparse.ArgumentParser(description="Memory of the loader over epochs.")
    parser.add_argument("shards")
    parser.add_argument("--epochs", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="(%(default)s)")
    parser.add_argument("--batch_size", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--size", type=int, default=224, help="pixels (%(default)s)")
    parser.add_argument("--decoders", nargs="*", default=["native", "nvimgcodec", "pillow"])
    parser.add_argument("--figure", type=Path, help="write a picture here")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.epochs < 2 or options.workers < 1:
        parser.error("--epochs must be 2 or more, and --workers 1 or more")
    if options.case:
        found = read_epochs(options, *options.case)
        print(json.dumps([[vars(usage) for usage in usages] for usages in found]))
        return 0
    given = list(sys.argv[1:] if arguments is None else arguments)
    cases: dict[str, list[list[Usage]]] = {}
    for kind, decoder in CASES:
        if decoder not in options.decoders:
            continue
        command = [sys.executable, __file__, *given, "--case", kind, decoder]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        raw = json.loads(done.stdout.splitlines()[-1])
        cases[f"{options.workers} {kind}, {decoder}"] = [
            [Usage(**usage) for usage in usages] for usages in raw
        ]
        print(f"{kind}, {decoder}: done", file=sys.stderr, flush=True)
    ends = {name: [usages[-1] for usages in epochs] for name, epochs in cases.items()}
    print(table(ends))
    if options.figure:
        draw(cases, options.figure)
    return int(
        any(growth([usage.pss for usage in usages]) > MOST_GROWTH for usages in ends.values())
    )


if __name__ == "__main__":
    sys.exit(main())
