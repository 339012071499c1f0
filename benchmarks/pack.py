"""Images per second and core that are packed, ours and others', side by side in one run.

    python benchmarks/make_peers.py PEERS
    python benchmarks/loader_data.py PEERS DATA
    python benchmarks/pack.py PEERS DATA

Each writer packs the same pictures in one process, or in one worker process where it must have one,
in turns, round by round. Every packing runs in a fresh process; imports that it needs come before
the clock starts. Each packs the pictures once, and `--times` times over: the difference is what an
image costs in a large packing, where starting counts for nothing. CPU time, user and system, of
the whole process tree; medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loader import describe_machine
from make_peers import last_words, python_of, why_skipped

SCRIPTS = Path(__file__).resolve().parent / "peers"
OURS = "ours"


@dataclass(frozen=True)
class Writer:
    """One writer with its options.

    Args:
        name: for the command line.
        label: for the table.
        checks: what it finds of damaged images, in words.
        env: its environment of make_peers.py, or "ours".
        script: below peers/, with the arguments in front of source and target.
        more: arguments behind them.
    """

    name: str
    label: str
    checks: str
    env: str
    script: tuple[str, ...]
    more: tuple[str, ...] = ()

    def command(self, peers: Path, source: Path, out: Path) -> list[str]:
        """Return the program that packs once."""
        python = sys.executable if self.env == OURS else str(python_of(peers, self.env))
        script, *before = self.script
        return [python, str(SCRIPTS / script), *before, str(source), str(out), *self.more]


def _ours(check: str, checks: str) -> Writer:
    more = ("--check", check)
    label = f"resscale pack --check {check}"
    return Writer(f"ours-{check}", label, checks, OURS, ("ours_pack.py",), more)


_SCRIPT = "torch_pack.py"
WRITERS = (
    _ours("full", "each decoded"),
    _ours("header", "each header"),
    _ours("none", "nothing"),
    Writer("litdata", "litData optimize", "each header", "torch", (_SCRIPT, "litdata")),
    Writer("mds", "MDSWriter, bytes", "nothing", "torch", (_SCRIPT, "mds")),
    Writer("mds-jpeg", "MDSWriter, jpeg", "each header", "torch", (_SCRIPT, "mds-jpeg")),
    Writer("webdataset", "webdataset ShardWriter", "nothing", "torch", (_SCRIPT, "webdataset")),
    Writer("ffcv", "ffcv DatasetWriter, encoded anew", "each decoded", "ffcv", ("ffcv_pack.py",)),
)


def repeat_tree(source: Path, target: Path, times: int) -> None:
    """Make a folder in which each class folder of `source` is linked `times` times."""
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        for number in range(times):
            (target / f"{folder.name}-{number}").symlink_to(folder.resolve())


def run(command: Sequence[str]) -> dict[str, Any]:
    """Run a packing; return images, CPU and wall seconds.

    Raises:
        RuntimeError: it failed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(last_words(done.stderr))
    taken: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return taken


def rate(small: Mapping[str, float], large: Mapping[str, float]) -> float:
    """Return images per CPU second, of the images by which the second packing is larger."""
    images, cpu_s = large["images"] - small["images"], large["cpu_s"] - small["cpu_s"]
    return images / max(cpu_s, 1e-9)


def table(
    writers: Sequence[Writer],
    pairs: Mapping[str, Sequence[tuple[Mapping[str, float], Mapping[str, float]]]],
    reasons: Mapping[str, str],
) -> str:
    """Return the Markdown table; the fastest has share 1."""
    rates = {name: [rate(*pair) for pair in done] for name, done in pairs.items()}
    fastest = max((statistics.median(values) for values in rates.values()), default=1.0)
    lines = [
        "| writer | looks at | images/s per core | lowest to highest | of the fastest | "
        "with its start |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for writer in writers:
        if writer.name in reasons:
            lines.append(f"| {writer.label} | skipped: {reasons[writer.name]} | | | | |")
            continue
        values = rates[writer.name]
        middle = statistics.median(values)
        whole = statistics.median(
            large["images"] / large["cpu_s"] for _, large in pairs[writer.name]
        )
        lines.append(
            f"| {writer.label} | {writer.checks} | {middle:,.0f} | {min(values):,.0f} to "
            f"{max(values):,.0f} | {middle / fastest:.2f} | {whole:,.0f} |"
        )
    return "\n".join(lines)


def measure(options: argparse.Namespace, writers: Sequence[Writer]) -> tuple[Any, dict[str, str]]:
    """Pack in turns; return pairs of a small and a large packing by writer, and reasons."""
    pairs: dict[str, list[Any]] = {}
    reasons: dict[str, str] = {}
    originals = options.data / "originals"
    with tempfile.TemporaryDirectory(dir=options.data, prefix="packing-") as folder:
        many, out = Path(folder) / "many", Path(folder) / "out"
        many.mkdir()
        repeat_tree(originals, many, options.times)
        for number in range(options.rounds):
            for writer in writers:
                if writer.name in reasons:
                    continue
                reason = why_skipped(options.peers, writer.env) if writer.env != OURS else None
                pair = []
                for source in (originals, many) if reason is None else ():
                    out.mkdir()
                    try:
                        pair.append(run(writer.command(options.peers, source, out / "made")))
                    except RuntimeError as error:
                        reason = str(error)
                        break
                    finally:
                        shutil.rmtree(out, ignore_errors=True)
                if reason is not None:
                    reasons[writer.name] = reason
                else:
                    pairs.setdefault(writer.name, []).append(tuple(pair))
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
    return pairs, reasons


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure and print."""
    names = [writer.name for writer in WRITERS]
    parser = argparse.ArgumentParser(description="Packing speed, ours and others'.")
    parser.add_argument("peers", type=Path, help="folder of benchmarks/make_peers.py")
    parser.add_argument("data", type=Path, help="folder of benchmarks/loader_data.py")
    parser.add_argument("--only", nargs="*", choices=names, default=names)
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--times", type=int, default=4, help="(%(default)s)")
    options = parser.parse_args(arguments)
    if options.times < 2 or options.rounds < 1:
        parser.error("--times must be 2 or more, and --rounds 1 or more")
    writers = [writer for writer in WRITERS if writer.name in options.only]
    pairs, reasons = measure(options, writers)
    print(f"{describe_machine()}; {options.rounds} rounds\n")
    print(table(writers, pairs, reasons))
    found = {name: done[0][0]["versions"] for name, done in pairs.items()}
    print(
        "\n" + ", ".join(sorted({f"{k} {v}" for part in found.values() for k, v in part.items()}))
    )


if __name__ == "__main__":
    main()
