"""What the entries of a manifest may be: it may come from anywhere, and be damaged or hostile.

Names become paths and addresses, and numbers become arrays, so each is looked at when it is read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from resscale.data.locations import is_url

if TYPE_CHECKING:
    from resscale.data.shard_table import ShardTable

MOST = 2**63 - 1
# Nearly all names are of this form; the others are looked at part by part.
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{,200}")
_ODD = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_BYTES = 240  # of a name; the index's is six bytes longer, and 255 is the most there is
_SHOWN = 60


class EntryError(ValueError):
    """An entry of a manifest is not what it must be; the message names it, value and rule."""


def wrong(entry: str, value: object, rule: str) -> EntryError:
    """Return the error of an entry.

    Args:
        entry: where it stands: `class_counts[3]`.
        value: what stands there.
        rule: what must.
    """
    text = ascii(value)
    text = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return EntryError(f"{entry} is {text}; it must be {rule}")


def check_row(number: int, row: dict[str, Any]) -> None:
    """Look at one shard's name, numbers and checksum.

    Args:
        number: its place in the list.
        row: the entry as it was read.

    Raises:
        EntryError: the first that is wrong.
    """
    name, samples, size, digest = row["name"], row["samples"], row["bytes"], row.get("sha256")
    if (
        type(name) is str
        and _PLAIN.fullmatch(name)
        and type(samples) is type(size) is int
        and 0 <= samples <= MOST
        and 0 <= size <= MOST
        and (not digest or (type(digest) is str and _SHA256.fullmatch(digest)))
    ):
        return  # a million of them, at 0.6 µs
    if type(name) is not str or not (_PLAIN.fullmatch(name) or _may_be_named(name)):
        rule = (
            "the name of a file in the folder, of 240 bytes at most and without '..' and "
            "control characters"
        )
        raise wrong(f"shards[{number}].name", name, rule)
    check_count(f"shards[{number}].samples ({name[:_SHOWN]})", samples)
    check_count(f"shards[{number}].bytes ({name[:_SHOWN]})", size)
    if digest and (type(digest) is not str or not _SHA256.fullmatch(digest)):
        rule = "64 hexadecimal digits in lower case, or empty"
        raise wrong(f"shards[{number}].sha256 ({name[:_SHOWN]})", digest, rule)


def check_count(entry: str, value: object) -> None:
    """Refuse what is no whole number from 0 to 2^63 - 1.

    Raises:
        EntryError: it is not.
    """
    if type(value) is not int or not 0 <= value <= MOST:
        raise wrong(entry, value, "a whole number from 0 to 2^63 - 1")


def check_names(names: Sequence[str]) -> None:
    """Refuse a name that occurs twice.

    Raises:
        EntryError: the first that does.
    """
    # Hashes of a million names take 8 MB, a set of them ten times as much.
    hashes = np.fromiter(map(hash, names), dtype=np.int64, count=len(names))
    hashes.sort()
    if (hashes[1:] == hashes[:-1]).any():
        for name, times in Counter(names).items():
            if times > 1:
                number = max(at for at, other in enumerate(names) if other == name)
                raise wrong(f"shards[{number}].name", name, "a name that no other shard has")


def check_facts(facts: dict[str, Any], table: ShardTable) -> None:
    """Look at what a manifest says beside its shards.

    Args:
        facts: the manifest as it was read.
        table: its shards.

    Raises:
        EntryError: the first that is wrong.
    """
    if type(facts["format_version"]) is not int:
        raise wrong("format_version", facts["format_version"], "a whole number")
    samples = _total("shards[...].samples, added up,", table.samples)
    _total("shards[...].bytes, added up,", table.bytes)
    if facts.get("num_samples", samples) != samples:
        rule = f"the sum over the shards, {samples}"
        raise wrong("num_samples", facts["num_samples"], rule)
    for what, kind, rule in (
        ("classes", list, "a list of texts"),
        ("class_counts", list, "a list of whole numbers"),
        ("source", dict, "an object"),
    ):
        if type(facts.get(what, kind())) is not kind:
            raise wrong(what, facts[what], rule)
    for number, name in enumerate(facts["classes"]):
        if type(name) is not str or _ODD.search(name):
            raise wrong(f"classes[{number}]", name, "a text without control characters")
    for number, count in enumerate(facts["class_counts"]):
        check_count(f"class_counts[{number}]", count)
    if sum(facts["class_counts"]) > samples:
        rule = f"at most the number of samples, {samples}"
        raise wrong("class_counts, added up,", sum(facts["class_counts"]), rule)
    root = facts.get("shards_root")
    if root is not None and (type(root) is not str or not root or _ODD.search(root)):
        raise wrong("shards_root", root, "a path, an address, or null")


def _total(entry: str, values: npt.NDArray[np.int64]) -> int:
    # In floats first: the sum of whole numbers would wrap around.
    is_small = float(values.sum(dtype=np.float64)) < MOST / 2
    total = int(values.sum()) if is_small else sum(values.tolist())
    check_count(entry, total)
    return total


def _may_be_named(name: str) -> bool:
    parts = name.split("/")
    # From the folder "." on, "~" would be a home and "pipe:" a command.
    return not (
        _ODD.search(name)
        or is_url(name)
        or name.startswith("~")
        or {"", ".", ".."} & set(parts)
        or any(len(part.encode()) > _MOST_BYTES for part in parts)
    )
