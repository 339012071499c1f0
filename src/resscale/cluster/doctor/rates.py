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
    both = [f for f in facts.values() if f.loader_per_s and f.step_per_s]
    if not both:
        return findings
    slowest = min(both, key=lambda f: (f.loader_per_s or 0) / (f.step_per_s or 1))
    loader, step = slowest.loader_per_s or 0.0, slowest.step_per_s or 0.0
    each = "" if len(facts) == 1 else f" in the slowest of {len(facts)} ranks"
    if loader < step:
        findings.append(
            Finding(
                NAME,
                "warn",
                f"data-bound: {loader:,.0f} of {step:,.0f} images/s{each}",
                remedy_of(slowest, images),
            )
        )
        return findings
    return findings or [
        Finding(
            NAME,
            "ok",
            f"{slowest.num_workers} workers read {loader:,.0f} images/s, the steps take "
            f"{step:,.0f}{each}",
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
        ways = [f"{workers}, which need --cpus-per-task={needed + 1} (now {facts.cpus})"]
    smaller = round(images.trained * _STORED_PER_TRAINED)
    if images.stored is None or images.stored > smaller:
        ways.append(f"`pack --resize {smaller}` if the images are larger")
    return " or ".join(ways) + " would mend it"


def _uneven(facts: Mapping[Rank, RateFacts]) -> list[Finding]:
    findings = []
    for what, rates in (
        ("reads", {rank: f.loader_per_s for rank, f in facts.items() if f.loader_per_s}),
        ("steps", {rank: f.step_per_s for rank, f in facts.items() if f.step_per_s}),
    ):
        if len(rates) < 2:
            continue
        # Of two, the upper one: the lower is the slow one.
        median = statistics.median_high(rates.values())
        rank, rate = min(rates.items(), key=lambda item: item[1])
        if rate < _SLOW * median:
            findings.append(
                Finding(
                    NAME,
                    "warn",
                    f"rank {rank.number} on {rank.host} {what} {rate:,.0f} images/s, the median is "
                    f"{median:,.0f}: all ranks wait for it",
                    f"look for other work, heat or a slow disk on {rank.host}, or leave it out "
                    f"(--exclude={rank.host})",
                )
            )
    return findings
