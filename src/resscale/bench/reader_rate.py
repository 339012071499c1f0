"""How fast a loader gives batches to somebody who does nothing else, and what CPU time it takes."""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from resscale.data.dataset import Batch

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class ReaderRound:
    """What a loader gave for a while.

    Args:
        images: that came.
        wall_s: in which they came.
        cpu_s: of this process and its readers, in the meantime.
    """

    images: int
    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class ReaderRate:
    """Medians over the rounds of one number of readers.

    Args:
        readers: how many; 0: the rank reads by itself.
        images_per_s: that came.
        cpu_ms_per_image: milliseconds of CPU time, user and system, of all that take part.
    """

    readers: int
    images_per_s: float
    cpu_ms_per_image: float


def read_for(loader: Iterable[Batch], readers: int, seconds: float) -> ReaderRound:
    """Read batches for so long, counted from where all readers are at work.

    Args:
        loader: is left in mid-epoch, or begun anew where an epoch is too short.
        readers: each brings its first batch at about the same time, which is not counted.
        seconds: how long, but at least two batches behind those.
    """
    batches = _endless(loader)
    for _ in range(max(1, readers)):
        next(batches)
    cpu_s, started, images, count = reading_cpu_s(), time.perf_counter(), 0, 0
    while count < 2 or time.perf_counter() - started < seconds:
        images += len(next(batches)["label"])
        count += 1
    return ReaderRound(images, time.perf_counter() - started, reading_cpu_s() - cpu_s)


def summarise(rounds: Mapping[int, Sequence[ReaderRound]]) -> list[ReaderRate]:
    """Return the medians, by number of readers.

    Args:
        rounds: of each number of readers.
    """
    return [
        ReaderRate(
            readers,
            statistics.median(one.images / one.wall_s for one in found),
            statistics.median(1000 * one.cpu_s / one.images for one in found),
        )
        for readers, found in sorted(rounds.items())
    ]


def render_readers(rates: Sequence[ReaderRate], kind: str) -> str:
    """Return the table.

    Args:
        rates: by number of readers.
        kind: "threads" or "processes".
    """
    lines = [f"{kind:>10} {'images/s':>12} {'CPU ms/image':>14} {'images/s each':>14}"]
    for rate in rates:
        each = rate.images_per_s / max(1, rate.readers)
        lines.append(
            f"{rate.readers:>10} {rate.images_per_s:>12,.1f} {rate.cpu_ms_per_image:>14.3f} "
            f"{each:>14,.1f}"
        )
    return "\n".join(lines)


def reading_cpu_s() -> float:
    """Return the CPU seconds of this process with its threads, and of its reading processes."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    total = usage.ru_utime + usage.ru_stime
    for child in multiprocessing.active_children():
        try:
            fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended, or this system has no such files
            continue
        total += sum(map(int, fields[11:13])) / _TICKS_PER_S  # user and system
    return total


def _endless(loader: Iterable[Batch]) -> Iterator[Batch]:
    while True:
        yield from loader
