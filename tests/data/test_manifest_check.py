"""Broken and hostile manifests: one error that names the entry, whatever has become of it."""

import copy
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resscale.data.manifest import MANIFEST_NAME, Manifest
from resscale.errors import DataFormatError, UserInputError

VALID: dict[str, Any] = {
    "format_version": 1,
    "num_samples": 5,
    "classes": ["a", "b"],
    "class_counts": [4, 1],
    "source": {"command": "test"},
    "shards": [
        {"name": "t-0.tar", "samples": 3, "bytes": 100, "sha256": "0a" * 32},
        {"name": "t-1.tar", "samples": 2, "bytes": 100, "sha256": ""},
    ],
}
NAME, COUNT = "the name of a file in the folder", r"a whole number from 0 to 2\^63 - 1"
SHARD_1 = r"shards\[1\]"
NAN, HUGE = float("nan"), 2**62


def load(folder: Path, facts: object) -> Manifest:
    (folder / MANIFEST_NAME).write_text(json.dumps(facts))
    return Manifest.load(folder)


def changed(path: tuple[Any, ...], value: object) -> dict[str, Any]:
    facts = copy.deepcopy(VALID)
    at = facts
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return facts


def test_the_manifest_that_is_changed_below_is_valid(tmp_path: Path) -> None:
    assert load(tmp_path, VALID).num_samples == 5  # 3 + 2
    odd = load(tmp_path, changed(("shards", 1, "name"), "\u00e4 (1)/.t..1.tar"))
    assert odd.shards[1].index_name == "\u00e4 (1)/.t..1.index.npz"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("shards", 1, "name"), 7, rf"{SHARD_1}\.name is 7; it must be {NAME}"),
        (("shards", 1, "name"), None, NAME),
        (("shards", 1, "name"), ["t"], NAME),
        (("shards", 1, "name"), "", NAME),
        (("shards", 1, "name"), "/etc/passwd", rf"{SHARD_1}\.name is '/etc/passwd'; .* {NAME}"),
        (("shards", 1, "name"), "../t-1.tar", NAME),
        (("shards", 1, "name"), "a/../../t-1.tar", NAME),
        (("shards", 1, "name"), "..", NAME),
        (("shards", 1, "name"), "~root/t-1.tar", NAME),
        (("shards", 1, "name"), "pipe:touch x", NAME),
        (("shards", 1, "name"), "https://other/t-1.tar", NAME),
        (("shards", 1, "name"), "t\0.tar", r"name is 't\\x00\.tar'"),
        (("shards", 1, "name"), "t\n.tar", NAME),
        (("shards", 1, "name"), "\ud800", NAME),
        (("shards", 1, "name"), "x" * 5000, r"name is 'x{59}\.\.\.; it must be"),
        (("shards", 1, "name"), "t-0.tar", rf"{SHARD_1}\.name is 't-0.tar'.* no other shard has"),
        (("shards", 1, "samples"), -1, rf"{SHARD_1}\.samples \(t-1.tar\) is -1; .* {COUNT}"),
        (("shards", 1, "samples"), NAN, rf"{SHARD_1}\.samples \(t-1.tar\) is nan"),
        (("shards", 1, "samples"), 2.0, "is 2.0"),
        (("shards", 1, "samples"), "2", "is '2'"),
        (("shards", 1, "samples"), True, "is True"),
        (("shards", 1, "bytes"), -(2**70), rf"{SHARD_1}\.bytes"),
        (("shards", 1, "bytes"), 2**63, f"is {2**63}; it must be {COUNT}"),
        (("shards", 1, "bytes"), float("inf"), "is inf"),
        (("shards", 0, "sha256"), 5, r"shards\[0\]\.sha256 \(t-0.tar\) is 5"),
        (("shards", 0, "sha256"), "0A" * 32, "64 hexadecimal digits"),
        (("shards", 0, "sha256"), "0" * 10**6, "64 hexadecimal digits"),
        (("shards", 1), {"name": "t-1.tar"}, rf"{SHARD_1} is .*name, samples and bytes"),
        (("shards", 1), None, r"shards\[1\] is None"),
        (("shards", 1), [], rf"{SHARD_1} is \[\]"),
        (("shards",), {}, r"shards is \{\}; it must be a list"),
        (("shards",), None, "shards is None"),
        (("source", "more"), VALID["shards"][0], "shards lists 2 of the 3 shards"),
        (("num_samples",), 6, "num_samples is 6; it must be the sum over the shards, 5"),
        (("num_samples",), NAN, "num_samples is nan"),
        (("classes",), "ab", "classes is 'ab'; it must be a list of texts"),
        (("classes", 1), 3, r"classes\[1\] is 3; it must be a text"),
        (("classes", 1), "\ud800", r"classes\[1\] is '\\ud800'; it must be a text"),
        (("class_counts",), None, "class_counts is None"),
        (("class_counts", 0), -4, rf"class_counts\[0\] is -4; it must be {COUNT}"),
        (("class_counts", 1), NAN, r"class_counts\[1\] is nan"),
        (("class_counts", 1), 2, "added up, is 6; it must be at most the number of samples, 5"),
        (("source",), [], r"source is \[\]; it must be an object"),
        (("shards_root",), 5, "shards_root is 5"),
        (("shards_root",), "a\0b", "shards_root is"),
        (("format_version",), "1", "format_version is '1'"),
    ],
)
def test_what_cannot_be_is_named_with_its_value_and_the_rule(
    tmp_path: Path, path: tuple[Any, ...], value: object, said: str
) -> None:
    with pytest.raises(DataFormatError, match=said) as error:
        load(tmp_path, changed(path, value))
    text = str(error.value)
    assert text.startswith(f"{tmp_path}/{MANIFEST_NAME} is not a resscale manifest (")
    assert text.endswith(f"Make it anew: resscale index '{tmp_path}/*.tar'")
    assert len(text) < 500 + 2 * len(str(tmp_path))


def test_sums_that_are_no_int64_are_refused(tmp_path: Path) -> None:
    facts = copy.deepcopy(VALID)
    for row in facts["shards"]:
        row["bytes"] = HUGE  # 2 × 2^62 = 2^63
    with pytest.raises(DataFormatError, match=f"bytes, added up, is {2**63}"):
        load(tmp_path, facts)
    facts["shards"][0]["bytes"] = HUGE - 1
    assert load(tmp_path, facts).num_bytes == 2**63 - 1


def test_bytes_that_are_no_text_are_refused_where_they_stand(tmp_path: Path) -> None:
    text = json.dumps(VALID).replace("t-1.tar", "t-?.tar").encode().replace(b"?", b"\xff")
    (tmp_path / MANIFEST_NAME).write_bytes(text)
    with pytest.raises(DataFormatError, match=rf"{SHARD_1}\.name is 't-\\udcff\.tar'"):
        Manifest.load(tmp_path)


def test_a_text_that_is_nested_for_ever_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_text("[" * 200_000)
    with pytest.raises(DataFormatError, match="is not a resscale manifest"):
        Manifest.load(tmp_path)


PATHS: list[tuple[Any, ...]] = [
    *((name,) for name in (*VALID, "shards_root")),
    *(("shards", n, what) for n in (0, 1) for what in ("name", "samples", "bytes", "sha256")),
    *(("classes", 0), ("class_counts", 1), ("shards", 1), ("source", "command")),
]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["name"]), inner),
    max_leaves=5,
)


@given(st.sampled_from(PATHS), ANYTHING)
def test_whatever_stands_in_an_entry_is_used_or_told(path: tuple[Any, ...], value: object) -> None:
    text = json.dumps(changed(path, value))
    with suppress(UserInputError):  # anything else is a fault of ours
        manifest = Manifest.parse(lambda: text, "/nowhere/manifest.json")
        assert manifest.num_samples >= 0
        assert len(manifest.fingerprint) == 16
        manifest.check_labels(10)
        manifest.check_sizes()
