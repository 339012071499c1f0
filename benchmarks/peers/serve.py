"""Runs one loader, an epoch whenever it is told to, and tells what CPU time its processes took.

Runs in the environments of other libraries too: nothing but Python's own modules.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def descendants_cpu_s(parents: dict[int, int], cpu_s: dict[int, float], root: int) -> float:
    """Return the CPU seconds of all processes below `root`.

    Args:
        parents: parent of each process.
        cpu_s: CPU seconds of each, its children that have ended included.
        root: whose descendants are meant.
    """
    below, found = {root}, 0.0
    # A child's number may be smaller than its parent's: numbers are used again.
    while new := {pid for pid, parent in parents.items() if parent in below} - below:
        found += sum(cpu_s[pid] for pid in new)
        below |= new
    return found


def tree_cpu_s() -> float:
    """Return the CPU seconds that this process and all below it have taken so far.

    This process's own in microseconds, those of running children in hundredths of a second.
    """
    parents, cpu_s = {}, {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        parents[int(folder.name)] = int(fields[1])
        # user, system, and the same two of children that have ended and were waited for
        cpu_s[int(folder.name)] = sum(map(int, fields[11:15])) / _TICKS_PER_S
    total = descendants_cpu_s(parents, cpu_s, os.getpid())
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += usage.ru_utime + usage.ru_stime
    return total


def versions_of(distributions: Sequence[str]) -> dict[str, str]:
    """Return the installed versions."""
    return {name: importlib.metadata.version(name) for name in distributions}


def serve(epoch: Callable[[], int], distributions: Sequence[str], gives: str = "uint8") -> None:
    """Answer each line of the standard input with an epoch and what it took, until its end.

    Args:
        epoch: reads all images once and returns their number.
        distributions: whose versions are told.
        gives: what kind of batch comes out.
    """
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # Compiles, starts workers, fills the page cache. Some swallow every error and give nothing.
    if epoch() == 0:
        raise RuntimeError("error: an epoch without images")
    ready = {"versions": versions_of(distributions), "gives": gives}
    print(json.dumps(ready), file=answers, flush=True)
    for _ in sys.stdin:
        cpu_s, started = tree_cpu_s(), time.perf_counter()
        images = epoch()
        wall_s = time.perf_counter() - started
        taken = {"images": images, "cpu_s": tree_cpu_s() - cpu_s, "wall_s": wall_s}
        print(json.dumps(taken), file=answers, flush=True)
