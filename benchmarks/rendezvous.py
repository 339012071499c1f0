"""How long ranks take to find each other by one TCP store, on one machine.

    python benchmarks/rendezvous.py
    python benchmarks/rendezvous.py --ranks 64 256 1024 --gloo 8 16 32

A rank is a thread here, in one of a few processes, so what is measured is the store: one server,
a connection for each rank, a key set by each, one key read by all (as NCCL's id is), and a barrier
of a counter and a key to wait for. `--gloo` also builds gloo's process group, in which each rank
connects to each other one. What a real start adds is not in it: processes that start and import,
NCCL's own bootstrap, and a network between nodes.

torch looks up the name of each connection's address, at both ends. Where a name server does not
answer at once, that is what is measured, so the time of one look-up is printed too.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import socket
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.synchronize import Barrier

import torch
from torch._C._distributed_c10d import BarrierOptions, PrefixStore, ProcessGroupGloo, TCPStore

ADDRESS = "127.0.0.1"
TIMEOUT = timedelta(seconds=120)


@dataclass(frozen=True)
class Row:
    """So many ranks, and whether they also build a process group of gloo."""

    ranks: int
    gloo: bool = False


def meet(port: int, rank: int, row: Row, name: str) -> None:
    """Do what one rank does at a start.

    Args:
        port: of the store, on this machine.
        rank: its number.
        row: among how many it is.
        name: of this start; keys of one do not meet another's.
    """
    # Not the client that torch would share within a process: each rank has a connection.
    store = TCPStore(
        ADDRESS, port, None, False, TIMEOUT, multi_tenant=False, wait_for_workers=False
    )
    keys = PrefixStore(name, store)
    keys.set(f"address-{rank}", f"rank {rank}")
    if rank == 0:
        keys.set("id", "x" * 128)
    keys.get("id")
    if keys.add("arrived", 1) == row.ranks:
        keys.set("all", "yes")
    keys.wait(["all"], TIMEOUT)
    if row.gloo:
        group = ProcessGroupGloo(keys, rank, row.ranks, TIMEOUT)
        group.barrier(BarrierOptions()).wait()  # type: ignore[attr-defined]


def _work(port: int, own: slice, rows: Sequence[Row], rounds: int, together: Barrier) -> None:
    torch.set_num_threads(1)
    for row in rows:
        for number in range(rounds):
            threads = [
                threading.Thread(target=meet, args=(port, rank, row, f"{row} {number}"))
                for rank in range(row.ranks)[own]
            ]
            together.wait()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            together.wait()


def measure_s(rows: Sequence[Row], rounds: int, processes: int) -> Iterator[list[float]]:
    """Yield per row the seconds of each round, from the first rank's start to the last one's end.

    Args:
        rows: who meets, one row after the other, with one server.
        rounds: how often each.
        processes: that hold the ranks as threads.
    """
    server = TCPStore(ADDRESS, 0, None, True, TIMEOUT, multi_tenant=False, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(processes + 1)
    children = [
        context.Process(target=_work, args=(server.port, own, rows, rounds, together))
        for own in (slice(first, None, processes) for first in range(processes))
    ]
    for child in children:
        child.start()
    for _ in rows:
        seconds = []
        for _ in range(rounds):
            together.wait()
            started = time.perf_counter()
            together.wait()
            seconds.append(time.perf_counter() - started)
        yield seconds
    for child in children:
        child.join()


def lookup_s() -> float:
    """Return the seconds of the look-up that torch makes for each end of each connection."""
    started = time.perf_counter()
    # The store listens for both families, so it sees this address.
    with contextlib.suppress(OSError):
        socket.getnameinfo((f"::ffff:{ADDRESS}", 0), socket.NI_NAMEREQD)
    return time.perf_counter() - started


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description="Ranks that meet at a TCP store.")
    parser.add_argument("--ranks", type=int, nargs="*", default=[8, 64, 128, 256])
    parser.add_argument("--gloo", type=int, nargs="*", default=[8, 16, 32], help="also by gloo")
    parser.add_argument("--rounds", type=int, default=6, help="the first is left out (%(default)s)")
    parser.add_argument(
        "--processes", type=int, default=4, help="that hold the ranks as threads (%(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.rounds < 2:
        parser.error(f"--rounds {options.rounds} must be 2 or more: the first is left out.")
    print(f"A look-up of ::ffff:{ADDRESS} takes {lookup_s() * 1e3:.1f} ms.\n")
    print("| ranks | what | median | range |")
    print("| --- | --- | --- | --- |")
    rows = [Row(ranks) for ranks in options.ranks]
    rows += [Row(ranks, gloo=True) for ranks in options.gloo]
    for row, seconds in zip(rows, measure_s(rows, options.rounds, options.processes), strict=True):
        kept = seconds[1:]
        what = "store and gloo's connections" if row.gloo else "store"
        spread = f"{min(kept):.3f} to {max(kept):.3f} s"
        print(f"| {row.ranks} | {what} | {statistics.median(kept):.3f} s | {spread} |", flush=True)


if __name__ == "__main__":
    main()
