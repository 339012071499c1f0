"""Times one piece of work in CPU seconds of the process tree and prints it as JSON."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from serve import tree_cpu_s, versions_of


def list_images(source: Path) -> list[tuple[str, int]]:
    """Return paths and labels of a folder of class folders, in an order without a pattern."""
    classes = sorted(folder for folder in source.iterdir() if folder.is_dir())
    found = [
        (str(path), label)
        for label, folder in enumerate(classes)
        for path in sorted(folder.iterdir())
    ]
    # Neighbours in the source are far from each other in the shards: 7919 is prime.
    return [found[number * 7919 % len(found)] for number in range(len(found))]


def timed(work: Callable[[], object], images: int, distributions: Sequence[str]) -> None:
    """Do the work and print what it took, as one line of JSON.

    Args:
        work: what is timed; imports that it needs should have been made.
        images: how many it takes.
        distributions: whose versions are told.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    cpu_s, started = tree_cpu_s(), time.perf_counter()
    work()
    wall_s = time.perf_counter() - started
    taken = {"images": images, "cpu_s": tree_cpu_s() - cpu_s, "wall_s": wall_s}
    print(json.dumps({**taken, "versions": versions_of(distributions)}), file=answers, flush=True)
