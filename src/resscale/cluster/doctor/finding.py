"""What a check has found, and the same of many ranks in few lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["ok", "warn", "fail"]
LEVELS: tuple[Level, ...] = ("ok", "warn", "fail")


@dataclass(frozen=True)
class Finding:
    """One fact that was looked at.

    Args:
        name: of the check.
        level: "ok"; "warn" for what costs time or may go wrong later; "fail" for what ends a run.
        text: the values, and the rule that they keep or break.
        remedy: what to do; "" for ok alone.
    """

    name: str
    level: Level
    text: str
    remedy: str = ""

    def __post_init__(self) -> None:
        assert bool(self.remedy) == (self.level != "ok"), "each fault has its remedy"


@dataclass(frozen=True)
class Held:
    """A finding, and the ranks and hosts that it holds for."""

    finding: Finding
    ranks: tuple[int, ...]
    hosts: tuple[str, ...]


@dataclass(frozen=True)
class Rank:
    """A rank's number, and the host that it runs on."""

    number: int
    host: str


def of_error(name: str, error: Exception) -> Finding:
    """Return a fault that another part of resscale has refused, as a finding.

    Args:
        name: of the check.
        error: its message states the value, the rule and last the remedy.
    """
    text, remedy = split_remedy(str(error))
    return Finding(name, "fail", text, remedy)


def split_remedy(message: str) -> tuple[str, str]:
    """Return `(text, remedy)` of a message that ends with the remedy.

    Args:
        message: such as "num_workers=-1 must be 0 or more: leave it out."
    """
    sentence = re.search(r"\.\s+(?=[A-Z])", message)
    marks = list(re.finditer(r"[:;]\s+", message))
    mark = sentence or (marks[-1] if marks else None)
    if mark is None:
        return message.rstrip("."), "correct the value that is named"
    remedy = message[mark.end() :].rstrip(".")
    if remedy[1:2].islower():
        # It follows a semicolon now.
        remedy = remedy[0].lower() + remedy[1:]
    return message[: mark.start()], remedy


def worst(findings: Iterable[Finding]) -> Level:
    """Return the highest level of all; "ok" for none."""
    return max((finding.level for finding in findings), key=LEVELS.index, default="ok")


def merge(by_rank: Mapping[Rank, Sequence[Finding]]) -> list[Held]:
    """Return each distinct finding once, with the ranks that it holds for.

    Args:
        by_rank: what each rank has found, in the order of its checks.
    """
    holders: dict[Finding, list[Rank]] = {}
    for rank in sorted(by_rank, key=lambda rank: rank.number):
        for finding in dict.fromkeys(by_rank[rank]):
            holders.setdefault(finding, []).append(rank)
    # Findings of one check stand together; checks stand in the order that they first spoke in.
    names = list(dict.fromkeys(finding.name for finding in holders))
    return [
        Held(finding, tuple(r.number for r in ranks), tuple(dict.fromkeys(r.host for r in ranks)))
        for name in names
        for finding, ranks in holders.items()
        if finding.name == name
    ]


def render(held: Sequence[Held], world_size: int) -> list[str]:
    """Return a line for each finding; of what is well, one line per check.

    Args:
        held: the merged findings.
        world_size: ranks in all; what holds for all of them does not list them.
    """
    width = max((len(one.finding.name) for one in held), default=0)
    lines, told = [], set()
    for one in held:
        finding = one.finding
        if finding.level == "ok":
            if finding.name in told:
                continue
            told.add(finding.name)
            others = sum(o.finding.name == finding.name and o.finding.level == "ok" for o in held)
            where = f" [and the like elsewhere, {others} in all]" if others > 1 else ""
        else:
            where = _where(one, world_size)
        remedy = f"; {finding.remedy}" if finding.remedy else ""
        lines.append(f"{finding.level:<4}  {finding.name:<{width}}  {finding.text}{remedy}{where}")
    return lines


def as_json(held: Sequence[Held], world_size: int) -> dict[str, Any]:
    """Return everything as plain values.

    Args:
        held: the merged findings.
        world_size: ranks in all.
    """
    return {
        "level": worst(one.finding for one in held),
        "world_size": world_size,
        "findings": [
            {**asdict(one.finding), "ranks": list(one.ranks), "hosts": list(one.hosts)}
            for one in held
        ],
    }


def ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers in short: "0-3, 7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def short_list(words: Sequence[str], most: int = 4) -> str:
    """Return the first few words, and how many more there are."""
    more = len(words) - most
    return ", ".join(words[:most]) + (f" and {more} more" if more > 0 else "")


def in_units(count: int) -> str:
    """Return bytes for people: "1.5 GB", "12.0 kB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"


def _where(one: Held, world_size: int) -> str:
    if len(one.ranks) == world_size:
        return ""
    unit = "rank" if len(one.ranks) == 1 else "ranks"
    return f" [{unit} {ranges(one.ranks)} on {short_list(one.hosts)}]"
