"""A pairwise all-reduce: how fast each link between two nodes is, and over which interface."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch.distributed import (  # type: ignore[attr-defined]
    AllreduceOptions,
    PrefixStore,
    ProcessGroupGloo,
    ReduceOp,
    Store,
)

from resscale.cluster.doctor.finding import Finding, Rank
from resscale.cluster.doctor.interfaces import addresses_here, interface_of, own_connections

NAME = "links"
# Each node with so many others: a slow network card shows in the first few already.
MOST_ROUNDS = 8
_TIMEOUT_S = 15.0
_MIB = 1 << 20
_SIZE_MIB = 8
_LONGEST_S = 1.0
_MOST_REPEATS = 16
_PINGS = 5
_SLOW = 0.5


@dataclass(frozen=True)
class Link:
    """What went between two ranks.

    Args:
        a: the lower one.
        b: the other.
        mib_per_s: all-reduced per second, which each sends to the other; None where it failed.
        latency_s: of the smallest all-reduce.
        interface: of `a`.
        fault: why it failed.
    """

    a: Rank
    b: Rank
    mib_per_s: float | None = None
    latency_s: float = 0.0
    interface: str = ""
    fault: str = ""

    def __str__(self) -> str:
        return f"{_end(self.a, self.b)} – {_end(self.b, self.a)}"


def pairs(count: int, most_rounds: int = MOST_ROUNDS) -> list[list[tuple[int, int]]]:
    """Return rounds of disjoint pairs; all of them together are every pair once.

    One stands still and the others go round it.

    Args:
        count: members, numbered from 0.
        most_rounds: leave out the later rounds.
    """
    if count < 2:
        return []
    ring: list[int | None] = [*range(count)]
    if count % 2:
        ring.append(None)
    rounds = []
    for _ in range(min(most_rounds, len(ring) - 1)):
        half = len(ring) // 2
        facing = zip(ring[:half], reversed(ring[half:]), strict=True)
        rounds.append(
            [(min(a, b), max(a, b)) for a, b in facing if a is not None and b is not None]
        )
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return rounds


def measure_links(
    store: Store, members: Sequence[Rank], me: int, timeout_s: float = _TIMEOUT_S
) -> list[Link]:
    """Exchange with one member after the other; return the links of this one.

    All begin a round together: who has waited for a partner in vain would come too late for the
    next one, and that link would seem to fail, too.

    Args:
        store: that all members share.
        members: the ranks that take part.
        me: this one's place among them.
        timeout_s: of each exchange.
    """
    links = []
    for number, round_ in enumerate(pairs(len(members))):
        _begin_round(store, number, len(members), me, timeout_s)
        for a, b in round_:
            if me not in (a, b):
                continue
            place = PrefixStore(f"links/{number}/{a}-{b}", store)
            try:
                rate, latency, interface = _exchange(place, int(me == b), timeout_s)
            except RuntimeError as error:
                fault = plain_fault(error)
                links.append(Link(members[a], members[b], fault=fault))
            else:
                links.append(Link(members[a], members[b], rate, latency, interface))
    return links


def judge_links(links: Sequence[Link]) -> list[Finding]:
    """Judge all links that were measured.

    Args:
        links: from both of their ends, or from one.
    """
    if not links:
        return []
    failed = {str(link): link for link in links if link.mib_per_s is None}
    whole = [link for link in links if link.mib_per_s is not None and str(link) not in failed]
    findings = [
        Finding(
            NAME,
            "fail",
            f"{name}: no all-reduce ({link.fault})",
            "open ports between these hosts in the firewall, or name the interface that joins "
            "them: export GLOO_SOCKET_IFNAME=... NCCL_SOCKET_IFNAME=... (`ip -br address`)",
        )
        for name, link in failed.items()
    ]
    if not whole:
        return findings
    findings += _slow(whole)
    rates = [link.mib_per_s or 0.0 for link in whole]
    median = statistics.median_high(rates)
    latency_s = statistics.median_high(link.latency_s for link in whole)
    over = ", ".join(sorted({link.interface for link in whole}))
    findings.append(
        Finding(
            NAME,
            "ok",
            f"all-reduce over {over}: {median:,.0f} MiB/s in the median of "
            f"{len({str(link) for link in whole})} ({min(rates):,.0f} to {max(rates):,.0f}), "
            f"{latency_s * 1e3:,.2f} ms at least",
        )
    )
    return findings


def _begin_round(store: Store, number: int, count: int, me: int, timeout_s: float) -> None:
    store.set(f"links/{number}/{me}", "")
    others = [f"links/{number}/{member}" for member in range(count)]
    # A member that is gone for good is not waited for longer than one that waits in vain.
    with suppress(RuntimeError):
        store.wait(others, timedelta(seconds=3 * timeout_s))


def plain_fault(error: Exception) -> str:
    """Return what gloo says, without the places in its source.

    Args:
        error: raised by it.
    """
    said = re.sub(r"\[/\S+\]\s*", "", str(error).partition("\n")[0])
    return re.sub(r"^\[enforce fail at .*?\] (?:\S+ != -1\. -1 vs -1\. )?", "", said).rstrip(". ")


def _exchange(store: Store, me: int, timeout_s: float) -> tuple[float, float, str]:
    """Return MiB/s, latency in seconds and the interface, of an exchange with the other one."""
    before = own_connections()
    group = ProcessGroupGloo(store, me, 2, timedelta(seconds=timeout_s))
    one = torch.ones(1)
    _reduce(group, one)
    new = own_connections() - before
    known = addresses_here()
    over = ", ".join(sorted({interface_of(connection.local, known) for connection in new}))
    latency_s = min(_timed(group, one) for _ in range(_PINGS))
    data = torch.ones(_SIZE_MIB * _MIB // 4)
    _reduce(group, data)
    # Both must repeat as often: they agree on the time that it took.
    took = torch.tensor([_timed(group, data)])
    _reduce(group, took)
    repeats = max(1, min(_MOST_REPEATS, int(_LONGEST_S / max(float(took), 1e-6))))
    started = time.perf_counter()
    for _ in range(repeats):
        _reduce(group, data)
    rate = repeats * _SIZE_MIB / (time.perf_counter() - started)
    return rate, latency_s, over or "an unknown interface"


def _reduce(group: ProcessGroupGloo, data: torch.Tensor) -> None:
    options = AllreduceOptions()
    # The largest of equal values stays what it is, however often; a sum would overflow.
    options.reduceOp = ReduceOp.MAX  # type: ignore[assignment]
    group.allreduce([data], options).wait()  # type: ignore[attr-defined]


def _timed(group: ProcessGroupGloo, data: torch.Tensor) -> float:
    started = time.perf_counter()
    _reduce(group, data)
    return time.perf_counter() - started


def _slow(links: Sequence[Link]) -> list[Finding]:
    """Return a fault for each slow host, and for each slow link between two hosts that are not.

    A host is judged by its best link: of three hosts, a slow one makes two of three links slow, and
    then their median is slow too.
    """
    best: dict[str, float] = {}
    for link in links:
        for host in {link.a.host, link.b.host}:
            best[host] = max(best.get(host, 0.0), link.mib_per_s or 0.0)
    usual = statistics.median_high(best.values())
    slow_hosts = [host for host, rate in best.items() if rate < _SLOW * usual]
    cure = "see to the cable, the switch and the speed of the interface (ethtool)"
    findings = [
        Finding(
            NAME,
            "warn",
            f"{host}: at most {best[host]:,.0f} MiB/s over {_interfaces(links, host)}, in the "
            f"median hosts reach {usual:,.0f}",
            f"{cure}, or leave the host out (--exclude={host})",
        )
        for host in slow_hosts
    ]
    others = {str(link): link for link in links if not {link.a.host, link.b.host} & {*slow_hosts}}
    median = statistics.median_high(link.mib_per_s or 0.0 for link in others.values())
    findings += [
        Finding(
            NAME,
            "warn",
            f"{name}: {link.mib_per_s:,.0f} MiB/s over {link.interface}, the median of "
            f"{len(others)} is {median:,.0f}",
            f"{cure} between the two",
        )
        for name, link in others.items()
        if (link.mib_per_s or 0.0) < _SLOW * median
    ]
    return findings


def _interfaces(links: Sequence[Link], host: str) -> str:
    return ", ".join(sorted({one.interface for one in links if host in (one.a.host, one.b.host)}))


def _end(rank: Rank, other: Rank) -> str:
    return f"{rank.host} (rank {rank.number})" if rank.host == other.host else rank.host
