"""Findings of many ranks in few lines."""

import pytest

from resscale.cluster.doctor.finding import (
    Finding,
    Rank,
    as_json,
    in_units,
    merge,
    of_error,
    ranges,
    render,
    split_remedy,
    worst,
)
from resscale.errors import UserInputError

WELL = Finding("disk", "ok", "5 GB free")
FULL = Finding("disk", "fail", "0 GB free", "remove files")
SLOW = Finding("cpus", "warn", "1 CPU", "ask for more")
RANKS = [Rank(0, "n1"), Rank(1, "n1"), Rank(2, "n2"), Rank(3, "n2")]


def test_the_worst_level_counts() -> None:
    assert worst([]) == "ok"
    assert worst([WELL, SLOW]) == "warn"
    assert worst([WELL, FULL, SLOW]) == worst([SLOW, FULL, WELL]) == "fail"


def test_a_fault_without_a_remedy_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="remedy"):
        Finding("disk", "fail", "0 GB free")


def test_what_all_ranks_have_found_is_one_line_without_their_numbers() -> None:
    held = merge({rank: [FULL] for rank in RANKS})
    assert render(held, 4) == ["fail  disk  0 GB free; remove files"]


def test_what_some_ranks_have_found_names_them() -> None:
    held = merge({rank: [FULL if rank.host == "n2" else WELL] for rank in RANKS})
    assert render(held, 4) == [
        "ok    disk  5 GB free",
        "fail  disk  0 GB free; remove files [ranks 2-3 on n2]",
    ]


def test_one_rank_alone_is_named_in_the_singular() -> None:
    held = merge({rank: [SLOW] if rank.number == 1 else [] for rank in RANKS})
    assert render(held, 4) == ["warn  cpus  1 CPU; ask for more [rank 1 on n1]"]


def test_what_is_well_in_different_words_is_one_line() -> None:
    held = merge({rank: [Finding("disk", "ok", f"{rank.number} GB free")] for rank in RANKS})
    assert render(held, 4) == ["ok    disk  0 GB free [and the like elsewhere, 4 in all]"]


def test_findings_of_one_check_stand_together_in_the_order_of_the_checks() -> None:
    held = merge({RANKS[0]: [WELL, SLOW], RANKS[1]: [FULL, SLOW]})
    assert [one.finding for one in held] == [WELL, FULL, SLOW]


def test_json_has_every_finding_with_its_ranks_and_hosts() -> None:
    told = as_json(merge({rank: [FULL if rank.host == "n2" else WELL] for rank in RANKS}), 4)
    assert told["level"] == "fail"
    assert told["world_size"] == 4
    assert told["findings"][1] == {
        "name": "disk",
        "level": "fail",
        "text": "0 GB free",
        "remedy": "remove files",
        "ranks": [2, 3],
        "hosts": ["n2"],
    }


@pytest.mark.parametrize(
    ("message", "parts"),
    [
        ("a=1 must be 2: set it.", ("a=1 must be 2", "set it")),
        ("/a: 3 are wrong, b: leave it out.", ("/a: 3 are wrong, b", "leave it out")),
        ("a=1 is no b. Set --a 2.", ("a=1 is no b", "set --a 2")),
        ("a=1 is no b; choose 2.", ("a=1 is no b", "choose 2")),
        ("a is wrong.", ("a is wrong", "correct the value that is named")),
    ],
)
def test_the_remedy_is_what_a_message_ends_with(message: str, parts: tuple[str, str]) -> None:
    assert split_remedy(message) == parts


def test_a_refusal_becomes_a_fault() -> None:
    error = UserInputError("a=1 must be 2: set it.")
    assert of_error("data", error) == Finding("data", "fail", "a=1 must be 2", "set it")


def test_numbers_in_a_row_are_shortened() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert ranges([]) == ""


def test_bytes_have_a_unit_that_fits() -> None:
    assert (in_units(1_500_000_000), in_units(12_000_000)) == ("1.5 GB", "12.0 MB")
    assert in_units(4096) == "4.1 kB"
