"""The pairwise all-reduce: who meets whom, between two real processes, and what is slow."""

import multiprocessing
from datetime import timedelta
from itertools import combinations
from typing import Any

import pytest
from torch.distributed import TCPStore

from resscale.cluster.doctor.finding import Rank
from resscale.cluster.doctor.links import Link, judge_links, measure_links, pairs, plain_fault

HOSTS = [Rank(number, f"n{number + 1}") for number in range(4)]


@pytest.mark.parametrize("count", [2, 3, 4, 7, 8])
def test_every_two_meet_once_and_nobody_twice_in_a_round(count: int) -> None:
    rounds = pairs(count, most_rounds=100)
    assert sorted(pair for round_ in rounds for pair in round_) == sorted(
        combinations(range(count), 2)
    )
    for round_ in rounds:
        members = [member for pair in round_ for member in pair]
        assert len(set(members)) == len(members)


def test_many_members_meet_a_few_others_each() -> None:
    rounds = pairs(512, most_rounds=8)
    assert [len(round_) for round_ in rounds] == [256] * 8
    assert len({pair for round_ in rounds for pair in round_}) == 8 * 256
    assert pairs(1) == pairs(0) == []


def links(rates: dict[tuple[int, int], float]) -> list[Link]:
    return [Link(HOSTS[a], HOSTS[b], rate, 2e-4, "eth0") for (a, b), rate in rates.items()]


def test_links_that_are_alike_are_one_line() -> None:
    (found,) = judge_links(links({(0, 1): 1000, (0, 2): 1100, (1, 2): 900}))
    assert found.level == "ok"
    assert found.text == (
        "all-reduce over eth0: 1,000 MiB/s in the median of 3 (900 to 1,100), 0.20 ms at least"
    )


def test_a_slow_host_is_told_even_where_most_links_are_slow_for_it() -> None:
    found = judge_links(links({(0, 1): 1000, (0, 2): 90, (1, 2): 80}))
    assert [f.level for f in found] == ["warn", "ok"]
    assert found[0].text == "n3: at most 90 MiB/s over eth0, in the median hosts reach 1,000"
    assert "--exclude=n3" in found[0].remedy


def test_a_slow_link_between_good_hosts_is_told() -> None:
    rates = dict.fromkeys(combinations(range(4), 2), 1000.0)
    found = judge_links(links({**rates, (1, 2): 499}))
    assert [f.level for f in found] == ["warn", "ok"]
    assert found[0].text == "n2 – n3: 499 MiB/s over eth0, the median of 6 is 1,000"
    assert [f.level for f in judge_links(links({**rates, (1, 2): 500}))] == ["ok"]


def test_one_link_alone_has_nothing_to_be_compared_with() -> None:
    assert [f.level for f in judge_links(links({(0, 1): 3}))] == ["ok"]
    assert judge_links([]) == []


def test_a_link_that_failed_at_one_end_fails_once() -> None:
    broken = [Link(HOSTS[0], HOSTS[1], fault="timed out"), *links({(0, 1): 5, (0, 2): 900})]
    found = judge_links([*broken, broken[0]])
    assert [f.level for f in found] == ["fail", "ok"]
    assert found[0].text == "n1 – n2: no all-reduce (timed out)"
    assert "GLOO_SOCKET_IFNAME" in found[0].remedy


def test_ranks_of_one_host_are_told_apart() -> None:
    assert str(Link(Rank(0, "n1"), Rank(1, "n1"))) == "n1 (rank 0) – n1 (rank 1)"


def _measure(port: int, me: int, results: Any) -> None:
    store = TCPStore("127.0.0.1", port, timeout=timedelta(seconds=60))
    results.put(measure_links(store, HOSTS[:2], me))


@pytest.fixture
def store() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def test_two_processes_measure_their_link(store: TCPStore) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_measure, args=(store.port, me, results)) for me in (0, 1)]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    for (link,) in found:
        assert (link.a, link.b, link.fault) == (HOSTS[0], HOSTS[1], "")
        assert link.mib_per_s is not None
        assert link.mib_per_s > 0
        # gloo takes the address of this machine's name, whichever interface has it.
        assert link.interface
    assert [f.level for f in judge_links([link for (link,) in found])] == ["ok"]


def test_a_partner_that_does_not_come_is_a_fault_and_no_hang(store: TCPStore) -> None:
    (link,) = measure_links(store, HOSTS[:2], me=0, timeout_s=0.5)
    assert link.mib_per_s is None
    assert link.fault


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "Connect failed with [/a/tcp/pair.cc:152] timed out\nmore",
            "Connect failed with timed out",
        ),
        (
            "[enforce fail at /a/tcp/socket.cc:142] rv != -1. -1 vs -1. connect: Invalid argument",
            "connect: Invalid argument",
        ),
        ("refused.", "refused"),
    ],
)
def test_a_fault_is_told_without_the_places_in_gloo_s_source(said: str, told: str) -> None:
    assert plain_fault(RuntimeError(said)) == told
