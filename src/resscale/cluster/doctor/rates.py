"""Whether images are read as fast as they are trained on, and whether ranks are equally fast."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from resscale.cluster.doctor.finding import Finding, Rank

NAME = "rates"
# Stored larger than this many times what is trained on, images cost more to decode than they need:
# 320 pixels for crops of 224.
_STORED_PER_TRAINED = 320 / 224
# A rank below this share of the median makes the others wait.
_SLOW = 0.8


@dataclass(frozen=True)
class RateFacts:
    """What one rank has measured, each by itself.

    Args:
        loader_per_s: images per second from shards to batches; None where that was not measured.
        step_per_s: images per second through the network, forward, backward and the optimizer.
        num_workers: reading processes that it was measured with.
        cpus: that the rank can count on.
        step_rows: images of a pass that it was measured with.
        faults: what kept it from being measured, each with its remedy.
    """

    loader_per_s: float | None = None
    step_per_s: float | None = None
    num_workers: int = 0
    cpus: int = 1
    step_rows: int = 0
    faults: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Images:
    """What the images are like.

    Args:
        trained: pixels per side that the network sees.
        stored: shorter side that `resscale pack --resize` brought them down to; None: never.
    """

    trained: int
    stored: int | None


def judge_rates(facts: Mapping[Rank, RateFacts], images: Images) -> list[Finding]:
    """Judge the slowest rank, which all others wait for.

    Args:
        facts: what each rank has measured.
        images: what they are like.
    """
    findings = [
        Finding(NAME, "fail", text, remedy)
        for text, remedy in dict.fromkeys(fault for f in facts.values() for fault in f.faults)
    ]
    findings += _uneven(facts)
    both = {rank: f for rank, f in facts.items() if f.loader_per_s and f.step_per_s}
    if not both:
        return findings
    rank, slowest = min(
        both.items(), key=lambda item: (item[1].loader_per_s or 0) / (item[1].step_per_s or 1)
    )
    loader, step = slowest.loader_per_s or 0.0, slowest.step_per_s or 0.0
    each = f" on rank {rank.number}, the tightest of {len(facts)}" if len(facts) > 1 else ""
    if loader < step:
        findings.append(
            Finding(
                NAME,
                "warn",
                f"data-bound: {_rate(loader)} of {_rate(step)} images/s{each}",
                remedy_of(slowest, images),
            )
        )
        return findings
    return findings or [
        Finding(
            NAME,
            "ok",
            f"{_readers(slowest.num_workers)} {_rate(loader)} images/s, the steps take "
            f"{_rate(step)} in passes of {slowest.step_rows}{each}",
        )
    ]


def needed_workers(facts: RateFacts) -> int:
    """Return the reading processes that would keep up, if each reads as much as those measured.

    Args:
        facts: of a rank that has measured both rates.
    """
    assert facts.loader_per_s
    assert facts.step_per_s
    per_worker = facts.loader_per_s / max(1, facts.num_workers)
    return math.ceil(facts.step_per_s / per_worker)


def remedy_of(facts: RateFacts, images: Images) -> str:
    """Return what would mend a loader that is too slow.

    Args:
        facts: of the slowest rank.
        images: what they are like.
    """
    needed = needed_workers(facts)
    more = needed - facts.num_workers
    workers = f"{more} more {'worker' if more == 1 else 'workers'}"
    ways = [f"{workers} (--data.num_workers {needed})"]
    if needed + 1 > facts.cpus:
        ways = [
            f"{workers} with {needed + 1} CPUs per rank (now {facts.cpus}; in SLURM: "
            f"--cpus-per-task={needed + 1})"
        ]
    smaller = round(images.trained * _STORED_PER_TRAINED)
    if images.stored is None or images.stored > smaller:
        ways.append(f"`pack --resize {smaller}` if the images are larger")
    return " or ".join(ways) + " would mend it"


def _readers(count: int) -> str:
    if count == 0:
        return "the rank itself reads"
    return "1 worker reads" if count == 1 else f"{count} workers read"


def _rate(images_per_s: float) -> str:
    return f"{images_per_s:,.0f}" if images_per_s >= 100 else f"{images_per_s:.1f}"


def _uneven(facts: Mapping[Rank, RateFacts]) -> list[Finding]:
    rates = {rank: f.step_per_s for rank, f in facts.items() if f.step_per_s}
    if len(rates) < 2:
        return []
    # Of two, the upper one: the lower is the slow one.
    median = statistics.median_high(rates.values())
    return [
        Finding(
            NAME,
            "warn",
            f"rank {rank.number} on {rank.host} steps {_rate(rate)} images/s, the median is "
            f"{_rate(median)}: all ranks wait for it",
            f"look for other work or heat on {rank.host}, or leave it out (--exclude={rank.host})",
        )
        for rank, rate in rates.items()
        if rate < _SLOW * median
    ]
