"""What must be the same on all ranks."""

from resscale.cluster.doctor.alike import check_alike
from resscale.cluster.doctor.finding import Rank

RANKS = [Rank(0, "n1"), Rank(1, "n2"), Rank(2, "n3")]


def test_ranks_with_the_same_facts_are_well() -> None:
    (found,) = check_alike({rank: {"versions": "torch 2.13", "data": "abc"} for rank in RANKS})
    assert found.level == "ok"


def test_another_version_on_one_host_fails_and_names_it() -> None:
    versions = ["torch 2.13", "torch 2.13", "torch 2.12"]
    facts = {rank: {"versions": v} for rank, v in zip(RANKS, versions, strict=True)}
    (found,) = check_alike(facts)
    assert found.level == "fail"
    assert found.text == ("versions differ between ranks: torch 2.12 on n3; torch 2.13 on n1, n2")


def test_other_shards_on_one_host_fail() -> None:
    facts = {rank: {"data": str(rank.number > 1)} for rank in RANKS}
    assert [(f.level, f.text.split()[0]) for f in check_alike(facts)] == [("fail", "data")]


def test_other_gpus_are_slow_and_no_fault() -> None:
    facts = {rank: {"gpus": "8 × H100" if rank.number else "8 × A100"} for rank in RANKS}
    assert check_alike(facts)[0].level == "warn"


def test_what_was_not_looked_at_is_not_compared() -> None:
    assert check_alike({RANKS[0]: {"versions": "a"}, RANKS[1]: {}})[0].level == "ok"
    assert check_alike({RANKS[0]: {"versions": "a"}}) == []
